"""discoro: a few machines, one Python. A peer mesh without a broker, over ZeroMQ.

This is the front door: the public names, and nothing else.
"""

__version__ = "0.1.0"  # before the imports: modules below take it from here

from discoro.blocking import BlockingMesh
from discoro.broadcasting import Broadcast, broadcast
from discoro.channels import Channel
from discoro.computation import Computation
from discoro.coro import Coro, current_coro
from discoro.driving import HotSwap
from discoro.errors import (
    BadArguments,
    BroadcastFailed,
    CloseFailed,
    ConfigError,
    CoroEnded,
    DestPathError,
    DiscoroError,
    KeyFileError,
    NameTaken,
    NoMesh,
    NoNodes,
    NoReply,
    NoSuchCoro,
    NotACoroutine,
    NotHere,
    NotSetUp,
    Overloaded,
    PackagesMissing,
    PackError,
    PeerLost,
    PortTaken,
    ProtocolError,
    QueueClosed,
    Refused,
    RemoteError,
    SetupFailed,
    Stuck,
    SwapRefused,
    Timeout,
    TooLarge,
    TransferFailed,
    UnpackError,
    Unreachable,
    WorkerLost,
)
from discoro.mailbox import Question
from discoro.mesh import Mesh, current_mesh
from discoro.outcomes import ExitNotice
from discoro.presence import Peer, PeerStatus
from discoro.program import del_file, fetch_file, join, run, send_file, servers, status
from discoro.queues import Queue
from discoro.rci import RCI
from discoro.references import CoroRef
from discoro.server import discoro_server
from discoro.status import NodeStatus, WorkerStatus
from discoro.takeover import Detached, detached, take_over

__all__ = [
    "BadArguments",
    "BlockingMesh",
    "Broadcast",
    "BroadcastFailed",
    "Channel",
    "CloseFailed",
    "Computation",
    "ConfigError",
    "Coro",
    "CoroEnded",
    "CoroRef",
    "DestPathError",
    "Detached",
    "DiscoroError",
    "ExitNotice",
    "HotSwap",
    "KeyFileError",
    "Mesh",
    "NameTaken",
    "NoMesh",
    "NoNodes",
    "NoReply",
    "NoSuchCoro",
    "NodeStatus",
    "NotACoroutine",
    "NotHere",
    "NotSetUp",
    "Overloaded",
    "PackError",
    "PackagesMissing",
    "Peer",
    "PeerLost",
    "PeerStatus",
    "PortTaken",
    "ProtocolError",
    "Question",
    "Queue",
    "QueueClosed",
    "RCI",
    "Refused",
    "RemoteError",
    "SetupFailed",
    "Stuck",
    "SwapRefused",
    "Timeout",
    "TooLarge",
    "TransferFailed",
    "UnpackError",
    "Unreachable",
    "WorkerLost",
    "WorkerStatus",
    "broadcast",
    "current_coro",
    "current_mesh",
    "del_file",
    "detached",
    "discoro_server",
    "fetch_file",
    "join",
    "run",
    "send_file",
    "servers",
    "status",
    "take_over",
]
