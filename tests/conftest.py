"""What every test stands on: an environment of its own, and a closing line that counts the skipped by reason.

Importing this module points everything a test might write by default (configuration, cluster key, caches,
temporary folders, hypothesis' examples) into the ignored folder .discoro, and drops the caller's DISCORO_*
variables: a test never reads or touches what belongs to the user who runs it. It defines no fixtures.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

STATE = Path(__file__).resolve().parent.parent / ".discoro"


def settle_environment() -> None:
    """Points the home, the XDG folders and the folders of the test tools into .discoro; makes them."""
    keep_pip_configuration()
    for name in [name for name in os.environ if name.startswith("DISCORO_")]:
        del os.environ[name]
    home = STATE / "home"
    folders = {
        "HOME": home,
        "XDG_CONFIG_HOME": home / "config",
        "XDG_CACHE_HOME": home / "cache",
        "XDG_DATA_HOME": home / "data",
        "XDG_STATE_HOME": home / "state",
        "PIP_CACHE_DIR": STATE / "pip-cache",
        "HYPOTHESIS_STORAGE_DIRECTORY": STATE / "hypothesis",
        "PYTEST_DEBUG_TEMPROOT": STATE / "tmp",
    }
    for variable, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(folder)


def keep_pip_configuration() -> None:
    """The packaging tests install: the caller's package index must stay known when the home moves."""
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for file in (config_home / "pip" / "pip.conf", Path.home() / ".pip" / "pip.conf"):
        if file.is_file():
            os.environ.setdefault("PIP_CONFIG_FILE", str(file))


settle_environment()


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The reason given to skip, on one line."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(text.removeprefix("Skipped: ").split())


def closing_line(outcomes: dict[str, int], reasons: Iterable[str]) -> str:
    """`120 passed, 0 failed, 3 skipped (2: needs namespaces; 1: only one Python)`, and what else was."""
    counted = Counter(reasons).most_common()
    parts = [f"{outcomes.get(kind, 0)} {kind}" for kind in ("passed", "failed", "skipped")]
    if counted:
        parts[-1] += f" ({'; '.join(f'{count}: {reason}' for reason, count in counted)})"
    others = ("error", "xfailed", "xpassed", "deselected")
    parts += [f"{outcomes[kind]} {kind}" for kind in others if outcomes.get(kind)]
    return ", ".join(parts)


RAN = pytest.StashKey[bool]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Marks that tests are run; `--help` and the like never get here."""
    session.config.stash[RAN] = not session.config.option.collectonly


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Prints the closing line below pytest's own summary, which only now is complete."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not config.stash.get(RAN, False):
        return
    outcomes = {kind: len(reports) for kind, reports in reporter.stats.items()}
    reporter.write_line(closing_line(outcomes, map(skip_reason, reporter.stats.get("skipped", []))))
