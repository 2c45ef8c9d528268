"""Two links held against a simple model, in any order of what their processes do and of what befalls the network.

The model knows, for each link: what was sent on it, what of that came, in order, what is acknowledged for certain, and
whether something happened that may end it. After every step both are compared. Drawn by hypothesis, which prints the steps of
a failure, made as few as possible. PROPERTY_EXAMPLES=N in the environment tries that many, at random; without it the same are
tried each time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from discoro import link as rules
from discoro import messages
from discoro.link import Link, State
from discoro.messages import Message
from discoro.outbox import WINDOW_BYTES, WINDOW_FRAMES
from tests.support.link_pair import CONNECT_TIMEOUT, HEARTBEAT_TIMEOUT, Network, Process, greeting

MORE = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
EXAMPLES = MORE or 150
FIRST_BIRTH = {"low": 10, "high": 20}
HALF = messages.PIECE_SIZE // 2  # bytes: few of them share a frame
PIECES = 2 * messages.PIECE_SIZE + 1  # bytes: three pieces
MANY = WINDOW_FRAMES + 50  # messages: with as many turns, more frames than the window takes
CONNECT, PEER = 5.0, 15.0  # seconds: connect_timeout and peer_timeout, the defaults
# Seconds of peace after which a way that is free was found: the longest pause between dials, one that fails, a greeting that
# nobody answers, another pause, and the slowest frames on the way.
FOUND_AGAIN = 2 * rules.REDIAL_MOST + CONNECT_TIMEOUT + rules.GREETING_TIMEOUT + 4.0
# Seconds of a cut after which no link stands: both ends learn of it, one over a dial that was under way, and give up.
GIVEN_UP = 2 * HEARTBEAT_TIMEOUT + rules.GREETING_TIMEOUT + PEER + 1.0
PEACE = 60.0  # seconds in which whatever is under way comes to its end

CUTS = ("both ways", "low to high", "high to low")

low_or_high = st.sampled_from(["low", "high"])


@dataclass(eq=False)
class Story:
    """What the model knows of one link: of one side of a conversation."""

    link: Link
    owner: Process
    began: float
    sent: Counter[int] = field(default_factory=Counter)  # by lane
    came: Counter[int] = field(default_factory=Counter)
    over: Link | None = None  # the link that it comes over, at the other side
    acknowledged: int = 0  # at least
    ended_by: tuple[State, str] | None = None  # what its owner did
    may_end: bool = False

    @property
    def missing(self) -> int:
        return self.sent.total() - self.came.total()


class TwoLinks(RuleBasedStateMachine):
    """The rules are what happens; `compare` is what must hold after each."""

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.network = Network(seed)
        self.births = dict(FIRST_BIRTH)
        self.sides = {name: self.process(name) for name in self.births}
        self.stories: dict[int, Story] = {}  # by session
        self.read: Counter[Link] = Counter()  # how much of what arrived over a link was looked at
        self.faults: dict[str, ExitStack] = {}
        self.cut_since: float | None = None
        self.trouble: float | None = None  # since when the two may be out of reach of each other
        self.peace: float | None = None  # since when they are not any more

    def process(self, name: str) -> Process:
        return Process(self.network, greeting(name, self.births[name]), CONNECT, PEER)

    def other(self, name: str) -> Process:
        return self.sides["high" if name == "low" else "low"]

    # -------------------------------------------------------------- what processes do

    @rule(name=low_or_high, lane=st.integers(0, 2), size=st.sampled_from([5, 5, HALF, PIECES]))
    def sends(self, name: str, lane: int, size: int) -> None:
        self.post(name, lane, size)

    @rule(name=low_or_high, count=st.sampled_from([5, MANY]))
    def sends_many_in_turns_of_their_own(self, name: str, count: int) -> None:
        for _ in range(count):
            self.post(name, 0, 5)

    @rule()
    def both_dial_at_once(self) -> None:
        for name in self.sides:
            self.post(name, 0, 5)

    @rule(name=low_or_high)
    def closes(self, name: str) -> None:
        self.ends(name, State.CLOSED)

    @rule(name=low_or_high)
    def loses(self, name: str) -> None:
        self.ends(name, State.LOST)

    @rule(name=low_or_high, birth=st.integers(1, 1000))
    def is_restarted_under_another_birth(self, name: str, birth: int) -> None:
        if birth in self.births.values():
            birth += 1000
        self.look()
        self.sides[name].crash()
        for story in self.stories.values():
            story.may_end = True
        cuts = [fault for fault in self.faults if fault in CUTS]
        for fault in cuts:  # they are of the process that is gone
            self.heal(fault)
        self.births[name] = birth
        self.sides[name] = self.process(name)
        for fault in cuts:
            self.nothing_passes(fault)

    def post(self, name: str, lane: int, size: int) -> None:
        story = self.story(name)
        if story.link.ended:
            return
        story.sent[lane] += 1
        body = b"%d %d " % (story.link.session, story.sent[lane]) + bytes(size)
        story.owner.post(story.link, Message(lane, (body,)), lane)

    def ends(self, name: str, state: State) -> None:
        story = self.story(name)
        if story.link.ended:
            return
        story.ended_by, story.may_end = (state, f"{name} wants it"), True
        end = story.owner.close if state is State.CLOSED else story.owner.lose
        end(story.link, f"{name} wants it")

    def story(self, name: str) -> Story:
        """Of the link that this side has with the other now; it dials where it has none."""
        owner = self.sides[name]
        link = owner.link(self.other(name))
        self.look()
        return self.stories[link.session]

    # -------------------------------------------------------------- what befalls them

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.3, 2.0, 4.0, 12.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.network.run(seconds)

    @rule()
    def connections_break(self) -> None:
        self.troubled()
        self.network.drop(self.sides["low"], self.sides["high"])

    @rule(which=st.sampled_from(CUTS))
    def nothing_passes(self, which: str) -> None:
        low, high = self.sides["low"], self.sides["high"]
        both, from_low, from_high = CUTS
        fault: dict[str, Callable[[], AbstractContextManager[None]]] = {
            both: lambda: self.network.partition(low, high),
            from_low: lambda: self.network.one_way_cut(low, high),
            from_high: lambda: self.network.one_way_cut(high, low),
        }
        if self.cut_since is None:
            self.cut_since = self.network.now
        self.enter(which, fault[which])

    @rule(name=low_or_high)
    def a_firewall_keeps_dials_from(self, name: str) -> None:
        self.enter(f"no dials to {name}", lambda: self.network.silent(f"{name}:1"))

    @rule(name=low_or_high)
    def refuses(self, name: str) -> None:
        """As the address of a process that is gone does: this may end a link at once."""
        for story in self.stories.values():
            story.may_end = True
        self.enter(f"{name} refuses", lambda: self.network.refused(f"{name}:1"))

    @rule(seconds=st.sampled_from([0.01, 0.3, 4.0]))
    def frames_are_late(self, seconds: float) -> None:
        self.enter("late", lambda: self.network.delay(seconds))

    @rule(seconds=st.sampled_from([0.05, 1.0]))
    def connections_overtake_each_other(self, seconds: float) -> None:
        self.enter("slow connections", lambda: self.network.reorder(seconds))

    @rule()
    def frames_come_twice(self) -> None:
        self.enter("twice", lambda: self.network.duplicate(0.5))

    def enter(self, name: str, fault: Callable[[], AbstractContextManager[None]]) -> None:
        if name not in self.faults:
            self.troubled()
            self.faults[name] = ExitStack()
            self.faults[name].enter_context(fault())

    @precondition(lambda self: self.faults)
    @rule(data=st.data())
    def a_fault_heals(self, data: st.DataObject) -> None:
        self.heal(data.draw(st.sampled_from(sorted(self.faults))))

    def heal(self, name: str) -> None:
        self.faults.pop(name).close()
        self.troubled()  # which had not been over before now
        if not self.faults.keys() & set(CUTS):
            self.cut_since = None

    def troubled(self) -> None:
        now = self.network.now
        if self.trouble is None or (self.peace is not None and now > self.peace + FOUND_AGAIN and not self.faults):
            self.trouble = now
        self.peace = now

    @rule()
    def peace_comes(self) -> None:
        """Whatever lives is open on both sides, knows the other side by its number, and has brought everything."""
        for name in sorted(self.faults):
            self.heal(name)
        self.network.run(PEACE)
        self.look()
        alive = [link for process in self.sides.values() for link in process.links.values()]
        assert [link.state for link in alive] in ([], [State.OPEN] * 2), alive
        assert not alive or (alive[0].session, alive[0].peer_session) == (alive[1].peer_session, alive[1].session), alive
        for link in alive:
            story = self.stories[link.session]
            assert story.came == story.sent, f"{link} brought {story.came} of {story.sent}"
            assert link.outbox.unacknowledged == 0 and link.outbox.is_empty(), f"{link} counts what came"
            story.acknowledged = story.sent.total()
            story.may_end = False
        self.trouble = self.peace = None

    # -------------------------------------------------------------- what must hold

    @invariant()
    def compare(self) -> None:
        self.look()
        for story in self.stories.values():
            if story.owner.alive:
                self.compare_counts(story)
                self.compare_state(story)

    def look(self) -> None:
        """Take up new links, and hold what came against what was sent: each lane from its beginning, in order, once."""
        for process in self.network.processes:
            for link in process.arrived:
                if link.session not in self.stories:
                    self.stories[link.session] = Story(link, process, self.network.now, may_end="refus" in str(self.faults))
        for process in self.network.processes:
            for link, operations in process.arrived.items():
                for operation in operations[self.read[link] :]:
                    assert isinstance(operation, Message)
                    self.arrived(link, operation)
                self.read[link] = len(operations)

    def arrived(self, link: Link, operation: Message) -> None:
        session, number = map(int, bytes(operation.body[0][:40]).split(b" ")[:2])
        story, lane = self.stories[session], operation.coro
        assert link.birth == story.owner.me.birth, f"{link} brought what {story.owner} sent"
        assert story.over in (None, link), f"{story.link} came over {story.over} and {link}"
        assert number == story.came[lane] + 1, f"{story.link}: lane {lane} has {number} after {story.came[lane]}"
        assert number <= story.sent[lane], f"{story.link}: lane {lane} has {number} of {story.sent[lane]}"
        story.over = link
        story.came[lane] = number

    def compare_counts(self, story: Story) -> None:
        """What did not come is counted; what was acknowledged is not; and no more is kept than the window takes."""
        outbox, sent = story.link.outbox, story.sent.total()
        assert story.missing <= outbox.unacknowledged <= sent - story.acknowledged, (story, outbox)
        assert len(outbox._sent) <= WINDOW_FRAMES and outbox._sent_bytes <= WINDOW_BYTES, outbox

    def compare_state(self, story: Story) -> None:
        link = story.link
        if story.ended_by is not None:
            assert (link.state, link.lost_because) == story.ended_by, link
        elif link.ended:
            assert link.lost_because and "protocol" not in link.lost_because, f"{link}: {link.lost_because}"
            assert self.explained(story), f"{link} ended without a cause: {link.lost_because}"
            story.may_end = True
        elif self.cut_since is not None and story.began <= self.cut_since:
            assert self.network.now < self.cut_since + GIVEN_UP, f"{link} outlives a cut of {GIVEN_UP:g} s"

    def explained(self, story: Story) -> bool:
        """Whether something happened that may end the link: somebody wanted it, or the two were too long out of reach."""
        link, now = story.link, self.network.now
        there = self.stories.get(link.peer_session)
        if story.may_end or (there is not None and (there.link.ended or not there.owner.alive)):
            return True
        if link.birth not in self.births.values():
            return True  # that process is no more
        return self.trouble is not None and now - max(self.trouble, story.began) >= (PEER if link.opened else CONNECT)


def test_two_links_do_what_the_model_does() -> None:
    plan = settings(
        max_examples=EXAMPLES,
        stateful_step_count=40,
        derandomize=not MORE,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(TwoLinks, settings=plan)
