"""Coverage-guided fuzzing of every decoder: `python -m tests.fuzz`. It needs atheris, the extra `fuzz`.

pytest collects nothing here. `__main__` runs the targets in processes of their own and prints what they found; `target` is what
runs in each. The decoders, valid inputs and mutations are those of tests/test_decoders.py (tests/support: decoders,
conversations, asking, mutations).
"""
