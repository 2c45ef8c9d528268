# Question and answer: `ask` waits for the reply to just that message, however many others are on their way.
import time

import discoro

ROUNDS = 2000


async def pong(coro):
    while True:
        ball = await coro.receive()
        coro.reply(ball + 1)


async def client(coro):
    server = await discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(pong)
    await computation.setup(server)
    other = await computation.run(server)

    ball, started = 0, time.perf_counter()
    for _ in range(ROUNDS):
        ball = await other.ask(ball, timeout=5)
    print(f"{ball} balls came back, {(time.perf_counter() - started) / ROUNDS * 1e6:.0f} us each")

    await other.terminate()
    try:
        await other.ask(ball, timeout=5)
    except (discoro.NoSuchCoro, discoro.NoReply) as error:  # it has ended, or is about to
        print("nobody there:", error)
    await computation.close(server)


if __name__ == "__main__":
    discoro.run(client)
