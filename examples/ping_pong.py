# Question and answer: `ask` waits for the reply to just that message, however many others are on their way.
import time

import discoro

ROUNDS = 2000


def pong(coro=None):
    while True:
        ball = yield coro.receive()
        coro.reply(ball + 1)


def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(pong)
    yield computation.setup(server)
    other = yield computation.run(server)

    ball, started = 0, time.perf_counter()
    for _ in range(ROUNDS):
        ball = yield other.ask(ball, timeout=5)
    print(f"{ball} balls came back, {(time.perf_counter() - started) / ROUNDS * 1e6:.0f} us each")

    yield other.terminate()
    try:
        yield other.ask(ball, timeout=5)
    except (discoro.NoSuchCoro, discoro.NoReply) as error:  # it has ended, or is about to
        print("nobody there:", error)
    yield computation.close(server)


if __name__ == "__main__":
    discoro.run(client)
