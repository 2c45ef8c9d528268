"""Two interpreters of different minor versions: refused in words, on both sides, before anything is loaded.

The other one is OTHER_PYTHON of the environment, or the first on the PATH that has what discoro needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nodes import a_node, environment

NEEDS = "import zmq, msgpack, dill, zeroconf, ifaddr"

CLIENT = """
import sys
import discoro

def work(coro=None):
    yield coro.sleep(0)

def client(coro=None):
    server = (yield discoro.servers())[0]
    yield discoro.Computation(work).setup(server)

try:
    discoro.run(client, peers=[sys.argv[1]], ip_addr=["127.0.0.1"], mdns=False, discover_timeout=3)
except discoro.NoNodes as error:
    print(error)
"""


def candidates() -> Iterator[str]:
    if "OTHER_PYTHON" in os.environ:
        yield os.environ["OTHER_PYTHON"]
    for minor in range(11, 20):
        found = shutil.which(f"python3.{minor}")
        if found and minor != sys.version_info.minor:
            yield found


@pytest.fixture(scope="module")
def other() -> str:
    for python in candidates():
        known = f"import sys; assert sys.version_info[:2] not in [{sys.version_info[:2]}] and sys.version_info >= (3, 11)"
        if subprocess.run([python, "-c", f"{NEEDS}; {known}"], capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip("only one Python has what discoro needs")


def test_a_client_of_another_python_and_a_node_refuse_each_other_in_words(tmp_path: Path, other: str) -> None:
    version = subprocess.run(
        [other, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    theirs, ours = version.stdout.strip(), "{}.{}".format(*sys.version_info)
    (tmp_path / "client.py").write_text(CLIENT)
    with a_node(tmp_path, "-c", "1", "-d") as node:
        done = subprocess.run(
            [other, str(tmp_path / "client.py"), node.address],
            env=environment(tmp_path, PYTHONDONTWRITEBYTECODE="1"),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"Python {ours}" in done.stdout and theirs in done.stdout and "same minor version" in done.stdout, done.stdout
        assert "Traceback" not in done.stderr and "Traceback" not in node.output
        assert "setup" not in node.output, "something was asked of the node"
