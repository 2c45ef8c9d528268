# A chat: a channel in this process, and people anywhere on the mesh who subscribe to it and speak through it.
import asyncio

import discoro

PEOPLE = ("ada", "grace", "barbara")


def polite(channel, line):
    return None if "darn" in line else line  # None: nobody gets it


async def person(name, lobby, coro):
    await lobby.subscribe(coro)
    await lobby.deliver(f"{name}: hello", n=len(PEOPLE) + 1)  # waits until all are there to hear it
    await lobby.deliver(f"{name}: darn")
    lobby.send(f"{name}: goodbye")
    heard = 0
    while not isinstance(await coro.receive(), discoro.ExitNotice):
        heard += 1
    return heard


async def client(coro):
    lobby = discoro.Channel("lobby", transform=polite)
    await lobby.subscribe(coro)
    servers = await discoro.servers()
    computation = discoro.Computation(person)
    await asyncio.gather(*(computation.setup(server) for server in servers))
    people = [
        await computation.run(servers[number % len(servers)], name, lobby) for number, name in enumerate(PEOPLE)
    ]

    said = [await coro.receive() for _ in range(2 * len(PEOPLE))]
    print(*sorted(said), sep="\n")
    await lobby.close()  # which every subscriber is told
    print((await coro.receive()).reason)
    for name, each in zip(PEOPLE, people, strict=True):
        print(name, "heard", await each.result(), "lines")
    await asyncio.gather(*(computation.close(server) for server in servers))


if __name__ == "__main__":
    discoro.run(client)
