"""How coroutines end: the reasons, what becomes of a value or an error on its way, and the notice that monitors get."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from discoro import payload
from discoro.errors import CoroEnded, DiscoroError, PeerLost, UnpackError, WorkerLost
from discoro.messages import Part, body_size
from discoro.raised import add_note
from discoro.references import CoroRef

NORMAL, EXCEPTION, TERMINATED = "normal", "exception", "terminated"
LINKED, PARENT, CHANNEL_CLOSED = "linked", "parent ended", "channel closed"
CLOSED, PEER_LOST, WORKER_LOST, UNKNOWN = "computation closed", "peer lost", "worker lost", "unknown"


@dataclass(frozen=True, slots=True)
class ExitNotice:
    """What a monitor receives when the coroutine ends, once.

    `reason` is "normal", "exception", "terminated", "linked" (it was linked with one that ended), "parent ended",
    "computation closed", "channel closed", "worker lost", "peer lost" or "unknown" (it ended before, and is no longer known);
    `value` what it returned, `error` what it raised or what became of it, else None.
    """

    ref: CoroRef
    reason: str
    value: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class Outcome:
    """How a coroutine ended: an object of this process, or the packed body that came from another."""

    reason: str
    value: Any = None
    error: BaseException | None = None
    text: str = ""
    body: Sequence[Part] | None = None
    trace: TracebackType | None = field(init=False, repr=False, compare=False)  # of the error, as it was raised first

    def __post_init__(self) -> None:
        self.trace = self.error.__traceback__ if self.error is not None else None

    @property
    def size(self) -> int:
        """Bytes that its packed body holds, or its value, without what that only refers to."""
        return sum(len(part) for part in self.body) if self.body else sys.getsizeof(self.value, 0)

    def unpacked(self, namespace: payload.Namespace | None, where: str = "") -> Outcome:
        """The same with its body opened; one that cannot be opened becomes an UnpackError in place of the value.

        `where` it ended stands beneath an exception: with several machines, that is the first thing to know.
        """
        if self.body is None:
            return self
        if self.reason not in (NORMAL, EXCEPTION):
            return Outcome(self.reason, error=_ERRORS.get(self.reason, CoroEnded)(self.text), text=self.text)
        try:
            if self.reason == EXCEPTION:
                error = payload.unpack_error(self.body, namespace)
                if where:
                    add_note(error, f"raised in the coroutine {where}")
                return Outcome(EXCEPTION, error=error, text=self.text)
            return Outcome(NORMAL, payload.unpack(self.body, namespace))
        except UnpackError as error:
            return Outcome(EXCEPTION, error=error, text=str(error))

    def packed(self) -> tuple[Sequence[Part], str, str]:
        """(body, reason, text) for the wire; a value that cannot travel, unpackable or too large, is the error that says so."""
        if self.body is not None:
            return self.body, self.reason, self.text
        try:
            if self.reason == NORMAL:
                body = payload.pack(self.value)
                body_size(body)
                return body, NORMAL, ""
            if self.reason == EXCEPTION and self.error is not None:
                return payload.pack_error(self.error), EXCEPTION, self.text
        except DiscoroError as error:
            return payload.pack_error(error), EXCEPTION, str(error)
        return (), self.reason, self.text

    def get(self) -> Any:
        """The value, or the error raised."""
        if self.error is not None:
            raise self.error.with_traceback(self.trace)  # else every asker's frames would stay with it
        if self.reason != NORMAL:
            raise _ERRORS.get(self.reason, CoroEnded)(self.text or self.reason)
        return self.value


_ERRORS: dict[str, type[DiscoroError]] = {PEER_LOST: PeerLost, WORKER_LOST: WorkerLost}
