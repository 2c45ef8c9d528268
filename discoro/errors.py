"""Every error that discoro raises, as one tree, and whose fault each of them is.

    DiscoroError
    ├── Timeout                 the time given was over                       (also a TimeoutError)
    ├── yours: the call cannot work as it was made
    │   ├── NotACoroutine       a coroutine function was expected             (also a TypeError)
    │   ├── PackError           an object that cannot be packed               (also a TypeError)
    │   ├── NoMesh              no mesh runs here                             (also a RuntimeError)
    │   ├── NameTaken           a name registered twice in one process
    │   ├── NotSetUp            run, ping or close without setup, or after close
    │   ├── Overloaded          the receiver has no room and send never waits
    │   ├── BadArguments        a function offered or swapped to does not take them (also a TypeError)
    │   ├── NotHere             the value of a broadcast that this machine has not got yet
    │   ├── QueueClosed         put into a closed queue, or get from one that is closed and empty
    │   ├── TooLarge            a message, a file or a request past its limit
    │   └── ConfigError         an option, a file or a port that cannot be used (also a ValueError)
    │       ├── KeyFileError    the cluster key cannot be read, made or trusted
    │       ├── PortTaken       somebody else listens there
    │       └── DestPathError   the directory for files cannot be used
    ├── theirs: the other side failed or refused
    │   ├── RemoteError         an exception in remote code that could not travel as itself
    │   ├── UnpackError         what arrived cannot be turned into an object here
    │   ├── ProtocolError       a peer broke the protocol
    │   ├── Refused             a peer was refused, or refused us: key, cluster, protocol, Python
    │   ├── CoroEnded           a coroutine that ended without a value: terminated, its computation closed
    │   ├── NoReply             a coroutine that was asked went on, or ended, without a reply
    │   ├── SwapRefused         a coroutine that was to be swapped stayed what it was
    │   ├── TransferFailed      a file could not be transferred: no room on the disk, another one in its place
    │   │   └── BroadcastFailed  nodes that could not take what was broadcast
    │   ├── SetupFailed         the computation could not be opened at the server
    │   │   └── PackagesMissing  its code imports packages that are not installed there
    │   └── CloseFailed         close had to kill, or its func failed
    │       └── Stuck           what ran, or the worker itself, did not end when the computation was closed
    └── the world's: nobody is there
        ├── NoNodes             no usable node on the network
        ├── Unreachable         a process that nobody could dial
        ├── NoSuchCoro          a reference that reaches nobody any more
        └── PeerLost            the peer is gone or out of reach
            └── WorkerLost      the worker ended; its node says how

Each message names the thing, the place and the next step. An error that crosses the wire travels as its class name and its
text (`to_wire`, `from_wire`); a class unknown here comes back as RemoteError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Buffer = bytes | bytearray | memoryview


class DiscoroError(Exception):
    """The root of everything discoro raises on purpose; anything else from discoro is a bug of ours."""

    packed_cause: Sequence[Buffer] = ()  # the cause as it came, where it is only passed on: a node opens nothing


class Timeout(DiscoroError, TimeoutError):
    """The time given was over; the text says what was waited for and what had happened until then."""


class NotACoroutine(DiscoroError, TypeError):
    """A generator function or an `async def` was expected."""


class PackError(DiscoroError, TypeError):
    """An object that neither pickle nor dill can take; the text gives its path inside the message."""


class NoMesh(DiscoroError, RuntimeError):
    """Called where no mesh runs: outside `discoro.run(...)` and `async with discoro.Mesh(...)`."""


class NameTaken(DiscoroError):
    """A coroutine of this process is already registered under that name."""


class NotSetUp(DiscoroError):
    """The computation is not open at that server: never set up there, closed, or lost with its worker."""


class Overloaded(DiscoroError):
    """The receiver has no room and the sender's own queue for it is full; `deliver` waits instead."""


class TooLarge(DiscoroError):
    """A message, file or request past its limit, or that finds no memory left where it comes; the sizes in bytes are named."""


class ConfigError(DiscoroError, ValueError):
    """An option or a value that cannot be used."""


class KeyFileError(ConfigError):
    """The cluster key cannot be read, cannot be made, or can be read by others."""


class PortTaken(ConfigError):
    """The port asked for is in use, or a whole range of ports is."""


class DestPathError(ConfigError):
    """The directory for received files cannot be made or written."""


class RemoteError(DiscoroError):
    """Remote code raised an exception that could not travel as an object; the text is its traceback."""


class UnpackError(DiscoroError):
    """Bytes that cannot be turned into an object here, with the reason (a missing module or class, say)."""


class ProtocolError(DiscoroError):
    """A frame that the protocol does not allow; the peer that sent it is cut off, others live on."""


class Refused(DiscoroError):
    """Another key, only one side open, another cluster, protocol or Python version; the text says which."""


class CoroEnded(DiscoroError):
    """The coroutine was ended before it could return a value; the text gives the reason."""


class NoReply(DiscoroError):
    """A coroutine that was asked went on, or ended, without a reply to that message."""


class SwapRefused(DiscoroError):
    """The coroutine caught `HotSwap` and went on as it was, or another swap waits for it already."""


class BadArguments(DiscoroError, TypeError):
    """The function that is offered by name, or that a coroutine is to go on as, does not take these arguments."""


class QueueClosed(DiscoroError):
    """The queue was closed: nothing more is put into it, and what was in it has been taken."""


class NotHere(DiscoroError):
    """The value of a broadcast that this machine has not got: `get` brings it."""


class TransferFailed(DiscoroError):
    """A file could not be transferred, and nothing of it was left; the text says which, and where."""


class BroadcastFailed(TransferFailed):
    """Some nodes could not take what was broadcast; the text names them. `broadcast` is what the others have."""

    broadcast: Any = None


class SetupFailed(DiscoroError):
    """The computation could not be opened at the server."""


class PackagesMissing(SetupFailed):
    """The code imports packages that are not installed there; the text names them, and the versions that the client has."""


class CloseFailed(DiscoroError):
    """The computation is closed, but not in order: something was stuck and killed, or `func` failed."""


class Stuck(CloseFailed):
    """What ran, or the worker itself, did not end when the computation was closed; the text names it."""


class NoNodes(DiscoroError):
    """No usable node; the text says what was tried, what was heard, and what to type."""


class Unreachable(DiscoroError):
    """A process that could not be dialled; the text lists the addresses tried and what each answered."""


class NoSuchCoro(DiscoroError):
    """The reference reaches nobody: the coroutine ended and is no longer known, or its process restarted."""


class PeerLost(DiscoroError):
    """The peer is gone, or was unreachable for `peer_timeout`; what was under way has an unknown outcome."""


class WorkerLost(PeerLost):
    """The worker ended (killed, crashed, exited); the text carries the exit reason that its node saw."""


def _tree(root: type[DiscoroError]) -> dict[str, type[DiscoroError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


_BY_NAME = _tree(DiscoroError)


def to_wire(error: DiscoroError) -> tuple[str, str]:
    """The error as (class name, text), for a reply."""
    return type(error).__name__, str(error)


def from_wire(name: str, text: str) -> DiscoroError:
    """The error that `to_wire` described; RemoteError where this version has no such class."""
    known = _BY_NAME.get(name)
    return known(text) if known else RemoteError(f"{name}: {text}")
