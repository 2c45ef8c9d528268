"""discoro-bench: what it prints and writes, and its exit status; on this machine, and between machines."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from discoro.cli import bench
from discoro.measuring import HERE, Way, Ways
from tests.support.netns import Lan, best_way

ROOT = Path(__file__).resolve().parent.parent
SOON = 60  # seconds


def started(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "discoro.cli.bench", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DISCORO_DEST_PATH": str(cwd / "files")}
    return subprocess.run(command, capture_output=True, text=True, timeout=SOON, cwd=cwd, env=environment, check=False)


def test_a_node_of_this_machine_is_measured_printed_written_and_drawn(tmp_path: Path) -> None:
    done = started("--local", "--open", "--seconds", "0.02", "--json", "ways.json", "--plot", "ways.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    headings, line, *odd = done.stdout.splitlines()
    assert all(each.startswith("! ") for each in odd), "a busy machine shakes"
    assert headings.split() == "from to round trip 1 in 100 messages bulk coroutines".split()
    assert line.startswith(HERE) and "MB/s" in line
    assert f"measuring {HERE} to" in done.stderr
    (way,) = json.loads((tmp_path / "ways.json").read_text())
    assert way["source"] == HERE and way["bulk"] > 0
    assert "MB/s" in "".join(ElementTree.parse(tmp_path / "ways.svg").getroot().itertext())


def test_without_a_node_it_says_what_was_tried(tmp_path: Path) -> None:
    done = started("--open", "--no-mdns", "--peer", "127.0.0.1:1", "--timeout", "1", cwd=tmp_path)
    assert done.returncode == 69
    assert "discoro-bench: no usable node in 1 s" in done.stderr and "127.0.0.1:1" in done.stderr
    assert done.stderr.endswith("--local to measure this machine only\n")


def test_a_key_that_cannot_be_used_is_another_status(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    (tmp_path / "key").chmod(0o600)
    done = started("--key-file", "key", "--no-mdns", "--timeout", "1", cwd=tmp_path)
    assert done.returncode == 78
    assert done.stderr.startswith("discoro-bench: ") and "key" in done.stderr


@pytest.mark.parametrize("arguments", [["--seconds", "0"], ["--seconds", "soon"], ["--timeout", "-1"], ["more"]])
def test_wrong_usage_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        bench.main(arguments)
    assert end.value.code == 2
    assert "discoro-bench" in capsys.readouterr().err


WAYS = [
    Way(HERE, "ada", 160e-6, 244e-6, 1.2e6, 1.13e9, 15_400.0),
    Way("ada", "a-machine-with-a-name", 12e-3, 0.5, 812.0, 3e5),
]


def test_a_line_has_a_unit_that_fits() -> None:
    headings, first, second = bench.table(WAYS).splitlines()
    assert first.split("  ")[0] == HERE
    figures = ["160 us", "244 us", "1.20M/s", "1,130 MB/s", "15k/s"]
    assert [each.strip() for each in first.split("  ") if each] == [HERE, "ada", *figures]
    assert second.split()[2:] == ["12", "ms", "500", "ms", "812/s", "<", "1", "MB/s"]
    assert max(map(len, (headings, first, second))) <= 100


def test_what_was_not_measured_is_told_and_is_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ways = Ways(1.0, lambda _: None)
    ways.ways, ways.failures = WAYS, ["ada to bob: unreachable"]
    assert bench.report(ways, bench.parser().parse_args([])) == 69
    printed = capsys.readouterr()
    assert "! not measured: ada to bob: unreachable" in printed.err
    assert "! slow link: ada to a-machine-with-a-name carries 0.3 MB/s" in printed.out
    assert bench.report(ways, bench.parser().parse_args(["--json", str(tmp_path / "none" / "file")])) == 78
    assert "cannot write" in capsys.readouterr().err


def test_it_is_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "discoro-bench = discoro.cli.bench:main" in setup["options.entry_points"]["console_scripts"]


@pytest.mark.system
@pytest.mark.skipif(best_way() is None, reason="needs network namespaces")
def test_every_way_between_two_machines_and_a_third_is_measured(tmp_path: Path) -> None:
    with Lan(["a", "b", "c"]) as lan:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        nodes = []
        for host in "ab":
            node = [sys.executable, "-m", "discoro", "-c", "1", "--open", "-n", host, "--dest-path", str(tmp_path / host)]
            nodes.append(lan.popen(host, node, cwd=ROOT, **quiet))
        command = [sys.executable, "-m", "discoro.cli.bench", "--open", "--seconds", "0.02"]
        command += ["--json", str(tmp_path / "ways.json")]
        with lan.popen("c", command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
            printed, errors = client.communicate(timeout=SOON)
        for each in nodes:
            each.terminate()
            each.wait(SOON)
    assert client.returncode == 0, errors
    ways = json.loads((tmp_path / "ways.json").read_text())
    assert sorted((way["source"], way["target"]) for way in ways) == [("a", "b"), ("b", "a"), (HERE, "a"), (HERE, "b")]
    assert [way["coros"] is None for way in ways] == [way["source"] != HERE for way in ways]
