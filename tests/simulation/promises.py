"""What discoro promises, held against what happened: a history goes in, what was broken comes out in words.

Only values: no mesh, no loop, no clock. `stage.py` writes the history; who did what is told by the coroutines themselves, and
by whoever ends them, never by discoro. Times are seconds of the stage's clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

PEER_TIMEOUT = 15.0  # of every process on the stage
FOUND_AGAIN = 6.0  # seconds that a way that is free again may stay unused: dials back off, and a greeting takes its time
NOTICED = 5.0  # seconds within which a loss, once it is one, is told to everybody who waits
LATE = 2 * 15.0 + 10.0  # seconds: a loss on both sides, and its news
ROUND = 6.0  # seconds for a few round trips at the longest latency, behind some megabytes that take as long as that


class Who(NamedTuple):
    """A coroutine: its process, which life of that process, and a number of its own."""

    process: int
    life: int
    number: int

    @property
    def home(self) -> Home:
        return Home(self.process, self.life)

    def __repr__(self) -> str:
        return f"{self.number}@{self.process}.{self.life}"


class Home(NamedTuple):
    """One life of a process."""

    process: int
    life: int

    def __repr__(self) -> str:
        return f"{self.process}.{self.life}"


class Tag(NamedTuple):
    """What every message carries; numbers rise in the order sent."""

    by: Who
    to: Who
    number: int

    def __repr__(self) -> str:
        return f"m{self.number}({self.by!r}->{self.to!r})"


class Began(NamedTuple):
    """A call that is to end; `tag` is what deliver carries."""

    at: float
    call: int
    by: Who
    verb: str
    to: Who
    timeout: float | None
    tag: Tag | None = None
    number: int = 0  # of the visitor that `run` is to create


class Done(NamedTuple):
    """`error`: the class of what it raised."""

    at: float
    call: int
    value: Any = None
    error: str = ""
    text: str = ""


class Sent(NamedTuple):
    """`epoch`: how many links from one process to the other had been lost before; None: one was lost meanwhile."""

    at: float
    tag: Tag
    epoch: int | None


class Refused(NamedTuple):
    at: float
    tag: Tag
    error: str
    text: str = ""


class Received(NamedTuple):
    """`lay`: nobody took it out of the mailbox, but it was there at the end."""

    at: float
    by: Who
    tag: Tag
    lay: bool = False


class Noticed(NamedTuple):
    at: float
    by: Who
    about: Who
    reason: str
    value: Any = None
    error: str = ""
    text: str = ""
    lay: bool = False


class Ended(NamedTuple):
    """A coroutine ended: "normal", "exception", "terminated"."""

    at: float
    who: Who
    how: str


class Condemned(NamedTuple):
    """Somebody begins to terminate it."""

    at: float
    who: Who


class Linked(NamedTuple):
    """One began to link with another: from now on the end of either may be that of the other."""

    at: float
    who: Who
    other: Who


class Died(NamedTuple):
    """A process begins to end: "closed", "killed", "unplugged"."""

    at: float
    home: Home
    how: str


class Lost(NamedTuple):
    """The link of one process to another ended, as that one sees it; `opened`: it had stood."""

    at: float
    home: Home
    other: Home
    opened: bool = True


class Parted(NamedTuple):
    """Nothing passed between two; a cut takes no time."""

    at: float
    until: float
    pair: frozenset[int]


class Omitted(NamedTuple):
    """Some of what passed between two was left out."""

    at: float
    until: float
    pair: frozenset[int]


class Frozen(NamedTuple):
    """The loop of a process stands still."""

    at: float
    until: float
    process: int


class Hindered(NamedTuple):
    """A process cannot be dialled."""

    at: float
    until: float
    process: int


class Visited(NamedTuple):
    """A coroutine of a client's computation began at a server; `ref`: its reference."""

    at: float
    home: Home
    client: Who
    number: int
    ref: str


class Left(NamedTuple):
    """It ended."""

    at: float
    home: Home
    client: Who
    number: int


class Counted(NamedTuple):
    """How many messages and operations a process said were lost."""

    at: float
    home: Home
    lost: int


class Lives(NamedTuple):
    """A coroutine that lives when all is healed and had time; `room`: in its mailbox, at that time."""

    at: float
    who: Who
    room: bool


class Leftover(NamedTuple):
    """A table that is not empty after all coroutines ended."""

    at: float
    home: Home
    table: str


class InQueue(NamedTuple):
    """An item that is in the queue of a process at the end."""

    at: float
    home: Home
    number: int


class Published(NamedTuple):
    """Somebody begins to send over a channel."""

    at: float
    by: Who
    channel: Home
    number: int


class Heard(NamedTuple):
    """A subscriber got it."""

    at: float
    by: Who
    channel: Home
    publisher: Who
    number: int


class Over(NamedTuple):
    """A subscriber was told that the channel ended."""

    at: float
    by: Who
    channel: Home


class Spoilt(NamedTuple):
    """A file under its name, and not with its content."""

    at: float
    home: Home
    name: str


class Exceeded(NamedTuple):
    """Something holds more than its limit allows."""

    at: float
    home: Home
    what: str


class Bug(NamedTuple):
    at: float
    text: str


Said = Began | Done | Sent | Refused | Received | Noticed
Faults = Died | Parted | Omitted | Frozen | Hindered
Goods = InQueue | Published | Heard | Over | Spoilt
Event = Said | Goods | Ended | Condemned | Linked | Lost | Faults | Visited | Left | Counted | Lives | Leftover | Exceeded | Bug


class History:
    """Everything that happened, in order, and the questions that the promises ask of it."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = list(events)
        self._kinds: dict[type[Any], list[Any]] = defaultdict(list)
        for each in self.events:
            self._kinds[type(each)].append(each)
        self.dones = {each.call: each for each in self.of(Done)}
        self.begans = {each.call: each for each in self.of(Began)}
        self.ended = {each.who: each for each in self.of(Ended)}
        self.died = {each.home: each for each in self.of(Died)}
        self.lives = {each.who: each for each in self.of(Lives)}
        self.received: dict[Tag, Received] = {each.tag: each for each in self.of(Received)}

    def of(self, kind: type[Any]) -> list[Any]:
        return self._kinds.get(kind, [])

    def condemned(self, who: Who, at: float) -> bool:
        """Whether somebody, the end of its process, or of one that it is linked with, may have begun to terminate it."""
        named = any(each.who == who and each.at <= at for each in self.of(Condemned))
        return named or self.linked(who, at) or self.dead(who.home, at)

    def linked(self, who: Who, at: float, seen: frozenset[Who] = frozenset()) -> bool:
        """Whether it is, or was to be, linked with another that is gone, and did not just return; `seen`: on the way to it."""
        links = [each for each in self.of(Linked) if who in (each.who, each.other) and each.at <= at]
        others = {each.other if each.who == who else each.who for each in links} - seen - {who}
        return any(self._fell(other, who.home, at, seen | {who}) for other in others)

    def _fell(self, who: Who, seen_by: Home, at: float, seen: frozenset[Who]) -> bool:
        """Whether one may have ended otherwise than by returning, as far as that process can know."""
        ended = self.ended.get(who)
        failed = ended is not None and ended.at <= at and ended.how != "normal"
        until = at if ended is None else min(at, ended.at)  # who returns although it was to be terminated was terminated
        named = any(each.who == who and each.at <= until for each in self.of(Condemned))
        lost = any({each.home, each.other} == {who.home, seen_by} and each.at <= at for each in self.of(Lost))
        return failed or named or lost or self.dead(who.home, at) or self.linked(who, until, seen)

    def dead(self, home: Home, at: float) -> bool:
        return home in self.died and self.died[home].at <= at

    def out_of_reach(self, a: int, b: int, since: float, until: float, met: bool = True) -> float:
        """How long at a time two processes could not reach each other; only spans that touch `since` to `until` count.

        Of two that have `met`, one that is frozen or cannot be dialled is out of reach only from a break on.
        """
        longest, begin, end, broke = 0.0, 0.0, -FOUND_AGAIN, not met
        for at, over, breaks in self._hindrances(a, b):
            if at > until:
                break
            if at > end + FOUND_AGAIN:
                begin, broke = at, not met
            begin = begin if broke or not breaks else max(begin, at)
            broke = broke or breaks
            end = max(end if at <= end + FOUND_AGAIN else over, min(over, until))
            if broke and since <= end + FOUND_AGAIN:
                longest = max(longest, min(end, until) - begin)
        return longest

    def _hindrances(self, a: int, b: int) -> list[tuple[float, float, bool]]:
        """(since, until, whether a connection breaks) of all that stands between two processes, in order.

        Who sees that a frame was left out ends the connection; of importance where the other is frozen, or about to be.
        """
        parted = [(each.at, each.until, True) for each in self.of(Parted) if each.pair == {a, b}]
        still = [(each.at, each.until, False) for each in (*self.of(Frozen), *self.of(Hindered)) if each.process in (a, b)]
        torn = [
            (moment, moment, True)
            for each in self.of(Omitted)
            if each.pair == {a, b}
            for moment in (each.at, *(since for since, _, _ in still if each.at <= since <= each.until))
        ]
        return sorted(parted + still + torn)

    def thawed(self, process: int, at: float) -> float:
        """When a process next does something, from that time on."""
        ices: list[Frozen] = sorted(self.of(Frozen))
        for ice in ices:
            if ice.process == process and ice.at <= at < ice.until:
                at = ice.until
        return at

    def gave_up(self, mine: Home, theirs: Home, since: float, until: float) -> bool:
        """Whether either side had just ended a link that on its side had not stood yet.

        "Just": its greeting may still have been under way, and of one that is frozen it is said when that goes on.
        """
        lost = [each for each in self.of(Lost) if {each.home, each.other} == {theirs, mine} and not each.opened]
        still = [each for each in self.of(Frozen) if each.process in (mine.process, theirs.process)]
        said = [max([each.at, *(ice.until for ice in still if ice.at <= each.at <= ice.until)]) for each in lost]
        return any(each.at <= until + ROUND and since - ROUND <= at for each, at in zip(lost, said, strict=True))

    def deliveries(self) -> Iterator[tuple[Began, Done]]:
        for began in self.of(Began):
            if began.verb == "deliver" and began.call in self.dones:
                yield began, self.dones[began.call]

    def trouble(self, began: float, ended: float) -> float:
        """Seconds of a span that partitions may account for."""
        faults = (*self.of(Parted), *self.of(Omitted), *self.of(Frozen), *self.of(Hindered))
        near = [each for each in faults if each.at < ended and each.until > began - PEER_TIMEOUT]
        return sum(min(each.until, ended) - each.at + FOUND_AGAIN + PEER_TIMEOUT for each in near)


def broken(history: History) -> list[str]:
    """Every promise that does not hold, in words."""
    return [f"{promise.__name__}: {text}" for promise in PROMISES for text in promise(history)]


# ------------------------------------------------------------------ messages


def order(history: History) -> Iterator[str]:
    """Messages from one coroutine to another arrive in the order sent."""
    latest: dict[tuple[Who, Who], Tag] = {}
    for each in history.of(Received):
        before = latest.get((each.tag.by, each.by))
        if before is not None and before.number > each.tag.number:
            yield f"{each.tag} came after {before}"
        latest[each.tag.by, each.by] = each.tag


def once(history: History) -> Iterator[str]:
    """A message arrives at most once."""
    for tag, times in Counter(each.tag for each in history.of(Received)).items():
        if times > 1:
            yield f"{tag} came {times} times"


def its_own(history: History) -> Iterator[str]:
    """It reaches the very coroutine that it was sent to, and nobody else."""
    for each in history.of(Received):
        if each.by != each.tag.to:
            yield f"{each.tag} reached {each.by}"


def refused_is_refused(history: History) -> Iterator[str]:
    """What `send` refused, and what `deliver` could deliver to nobody, does not arrive."""
    refused = [each.tag for each in history.of(Refused)]
    refused += [began.tag for began, done in history.deliveries() if done.error == "NoSuchCoro"]
    for tag in refused:
        if tag in history.received:
            yield f"{tag} was refused, and came"


def delivered_is_there(history: History) -> Iterator[str]:
    """`deliver` gives 1 when the message is in the mailbox, and nothing else."""
    for began, done in history.deliveries():
        if done.error:
            continue
        assert began.tag is not None
        if done.value != 1:
            yield f"deliver of {began.tag} gave {done.value!r}"
        died = history.died.get(began.tag.to.home)  # what it took out of its mailbox after that was not written down
        if began.tag not in history.received and (died is None or died.how == "closed"):
            yield f"{began.tag} was delivered, and is not in the mailbox"


def no_gap(history: History) -> Iterator[str]:
    """While a link lives, what came is the beginning of what was sent."""
    last: dict[tuple[Who, Who, int], Sent] = {}
    missing: dict[tuple[Who, Who, int], Sent] = {}
    for each in history.of(Sent):
        if each.epoch is None:
            continue
        key = each.tag.by, each.tag.to, each.epoch
        if each.tag not in history.received:
            missing.setdefault(key, each)
        else:
            last[key] = each
    for key, gap in missing.items():
        if key in last and last[key].tag.number > gap.tag.number:
            yield f"{gap.tag} never came, and {last[key].tag} did, over the same link"


def everything_comes(history: History) -> Iterator[str]:
    """Over links that live, to coroutines that live and have room, everything comes, whoever else is full or stuck."""
    looked = min((each.at for each in history.of(Lives)), default=0.0)  # later links end with the stage
    losses = Counter((each.home, each.other) for each in history.of(Lost) if each.at <= looked)
    for each in history.of(Sent):
        to, home = history.lives.get(each.tag.to), each.tag.by.home
        lives = to is not None and to.room and not history.dead(home, to.at)
        if lives and each.epoch == losses[home, each.tag.to.home] and each.tag not in history.received:
            yield f"{each.tag} never came"


def loss_is_counted(history: History) -> Iterator[str]:
    """What does not come to a coroutine that lives is counted by the process that sent it."""
    missing: dict[Home, list[Tag]] = defaultdict(list)
    for each in history.of(Sent):
        to = history.lives.get(each.tag.to)
        if to is not None and to.room and each.tag not in history.received:
            missing[each.tag.by.home].append(each.tag)
    for counted in history.of(Counted):
        lost = missing[counted.home]
        if len(lost) > counted.lost:
            yield f"process {counted.home} counts {counted.lost} lost, and these did not come: {lost}"


# ------------------------------------------------------------------ ends


def one_notice(history: History) -> Iterator[str]:
    """A monitor gets one notice: at least one after each call to monitor, and no more than calls, ends and losses explain."""
    calls: dict[tuple[Who, Who], list[Began]] = defaultdict(list)
    for began in history.of(Began):
        done = history.dones.get(began.call)
        # given up, or broken off with its process: a notice may have come
        if began.verb == "monitor" and (done is None or done.error in ("", "CancelledError")):
            calls[began.by, began.to].append(began)
    notices: dict[tuple[Who, Who], list[Noticed]] = defaultdict(list)
    for each in history.of(Noticed):
        notices[each.by, each.about].append(each)
    for key in {*calls, *notices}:
        yield from _notices_of(history, *key, calls[key], notices[key])


def _notices_of(history: History, by: Who, of: Who, calls: list[Began], notices: list[Noticed]) -> Iterator[str]:
    end = _end_of(history, of)
    lost = sum(each.home == by.home and each.other == of.home for each in history.of(Lost))
    over = end if end is not None else _condemned_at(history, of)  # one that never began says nothing of its end
    late = sum(over is not None and each.call in history.dones and history.dones[each.call].at >= over for each in calls)
    most = min(len(calls), 1 + lost + late)
    if len(notices) > most:
        yield f"{by} got {len(notices)} notices of {of}, at most {most} were due: {notices}"
    lives = history.lives.get(by)  # behind messages that find no room, a notice waits as they do
    if lives is not None and lives.room and end is not None and end < lives.at - PEER_TIMEOUT - NOTICED and calls:
        if not any(each.at >= calls[-1].at for each in notices):
            yield f"{by} monitors {of} since {calls[-1].at}, which ended at {end}, and got no notice: {notices}"


def _condemned_at(history: History, who: Who) -> float | None:
    return min((each.at for each in history.of(Condemned) if each.who == who), default=None)


def _end_of(history: History, who: Who) -> float | None:
    times = [each.at for each in (history.ended.get(who), history.died.get(who.home)) if each is not None]
    return min(times, default=None)


def linked_die_together(history: History) -> Iterator[str]:
    """Where one of two that are linked ended, but by returning, the other does not live on."""
    for began in history.of(Began):
        done = history.dones.get(began.call)
        if began.verb != "link" or done is None or done.error:
            continue
        for dead, other in ((began.by, began.to), (began.to, began.by)):
            ended, lives = history.ended.get(dead), history.lives.get(other)
            if ended is not None and ended.how != "normal" and lives is not None and ended.at < lives.at - LATE:
                yield f"{other} is linked with {dead} since {done.at}, which ended ({ended}), and lives"


def notice_comes_last(history: History) -> Iterator[str]:
    """The exit notice of a coroutine that ended comes after its messages."""
    noticed: set[tuple[Who, Who]] = set()
    for each in history.events:
        if isinstance(each, Noticed) and each.reason in ("normal", "exception", "terminated"):
            noticed.add((each.by, each.about))
        elif isinstance(each, Received) and (each.by, each.tag.by) in noticed:
            yield f"{each.tag} came after the exit notice of its sender"


def honest_notices(history: History) -> Iterator[str]:
    """The reason is what happened."""
    for each in history.of(Noticed):
        why = _dishonest(history, each)
        if why:
            yield f"{each}: {why}"


def _dishonest(history: History, notice: Noticed) -> str:
    ended = history.ended.get(notice.about)
    match notice.reason:
        case "normal" | "exception":
            if ended is None or ended.how != notice.reason or ended.at > notice.at:
                return f"it did not: {ended}"
            said = notice.value if notice.reason == "normal" else notice.text
            return "" if said == f"{notice.about!r}" else f"it gave {notice.about!r}"
        case "terminated":
            return "" if history.condemned(notice.about, notice.at) else "nobody terminated it"
        case "linked":
            return "" if history.linked(notice.about, notice.at) else "it is linked with nobody"
        case "peer lost":
            return _unlost(history, notice.by.home, notice.about.home, _since(history, notice), notice.at, notice.error)
    return "no such reason was due"


def _since(history: History, notice: Noticed) -> float:
    """When it was asked for, at the earliest."""
    asked = [each.at for each in history.of(Began) if (each.verb, each.by, each.to) == ("monitor", notice.by, notice.about)]
    return min(asked, default=notice.at)


def _unlost(history: History, mine: Home, theirs: Home, since: float, until: float, error: str) -> str:
    """Why a loss, in that span of time, is none."""
    if history.dead(theirs, until) or history.dead(mine, until):
        return ""
    never_met = error == "Unreachable" or history.gave_up(mine, theirs, since, until)
    apart = history.out_of_reach(mine.process, theirs.process, since, until, met=not never_met)
    if apart >= (1.0 if never_met else PEER_TIMEOUT - FOUND_AGAIN):
        return ""
    return f"it was in reach, but for {apart:g} s"


# ------------------------------------------------------------------ calls


def honest_answers(history: History) -> Iterator[str]:
    """A call gives what is documented, or an error that is true."""
    for call, done in history.dones.items():
        began = history.begans[call]
        why = _untrue(history, began, done) if done.error else _wrong(history, began, done)
        if why:
            yield f"{began} gave {done}: {why}"
    for each in history.of(Refused):
        send = Began(each.at, 0, each.tag.by, "send", each.tag.to, None)
        why = _untrue(history, send, Done(each.at, 0, None, each.error, each.text))
        if why:
            yield f"{each}: {why}"


def _wrong(history: History, began: Began, done: Done) -> str:
    ended = history.ended.get(began.to)
    match began.verb:
        case "result":
            return "" if ended is not None and ended.how == "normal" and done.value == f"{began.to!r}" else f"it ended: {ended}"
        case "alive" if done.value is False:
            error = "Unreachable"  # False stands for it too
            over = ended is not None or history.condemned(began.to, done.at)
            return "" if over else _unlost(history, began.by.home, began.to.home, began.at, done.at, error)
        case "ask":
            return "" if done.value == began.tag and began.tag in history.received else "it is no reply to that"
        case "alive":
            if ended is None:
                return ""
            known = history.thawed(began.to.home.process, ended.at)  # where it is frozen in its last step, its task ends later
            return "" if known >= began.at else "it had ended"
    return ""


def _untrue(history: History, began: Began, done: Done) -> str:
    ended = history.ended.get(began.to)
    match done.error:
        case "Timeout":
            late = began.timeout is None or done.at < began.at + began.timeout - 1e-6
            return "it was not over" if late else ""
        case "NoReply" if began.verb == "ask":
            return "" if ended is not None or history.condemned(began.to, done.at) else "it lives, and replies"
        case "NoSuchCoro":
            return "" if ended is not None or history.condemned(began.to, done.at) else "it lives"
        case "PeerLost" | "Unreachable":
            return _unlost(history, began.by.home, began.to.home, began.at, done.at, done.error)
        case "CoroEnded" if began.verb == "result":
            return "" if history.condemned(began.to, done.at) else "nobody terminated it"
        case "CancelledError":
            return "" if history.condemned(began.by, done.at) else "nobody terminated who asked"
        case "Failure" if began.verb == "result":
            raised = ended is not None and ended.how == "exception"
            return "" if raised and done.text == f"{began.to!r}" else f"it ended: {ended}"
        case "Overloaded" if began.verb == "send":
            return ""
    if began.verb in ("run", "close") and done.error == "NotSetUp":
        return ""  # whoever sets nothing up, or closed it, is told; a server that lost its client has closed it
    if done.error in SHARED_ERRORS.get(began.verb, ()):
        return ""
    if began.verb in ("put", "get") and done.error == "QueueClosed":
        return "" if history.dead(began.to.home, done.at) else "it was not closed"
    return "no such error was due"


# nodes may not be known; a name may be another's in that process
SHARED_ERRORS = {"locate": {"NoNodes"}, "register": {"NameTaken"}}


def nobody_waits_for_ever(history: History) -> Iterator[str]:
    """Every call ends: in its timeout; when what it waits for is lost; as soon as the answer is there."""
    over = history.events[-1].at if history.events else 0.0
    for began in history.of(Began):
        done = history.dones.get(began.call)
        died = history.died.get(began.by.home)
        if done is None and (died is None or died.how == "closed"):
            yield f"{began} never ended"
        if done is None:
            continue
        limit = _limit(history, began, over)
        if done.at > limit + 1e-6:
            yield f"{began} ended only at {done.at:g}, and not until {limit:g}: {done}"


def _limit(history: History, began: Began, over: float) -> float:
    """When a call has to have ended."""
    limits = [over]
    troubled = began.at + ROUND + history.trouble(began.at, over)
    if began.timeout is not None:  # of a put, and what was published, the other side has to say that it did not happen
        asks = began.verb in ("put", "publish")
        limits.append(max(troubled, _told(history, began, troubled)) + began.timeout if asks else began.at + began.timeout)
    if began.verb == "link":  # the other side monitors as well
        limits.append(max(troubled, _told(history, began, troubled)) + ROUND)
    elif began.verb in ("monitor", "terminate", "alive", "setup", "run", "close", "subscribe", "unsubscribe"):
        limits.append(max(troubled, _told(history, began, troubled)))
    elif _end_of(history, began.to) is not None:
        limits.append(_told(history, began, troubled))
    return history.thawed(began.by.process, min(limits))


def _told(history: History, began: Began, troubled: float) -> float:
    """When the end of what it waits for has to be known."""
    end = _end_of(history, began.to)
    if end is None:
        return troubled
    died = history.died.get(began.to.home)
    silent = PEER_TIMEOUT + NOTICED if died is not None and died.how == "unplugged" else 0.0
    ended_late = end + silent + NOTICED + history.trouble(end, end + PEER_TIMEOUT + NOTICED)
    return max(troubled, ended_late, began.at + silent + NOTICED)


def no_bug_and_no_leftover(history: History) -> Iterator[str]:
    """Nothing reached the loop's exception handler or the log as an error; nothing is kept of what is over."""
    for each in (*history.of(Bug), *history.of(Leftover)):
        yield f"{each}"


def within_limits(history: History) -> Iterator[str]:
    """Windows, and what waits at a sender for a full mailbox, hold what they may and no more."""
    for each in history.of(Exceeded):
        yield f"{each}"


# ------------------------------------------------------------------ computations


def runs_once(history: History) -> Iterator[str]:
    """A run creates one coroutine at most, at the server that was asked; the one whose reference it returned, if it did."""
    visits: dict[int, list[Visited]] = defaultdict(list)
    for each in history.of(Visited):
        visits[each.number].append(each)
    for began in (each for each in history.of(Began) if each.verb == "run"):
        done, there = history.dones.get(began.call), visits.pop(began.number, [])
        if len(there) > 1 or any(each.home != began.to.home for each in there):
            yield f"{began} created {there}"
        if done is not None and not done.error and [each.ref for each in there] != [done.value]:
            ended = history.dead(began.to.home, done.at + NOTICED) or _closed(history, began, done.at + NOTICED)
            if there or not ended:  # its first turn comes after the answer: by then its process may be gone, or it closed
                yield f"{began} gave {done.value}, and created {there}"
    if visits:
        yield f"nobody asked for {list(visits.values())}"


def _closed(history: History, run: Began, at: float) -> bool:
    """Whether somebody, or a loss, may have closed the computation there by then."""
    closes = [
        each for each in history.of(Began) if (each.verb, each.by, each.to) == ("close", run.by, run.to) and each.at <= at
    ]
    losses = [each for each in history.of(Lost) if {each.home, each.other} == {run.by.home, run.to.home} and each.at <= at]
    return bool(closes or losses) or history.dead(run.by.home, at)


def closed_is_closed(history: History) -> Iterator[str]:
    """After a close that succeeded nothing of the computation runs there; nor, a while later, of a client that is gone."""
    left = {each.number: each.at for each in history.of(Left)}
    over = max((each.at for each in history.events), default=0.0)
    for each in history.of(Visited):
        gone = left.get(each.number, over if each.home not in history.died else history.died[each.home].at)
        for began in history.of(Began):
            done = history.dones.get(began.call)
            if (began.verb, began.by, began.to.home) == ("close", each.client, each.home) and done is not None:
                if not done.error and began.at > each.at and gone > done.at:
                    yield f"{each} was closed by {began}, and left at {gone}"
        died = history.died.get(each.client.home)
        if died is not None:
            late = died.at + PEER_TIMEOUT + NOTICED + history.trouble(died.at, died.at + PEER_TIMEOUT + NOTICED)
            if gone > max(late, each.at + PEER_TIMEOUT + NOTICED):
                yield f"{each}: its client died at {died.at}, and it left at {gone}"


# ------------------------------------------------------------------ queues, channels, names, files


def queues_keep(history: History) -> Iterator[str]:
    """A queue hands out each item once, none that was refused, and none is lost but to a lost process."""
    puts = {each.number: each for each in history.of(Began) if each.verb == "put"}
    gets = [(each, history.dones.get(each.call)) for each in history.of(Began) if each.verb == "get"]
    got = Counter(done.value for _, done in gets if done is not None and not done.error)
    got.update(each.number for each in history.of(InQueue))
    for number, times in got.items():
        if times > 1 or number not in puts:
            yield f"item {number} of {puts.get(number)} came {times} times"
    missing: Counter[Home] = Counter()
    for number, put in puts.items():
        done = history.dones.get(put.call)
        if done is not None and done.error in ("Timeout", "QueueClosed") and number in got:
            yield f"item {number} was not put in, {done}, and came"
        if done is not None and not done.error and number not in got and put.to.home not in history.died:
            missing[put.to.home] += 1
    for home, count in missing.items():
        lost = {each.other for each in history.of(Lost) if each.home == home} | set(history.died)
        excused = sum(each.by.home in lost for each, _ in gets if each.to.home == home)
        if count > excused:
            yield f"{count} items of the queue of {home} are lost, {excused} may be"


def channels_agree(history: History) -> Iterator[str]:
    """Each subscriber hears everything once, in one order with all others, until the channel is over; who stays misses none."""
    heard: dict[tuple[Home, Who], list[int]] = defaultdict(list)
    over: Counter[tuple[Who, Home]] = Counter()
    subscribed: Counter[tuple[Who, Home]] = Counter()  # again, where the channel was only out of reach
    for each in history.events:
        if isinstance(each, Began) and each.verb == "subscribe":
            subscribed[each.by, each.to.home] += 1
        elif isinstance(each, Over):
            over[each.by, each.channel] += 1
        elif isinstance(each, Heard):
            if over[each.by, each.channel] >= max(1, subscribed[each.by, each.channel]):
                yield f"{each} came after the end of its channel"
            if each.number in heard[each.channel, each.by]:
                yield f"{each} came twice"
            heard[each.channel, each.by].append(each.number)
    for (channel, by), mine in heard.items():
        for (other, who), theirs in heard.items():
            both = set(mine) & set(theirs)
            if other == channel and by < who and [n for n in mine if n in both] != [n for n in theirs if n in both]:
                yield f"{by} and {who} heard the channel of {channel} in two orders: {mine}, {theirs}"
    yield from _unheard(history, heard)


def _unheard(history: History, heard: dict[tuple[Home, Who], list[int]]) -> Iterator[str]:
    left = {(each.by, each.to) for each in history.of(Began) if each.verb == "unsubscribe"}
    for began in (each for each in history.of(Began) if each.verb == "subscribe" and (each.by, each.to) not in left):
        done, lives = history.dones.get(began.call), history.lives.get(began.by)
        lost = any(
            {each.home, each.other} == {began.by.home, began.to.home} for each in history.of(Lost) if each.at < _over(history)
        )
        if done is None or done.error or lives is None or not lives.room or lost or began.to.home in history.died:
            continue
        for said in history.of(Began):
            ended = history.dones.get(said.call)
            if (said.verb, said.to) == ("publish", began.to) and said.at > done.at and ended is not None and not ended.error:
                if said.number not in heard[began.to.home, began.by]:
                    yield f"{began.by} subscribes since {done.at}, and never heard {said}"


def _over(history: History) -> float:
    """When it was looked who lives; later links end with the stage."""
    return min((each.at for each in history.of(Lives)), default=0.0)


def names_lead_somewhere(history: History) -> Iterator[str]:
    """Who is found under a name carries it, and has not ended long ago."""
    for began in (each for each in history.of(Began) if each.verb == "locate"):
        done = history.dones.get(began.call)
        if done is None or done.error:
            continue
        registers = [
            each for each in history.of(Began) if (each.verb, each.by, each.number) == ("register", done.value, began.number)
        ]
        if not any(each.at <= done.at for each in registers):
            yield f"{began} found {done.value}, which never had the name"
        end = _end_of(history, done.value)
        if end is not None and end + LATE + history.trouble(end, began.at) < began.at:
            yield f"{began} found {done.value}, which ended at {end}"


def files_are_whole(history: History) -> Iterator[str]:
    """Under the name of a file is its content, or nothing."""
    for each in history.of(Spoilt):
        yield f"{each}"


Promise = Callable[[History], Iterable[str]]
PROMISES: tuple[Promise, ...] = (
    *(order, once, its_own, refused_is_refused, delivered_is_there, no_gap, everything_comes, loss_is_counted),
    *(one_notice, linked_die_together, notice_comes_last, honest_notices, honest_answers),
    *(nobody_waits_for_ever, no_bug_and_no_leftover, within_limits, runs_once, closed_is_closed),
    *(queues_keep, channels_agree, names_lead_somewhere, files_are_whole),
)
