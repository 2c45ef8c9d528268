"""copies.py: tables of single moves, then 64 nodes that want one blob: in rounds, at random, with nodes that fail and die."""

from __future__ import annotations

import random
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discoro.copies import MOST_FAILURES, MOST_OWN, Assignment, Copies

NODES = 64
ORIGIN = None
MOST_ROUNDS = 2 * log2(NODES)


def history(copies: Copies, moves: str) -> list[str]:
    """What each of the moves brings: `want 1, done 1` → `["1<origin", "2<1 3<origin"]`."""
    brought = []
    for move in moves.split(", "):
        name, node = move.split()
        assigned = getattr(copies, name)(int(node))
        brought.append(" ".join(f"{each.node}<{each.source or 'origin'}" for each in assigned))
    return brought


@pytest.mark.parametrize(
    ("moves", "brought"),
    [
        pytest.param("want 1", ["1<origin"], id="nobody has it but the origin"),
        pytest.param("want 1, want 2", ["1<origin", ""], id="the origin serves one at a time"),
        pytest.param("want 1, done 1, want 2", ["1<origin", "", "2<1"], id="a holder goes before the origin"),
        pytest.param("want 1, want 2, want 3, done 1", ["1<origin", "", "", "2<1 3<origin"], id="a free origin helps"),
        pytest.param("want 1, want 1, want 2, want 2, done 1", ["1<origin", "", "", "", "2<1"], id="asking twice"),
        pytest.param("done 1, want 2, want 3", ["", "2<1", "3<origin"], id="who has it already serves"),
        pytest.param("want 1, want 2, done 2", ["1<origin", "", ""], id="who got it elsewhere waits no more"),
        pytest.param("done 1, want 2, done 1, want 3", ["", "2<1", "", "3<origin"], id="one who says so again has one copy"),
        pytest.param("done 1, done 2, want 3, done 3, want 4", ["", "", "3<1", "", "4<2"], id="free longest serves next"),
        pytest.param("done 1, want 1, want 2", ["", "1<origin", ""], id="a holder that asks has it no more"),
        pytest.param("want 1, want 2, failed 1", ["1<origin", "", "2<origin"], id="who failed is behind the others"),
        pytest.param("want 1, failed 1", ["1<origin", "1<origin"], id="the origin is tried again"),
        pytest.param("done 1, want 2, failed 2", ["", "2<1", "2<origin"], id="a source that failed is not tried again"),
        pytest.param("done 1, want 2, failed 2, done 2, want 2", ["", "2<1", "2<origin", "", "2<1"], id="once it had it"),
        pytest.param("done 1, want 2, failed 2, lost 2, want 2", ["", "2<1", "2<origin", "", "2<1"], id="once it was lost"),
        pytest.param("done 1, want 2, lost 2, want 3", ["", "2<1", "", "3<1"], id="the source of one lost is free"),
        pytest.param("done 1, lost 1, want 2", ["", "", "2<origin"], id="one lost serves nobody"),
        pytest.param("want 1, want 2, lost 2, done 1", ["1<origin", "", "", ""], id="one lost waits no more"),
        pytest.param("done 1, want 2, lost 1, failed 2", ["", "2<1", "", "2<origin"], id="its source was lost"),
        pytest.param("failed 1, lost 2, done 3, failed 3, want 4", ["", "", "", "", "4<3"], id="no news of who pulls nothing"),
    ],
)
def test_moves(moves: str, brought: list[str]) -> None:
    assert history(Copies(), moves) == brought


def test_beyond_its_number_the_origin_serves_only_where_nobody_else_can() -> None:
    copies = Copies(most_own=1)
    assert history(copies, "want 1, want 2, done 1") == ["1<origin", "", "2<1"]
    assert history(copies, "want 3") == [""]  # 1 serves 2, and 2 will serve
    assert history(copies, "failed 2") == ["3<1"]  # 2 waits for 3, since 1 failed it
    assert copies.own == 1
    assert history(copies, "lost 1, failed 3") == ["", "2<origin"]
    assert history(copies, "done 2") == ["3<2"]
    assert copies.own == 2


def test_a_source_that_fails_several_in_a_row_is_dropped() -> None:
    copies = Copies()
    copies.done(100)
    for node in range(MOST_FAILURES):
        assert 100 in copies.holders
        copies.want(node)
        copies.failed(node)
    assert 100 not in copies.holders
    copies.done(100)
    assert 100 in copies.holders, "it has it again"


def test_a_source_that_serves_well_is_forgiven() -> None:
    copies = Copies()
    copies.done(100)
    for node in range(1, 10 * MOST_FAILURES, 2):
        assert copies.want(node) == [Assignment(node, 100)]
        copies.failed(node)
        copies.lost(node)
        assert copies.want(node + 1) == [Assignment(node + 1, 100)]
        copies.done(node + 1)
        copies.lost(node + 1)


def test_it_can_be_printed() -> None:
    copies = Copies()
    history(copies, "want 1, want 2, want 3, want 4, done 1")
    assert repr(copies) == "<Copies own copies 2 of 3, 1 holders, 2 pulling, 1 waiting>"


# Many nodes


class Sites:
    """Nodes that do what they are told; holds every answer of the planner against what it may say."""

    def __init__(self) -> None:
        self.copies = Copies()
        self.waiting: list[int] = []  # first come first
        self.pulling: dict[int, int | None] = {}
        self.holders: set[int] = set()
        self.in_vain: set[tuple[int, int | None]] = set()

    def want(self, node: int) -> None:
        if node not in self.waiting:
            self.waiting.append(node)
        self._told(self.copies.want(node))

    def done(self, node: int) -> None:
        del self.pulling[node]
        self.holders.add(node)
        self._told(self.copies.done(node))

    def failed(self, node: int) -> None:
        source = self.pulling.pop(node)
        if source is not ORIGIN:
            self.in_vain.add((node, source))
        self.waiting.append(node)
        self._told(self.copies.failed(node))

    def lost(self, node: int) -> None:
        """It is gone, and whoever pulled from it finds out."""
        self.waiting = [each for each in self.waiting if each != node]
        self.pulling.pop(node, None)
        self.holders.discard(node)
        self._told(self.copies.lost(node))
        for puller in [each for each, source in self.pulling.items() if source == node]:
            self.failed(puller)

    def _told(self, assigned: list[Assignment]) -> None:
        for node, source in assigned:
            assert node in self.waiting, "only who waits is assigned, once"
            assert source is ORIGIN or source in self.holders, "a source has the blob"
            assert (node, source) not in self.in_vain, "no source is tried twice"
            self.waiting.remove(node)
            self.pulling[node] = source
        sources = list(self.pulling.values())
        assert len(sources) == len(set(sources)), "a source serves one at a time"
        assert self.pulling or not self.waiting, "somebody waits, and nothing is under way"
        assert self.copies.holders <= self.holders
        counts = f"{len(self.copies.holders)} holders, {len(self.pulling)} pulling, {len(self.waiting)} waiting"
        assert counts in repr(self.copies)


def rounds_until_served(sites: Sites) -> int:
    """Everybody pulls at the same pace: the rounds until nobody waits."""
    rounds = 0
    while sites.pulling:
        rounds += 1
        for node in list(sites.pulling):
            sites.done(node)
    return rounds


def test_64_nodes_at_once_take_few_rounds_and_few_copies_of_the_origin() -> None:
    sites = Sites()
    for node in range(NODES):
        sites.want(node)
    assert rounds_until_served(sites) <= MOST_ROUNDS
    assert sites.copies.holders == set(range(NODES))
    assert sites.copies.own <= MOST_OWN


def test_nodes_that_come_late_cost_the_origin_nothing() -> None:
    sites = Sites()
    for node in range(NODES):
        sites.want(node)
    rounds_until_served(sites)
    own = sites.copies.own
    for node in range(NODES, 2 * NODES):
        sites.want(node)
    assert rounds_until_served(sites) == 1
    assert sites.copies.own == own


def test_first_come_first_served() -> None:
    sites = Sites()
    order = random.Random(1).sample(range(NODES), NODES)
    for node in order:
        sites.want(node)
    served = list(sites.pulling)
    while sites.pulling:
        before = set(sites.pulling)
        sites.done(next(iter(sites.pulling)))
        served += [node for node in sites.pulling if node not in before]
    assert served == order


def test_a_node_that_always_fails_keeps_nobody_from_the_origin() -> None:
    sites = Sites()
    broken = -1
    for node in (broken, *range(NODES)):
        sites.want(node)
    for _ in range(10 * NODES):
        for node in list(sites.pulling):
            (sites.failed if node == broken else sites.done)(node)
    assert sites.copies.holders == set(range(NODES))


@given(st.randoms(use_true_random=False), st.integers(1, NODES))
def test_whatever_the_durations_the_origin_hands_out_few(chance: random.Random, nodes: int) -> None:
    """Nodes come while others pull, and pulls end in any order."""
    sites = Sites()
    to_come = list(range(nodes))
    while to_come or sites.pulling:
        if to_come and (not sites.pulling or chance.random() < 0.5):
            sites.want(to_come.pop())
        else:
            sites.done(chance.choice(list(sites.pulling)))
    assert sites.copies.holders == set(range(nodes))
    assert sites.copies.own <= MOST_OWN


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.floats(0, 0.5), st.floats(0, 0.5))
def test_whatever_fails_and_dies_all_others_are_served(chance: random.Random, failing: float, dying: float) -> None:
    sites = Sites()
    to_come = list(range(NODES))
    alive = set(to_come)
    while to_come or sites.pulling:
        if to_come and (not sites.pulling or chance.random() < 0.5):
            sites.want(to_come.pop())
        else:
            (sites.failed if chance.random() < failing else sites.done)(chance.choice(list(sites.pulling)))
        met = sorted(alive.difference(to_come))
        if met and chance.random() < dying:
            victim = chance.choice(met)
            alive.discard(victim)
            sites.lost(victim)
    assert sites.copies.holders <= sites.holders == alive


@given(st.lists(st.tuples(st.sampled_from(["want", "done", "failed", "lost"]), st.integers(0, 8)), max_size=200))
def test_any_moves_in_any_order_leave_everybody_in_one_place(moves: list[tuple[str, int]]) -> None:
    """What a confused peer says breaks nothing: one source one node, and who waits is served in the end."""
    copies = Copies()
    pulling: dict[int, int | None] = {}
    for move, node in moves:
        assigned = getattr(copies, move)(node)
        if move != "want":
            pulling.pop(node, None)
        for each in assigned:
            assert each.node not in pulling and each.source not in pulling.values()
            pulling[each.node] = each.source
        assert not pulling.keys() & copies.holders
        assert pulling or repr(copies).endswith("0 waiting>")
