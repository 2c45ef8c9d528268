# A pipeline: a fast producer, a queue of 4 places, a slow consumer. The producer waits, and its memory stays what it was.
import resource
import zlib

import discoro

BLOCKS, BLOCK = 100, 1 << 20  # 100 MiB in all


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB; Linux counts in KiB


async def produce(queue):
    await queue.put(bytes(BLOCK))  # the first one: what sending takes at all is not counted
    before = memory()
    for number in range(1, BLOCKS):
        await queue.put(bytes([number]) * BLOCK)
    await queue.close()
    return memory() - before


async def consume(coro):
    queue = discoro.Queue(4)
    await coro.receive()
    coro.reply(queue)
    checksum = taken = 0
    async for block in queue:  # until it is closed
        checksum = zlib.crc32(block, checksum)
        taken += 1
        await coro.sleep(0.005)  # slower than the producer
    return taken, checksum


async def client():
    servers = await discoro.servers()
    consumer, producer = discoro.Computation(consume), discoro.Computation(produce)
    await consumer.setup(servers[0])
    await producer.setup(servers[-1])
    consuming = await consumer.run(servers[0])
    queue = await consuming.ask("where to?")
    producing = await producer.run(servers[-1], queue)

    growth = await producing.result()
    taken, checksum = await consuming.result()
    print(f"{taken} blocks of {BLOCK >> 20} MiB taken, checksum {checksum:08x}")
    print("the producer's memory grew by", "less than 20 MiB" if growth < 20 else f"{growth:.0f} MiB")
    await consumer.close(servers[0])
    await producer.close(servers[-1])


if __name__ == "__main__":
    discoro.run(client)
