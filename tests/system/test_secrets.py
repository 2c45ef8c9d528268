"""The cluster's secret, its key and all that is derived from it are nowhere to be seen, whatever goes wrong.

Two machines on a network of the test's own: a node, and clients that have everything go wrong that can. What they say, what
others hear of them, what the lists of processes show and what lies on the disk is searched for every form of every secret.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from discoro.keyfile import code_of, read_key_file
from discoro.security import Security
from tests.support.commands import BASE_PORT, Machines
from tests.support.netns import needs_namespaces
from tests.support.nodes import children
from tests.support.seeking import found, secrets_of

pytestmark = [pytest.mark.system, needs_namespaces]

TYPED = "CANARY-7f3a-horse-battery"
NO_CORE = re.compile(rb"Max core file size +0 ")

# Remote code and a client that fail in every way, and show the variables of all their frames when they do.
TROUBLE = """
import asyncio, logging, os, signal, socket, subprocess, sys, traceback

logging.basicConfig(level=logging.DEBUG)
logging.getLogger("discoro").setLevel(logging.DEBUG)

def shown(error):
    text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    return text.replace("Traceback", "Trace")  # which would be noise

async def trouble(way, coro=None):
    frames = traceback.StackSummary.extract(traceback.walk_stack(None), capture_locals=True)
    print("".join(frames.format()), flush=True)
    if way == "starts":
        process = subprocess.Popen([sys.executable, "-c", "import sys; print(len(sys.stdin.read()))"], stdin=subprocess.PIPE)
        await (await coro.receive()).deliver([os.getpid(), process.pid], 10)
        await coro.receive()
    if way == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        await discoro.send_file(coro.ref, "not there")
    except Exception as error:
        print(shown(error), flush=True)
    raise ValueError(f"in {coro}, {discoro.current_mesh()!r}, {vars(discoro.current_mesh())}")

async def client(coro=None):
    mesh = discoro.current_mesh()
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(trouble)
    await computation.setup(server)
    starts = await computation.run(server, "starts")
    starts.send(coro)
    say("processes", await coro.receive(20))
    await asyncio.to_thread(told)
    frames = traceback.StackSummary.extract(traceback.walk_stack(None), capture_locals=True)
    print("".join(frames.format()), mesh.options, vars(mesh), file=sys.stderr)
    for way in ("fails", "dies"):
        try:
            await (await computation.run(server, way)).result()
        except Exception as error:
            print(shown(error), file=sys.stderr)
    with socket.create_connection((NODE[0], NODE[1])) as stranger:
        stranger.sendall(bytes(1000))
    node = next(link for link in mesh._peers if link.peer.role == "node")
    mesh._peers.wire.send(node.connection, [b"no frame of ours"])
    await asyncio.wait_for(mesh.link_ended(node.birth), 10)
    raise LookupError("client")

try:
    discoro.run(client, ip_addr=[HERE], peers=[f"{NODE[0]}:{NODE[1]}"], **told())
except LookupError as error:
    print(shown(error), file=sys.stderr)
for wrong in ({"secret": "CANARY-of-another-key"}, {"secret": "short"}, {"key_file": "/dev/null"}):
    try:
        discoro.run(client, peers=[f"{NODE[0]}:{NODE[1]}"], mdns=False, discover_timeout=1, **wrong)
    except Exception as error:
        print(shown(error), file=sys.stderr)
say("done")
"""

SNIFF = """
import socket, sys
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
heard.settimeout(0.2)
print("listening", flush=True)
with open(sys.argv[1], "wb") as kept:
    while True:
        try:
            kept.write(heard.recv(65536))
            kept.flush()
        except TimeoutError:
            pass
"""


class Source(NamedTuple):
    """A way to give the secret: to the node, by options and variables; to a client, by options and variables."""

    name: str
    node: list[str]
    node_environment: dict[str, str]
    client: dict[str, Any]
    client_environment: dict[str, str]


def sources(file: str) -> Iterator[Source]:
    none = {"DISCORO_KEY_FILE": ""}
    yield Source("key file", [], {}, {}, {})
    yield Source("--secret", ["--secret", TYPED], none, {"secret": TYPED}, none)
    variable = none | {"DISCORO_SECRET": TYPED}
    yield Source("DISCORO_SECRET", [], variable, {}, variable)
    yield Source("--secret-file", ["--secret-file", file], none, {"secret_file": file}, none)


@pytest.mark.parametrize("name", [source.name for source in sources("")])
def test_a_secret_is_nowhere_to_be_seen(tmp_path: Path, name: str) -> None:
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_text(TYPED + "\n")
    source = next(each for each in sources(str(file)) if each.name == name)
    (tmp_path / "temporary").mkdir()
    own = {"TMPDIR": str(tmp_path / "temporary"), "DISCORO_DEST_PATH": str(tmp_path / "received")}
    with Machines(tmp_path, ["a", "b"]) as machines:
        assert machines.lan is not None
        packets = tmp_path / "packets"
        sniffer = machines.lan.popen("b", [sys.executable, "-c", SNIFF, str(packets)], stdout=-1, text=True)
        assert sniffer.stdout is not None and sniffer.stdout.readline() == "listening\n"
        node = machines.node("a", "-c", "1", "-d", *source.node, **own, **source.node_environment)
        constants = f"NODE, HERE = {(machines.lan.address('a'), BASE_PORT)!r}, {machines.lan.address('b')!r}\n"
        client = machines.program("b", constants + TROUBLE, **own, **source.client_environment)
        client.tell(source.client)
        worker, started = client.next("processes", 20)
        secrets = all_secrets(source, machines.key_file)
        started_by_discoro = [worker, started, *children(node.pid)]
        seen = {f"environ of {pid}": proc(pid, "environ") for pid in started_by_discoro}
        seen |= {f"arguments of {pid}": proc(pid, "cmdline") for pid in (node.pid, client.pid, *started_by_discoro)}
        limits = {pid: proc(pid, "limits") for pid in (node.pid, worker)}
        assert [pid for pid, text in limits.items() if NO_CORE.search(text) is None] == []
        client.tell("go on")
        client.next("done", 40)
        client.succeed(10)
        seen |= {"output of the node": node.output.encode(), "output of the client": client.output.encode()}
        seen["packets"] = packets.read_bytes()
        seen |= lying_about(tmp_path, [file, machines.key_file])
    assert [f"{what} in {where}" for where, text in seen.items() for what in found(text, secrets)] == []
    for where, texts in SEEN.items():
        assert [text for text in texts if text not in seen[where]] == [], f"what would show it is not in the {where}"


SEEN = {  # so that silence means something
    "output of the node": [b"not there", b"broke the protocol", b"SIGKILL", b"listening on", b"cli/worker.py"],
    "output of the client": [b"in trouble", b"LookupError", b"ConfigError", b"MeshOptions(", b"discoro/program.py"],
    "packets": [b"_discoro", b"CURVE"],
}


def all_secrets(source: Source, key_file: Path) -> dict[str, bytes]:
    if source.name == "key file":
        return secrets_of(Security.from_options(key_file=key_file, environ={})) | {
            "key": (key := read_key_file(key_file).key),
            "code": code_of(key).encode(),
            "code without hyphens": code_of(key).replace("-", "").encode(),
        }
    return secrets_of(Security.from_options(secret=TYPED, environ={})) | {"typed": TYPED.encode()}


def proc(pid: int, what: str) -> bytes:
    return Path(f"/proc/{pid}/{what}").read_bytes()


def lying_about(directory: Path, but: list[Path]) -> dict[str, bytes]:
    """The names and contents of all files below, but for those that are to hold the secret."""
    files = [path for path in directory.rglob("*") if path.is_file() and path not in but]
    return {"names of files": "\n".join(map(str, files)).encode()} | {str(path): path.read_bytes() for path in files}
