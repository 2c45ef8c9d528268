# One coroutine on whichever machine is free; there is no address in here.
import discoro


def compute(n, coro=None):
    yield coro.sleep(0.1)
    return n * n

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(compute)
    yield computation.setup(server)
    remote = yield computation.run(server, 7)
    print(remote, (yield remote.result()))
    yield computation.close(server)

discoro.run(client)
