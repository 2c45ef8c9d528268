"""Discovery where nothing can be heard: no socket, no error, and words that say so. The rest needs a network:
tests/system/test_discovery_lan.py."""

from __future__ import annotations

import asyncio
import errno
import logging
import os

import pytest

from discoro import discovery
from discoro.discovery import Discovery
from discoro.interfaces import Interfaces
from tests.support.discovery_peer import advert

ADVERT = advert(addresses=("192.168.1.20:7700",))


def test_a_loopback_only_node_opens_no_socket_and_says_so() -> None:
    async def scenario() -> None:
        files = len(os.listdir("/proc/self/fd"))
        finder = Discovery(lambda found: None, Interfaces(usable=(("lo", "127.0.0.1"),)))
        await finder.start()
        await finder.advertise(ADVERT, 7700)
        finder.refresh()
        assert len(os.listdir("/proc/self/fd")) == files
        assert len(asyncio.all_tasks()) == 1
        assert finder.heard() == ["only loopback is in use here (-i), so nobody was looked for by mDNS"]
        await finder.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("usable", [(), (("eth9", "203.0.113.9"),)])
def test_no_multicast_is_told_and_no_error(usable: tuple[tuple[str, str], ...]) -> None:
    async def scenario() -> None:
        files = len(os.listdir("/proc/self/fd"))
        finder = Discovery(lambda found: None, Interfaces(usable=usable))
        await finder.start()
        await finder.advertise(ADVERT, 7700)
        await finder.advertise(ADVERT, 7700)  # again, as after a change of addresses
        finder.refresh()
        trouble = "mDNS cannot be used on 203.0.113.9" if usable else "no usable network interface"
        assert trouble in "\n".join(finder.heard())
        await finder.close()
        await finder.close()
        assert len(asyncio.all_tasks()) == 1
        assert len(os.listdir("/proc/self/fd")) == files

    asyncio.run(scenario())


def test_announcements_slow_down_with_age() -> None:
    assert discovery._announce_pause(0.0) == discovery.ANNOUNCE_FIRST
    assert discovery._announce_pause(discovery.FIRST) == discovery.ANNOUNCE_EARLY
    assert discovery._announce_pause(discovery.YOUNG) == discovery.ANNOUNCE_LATE


def test_a_network_that_is_gone_is_no_traceback_of_a_library(caplog: pytest.LogCaptureFixture) -> None:
    theirs = logging.getLogger("zeroconf")
    try:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")
    except OSError:
        theirs.warning("Error with socket 20", exc_info=True)
    assert caplog.text == ""
    theirs.warning("anything else")
    assert "anything else" in caplog.text
