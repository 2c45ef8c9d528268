"""What a mesh is told: by users (MeshOptions), and by discoro itself about the process it runs in (Place)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discoro.errors import ConfigError
from discoro.peers import Peers
from discoro.references import CoroRef
from discoro.security import Secret, Security
from discoro.transport import Transport

LABEL_BYTES = 63  # RFC 1035: one label of a name in DNS, which mDNS shows them as


def _is_label(text: str) -> bool:
    """Whether a reference that carries it (ada/4711/12) can be read back."""
    return 0 < len(text.encode()) <= LABEL_BYTES and text.isprintable() and not set(text) & set("/'\"\\")


def veil(options: dict[str, Any]) -> None:
    """Make a secret in these options one that shows nowhere: not where a traceback shows variables, not in other objects."""
    if isinstance(options.get("secret"), str):
        options["secret"] = Secret(options["secret"])


@dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """What a mesh can be told; every field is a keyword of `discoro.run` and `discoro.Mesh`. Times are seconds.

    `name`: of this process (default: the host's). `cluster`: only members of the same one meet. `peers`: addresses ("host" or
    "host:port") to link with where multicast does not reach (DISCORO_PEERS, with commas, adds to them). `mdns`: look for nodes
    by mDNS. `ip_addr`: addresses or host names to listen on; `ext_ip_addr`: where others reach us behind a NAT. `local`: use a
    node of this machine only, started for the life of this mesh with `local_options`. `key_file`, `secret`, `secret_file`,
    `certfile` with `keyfile`, `open` (with `open_public` on public addresses too): the cluster key, see the page Security.
    `discover_timeout`: until NoNodes; `connect_timeout`: until a process never met is Unreachable; `peer_timeout`: until one
    out of reach is lost. `dest_path`: the directory for files that others send to this process (default: a new one for
    temporary files); `max_file_size`: bytes of the largest file taken, 0: any. `debug`: name what blocks the event loop, and
    switch on asyncio's own debug mode (DISCORO_DEBUG=1 and PYTHONASYNCIODEBUG=1 mean the same).
    """

    name: str | None = None
    cluster: str = "default"
    peers: Sequence[str] = ()
    mdns: bool = True
    ip_addr: Sequence[str] = ()
    ext_ip_addr: str | None = None
    local: bool = False
    local_options: Sequence[str] = ()
    key_file: str | Path | None = None
    secret: str | None = None
    secret_file: str | Path | None = None
    certfile: str | Path | None = None
    keyfile: str | Path | None = None
    open: bool = False
    open_public: bool = False
    discover_timeout: float = 5.0
    connect_timeout: float = 5.0
    peer_timeout: float = 15.0
    dest_path: str | Path | None = None
    max_file_size: int = 0
    debug: bool = False

    def __post_init__(self) -> None:
        for what, listed in (("peers", self.peers), ("ip_addr", self.ip_addr), ("local_options", self.local_options)):
            if isinstance(listed, str | bytes) or not all(isinstance(each, str) for each in listed):
                raise ConfigError(f"{what}={listed!r:.80} cannot be used: it is a list of texts, [{listed!r:.80}] perhaps")
        for what in ("discover_timeout", "connect_timeout", "peer_timeout"):
            seconds = getattr(self, what)
            if not isinstance(seconds, int | float) or not seconds > 0:
                raise ConfigError(f"{what}={seconds!r:.80} cannot be used: it is a number of seconds above 0")
        if type(self.max_file_size) is not int or self.max_file_size < 0:
            raise ConfigError(f"max_file_size={self.max_file_size!r:.80} cannot be used: it is a number of bytes, or 0")
        for what, value in (("name", self.name), ("cluster", self.cluster)):
            if value is not None and not (isinstance(value, str) and _is_label(value)):
                raise ConfigError(f"{what}={value!r:.80} cannot be used: 1 to {LABEL_BYTES} bytes, no / and no quotes")

    def security(self) -> Security:
        """The keys that these options mean; KeyFileError, ConfigError."""
        return Security.from_options(
            key_file=self.key_file,
            secret=self.secret,
            secret_file=self.secret_file,
            certfile=self.certfile,
            keyfile=self.keyfile,
            open=self.open,
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a process is on the mesh: set by discoro itself, not by users."""

    role: str = "client"
    node: str | None = None  # a worker carries its node's id
    ports: Sequence[int] | None = None  # None: any free port
    second_ports: Sequence[int] | None = None  # for the door that is open while the cluster's key is changed; None: as `ports`
    security: Security | None = None  # None: from the options
    hosts: tuple[str, ...] | None = None  # for a worker: where its node listens; none of them: on loopback only
    files: Path | None = None  # where files that are sent here go; None: from the options
    blobs: Path | None = None  # where blobs lie; None: beside the files
    fetcher: CoroRef | None = None  # for a worker: its node, which fetches blobs for it
    transport: Callable[[Security, Peers], Any] = Transport  # what carries frames: a simulation puts its own here
