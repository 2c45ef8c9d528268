"""Many coroutines of one computation in one go: their arguments in portions, their outcomes together.

`Computation.gather` sends portions; server.py runs what is in one, and packs how each coroutine ended: as one list of values
and, beside it, whatever does not fit into that: errors, and all of them where one value cannot travel with the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from discoro import payload
from discoro.errors import DiscoroError, ProtocolError
from discoro.messages import Part, body_size
from discoro.outcomes import NORMAL, Outcome

PORTION = 256  # coroutines of one request: past it, sharing a request gains nothing measurable
TEXT = 200  # characters of why one ended; its error says all of it


def portions(arguments: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """The arguments of so many coroutines as one request takes. TypeError for what is no tuple."""
    portion: list[tuple[Any, ...]] = []
    for each in arguments:
        if not isinstance(each, tuple):
            raise TypeError(f"gather takes a tuple of arguments for each coroutine, as in [(1,), (2,)]; this is {each!r:.80}")
        portion.append(each)
        if len(portion) == PORTION:
            yield portion
            portion = []
    if portion:
        yield portion


def calls(body: Sequence[Part], namespace: payload.Namespace) -> list[tuple[Any, ...]]:
    """The arguments in a request. ProtocolError for what is no portion, UnpackError."""
    found = payload.unpack(body, namespace)
    if not isinstance(found, list) or not 0 < len(found) <= PORTION or not all(isinstance(each, tuple) for each in found):
        raise ProtocolError(f"gather without a list of 1 to {PORTION} tuples of arguments")
    return found


def packed(outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Part]]:
    """Value and body of the answer: [parts of the list of values, [[index, parts, reason, text], …]], and all these parts.

    What stands in the second list has None in the first.
    """
    apart = [index for index, outcome in enumerate(outcomes) if outcome.reason != NORMAL]
    try:
        together = payload.pack([outcome.value if outcome.reason == NORMAL else None for outcome in outcomes])
        body_size(together)
    except DiscoroError:  # of one, which is told by itself
        together, apart = payload.pack([None] * len(outcomes)), list(range(len(outcomes)))
    body, rows = list(together), []
    for index in apart:
        parts, reason, text = outcomes[index].packed()
        rows.append([index, len(parts), reason, text[:TEXT]])
        body += parts
    return [len(together), rows], body


def unpacked(value: Any, body: Sequence[Part], count: int, namespace: payload.Namespace | None, where: str) -> list[Outcome]:
    """How each of so many coroutines ended. ProtocolError for what is no such answer, UnpackError."""
    match value:
        case [int(together), list(rows)] if 0 < together <= len(body) and len(rows) <= count:
            values = payload.unpack(body[:together], namespace)
        case _:
            raise ProtocolError("an answer to gather that is none")
    if not isinstance(values, list) or len(values) != count:
        raise ProtocolError(f"an answer to gather without {count} values")
    outcomes, at = [Outcome(NORMAL, each) for each in values], together
    for row in rows:
        match row:
            case [int(index), int(parts), str(reason), str(text)] if 0 <= index < count and 0 <= parts <= len(body) - at:
                outcomes[index] = Outcome(reason, text=text, body=body[at : at + parts]).unpacked(namespace, where)
                at += parts
            case _:
                raise ProtocolError("an answer to gather with a row that is none")
    return outcomes
