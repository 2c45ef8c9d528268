# discoro inside a program that has an event loop of its own.
import asyncio

import discoro


async def double(n):
    await asyncio.sleep(0.1)
    return 2 * n


async def main():
    async with discoro.Mesh():
        server = await discoro.Coro.locate("discoro_server")
        computation = discoro.Computation(double)
        await computation.setup(server)
        remotes = [await computation.run(server, n) for n in range(5)]
        print(await asyncio.gather(*(remote.result() for remote in remotes)))
        await computation.close(server)


asyncio.run(main())
