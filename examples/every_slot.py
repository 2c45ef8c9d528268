# Work for every processor of every machine: one coroutine on each slot, and numbers for whoever is free.
import asyncio

import discoro


async def count_primes(client, coro):
    while True:
        start, stop = await coro.receive()
        found = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), stop))
        client.send((coro.ref, found))


async def client(coro):
    servers = await discoro.servers()
    computation = discoro.Computation(count_primes)
    await asyncio.gather(*(computation.setup(server) for server in servers))
    workers = [await computation.run(server, coro.ref) for server in servers]
    for worker in workers:
        await coro.monitor(worker)  # else a worker that fails would leave us waiting

    parts = [(start, start + 5_000) for start in range(0, 200_000, 5_000)]
    waiting, total = iter(parts), 0
    for worker, part in zip(workers, waiting, strict=False):
        worker.send(part)
    for _ in parts:
        message = await coro.receive()
        if isinstance(message, discoro.ExitNotice):
            raise message.error or SystemExit(f"{message.ref} ended")
        worker, found = message
        total += found
        if part := next(waiting, None):
            worker.send(part)
    print(total, "primes below 200000, found at", len(servers), "slots")

    await asyncio.gather(*(computation.close(server) for server in servers))


if __name__ == "__main__":
    discoro.run(client)
