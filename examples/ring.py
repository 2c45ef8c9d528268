# A ring of 1,000 coroutines over every slot: each knows the reference of the next only, and hands a token on.
import time

import discoro

MEMBERS, ROUNDS = 1000, 5


def member(coro=None):
    following = yield coro.receive()
    handed_on = 0
    while (token := (yield coro.receive())) is not None:
        following.send(token + 1)
        handed_on += 1
    following.send(None)
    return handed_on


def client(coro=None):
    servers = yield discoro.servers()
    computation = discoro.Computation(member)
    for server in servers:
        yield computation.setup(server)
    ring = []
    for number in range(MEMBERS):
        ring.append((yield computation.run(servers[number % len(servers)])))
    for one, following in zip(ring, [*ring[1:], coro.ref], strict=True):
        one.send(following)

    token, started = 0, time.perf_counter()
    for _ in range(ROUNDS):
        ring[0].send(token)
        token = yield coro.receive()
    print(f"{token} times handed on, each time by another of {MEMBERS} coroutines on {len(servers)} slots")
    print(f"{(time.perf_counter() - started) / token * 1e6:.0f} us each")

    ring[0].send(None)
    handed_on = 0
    for each in ring:
        handed_on += yield each.result()
    print(handed_on, "in the end, by their own count")
    for server in servers:
        yield computation.close(server)


if __name__ == "__main__":
    discoro.run(client)
