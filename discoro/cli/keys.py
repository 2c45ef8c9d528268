"""`discoro join` and `discoro key show|new`: the cluster key of this user on this machine, given away, taken over, changed.

What is secret is printed only where it was asked for (`key show`, `key new`), on standard output; what there is to know besides
goes to standard error. Nodes and programs that run follow the key file by themselves (rekeying.py).
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from discoro.cli.arguments import conceal
from discoro.cli.terminal import folded
from discoro.errors import ConfigError, KeyFileError
from discoro.keyfile import (
    KeyFile,
    code_of,
    key_of_code,
    key_path,
    make_key_file,
    new_key,
    read_key_file,
    time_text,
    write_key_file,
)

KEEP = 24 * 3600.0  # seconds for which `key new` has the old key accepted: a working day, laptops that come back included
KEEP_LONGEST = 30 * 24 * 3600.0  # a key that is to go should go
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
CODE_LIMIT = 1024  # characters read of what is pasted
FOLLOWING = "nodes and programs that run here follow it within seconds"


def add_join(commands: Any) -> None:
    """The command `join`."""
    p = commands.add_parser(
        "join",
        help="take over the cluster key of another machine",
        description="Take over the cluster key of another machine, where `discoro key show` prints its code. Asks for it, "
        "or reads it from standard input. A key that was here before is replaced.",
        allow_abbrev=False,
    )
    p.add_argument("code", nargs="?", help="the code; better left out, since all users see command lines")
    add_keep(p, None, "have the old key accepted for this long: where the cluster's key is being changed (default: at once)")
    add_file(p)
    p.set_defaults(do=join)


def add_key(commands: Any) -> None:
    """The commands `key show` and `key new`."""
    key = commands.add_parser("key", help="show or change the cluster key", allow_abbrev=False)
    verbs = key.add_subparsers(required=True, metavar="show|new")
    show = verbs.add_parser(
        "show",
        help="print the code that other machines join with",
        description="Print the code of this machine's cluster key, for `discoro join` on other machines. Makes the key where "
        "there is none.",
        allow_abbrev=False,
    )
    add_file(show)
    show.set_defaults(do=show_key)
    new = verbs.add_parser(
        "new",
        help="change the cluster key without a stop",
        description="Make a new cluster key and print its code. The old one is accepted for a while: the other machines "
        "can be changed in turn, each by `discoro join --keep TIME` with the code.",
        allow_abbrev=False,
    )
    how_long = new.add_mutually_exclusive_group()
    add_keep(how_long, KEEP, "have the old key accepted for this long (default: 1d)")
    now = "end the old key at once, since somebody may have seen it: machines without the new one are cut off until they join"
    how_long.add_argument("--now", action="store_const", const=0.0, dest="keep", help=now)
    add_file(new)
    new.set_defaults(do=change_key)


def add_keep(p: Any, default: float | None, text: str) -> None:
    p.add_argument("--keep", type=seconds_of, default=default, metavar="TIME", help=f"{text}: 90s, 30m, 12h, 1d")


def add_file(p: Any) -> None:
    text = "the key file (default: DISCORO_KEY_FILE, or discoro/cluster.key in the configuration directory)"
    p.add_argument("--key-file", "--key_file", metavar="FILE", help=text)


def seconds_of(text: str) -> float:
    """Seconds from 90s, 30m, 12h or 1d."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = float(int(found[1]) * UNITS[found[2]]) if found else -1.0
    if not 0 <= seconds <= KEEP_LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no time: write 90s, 30m, 12h or 1d, at most 30d")
    return seconds


# ---- what the commands do


def join(options: argparse.Namespace) -> None:
    """Put the key that the code stands for into the key file."""
    path = path_of(options)
    code = code_from(options)
    if not code.strip():
        raise ConfigError("no code was given, and nothing is changed: `discoro key show` prints it on the other machine")
    key = key_of_code(code)
    before = what_was_there(path)
    if before is not None and before.following is not None and key in (before.key, before.following) and not options.keep:
        write_key_file(path, KeyFile(key))
        how = "is taken back" if key == before.key else "is done: the one before is accepted no more"
        say(f"the change of the key in {path} {how}")
        say(FOLLOWING)
        return
    if before is not None and key in (before.key, before.following):
        say(f"this machine has that key already: {path}")
        return
    if before is not None and before.following is not None and options.keep:
        raise ConfigError(
            f"{path} is being changed to another key already, until {time_text(before.since)}: "
            "without --keep this one takes the place of both"
        )
    if before is None or not options.keep:
        write_key_file(path, KeyFile(key))
        say(f"joined: the cluster key is in {path}" + (", in place of the one before" if before else ""))
    else:
        until = time.time() + options.keep
        write_key_file(path, KeyFile(before.key, key, until))
        say(f"joined: the cluster key is in {path}; the one before is accepted until {time_text(until)}")
    say(FOLLOWING)


def what_was_there(path: Path) -> KeyFile | None:
    """The keys in the file, None where it has none that can be used: to join is what mends that."""
    try:
        return read_key_file(path).at(time.time()) if os.path.lexists(path) else None
    except KeyFileError:
        say(f"what was in {path} could not be used, and is replaced")
        return None


def show_key(options: argparse.Namespace) -> None:
    """Print the code of the key that further machines need."""
    path = path_of(options)
    if make_key_file(path):
        say(f"there was no key here: {path} was made now")
    keys = read_key_file(path).at(time.time())
    give(code_of(keys.following or keys.key))
    if keys.following is not None:
        left = f"{max(1.0, (keys.since - time.time()) // 60):.0f}m"
        say(f"this is the new key; the old one is accepted here until {time_text(keys.since)}")
        say(f"on machines that have the old one: discoro join --keep {left}, and paste it")
    say("on each further machine: discoro join, and paste it. Whoever has it can run code as you")


def change_key(options: argparse.Namespace) -> None:
    """Have a new key follow the one in the key file, or put it in its place."""
    path = path_of(options)
    before = read_key_file(path).at(time.time()) if not make_key_file(path) else None
    if before is not None and before.following is not None and options.keep:
        raise ConfigError(
            f"{path} is being changed already, until {time_text(before.since)}: "
            "`discoro key show` prints the new key's code; `discoro key new --now` makes another one and ends both old ones"
        )
    key = new_key() if before is not None else read_key_file(path).key
    if before is None:
        say(f"there was no key here: {path} was made now")
    elif options.keep:
        until = time.time() + options.keep
        write_key_file(path, KeyFile(before.key, key, until))
        say(f"the old key is accepted here until {time_text(until)}; {FOLLOWING}")
    else:
        write_key_file(path, KeyFile(key))
        say(f"the old key is accepted no more; {FOLLOWING}")
    give(code_of(key))
    keep = f" --keep {in_words(options.keep)}" if before is not None and options.keep else ""
    say(f"on each other machine: discoro join{keep}, and paste it")


def in_words(seconds: float) -> str:
    """As `seconds_of` reads it."""
    unit = max((unit for unit in UNITS if seconds % UNITS[unit] == 0), key=lambda unit: UNITS[unit])
    return f"{seconds / UNITS[unit]:.0f}{unit}"


# ---- around them


def path_of(options: argparse.Namespace) -> Path:
    """The key file that is meant. A secret in the environment would count instead of it, which must not go unnoticed."""
    if os.environ.get("DISCORO_SECRET") and options.key_file is None:
        say("DISCORO_SECRET is set: nodes and programs with it take that, and not the key file")
    return key_path(options.key_file, os.environ)


def code_from(options: argparse.Namespace) -> str:
    """The code: typed without being shown, from standard input, or, with a warning, from the command line."""
    if options.code is not None:
        hidden = "it was wiped from there, but may stand in your shell's history" if conceal(options.code) else "it shows there"
        say(f"all users of a machine see command lines: {hidden}. Type only `discoro join`, and paste the code then")
        return str(options.code)
    if sys.stdin.isatty():
        try:
            return getpass.getpass("the code, as `discoro key show` prints it there (it is not shown here): ")[:CODE_LIMIT]
        except EOFError:
            print(file=sys.stderr)  # the prompt's line ends
            return ""
    return sys.stdin.readline(CODE_LIMIT)


def give(code: str) -> None:
    """Print a code. ConfigError where nobody reads it: in a pipe to ssh, say, that did not get through."""
    try:
        print(code, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        raise ConfigError("whoever was to read the code is gone: `discoro key show` prints it again") from None


def say(text: str) -> None:
    """To the person."""
    print(folded(f"discoro: {text}"), file=sys.stderr, flush=True)
