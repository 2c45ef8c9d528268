# Messages to a coroutine on another machine, and from it.
import discoro


def add_up(client, coro=None):
    total = 0
    while (number := (yield coro.receive())) is not None:
        total += number
        client.send(total)
    return total


def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(add_up)
    yield computation.setup(server)
    remote = yield computation.run(server, coro.ref)
    yield coro.monitor(remote)
    for number in (3, 4, 5, None):
        remote.send(number)
    while not isinstance(message := (yield coro.receive()), discoro.ExitNotice):
        print("so far", message)
    print(f"ended ({message.reason}), and returned {message.value}")
    yield computation.close(server)


discoro.run(client)
