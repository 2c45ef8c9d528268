"""One blob for many: who pulls it from whom.

`Copies` stands where a blob was first, usually at a client, and answers the nodes that ask for it: each with a source, as soon
as one is free. Whoever has the blob serves it to the next, so that the number of holders doubles and the origin's own link
carries the blob a bounded number of times. No link, blob or clock here: what happened comes in, `Assignment`s go out, and the
process at the origin tells the nodes.

How its parts play together. A node is *waiting* (in the order of asking), *pulling* from one source, or a *holder*. Each call
moves one node, and then gives the free sources to those who wait longest. One source serves one node at a time, so a source
is free unless somebody pulls from it.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_OWN = 3  # copies that the origin hands out: the doubling is under way after two, the third is for one that came to nothing
MOST_FAILURES = 2  # in a row, of different nodes: one may be the fault of who pulled, the second is the source's


class Assignment(NamedTuple):
    """`node` is to pull the blob from `source`; None for the origin itself."""

    node: int
    source: int | None


class Copies:
    """Who pulls one blob from whom; nodes go by their births.

    Every call returns the assignments that it made possible. Whoever waits is assigned in the end, as long as each assigned
    node is reported once as `done`, `failed` or `lost`.
    """

    def __init__(self, most_own: int = MOST_OWN) -> None:
        self._most_own = most_own
        self._own = 0
        self._waiting: dict[int, None] = {}  # in the order of asking
        self._pulling: dict[int, int | None] = {}  # node: its source
        self._holders: dict[int, int] = {}  # node: its failures in a row; free longest comes first
        self._in_vain: dict[int, set[int]] = {}  # node: the sources that failed it

    def __repr__(self) -> str:
        own = f"own copies {self._own} of {self._most_own}"
        return f"<Copies {own}, {len(self._holders)} holders, {len(self._pulling)} pulling, {len(self._waiting)} waiting>"

    @property
    def own(self) -> int:
        """Copies that the origin handed out, those that came to nothing included."""
        return self._own

    @property
    def holders(self) -> frozenset[int]:
        """The nodes that have the blob and serve it."""
        return frozenset(self._holders)

    # ---------------------------------------------------------------- what happens

    def want(self, node: int) -> list[Assignment]:
        """The node asks for the blob. Asking again changes nothing; a holder that asks has it no more."""
        self._holders.pop(node, None)
        if node not in self._pulling:
            self._waiting.setdefault(node)
        return self._assign()

    def done(self, node: int) -> list[Assignment]:
        """The node has the blob, wherever from: it is a source now, and its own source is free again."""
        source = self._release(node)
        if source in self._holders:
            self._holders[source] = 0
        self._in_vain.pop(node, None)
        self._holders.setdefault(node, 0)
        return self._assign()

    def failed(self, node: int) -> list[Assignment]:
        """The node's pull came to nothing: it waits again, behind the others, for another source.

        Behind them, so that a node whose pulls always fail keeps nobody from a source. Of a node that pulls nothing, no news.
        """
        if node in self._pulling:
            source = self._release(node)
            self._waiting[node] = None
            if source is not None:
                self._in_vain.setdefault(node, set()).add(source)
                self._blame(source)
        return self._assign()

    def lost(self, node: int) -> list[Assignment]:
        """The node is gone: it wants nothing and serves nobody. Those that pull from it say so themselves, by `failed`."""
        self._release(node)
        self._holders.pop(node, None)
        self._in_vain.pop(node, None)
        return self._assign()

    # ---------------------------------------------------------------- parts

    def _release(self, node: int) -> int | None:
        """The node neither waits nor pulls any more. Its source, which now is the last among the free."""
        self._waiting.pop(node, None)
        source = self._pulling.pop(node, None)
        if source in self._holders:
            self._holders[source] = self._holders.pop(source)
        return source

    def _blame(self, source: int) -> None:
        if source in self._holders:
            self._holders[source] += 1
            if self._holders[source] == MOST_FAILURES:
                del self._holders[source]

    def _assign(self) -> list[Assignment]:
        """Sources for those who wait longest; a holder rather than the origin."""
        assigned = []
        serving = set(self._pulling.values())
        free = [holder for holder in self._holders if holder not in serving]
        for node in list(self._waiting):
            if not free and None in serving:
                break
            source = next((holder for holder in free if not self._failed_it(node, holder)), None)
            if source is not None:
                free.remove(source)
            elif None not in serving and self._origin_may_serve(node):
                self._own += 1
            else:
                continue
            del self._waiting[node]
            self._pulling[node] = source
            serving.add(source)
            assigned.append(Assignment(node, source))
        return assigned

    def _origin_may_serve(self, node: int) -> bool:
        """Up to the bound; beyond it only where no other source is left to this node, and none will be."""
        if self._own < self._most_own:
            return True
        return not self._pulling and all(self._failed_it(node, holder) for holder in self._holders)

    def _failed_it(self, node: int, source: int) -> bool:
        return source in self._in_vain.get(node, ())
