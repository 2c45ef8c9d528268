"""How a worker ended, in words: one row for each thing that can be seen, and the words for it."""

from __future__ import annotations

from typing import Any

import pytest

from discoro.verdicts import End, size_text, summary, verdict

MIB, GIB = 1 << 20, 1 << 30
CRASH = ("text before", "Fatal Python error: Aborted", "", "Current thread:", '  File "x.py", line 3 in f')
NOT_FOR_MEMORY = "was killed by SIGKILL, by somebody, and not by the kernel for memory: it has killed nothing for that"


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        # SIGKILL: who sends it does not say why, so the counters of the kernel decide, and without these the memory
        (
            {"signal": "SIGKILL", "group_kills": 1, "machine_kills": 1, "held": 2 * GIB, "peak": 8 * GIB, "room": 8 * GIB},
            "was killed by SIGKILL, by the kernel, for memory: it held 8.0 GiB of the 8.0 GiB there are; "
            "it held 2.0 GiB when last looked at, 8.0 GiB at most",
        ),
        (
            {"signal": "SIGKILL", "group_kills": 0, "machine_kills": 2, "peak": 7 * GIB, "room": 8 * GIB},
            "was killed by SIGKILL, most likely by the kernel, for memory: it held 7.0 GiB of the 8.0 GiB there are; "
            "it held 7.0 GiB",
        ),
        ({"signal": "SIGKILL", "group_kills": 1}, "was killed by SIGKILL, by the kernel, for memory"),
        ({"signal": "SIGKILL", "group_kills": 0, "machine_kills": 0}, NOT_FOR_MEMORY),
        ({"signal": "SIGKILL", "machine_kills": 0, "held": 7 * GIB, "room": 8 * GIB}, f"{NOT_FOR_MEMORY}; it held 7.0 GiB"),
        (
            {"signal": "SIGKILL", "peak": 6 * GIB, "room": 8 * GIB},
            "was killed by SIGKILL, most likely by the kernel, for memory: it held 6.0 GiB of the 8.0 GiB there are; "
            "it held 6.0 GiB",
        ),
        (
            {"signal": "SIGKILL", "held": 38 * MIB, "room": 8 * GIB},
            "was killed by SIGKILL, by somebody, or by the kernel for memory; it held 38 MiB",
        ),
        ({"signal": "SIGKILL"}, "was killed by SIGKILL, by somebody, or by the kernel for memory"),
        # crashes
        (
            {"signal": "SIGSEGV", "output": CRASH},
            'crashed in C code by SIGSEGV, at File "x.py", line 3 in f; '
            'its last output: Fatal Python error: Aborted | Current thread: | File "x.py", line 3 in f',
        ),
        ({"signal": "SIGFPE"}, "crashed in C code by SIGFPE"),
        ({"signal": "SIGBUS"}, "crashed in C code by SIGBUS (a mapped file that was cut, or a full disk)"),
        ({"signal": "SIGXCPU"}, "was killed by SIGXCPU: its limit of processor time (ulimit -t) was reached"),
        ({"signal": "SIGTERM"}, "was killed by SIGTERM, which somebody sent to it"),
        ({"signal": "signal 40"}, "was killed by signal 40, which somebody sent to it"),
        # exits
        ({"status": 0}, "exited with status 0, by itself: os._exit(0), perhaps"),
        (
            {"status": 5, "output": ["one", "", "two"]},
            "exited with status 5, by itself: os._exit(5), perhaps; its last output: one | two",
        ),
        # the limit of --max-memory: where there is one, and its memory or its last words say so
        (
            {"signal": "SIGABRT", "limit": 512 * MIB, "output": ["what():  std::bad_alloc"]},
            "crashed by SIGABRT, most likely because it reached the 512 MiB that --max-memory lets it have; "
            "its last output: what():  std::bad_alloc",
        ),
        ({"signal": "SIGABRT", "output": ["std::bad_alloc"]}, "crashed in C code by SIGABRT; its last output: std::bad_alloc"),
        (
            {"signal": "SIGSEGV", "limit": 512 * MIB, "peak": 400 * MIB},
            "crashed by SIGSEGV, most likely because it reached the 512 MiB that --max-memory lets it have; it held 400 MiB",
        ),
        ({"signal": "SIGSEGV", "limit": 512 * MIB, "peak": 40 * MIB}, "crashed in C code by SIGSEGV; it held 40 MiB"),
        (
            {"status": 1, "limit": 512 * MIB, "output": ["MemoryError"]},
            "exited with status 1, most likely because it reached the 512 MiB that --max-memory lets it have; "
            "its last output: MemoryError",
        ),
        ({"signal": "SIGTERM", "limit": MIB, "peak": MIB}, "was killed by SIGTERM, which somebody sent to it; it held 1 MiB"),
    ],
)
def test_what_was_seen_and_the_words_for_it(seen: dict[str, Any], words: str) -> None:
    assert verdict(End(**seen)) == words


def test_the_summary_is_of_the_last_lines_that_say_something() -> None:
    lines = [text for number in range(100) for text in (str(number), " ")]
    assert summary(lines) == "95 | 96 | 97 | 98 | 99"
    assert summary([]) == ""


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 KiB"), (2048, "2 KiB"), (38 * MIB, "38 MiB"), (GIB, "1.0 GiB"), (79 * GIB // 10, "7.9 GiB"), (24 * GIB, "24 GiB")],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert size_text(size) == text
