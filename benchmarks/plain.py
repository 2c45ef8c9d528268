"""A plain loop of pyzmq, to measure discoro beside: what the network library does when nothing is asked of it but to carry.

Two processes of their own, blocking calls, no asyncio: a DEALER sends a message of so many bytes to a ROUTER and waits for one
of one byte; or, one way, it sends a number of messages and waits once, until all have come. Loopback, discoro's high-water
mark, CURVE or none. One message is one frame, and `copy` is pyzmq's: without it neither side copies the bytes between Python
and libzmq. Nothing is checked, resumed or unpacked, and the receiver does not look at what came.

Other benchmarks use `Plain`. As a program it prints its rate for a size in bytes (64 MiB), with CURVE and without.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import zmq

HIGH_WATER_MARK = 1000  # frames; discoro's own
COPY_BELOW = 64 * 1024  # bytes; smaller messages are faster copied (zmq.COPY_THRESHOLD)
ROUNDS = 5


class Plain:
    """The two processes, as a context manager: `sender` and `receiver` are their pids, `once` the seconds of one round."""

    def __init__(self, size: int, *, curve: bool, copy: bool | None = None, one_way: bool = False) -> None:
        """`size`: bytes of each message, made with the first. `copy`: by default only for small ones. `one_way`: the receiver
        answers once for all messages of a round, when it has the last."""
        keys = [key.decode() for pair in (zmq.curve_keypair(), zmq.curve_keypair()) for key in pair] if curve else []
        told = {"size": size, "keys": keys, "copy": size < COPY_BELOW if copy is None else copy}
        self._receiver, self._sender = map(_started, ("take", "stream") if one_way else ("receive", "send"))
        _tell(self._receiver, told)
        _tell(self._sender, {**told, "port": _answer(self._receiver)})
        self.receiver, self.sender = self._receiver.pid, self._sender.pid

    def once(self, count: int = 1) -> float:
        """Send that many messages, each after the answer to the one before unless one way: seconds for all."""
        _tell(self._sender, count)
        return float(_answer(self._sender))

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._sender, self._receiver):
            process.kill()
            process.communicate()


def _started(what: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, what], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _tell(process: subprocess.Popen[bytes], what: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(what).encode() + b"\n")
    process.stdin.flush()


def _answer(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


# The two processes: `receive` and `send` in turn, `take` and `stream` one way.


def _told() -> Any:
    """The next line that the other process writes; ends this one where there is none."""
    line = sys.stdin.readline()
    return json.loads(line) if line else sys.exit()


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)


def _socket(kind: int, keys: list[str]) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context().socket(kind)
    socket.sndhwm = socket.rcvhwm = HIGH_WATER_MARK
    socket.linger = 0
    if keys:
        server_public, server_secret, client_public, client_secret = map(str.encode, keys)
        if kind == zmq.ROUTER:
            socket.curve_server, socket.curve_secretkey = True, server_secret
        else:
            socket.curve_serverkey = server_public
            socket.curve_publickey, socket.curve_secretkey = client_public, client_secret
    return socket


def receive(size: int, keys: list[str], copy: bool) -> None:
    """Answer each message."""
    socket = _socket(zmq.ROUTER, keys)
    _say(socket.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        who = socket.recv()
        what = socket.recv(copy=copy)
        assert len(what) == size, len(what)
        del what
        socket.send_multipart([who, b"."])


def send(size: int, keys: list[str], copy: bool, port: int) -> None:
    """As many messages as each line of input says, each after the answer to the one before."""

    def once(socket: zmq.Socket[bytes], message: bytes, count: int) -> None:
        for _ in range(count):
            socket.send(message, 0, copy)
            socket.recv()

    _rounds(size, keys, port, once)


def take(size: int, keys: list[str], copy: bool) -> None:
    """Answer when as many messages have come as the first of each round says."""
    socket = _socket(zmq.ROUTER, keys)
    _say(socket.bind_to_random_port("tcp://127.0.0.1"))
    while True:
        who, count = socket.recv_multipart()
        for _ in range(int(count)):
            socket.recv()
            what = socket.recv(copy=copy)
            assert len(what) == size, len(what)
        socket.send_multipart([who, b"."])


def stream(size: int, keys: list[str], copy: bool, port: int) -> None:
    """As many messages as each line of input says, and one answer."""

    def once(socket: zmq.Socket[bytes], message: bytes, count: int) -> None:
        socket.send(b"%d" % count)
        for _ in range(count):
            socket.send(message, 0, copy)
        socket.recv()

    _rounds(size, keys, port, once)


def _rounds(size: int, keys: list[str], port: int, once: Callable[[zmq.Socket[bytes], bytes, int], None]) -> NoReturn:
    """Do it once for each line of input, which says how many messages, and say how long it took."""
    socket = _socket(zmq.DEALER, keys)
    socket.connect(f"tcp://127.0.0.1:{port}")
    count = _told()
    message = os.urandom(size)
    while True:
        start = time.perf_counter()
        once(socket, message, count)
        _say(time.perf_counter() - start)
        count = _told()


PROCESSES = {what.__name__: what for what in (receive, send, take, stream)}


def main(size: int) -> None:
    """Print the rate for both kinds of connection."""
    for curve in (True, False):
        with Plain(size, curve=curve) as plain:
            plain.once()
            seconds = [plain.once() for _ in range(ROUNDS)]
        rates = sorted(size / each / 2**30 for each in seconds)
        kind = "CURVE" if curve else "open"
        print(f"{size:,} bytes, {kind:6} {statistics.median(rates):6.2f} GiB/s ({rates[0]:.2f} to {rates[-1]:.2f})")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in PROCESSES:
        PROCESSES[sys.argv[1]](**_told())
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 64 << 20)
