# A chat: a channel in this process, and people anywhere on the mesh who subscribe to it and speak through it.
import discoro

PEOPLE = ("ada", "grace", "barbara")


def polite(channel, line):
    return None if "darn" in line else line  # None: nobody gets it


def person(name, lobby, coro=None):
    yield lobby.subscribe(coro)
    yield lobby.deliver(f"{name}: hello", n=len(PEOPLE) + 1)  # waits until all are there to hear it
    yield lobby.deliver(f"{name}: darn")
    lobby.send(f"{name}: goodbye")
    heard = 0
    while not isinstance((yield coro.receive()), discoro.ExitNotice):
        heard += 1
    return heard


def client(coro=None):
    lobby = discoro.Channel("lobby", transform=polite)
    yield lobby.subscribe(coro)
    servers = yield discoro.servers()
    computation = discoro.Computation(person)
    for server in servers:
        yield computation.setup(server)
    people = []
    for number, name in enumerate(PEOPLE):
        people.append((yield computation.run(servers[number % len(servers)], name, lobby)))

    said = []
    for _ in range(2 * len(PEOPLE)):
        said.append((yield coro.receive()))
    print(*sorted(said), sep="\n")
    yield lobby.close()  # which every subscriber is told
    print((yield coro.receive()).reason)
    for name, each in zip(PEOPLE, people, strict=True):
        print(name, "heard", (yield each.result()), "lines")
    for server in servers:
        yield computation.close(server)


if __name__ == "__main__":
    discoro.run(client)
