# A ring of 1,000 coroutines over every slot: each knows the reference of the next only, and hands a token on.
import asyncio
import time

import discoro

MEMBERS, ROUNDS = 1000, 5


async def member(coro):
    following = await coro.receive()
    handed_on = 0
    while (token := await coro.receive()) is not None:
        following.send(token + 1)
        handed_on += 1
    following.send(None)
    return handed_on


async def client(coro):
    servers = await discoro.servers()
    computation = discoro.Computation(member)
    await asyncio.gather(*(computation.setup(server) for server in servers))
    ring = await asyncio.gather(*(computation.run(servers[number % len(servers)]) for number in range(MEMBERS)))
    for one, following in zip(ring, [*ring[1:], coro.ref], strict=True):
        one.send(following)

    token, started = 0, time.perf_counter()
    for _ in range(ROUNDS):
        ring[0].send(token)
        token = await coro.receive()
    print(f"{token} times handed on, each time by another of {MEMBERS} coroutines on {len(servers)} slots")
    print(f"{(time.perf_counter() - started) / token * 1e6:.0f} us each")

    ring[0].send(None)
    print(sum(await asyncio.gather(*(each.result() for each in ring))), "in the end, by their own count")
    await asyncio.gather(*(computation.close(server) for server in servers))


if __name__ == "__main__":
    discoro.run(client)
