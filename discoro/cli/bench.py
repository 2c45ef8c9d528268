"""discoro-bench: how fast this mesh is, from this machine to each node, and between nodes.

Exit status: 0; 2 for wrong usage; 69 where no node was found, or a way could not be measured; 78 for a key or another option
that cannot be used (sysexits.h); 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from discoro import __version__, drawing
from discoro.cli.terminal import folded
from discoro.errors import ConfigError, DiscoroError, NoNodes
from discoro.measuring import Way, Ways, remarks
from discoro.program import run

UNAVAILABLE, CONFIG = 69, 78
HEADINGS = ("from", "to", "round trip", "1 in 100", "messages", "bulk", "coroutines")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print; the exit status."""
    options = parser().parse_args(arguments)
    ways = Ways(options.seconds, lambda way: say(f"measuring {way} ..."))
    try:
        run(measure, ways, options, **mesh_options(options))
    except NoNodes as error:
        say(f"discoro-bench: {error}")  # in lines that fit already
        say("  here: --peer HOST where multicast does not reach, --local to measure this machine only")
        return UNAVAILABLE
    except ConfigError as error:
        say(folded(f"discoro-bench: {error}"))
        return CONFIG
    except DiscoroError as error:
        say(folded(f"discoro-bench: {error}"))
        return UNAVAILABLE
    except KeyboardInterrupt:
        say("discoro-bench: stopped" + ("; what was measured so far:" if ways.ways else ""))
        if ways.ways:
            print(table(ways.ways))
        return 130
    return report(ways, options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="discoro-bench",
        description="Measure the mesh: from this machine to a worker of each node that is found, and between each two of them.",
        epilog="Of each way: the round trip of 64 bytes, and what one in a hundred takes; messages of 64 bytes a second; bytes "
        "a second in messages of 1 MiB; coroutines a second, created there and their results received here.",
        allow_abbrev=False,
    )
    p.add_argument("--seconds", type=seconds_of, default=1.0, metavar="S", help="for each figure, about (default: 1)")
    p.add_argument("--timeout", type=seconds_of, metavar="S", help="how long to look for nodes at most (default: 5)")
    p.add_argument("--to-nodes-only", action="store_true", help="leave out the ways between nodes, which are many among many")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the figures: seconds, and rates for a second")
    p.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw what each way carries")
    p.add_argument("--version", action="version", version=f"discoro {__version__}")
    mesh = p.add_argument_group("mesh")
    mesh.add_argument("--local", action="store_true", help="a node of this machine only, started for it")
    mesh.add_argument("--cluster", default="default", help="as the nodes have it (default: default)")
    mesh.add_argument("--peer", action="append", default=[], metavar="HOST[:PORT]", help="link with this node too (repeat)")
    mesh.add_argument("--no-mdns", action="store_true", help="do not look for nodes by mDNS")
    mesh.add_argument("--key-file", metavar="FILE", help="the cluster key (or DISCORO_KEY_FILE)")
    mesh.add_argument("--secret-file", metavar="FILE", help="derive the key from this file's text (or DISCORO_SECRET)")
    mesh.add_argument("--open", action="store_true", help="the nodes have no key")
    return p


def seconds_of(text: str) -> float:
    """A number of seconds above 0, and of at most an hour."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def mesh_options(options: argparse.Namespace) -> dict[str, Any]:
    """What of the command line is for the mesh."""
    told: dict[str, Any] = {"cluster": options.cluster, "peers": options.peer, "mdns": not options.no_mdns}
    told |= {name: getattr(options, name) for name in ("local", "key_file", "secret_file", "open") if getattr(options, name)}
    return told


async def measure(ways: Ways, options: argparse.Namespace) -> None:
    await ways.measure(options.timeout, between=not options.to_nodes_only)


def report(ways: Ways, options: argparse.Namespace) -> int:
    """Print and write everything; the exit status."""
    if ways.ways:
        print(table(ways.ways))
    for remark in remarks(ways.ways, ways.statuses):
        print(folded(f"! {remark}"))
    for failure in ways.failures:
        say(folded(f"! not measured: {failure}"))
    try:
        if options.json is not None:
            options.json.write_text(json.dumps([dataclasses.asdict(way) for way in ways.ways], indent=1) + "\n")
        if options.plot is not None:
            options.plot.write_text(picture(ways.ways), encoding="utf-8")
    except OSError as error:
        say(folded(f"discoro-bench: cannot write {error.filename}: {error.strerror}"))
        return CONFIG
    return UNAVAILABLE if ways.failures else 0


def table(ways: Sequence[Way]) -> str:
    """A line for each way."""
    lines = [HEADINGS, *map(cells, ways)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    left = [f"{line[0]:{widths[0]}}  {line[1]:{widths[1]}}" for line in lines]
    rest = ["".join(f"  {cell:>{width}}" for cell, width in zip(line[2:], widths[2:], strict=True)) for line in lines]
    return "\n".join((names + figures).rstrip() for names, figures in zip(left, rest, strict=True))


def cells(way: Way) -> tuple[str, ...]:
    """What stands in its line."""
    coros = f"{counted(way.coros)}/s" if way.coros is not None else ""
    times, bulk = (milliseconds(way.round_trip), milliseconds(way.slow)), f"{way.bulk / 1e6:,.0f} MB/s"
    return way.source, way.target, *times, f"{counted(way.messages)}/s", bulk if way.bulk >= 1e6 else "< 1 MB/s", coros


def milliseconds(seconds: float) -> str:
    """In a unit that fits."""
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms"


def counted(number: float) -> str:
    """In few characters."""
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number / 1e3:.0f}k" if number >= 1e4 else f"{number:.0f}"


def picture(ways: Sequence[Way]) -> str:
    """What each way carries."""
    sources, targets = (list(dict.fromkeys(getattr(way, end) for way in ways)) for end in ("source", "target"))
    figures = {(way.source, way.target): (way.bulk, f"{way.bulk / 1e6:,.0f} MB/s") for way in ways}
    return drawing.matrix("What each way carries, in messages of 1 MiB", sources, targets, figures)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
