"""discoro: a few machines, one Python. A peer mesh without a broker, over ZeroMQ.

This is the front door: the public names, and nothing else.
"""

__version__ = "0.1.0"  # before the imports: modules below take it from here

from discoro.computation import Computation
from discoro.coro import Coro, CoroRef, ExitNotice, current_coro
from discoro.errors import (
    CloseFailed,
    ConfigError,
    CoroEnded,
    DestPathError,
    DiscoroError,
    KeyFileError,
    NameTaken,
    NoMesh,
    NoNodes,
    NoSuchCoro,
    NotACoroutine,
    NotSetUp,
    Overloaded,
    PackError,
    PeerLost,
    PortTaken,
    ProtocolError,
    Refused,
    RemoteError,
    SetupFailed,
    Stuck,
    Timeout,
    TooLarge,
    UnpackError,
    Unreachable,
    WorkerLost,
)
from discoro.mesh import Mesh
from discoro.program import run, servers
from discoro.server import discoro_server

__all__ = [
    "CloseFailed",
    "Computation",
    "ConfigError",
    "Coro",
    "CoroEnded",
    "CoroRef",
    "DestPathError",
    "DiscoroError",
    "ExitNotice",
    "KeyFileError",
    "Mesh",
    "NameTaken",
    "NoMesh",
    "NoNodes",
    "NoSuchCoro",
    "NotACoroutine",
    "NotSetUp",
    "Overloaded",
    "PackError",
    "PeerLost",
    "PortTaken",
    "ProtocolError",
    "Refused",
    "RemoteError",
    "SetupFailed",
    "Stuck",
    "Timeout",
    "TooLarge",
    "UnpackError",
    "Unreachable",
    "WorkerLost",
    "current_coro",
    "discoro_server",
    "run",
    "servers",
]
