"""The network of mDNS: advertises this node, finds the others, and keeps at it while interfaces come and go.

The only module that knows zeroconf. What it hears is a hint, never a fact, since anybody on a network can say
anything by mDNS. So it only tells that somebody may be at some addresses: who it is, the greeting proves; that it
is gone, the link finds out. A goodbye changes the report and nothing else; an advert that breaks a rule is
counted, reported and ignored.

How the parts play together: `Discovery` browses, advertises, follows the interfaces that it is told of, and says
goodbye. What an advert may be, and what was heard so far, are values of `adverts`; which addresses it goes over,
`interfaces` chooses. `_Others` listens to all other mDNS traffic, which tells a silent network from one without nodes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from zeroconf import (
    DNSQuestionType,
    IPVersion,
    NotRunningException,
    RecordUpdate,
    RecordUpdateListener,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from discoro.adverts import SERVICE, Advert, Heard, advert_from, dialable, hosts_of, instance_of, shown, to_txt
from discoro.errors import ProtocolError
from discoro.interfaces import Interfaces, plugged_in_again

_log = logging.getLogger("discoro.discovery")

HEARD_TXT_LIMIT = 1300
"""Bytes of TXT read from others: RFC 6763 section 6.2, what fits one Ethernet packet."""

RESOLVING_LIMIT = 64
"""Adverts whose details are being asked for at one time: each may take RESOLVE_TIME, and forged ones do."""

RESOLVE_TIME = 3.0
"""Seconds to wait for the details of an advert; real nodes send them along with it."""

RETRY_TIME = 5.0
"""Seconds until mDNS is tried again where it did not work, and between two looks whether to announce."""

ANNOUNCE_FIRST = 5.0
"""Seconds between announcements at first: who starts, or is plugged in, often does so a moment before its network works."""

FIRST = 30.0
"""Seconds that this is so, from the start or from the last change of interfaces."""

ANNOUNCE_EARLY = 20.0
"""Seconds between announcements while young. A browser asks only four times by itself: without announcements,
one that was cut off then would never hear of this node."""

YOUNG = 120.0
"""Seconds that an advertising node counts as young, from the start or from the last change of interfaces."""

ANNOUNCE_LATE = 60.0
"""Seconds between announcements later on."""

REFRESH_PAUSE = 1.0
"""Seconds within which `refresh` does not ask again (RFC 6762 section 5.2: a second between two queries)."""


class _NetworkGone(logging.Filter):
    """zeroconf tells of each interface that is gone as it sends, with a traceback: of no use to anybody, since networks come
    and go, and `heard()` says how things are.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if not isinstance(error, OSError):
            return True
        _log.debug("! mDNS: %s", error)
        return False


logging.getLogger("zeroconf").addFilter(_NetworkGone())

NO_INTERFACE = "no usable network interface: until there is one, mDNS finds nobody"


class Discovery:
    """Browses for nodes, advertises this one, and keeps at it while interfaces come and go. One per process.

    `found` is called from the loop, never from inside a call, with each advert that is news (see
    `Heard.take`): dial it, and believe the greeting. This process's own advert is no news. Make it, start it
    and close it in one and the same running loop.
    """

    def __init__(self, found: Callable[[Advert], None], interfaces: Interfaces) -> None:
        self._found = found
        self._interfaces = interfaces
        self._over = interfaces  # what zeroconf works with, where it does
        self._heard = Heard()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._service: AsyncServiceInfo | None = None
        self._registered: AsyncZeroconf | None = None  # where it is
        self._announcing: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._resolving: set[str] = set()
        self._closing = False
        self._moved = False  # the interfaces are others
        self._news = asyncio.Event()  # so they are, or the advert, or this is to be closed
        self._maintenance: asyncio.Future[None] | None = None
        self._started = 0.0
        self._since = 0.0  # when something changed last: from then on it announces often for a while
        self._refreshed = 0.0

    def __repr__(self) -> str:
        state = "open" if self._zeroconf else "closed"
        over = ", ".join(self._interfaces.multicast) or "nothing"
        what = self._service.name if self._service else "nothing"
        return f"<Discovery {state}, over {over}, advertising {what}>"

    async def start(self) -> None:
        """Browse. Where multicast does not work, `heard()` says so and it is tried again: it is no error."""
        self._started = self._since = asyncio.get_running_loop().time()
        if not self._interfaces.loopback_only:
            await self._open()
            self._maintenance = self._spawn(self._maintain())

    async def advertise(self, advert: Advert, port: int) -> None:
        """Advertise this node, from now on so; called again where its addresses have changed. Returns at once: the first packet
        leaves in one of the next turns.

        Of `advert.addresses` only the hosts count, which are IP addresses: `port` goes with each. Those that no other machine
        can dial are left out; with none left, or on a loopback-only node, all stays as it was. Raises ConfigError for an advert
        that others would refuse.
        """
        txt = to_txt(advert)
        hosts = hosts_of(advert)
        if self._interfaces.loopback_only or not hosts:
            _log.debug("= not advertised: no address that other machines can dial")
            return
        # A host name of our own, drawn at each start: the records of an earlier life never mix with these.
        server = f"discoro-{advert.node}.local."
        before = self._service
        self._service = AsyncServiceInfo(
            SERVICE, instance_of(advert), port=port, properties=txt, server=server, parsed_addresses=hosts
        )
        if before is None or before.parsed_addresses() != hosts:
            self._news.set()  # `_maintain` alone registers and announces: the two at the same time get in each other's way

    def use(self, interfaces: Interfaces) -> None:
        """The machine's interfaces are these now, or it slept: soon others are asked and told anew, over these."""
        self._interfaces = interfaces
        self._since = asyncio.get_running_loop().time()
        self._moved = True
        self._news.set()

    async def withdraw(self) -> None:
        """Say goodbye for this node, which is advertised no more; others are heard as before."""
        service, self._service = self._service, None
        if self._zeroconf is not None and service is not None and self._registered is self._zeroconf:
            self._registered = None
            await self._say_goodbye(self._zeroconf, service)

    async def _say_goodbye(self, zeroconf: AsyncZeroconf, service: AsyncServiceInfo) -> None:
        """What was to be sent before, and would leave after the goodbye, is not sent: it would bring this node back for others.

        That is announcements, and answers, which wait for up to a second (RFC 6762, 6: one record no more often than that).
        """
        if self._announcing is not None:
            self._announcing.cancel()
        for answers in (zeroconf.zeroconf.out_queue, zeroconf.zeroconf.out_delay_queue):
            answers.queue.clear()  # all of them are this node's
        try:
            rest = await zeroconf.async_unregister_service(service)
        except NotRunningException:
            return  # the interfaces went just now, and it with them
        self._watch(asyncio.ensure_future(rest))

    def refresh(self) -> None:
        """Ask again, and report every advert anew; for while somebody waits for nodes, about every 10 s.

        Within REFRESH_PAUSE of the last time it does nothing.
        """
        now = asyncio.get_running_loop().time()
        if self._zeroconf is not None and now - self._refreshed >= REFRESH_PAUSE:
            self._refreshed = now
            self._spawn(self._browse_again())

    def heard(self) -> list[str]:
        """What was listened on, heard, refused, and went wrong: one line each, for the text of NoNodes."""
        seconds = asyncio.get_running_loop().time() - self._started
        return self._heard.lines(self._interfaces, seconds)

    async def close(self) -> None:
        """Say goodbye (0.25 s) and leave no socket, task or thread. May be called again."""
        self._closing = True
        self._news.set()
        if self._maintenance is not None:
            # Not cancelled: zeroconf, interrupted while it changes interfaces, would leave sockets open.
            # It ends within 0.5 s.
            await asyncio.wait([self._maintenance])
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._shut()

    # -- opening and shutting zeroconf

    async def _open(self) -> None:
        over = self._interfaces.multicast
        if not over:
            self._heard.trouble = NO_INTERFACE
            return
        try:
            _check_here(over)
            # Kept at once: whatever interrupts us from here on, `_shut` finds it.
            self._zeroconf = opened = AsyncZeroconf(interfaces=over, ip_version=_version(over))
            await opened.zeroconf.async_wait_for_start()
            if not opened.zeroconf.engine.senders:
                raise OSError("no interface could join the group")
        except (OSError, ZeroconfError) as error:
            self._trouble(over, error)
            await self._shut()
            return
        self._heard.trouble = ""
        opened.zeroconf.async_add_listener(_Others(self._heard, self._own_addresses), None)
        self._browse(opened)
        await self._register()

    async def _shut(self) -> None:
        if self._browser is not None:
            browser, self._browser = self._browser, None
            await browser.async_cancel()
        if self._zeroconf is not None:
            await self._zeroconf.async_close()
            self._zeroconf = None  # not before: a cancelled `_shut` can be run again

    def _trouble(self, over: Sequence[str], error: Exception) -> None:
        self._heard.trouble = f"mDNS cannot be used on {', '.join(over)}: {error or type(error).__name__}"
        _log.debug("! %s", self._heard.trouble)

    async def _register(self) -> None:
        if self._zeroconf is None or self._service is None or self._registered is self._zeroconf:
            return
        zeroconf, service = self._zeroconf, self._service
        self._registered = zeroconf
        # Cooperating: no probes, the instance name is ours alone.
        try:
            rest = await zeroconf.async_register_service(service, cooperating_responders=True)
        except NotRunningException:
            self._registered = None
            return  # the interfaces went just now; it is registered when they are back
        self._announce_by(rest)
        if self._service is None:  # withdrawn while zeroconf started: there was nothing to take back yet
            await self._say_goodbye(zeroconf, service)

    def _announce_by(self, broadcast: Awaitable[None]) -> None:
        """Three packets, some moments apart, which a goodbye breaks off."""
        self._announcing = asyncio.ensure_future(broadcast)
        self._watch(self._announcing)

    def _own_addresses(self) -> set[str]:
        usable = {address for _, address in self._interfaces.usable}
        return usable | {address for _, address, _ in self._interfaces.ignored}

    # -- hearing

    def _browse(self, zeroconf: AsyncZeroconf) -> None:
        # QM, not QU: of several processes on one machine only one would get the unicast answer to QU
        # (RFC 6762 section 15.1), and it need not be the one that asked.
        self._browser = AsyncServiceBrowser(
            zeroconf.zeroconf, SERVICE, handlers=[self._changed], question_type=DNSQuestionType.QM
        )

    async def _browse_again(self) -> None:
        browser, self._browser = self._browser, None
        if browser is not None:
            await browser.async_cancel()
        if self._zeroconf is not None:
            self._heard.tell_again()
            self._browse(self._zeroconf)

    def _changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if self._service is not None and name.lower() == self._service.key:
            return
        if state_change is ServiceStateChange.Removed:
            _log.debug("< goodbye of %s", shown(name))
            self._heard.leave(name)
            return
        service = AsyncServiceInfo(SERVICE, name)
        if service.load_from_cache(zeroconf):
            self._take(service)
        elif name in self._resolving:
            return
        elif len(self._resolving) < RESOLVING_LIMIT:
            self._resolving.add(name)
            self._spawn(self._resolve(zeroconf, service))
        else:
            self._heard.refuse(name, "too many adverts at once; the next look will ask for it again")

    async def _resolve(self, zeroconf: Zeroconf, service: AsyncServiceInfo) -> None:
        try:
            if await service.async_request(zeroconf, RESOLVE_TIME * 1000, DNSQuestionType.QM):
                self._take(service)
            else:
                self._heard.refuse(service.name, f"told no address or TXT record within {RESOLVE_TIME:.0f} s")
        finally:
            self._resolving.discard(service.name)

    def _take(self, service: AsyncServiceInfo) -> None:
        try:
            if len(service.text) > HEARD_TXT_LIMIT:
                raise ProtocolError(f"its TXT record has {len(service.text)} bytes, over {HEARD_TXT_LIMIT}")
            hosts = service.parsed_addresses()
            advert = advert_from(service.name, service.properties, hosts, service.port, self._interfaces.networks)
        except ProtocolError as error:
            _log.debug("! refused %s: %s", shown(service.name), error)
            self._heard.refuse(service.name, str(error))
            return
        if self._heard.take(service.name, advert):
            _log.debug("< %s", advert)
            asyncio.get_running_loop().call_soon(self._report, advert)

    def _report(self, advert: Advert) -> None:
        if self._zeroconf is not None:
            self._found(advert)

    # -- keeping at it

    async def _maintain(self) -> None:
        clock = asyncio.get_running_loop().time
        announced = clock()
        while True:
            news = await self._news_within(RETRY_TIME)
            if self._closing:
                return
            moved, self._moved = self._moved, False
            try:
                await self._settle()
                if moved:
                    self.refresh()
                if news or clock() - announced >= _announce_pause(clock() - self._since):
                    announced = clock()
                    await self._announce()
            except (OSError, ZeroconfError) as error:
                self._trouble(self._interfaces.multicast, error)

    async def _news_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    async def _settle(self) -> None:
        """Take up interfaces that came, drop those that went; try again where mDNS did not work."""
        before, self._over = self._over, self._interfaces
        over = self._over.multicast
        if self._zeroconf is not None and (not over or plugged_in_again(before, self._over)):
            await self._shut()  # plugged in again, even with the same address, it needs new sockets
        if self._zeroconf is None:
            await self._open()
            return
        self._heard.trouble = ""
        if over != before.multicast:
            await self._zeroconf.async_update_interfaces(over, _version(over))

    async def _announce(self) -> None:
        if self._registered is not self._zeroconf:
            await self._register()
        elif self._zeroconf is not None and self._service is not None:
            self._announce_by(await self._zeroconf.async_update_service(self._service))

    # -- tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._watch(task)
        return task

    def _watch(self, task: asyncio.Future[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # a bug of ours: raised here, the loop's exception handler tells it


def _announce_pause(age: float) -> float:
    if age < FIRST:
        return ANNOUNCE_FIRST
    return ANNOUNCE_EARLY if age < YOUNG else ANNOUNCE_LATE


def _check_here(addresses: Sequence[str]) -> None:
    """OSError for an address that has gone: given to zeroconf, it would cost a socket left open."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))


def _version(addresses: Sequence[str]) -> IPVersion:
    return IPVersion.V6Only if any(":" in address for address in addresses) else IPVersion.V4Only


class _Others(RecordUpdateListener):
    """Notes which other machines answer mDNS at all, which tells a silent network from one without nodes."""

    def __init__(self, heard: Heard, own: Callable[[], set[str]]) -> None:
        super().__init__()
        self._heard = heard
        self._own = own

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        own = self._own()
        for record in records:
            packed = getattr(record.new, "address", None)  # only A and AAAA records have one
            if packed is None:
                continue
            address = str(ipaddress.ip_address(packed))
            if address not in own and dialable(address):
                self._heard.answered(address)
