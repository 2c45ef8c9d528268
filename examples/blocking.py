# Ordinary code, as at a prompt or in a notebook: no yield and no await, every call waits until it is done.
import discoro


def square(n, coro=None):
    yield coro.sleep(0.1)
    return n * n


def add_up(coro=None):
    total = 0
    while True:
        total += yield coro.receive()
        coro.reply(total)


with discoro.BlockingMesh() as mesh:
    server = mesh.locate("discoro_server")
    squares = mesh.computation(square)
    squares.setup(server)
    remotes = [squares.run(server, n) for n in range(5)]
    print([remote.result() for remote in remotes])
    squares.close(server)

    adder = mesh.create(add_up)
    print([adder.ask(n) for n in (1, 2, 3)])
