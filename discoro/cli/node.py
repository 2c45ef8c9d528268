"""discoro-node: run this machine's node in the foreground.

The options of the asyncoro 3.2 discoro page under their old spellings and modern ones. Exit status: 0 after an end in order,
2 for wrong usage, 69 where a port is taken, 78 for anything else in the configuration (sysexits.h).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import json
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any

from discoro import __version__
from discoro.adverts import LABEL_LIMIT
from discoro.cli.arguments import conceal
from discoro.cli.terminal import folded
from discoro.errors import ConfigError, PortTaken
from discoro.finding import BASE_PORT, PORT_RANGE
from discoro.keyfile import code_of, read_key_file
from discoro.node import Node, NodeOptions
from discoro.process import Later, Parent, set_limits
from discoro.security import Secret, Security

UNAVAILABLE, CONFIG = 69, 78
GRACE = 4.0  # seconds from the end of the program that we are a child of to a hard end; in order it takes 3 at most
HOST = re.compile(r"[\w.-]{1,253}|\[[0-9a-fA-F:.]+\]")
SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node until it is told to stop; the exit status."""
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s  %(message)s", stream=sys.stderr)
    if options.debug:
        logging.getLogger("discoro").setLevel(logging.DEBUG)
    set_limits()
    try:
        if options.secret_file == "-" and options.secret is None:  # here: an event loop would keep Ctrl-C from ending the wait
            options.secret_file, options.secret_from_input = None, secret_from_input()
        return asyncio.run(run(options))
    except PortTaken as error:
        say(folded(f"discoro-node: {error} (-p)"))
        return UNAVAILABLE
    except ConfigError as error:
        say(folded(f"discoro-node: {error}"))
        return CONFIG
    except KeyboardInterrupt:  # before anything was begun, or after all was ended
        return 130


async def run(options: argparse.Namespace) -> int:
    stop = Stop(drains=options.drain_timeout > 0)
    stop_at_signals(stop)
    keys = Later(asyncio.get_running_loop(), "security")
    parent = adopt_parent(stop, keys) if options.child else None
    security = Security.from_handed_down(parent.told.pop("security")) if parent else security_of(options)
    debug = options.debug or (parent is not None and bool(parent.told.get("debug")))
    node_options = NodeOptions(
        slots=slots_of(options.cpus),
        port=options.port,
        dest_path=options.dest_path or default_dest_path(),
        max_file_size=options.max_file_size,
        max_memory=options.max_memory,
    )
    async with Node(node_options, security=security, debug=debug, **mesh_options(options)) as node:
        keys.begin(node.mesh.rekeying.use_told)
        if not options.child:
            say(banner(node, shutil.get_terminal_size().columns))
        if options.json_ready:
            print(json.dumps(ready_line(node)), flush=True)
        await stop.first()
        if not stop.now.is_set():
            await drained(node, options.drain_timeout, stop)
        if not options.child:
            say("discoro-node: stopping")
        elif not options.debug:  # its program has ended or wants it to: that links end now is no news to anybody
            logging.getLogger("discoro").setLevel(logging.ERROR)
    return 0


class Stop:
    """What asks the node to end: `now`, or, where it `drains`, at the first SIGTERM once all that is open was closed."""

    def __init__(self, drains: bool) -> None:
        self.now = asyncio.Event()
        self._leave = asyncio.Event()
        self._drains = drains

    def on_term(self) -> None:
        """SIGTERM came; a second one means now."""
        (self._leave if self._drains and not self._leave.is_set() else self.now).set()

    async def first(self) -> None:
        """Until either is asked for."""
        await first_of(self.now.wait(), self._leave.wait())


async def drained(node: Node, timeout: float, stop: Stop) -> None:
    """Until what is open there was closed, or the time is over, or somebody wants the end now."""
    still = ", ".join(node.open_here()) or "nothing is open"
    say(folded(f"discoro-node: draining, for at most {timeout:g} s: {still}. Nothing new is taken; Ctrl-C ends it at once"))
    await first_of(node.drain(timeout), stop.now.wait())
    left = node.open_here()
    if left:
        say(folded(f"discoro-node: still open: {', '.join(left)}"))


async def first_of(*works: Awaitable[Any]) -> None:
    """Until one of these is done; the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()  # a bug of ours shows


def stop_at_signals(stop: Stop) -> None:
    """SIGTERM, Ctrl-C, and a terminal that is closed, unless nohup asked to outlive it."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.on_term)
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    for number in (signal.SIGINT, *hang_up):
        loop.add_signal_handler(number, stop.now.set)


def adopt_parent(stop: Stop, keys: Later) -> Parent:
    """As a child of a program: the key comes through standard input, later ones too, and its end is ours."""
    loop, parent = asyncio.get_running_loop(), Parent.meet()
    if parent is None:
        raise ConfigError("--child is for programs that start a node for themselves: none spoke through standard input")
    # SIGTERM, for an end in order: no code that could keep it from us runs here
    parent.end_with(lambda: loop.call_soon_threadsafe(stop.now.set), grace=GRACE, kernel=signal.SIGTERM, on_told=keys.on_told)
    return parent


def say(text: str) -> None:
    """To the person who started us, who may have closed the terminal."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


# ---- options


def parser() -> argparse.ArgumentParser:
    """The command line. The spellings of the asyncoro page stand beside modern ones."""
    p = argparse.ArgumentParser(
        prog="discoro-node",
        description="Run this machine's node: others find it by mDNS and run Python coroutines on it.",
        epilog="Anyone who has the cluster key can run code here as you. Stop with Ctrl-C.",
        allow_abbrev=False,
    )
    p.add_argument("-c", "--cpus", type=int, default=0, metavar="N", help="slots: N; 0: one for each processor; -N: all but N")
    p.add_argument("-n", "--name", type=name_of, help="name of this node (default: the host's name)")
    p.add_argument("--cluster", type=name_of, default="default", help="only members of one cluster meet (default: default)")
    p.add_argument("--dest-path", "--dest_path", type=Path, metavar="DIR", help="where files go (or DISCORO_DEST_PATH)")
    size = "largest file taken: 20m, 1g (default 0: any)"
    p.add_argument("--max-file-size", "--max_file_size", type=size_of, default=0, metavar="SIZE", help=size)
    size = "memory that each worker may take (default 0: any)"
    p.add_argument("--max-memory", type=size_of, default=0, metavar="SIZE", help=size)
    drain = "at SIGTERM, let what is open be closed by its clients for so long (default 0: end at once)"
    p.add_argument("--drain-timeout", type=seconds_of, default=0.0, metavar="SECONDS", help=drain)
    p.add_argument("-d", "--debug", action="store_true", help="log every step, and name what blocks a worker")
    p.add_argument("--json-ready", action="store_true", help="print one line of JSON on standard output when ready")
    p.add_argument("--version", action="version", version=f"discoro {__version__}")
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    add_network(p.add_argument_group("network"))
    add_trust(p.add_argument_group("trust"))
    return p


def add_network(group: Any) -> None:
    group.add_argument(
        *("-i", "--ip-addr", "--ip_addr"),
        action="append",
        default=[],
        metavar="ADDR",
        help="address or host name to listen on and to advertise (repeat; default: all usable ones)",
    )
    group.add_argument(
        *("--ext-ip-addr", "--ext_ip_addr"),
        type=host_of,
        metavar="ADDR",
        help="address or host name that others reach us at, behind a NAT that forwards the ports",
    )
    group.add_argument(
        *("-p", "--port", "-u", "--urp_port", "--udp_port", "--udp-port"),
        type=port_of,
        default=BASE_PORT,
        metavar="P",
        help=f"base port (default {BASE_PORT}): the node listens on P, workers on P+1 to P+{PORT_RANGE}, all TCP; 0: any free "
        "ports. Finding nodes uses mDNS, which stays on UDP 5353 whatever P is",
    )
    group.add_argument("--peer", action="append", default=[], metavar="HOST[:PORT]", help="link with this node too (repeat)")
    group.add_argument("--no-mdns", action="store_true", help="neither advertise nor look for nodes by mDNS")


def add_trust(group: Any) -> None:
    group.add_argument("--key-file", "--key_file", metavar="FILE", help="cluster key, made if missing (or DISCORO_KEY_FILE)")
    text = "derive the key from this text instead (DISCORO_SECRET is safer)"
    group.add_argument("-s", "--secret", type=Secret, metavar="TEXT", help=text)
    text = "the same from a file that only you can read, or from a line of standard input (-)"
    group.add_argument("--secret-file", "--secret_file", metavar="FILE", help=text)
    group.set_defaults(secret_from_input=None)
    group.add_argument("--certfile", metavar="FILE", help="with --keyfile: a pair that the group shares, as its key (not TLS)")
    group.add_argument("--keyfile", metavar="FILE", help="the private key of --certfile")
    group.add_argument("--open", action="store_true", help="no key: whoever reaches this machine can run code on it")
    group.add_argument("--open-public", action="store_true", help="with --open: at addresses of the Internet, too")


def slots_of(cpus: int) -> int:
    """Slots for -c: that many; all processors for 0; all but so many for less. ConfigError where none is left."""
    available = processors()
    slots = cpus if cpus > 0 else available + cpus
    if slots < 1:
        raise ConfigError(f"-c {cpus} leaves no processor of {available}: use -c {1 - available} or more")
    return slots


def processors() -> int:
    """Those that this process may use, as taskset and containers limit them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def size_of(text: str) -> int:
    """Bytes from 20971520, 20m, 20MB or 1g."""
    number = text.lower().removesuffix("b")
    suffix = number[-1:] if number[-1:] in ("k", "m", "g", "t") else ""
    digits = number.removesuffix(suffix) if suffix else number
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write bytes, or a number with k, m, g or t")
    return int(digits) * SIZES[suffix]


def seconds_of(text: str) -> float:
    """Seconds from 0, 90 or 2.5."""
    if not (text.isascii() and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text)):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no time: write seconds, 0 to 999999999")
    return float(text)


def port_of(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535 - PORT_RANGE:
        raise argparse.ArgumentTypeError(f"{text!r} is no base port: 0 to {65535 - PORT_RANGE}, workers take those above it")
    return int(text)


def name_of(text: str) -> str:
    if not 0 < len(text.encode()) <= LABEL_LIMIT or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no name: 1 to {LABEL_LIMIT} bytes (mDNS), all printable")
    return text


def host_of(text: str) -> str:
    if not HOST.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r:.80} is no host: write an address or a name, an IPv6 address in []; no port")
    return text


def default_dest_path() -> Path:
    """DISCORO_DEST_PATH, or discoro in the user's cache directory."""
    given = os.environ.get("DISCORO_DEST_PATH")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "discoro"


def security_of(options: argparse.Namespace) -> Security:
    """The trust that the options and the environment ask for; no secret stays in the visible command line."""
    log = logging.getLogger("discoro.node")
    if options.secret is not None:
        wiped = conceal(options.secret)
        seen = "was seen in the list of processes until now" if wiped else "shows in the list of processes"
        log.warning("--secret %s, and may stand in your shell's history: prefer --secret-file or DISCORO_SECRET", seen)
    return Security.from_options(
        key_file=options.key_file,
        secret=options.secret if options.secret_from_input is None else options.secret_from_input,
        secret_file=options.secret_file,
        certfile=options.certfile,
        keyfile=options.keyfile,
        open=options.open,
    )


def secret_from_input() -> Secret:
    """A line of standard input; typed at a terminal, it is asked for and not shown."""
    if not sys.stdin.isatty():
        return Secret(sys.stdin.readline().rstrip("\r\n"))
    try:
        return Secret(getpass.getpass("the secret (it is not shown here): "))
    except (EOFError, KeyboardInterrupt) as error:
        print(file=sys.stderr)  # the prompt's line ends
        if isinstance(error, KeyboardInterrupt):
            raise
        return Secret("")


def mesh_options(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": options.name,
        "cluster": options.cluster,
        "peers": options.peer,
        "mdns": not options.no_mdns,
        "ip_addr": options.ip_addr,
        "ext_ip_addr": options.ext_ip_addr,
        "open_public": options.open_public,
    }


# ---- what is said when ready


def banner(node: Node, columns: int) -> str:
    """What a person is told at start: who this is, where it listens, what it left out, how to stop."""
    me = node.mesh.me
    rows = "\n".join(row for heading, text in told(node) for row in wrapped(heading, text, columns))
    return f"discoro {__version__}  node {me.name}  cluster {me.cluster}\n{rows}\n  ready     Ctrl-C stops it"


def told(node: Node) -> Iterator[tuple[str, str]]:
    """The rows of the banner: heading and text."""
    mesh, options = node.mesh, node.options
    yield "slots", f"{options.slots} ({processors()} processors), Python {mesh.me.python}"
    yield "files", str(options.dest_path)
    yield "address", ", ".join(mesh.addresses)
    for nic, address, why in mesh.interfaces.ignored:
        yield "", f"not {address} ({nic}): {why}"
    workers = f"workers {options.port + 1} to {options.port + PORT_RANGE}" if options.port else "workers any free ones"
    mdns = "" if mesh.interfaces.loopback_only or not mesh.options.mdns else "; mDNS UDP 5353"
    yield "ports", f"TCP {mesh.addresses[0].rpartition(':')[2]}, {workers}{mdns}"
    is_open = f"{red('OPEN')}: whoever reaches these addresses can run code here"
    yield "trust", is_open if mesh.security.open else mesh.security.origin
    if mesh.security.made_now and mesh.security.path is not None and sys.stderr.isatty():  # once, and into no log
        yield "join", f"on each further machine type discoro join, and paste {code_of(read_key_file(mesh.security.path).key)}"


def wrapped(heading: str, text: str, columns: int) -> list[str]:
    """One row of the banner, in lines that fit; what cannot be divided, such as a path, is left whole."""
    first, further = f"  {heading:10}", " " * 12
    return textwrap.TextWrapper(max(columns, 40), first, further, break_long_words=False, break_on_hyphens=False).wrap(text)


def red(text: str) -> str:
    """For a terminal that shows colours."""
    plain = not sys.stderr.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[1;31m{text}\033[0m"


def ready_line(node: Node) -> dict[str, Any]:
    mesh = node.mesh
    return {
        "name": mesh.me.name,
        "node": mesh.me.node,
        "pid": os.getpid(),
        "cluster": mesh.me.cluster,
        "addresses": mesh.addresses,
        "slots": node.options.slots,
    }


if __name__ == "__main__":
    sys.exit(main())
