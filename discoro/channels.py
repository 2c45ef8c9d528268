"""Channel: what is sent into it goes to every subscriber, coroutines and further channels, wherever they are.

A `Channel` is the value that stands for one anywhere. Messages travel to the process that made it, and are spread there, in
hubs.py.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

from discoro import payload
from discoro.coro import host_here
from discoro.errors import ConfigError, NoSuchCoro, Timeout
from discoro.hubs import Hub, Transform
from discoro.mesh import Mesh
from discoro.messages import Part
from discoro.references import CoroRef, Handle
from discoro.sending import checked
from discoro.services import Served, mesh_here, numbers, registered_name
from discoro.spreading import Delivery, Load

COUNT_GRACE = 1.0  # seconds more than its timeout that a deliver waits for how many had the message


class Channel(Served):
    """Sends what is sent into it to all its subscribers: `Channel(name, transform=None)`; it can be sent in messages.

    `transform(name, message)`, a plain function, gives what is sent in place of each message, or None for nothing. In its own
    process, subscribers get the very objects that were sent there.

    It ends with the process or the computation in which it was made, or by `close`. Each coroutine that subscribes then gets an
    ExitNotice, after all messages: its `ref` is the channel's, its reason "channel closed", "computation closed", "peer lost",
    or whatever it was. Raises ConfigError for a name that cannot be registered, or a transform that is no plain function.
    """

    __slots__ = ()
    KIND = "channel"

    def __init__(self, name: str, transform: Transform | None = None) -> None:
        registered_name(self.KIND, name)
        self._stand_for(Hub(self.KIND, name, _plain(transform)).coro.ref, name)

    def send(self, message: object) -> None:
        """Send to all current subscribers, and return at once; not used with yield.

        Raises Overloaded, which names the subscribers without room, after all others got the message; what the transform
        raises, and PackError, before anybody did. For a channel of another process, the message travels there first, and what
        goes wrong there is said in its log; then this raises only what `CoroRef.send` does.
        """
        host_here().send(self._ref, message)

    async def deliver(self, message: object, timeout: float | None = None, n: int = 0) -> int:
        """Send to all current subscribers, and wait until each has it in its mailbox, for room there too.

        Where that makes less than `n` coroutines, waits for further subscribers of this channel, and sends it to them. Returns
        how many coroutines got it, those behind further channels included; 0 where a transform dropped it.

        Raises Timeout after `timeout` seconds, which says how many had it by then; what a transform raises; NoSuchCoro where
        the channel ended; Overloaded where too many wait; PeerLost, WorkerLost, Unreachable, PackError, TooLarge; ConfigError
        for an `n` that is no number, or below 0.
        """
        if type(n) is not int or n < 0:
            raise ConfigError(f"n is a number of coroutines, 0 or more; this is {n!r:.80}")
        mesh = mesh_here()
        home = self._home(mesh, Hub)
        if home is None:
            return await self._deliver_far(mesh, payload.pack(message), timeout, n)
        delivery = Delivery(home, n)
        try:
            async with asyncio.timeout(timeout) as limit:
                return await home.deliver(delivery, Load(message), ())
        except TimeoutError:
            if not limit.expired():
                raise
            raise Timeout(f"{self}: after {timeout:g} s {delivery}") from None

    async def _deliver_far(self, mesh: Mesh, body: Sequence[Part], timeout: float | None, n: int) -> int:
        number = next(numbers)
        try:
            with self._withdrawn(mesh, number, timeout):
                limit = None if timeout is None else timeout + COUNT_GRACE
                return checked(await self._ask("deliver", {"id": number, "n": n}, body, limit)).number
        except Timeout as error:
            raise Timeout(f"{self}: after {timeout or 0:g} s {error}") from None

    async def subscribe(self, subscriber: Handle | Channel, timeout: float | None = None) -> int:
        """Have a coroutine, or another channel, get everything that is sent from now on. Returns 0 once that is so.

        Any coroutine may do it for any other. One that ends is dropped. A channel hands on what it gets to its own subscribers;
        where channels subscribe to each other in a circle, a message goes round once; where several ways lead to a subscriber,
        it comes by each. Raises NoSuchCoro where either has ended, Timeout, Overloaded for more than 10,000 subscribers,
        PeerLost, WorkerLost, Unreachable, ConfigError.
        """
        mesh, ref = mesh_here(), _subscriber(subscriber)
        arguments = {"subscriber": ref.to_plain()}
        try:
            await mesh.request(self._ref, "subscribe", arguments, timeout=timeout)
        except NoSuchCoro as error:
            raise NoSuchCoro(f"{subscriber} cannot subscribe to {self}: {error}") from None
        except (Timeout, asyncio.CancelledError):
            mesh.ask_later(self._ref, "unsubscribe", arguments)
            raise
        return 0

    async def unsubscribe(self, subscriber: Handle | Channel, timeout: float | None = None) -> int:
        """Undo `subscribe`: no further message goes there, and no notice. Returns 0, also where it did not subscribe.

        Raises NoSuchCoro where the channel has ended, Timeout, PeerLost, WorkerLost, Unreachable, ConfigError.
        """
        ref = _subscriber(subscriber)
        return (await self._ask("unsubscribe", {"subscriber": ref.to_plain()}, timeout=timeout)).number

    async def set_transform(self, transform: Transform | None) -> int:
        """Use another transform, or none, for messages from now on. Returns 0. Raises ConfigError, NoSuchCoro, PackError."""
        home = self._home(mesh_here(), Hub)
        if home is not None:
            home.transform = _plain(transform)
            return 0
        return (await self._ask("transform", {}, payload.pack(_plain(transform)))).number


def _plain(transform: Any) -> Transform | None:
    kinds = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    if transform is not None and (not callable(transform) or any(is_kind(transform) for is_kind in kinds)):
        raise ConfigError(f"a transform is a plain function of name and message, no coroutine; this is {transform!r:.80}")
    found: Transform | None = transform
    return found


def _subscriber(subscriber: object) -> CoroRef:
    if not isinstance(subscriber, Handle | Channel):
        raise ConfigError(f"what subscribes is a coroutine, its reference or a channel; this is {subscriber!r:.80}")
    return subscriber.ref
