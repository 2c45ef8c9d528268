"""`discoro.run` and `discoro.servers`, without a node: the door of a script."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro.errors import ConfigError, CoroEnded, NoMesh, NoNodes, NotACoroutine
from discoro.process import child_environment


def options(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {"key_file": tmp_path / "cluster.key", "mdns": False, "ip_addr": ["127.0.0.1"], **more}


def test_run_gives_what_main_returns(tmp_path: Path) -> None:
    def generator(a: int, b: int, coro: Any = None) -> Any:
        yield coro.sleep(0)
        return a + b

    async def native(a: int, b: int) -> int:
        return a * b

    assert discoro.run(generator, 3, 4, **options(tmp_path)) == 7
    assert discoro.run(native, 3, 4, **options(tmp_path)) == 12


def test_run_raises_what_main_raises(tmp_path: Path) -> None:
    async def fails() -> None:
        raise KeyError("k")

    with pytest.raises(KeyError):
        discoro.run(fails, **options(tmp_path))


def test_sys_exit_in_main_means_the_program(tmp_path: Path) -> None:
    def main(coro: Any = None) -> Any:
        yield coro.sleep(0)
        sys.exit(3)

    with pytest.raises(SystemExit) as caught:
        discoro.run(main, **options(tmp_path))
    assert caught.value.code == 3


def test_sys_exit_in_another_coroutine_does_not(tmp_path: Path) -> None:
    async def other() -> None:
        sys.exit(3)

    async def main() -> None:
        await discoro.Coro(other).result()

    with pytest.raises(CoroEnded, match=r"other .* ended itself with SystemExit\(3\)"):
        discoro.run(main, **options(tmp_path))


def test_run_refuses_what_is_no_coroutine_function(tmp_path: Path) -> None:
    with pytest.raises(NotACoroutine, match="print"):
        discoro.run(print, **options(tmp_path))


def test_run_inside_a_loop_names_the_other_way(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="async with discoro.Mesh"):
            discoro.run(main, **options(tmp_path))

    asyncio.run(main())


def test_a_mesh_in_a_running_loop_does_the_same(tmp_path: Path) -> None:
    def answers(coro: Any = None) -> Any:
        return (yield coro.receive())

    async def main() -> Any:
        async with discoro.Mesh(**options(tmp_path)) as mesh:
            coro = discoro.Coro(answers)
            coro.send("m")
            assert await coro.result(timeout=5) == "m"
            return await mesh.run(answers_at_once)

    async def answers_at_once() -> int:
        return 5

    assert asyncio.run(main()) == 5
    with pytest.raises(NoMesh):
        discoro.Coro(answers)


def test_without_a_node_a_program_ends_and_says_what_was_tried(tmp_path: Path) -> None:
    async def main() -> None:
        await discoro.servers()

    with pytest.raises(NoNodes, match="(?s)no usable node in 0.2 s.*mDNS is off.*discoro-node"):
        discoro.run(main, **options(tmp_path, discover_timeout=0.2))


def test_an_address_that_this_machine_does_not_have_is_an_error(tmp_path: Path) -> None:
    async def main() -> None: ...

    with pytest.raises(ConfigError, match="192.0.2.254"):
        discoro.run(main, **options(tmp_path, ip_addr=["192.0.2.254"]))


def test_ctrl_c_ends_main_in_order_and_the_program_with_it(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import os, signal, discoro\n"
        "def main(coro=None):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        yield coro.receive()\n"
        "    finally:\n"
        "        print('tidied up')\n"
        f"discoro.run(main, key_file={str(tmp_path / 'k')!r}, mdns=False, ip_addr=['127.0.0.1'])\n"
    )
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "tidied up\n"
    assert done.returncode in (-2, 130)
    assert "asyncio/" not in done.stderr


def test_a_traceback_begins_where_the_users_own_code_does() -> None:
    def fails(coro: Any = None) -> Any:
        yield coro.sleep(0)
        raise LookupError("bad")

    async def main() -> None:
        await discoro.Coro(fails).result()

    with pytest.raises(LookupError) as caught:
        discoro.run(main, mdns=False, ip_addr=["127.0.0.1"], open=True)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0] == "test_a_traceback_begins_where_the_users_own_code_does"
    assert [name for name in names if name in ("main", "fails")] == ["main", "fails"]
    assert not {"run_until_complete", "program", "drive", "send"} & set(names)
