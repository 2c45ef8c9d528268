# A discoro_server in a process of one's own, on whichever machine has what the computation needs. Ctrl-C ends it.
import discoro


async def main():
    server = discoro.Coro(discoro.discoro_server, name="mine")
    await server.result()


try:
    discoro.run(main)
except KeyboardInterrupt:
    pass
