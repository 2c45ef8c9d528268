"""A package of one's own, as a program beside it imports it."""
