# Uses the server of own_server.py, wherever that runs.
import os

import discoro


def where(coro=None):
    yield coro.sleep(0)
    return os.getpid()


def client(coro=None):
    server = yield discoro.Coro.locate("mine", timeout=10)
    computation = discoro.Computation(where)
    yield computation.setup(server)
    remote = yield computation.run(server)
    print("ran in process", (yield remote.result()), "of", server)
    yield computation.close(server)


discoro.run(client)
