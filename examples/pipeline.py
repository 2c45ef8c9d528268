# A pipeline: a fast producer, a queue of 4 places, a slow consumer. The producer waits, and its memory stays what it was.
import resource
import zlib

import discoro

BLOCKS, BLOCK = 100, 1 << 20  # 100 MiB in all


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB; Linux counts in KiB


def produce(queue, coro=None):
    yield queue.put(bytes(BLOCK))  # the first one: what sending takes at all is not counted
    before = memory()
    for number in range(1, BLOCKS):
        yield queue.put(bytes([number]) * BLOCK)
    yield queue.close()
    return memory() - before


def consume(coro=None):
    queue = discoro.Queue(4)
    yield coro.receive()
    coro.reply(queue)
    checksum = taken = 0
    while True:
        try:
            block = yield queue.get()
        except discoro.QueueClosed:
            return taken, checksum
        checksum = zlib.crc32(block, checksum)
        taken += 1
        yield coro.sleep(0.005)  # slower than the producer


def client():
    servers = yield discoro.servers()
    consumer, producer = discoro.Computation(consume), discoro.Computation(produce)
    yield consumer.setup(servers[0])
    yield producer.setup(servers[-1])
    consuming = yield consumer.run(servers[0])
    queue = yield consuming.ask("where to?")
    producing = yield producer.run(servers[-1], queue)

    growth = yield producing.result()
    taken, checksum = yield consuming.result()
    print(f"{taken} blocks of {BLOCK >> 20} MiB taken, checksum {checksum:08x}")
    print("the producer's memory grew by", "less than 20 MiB" if growth < 20 else f"{growth:.0f} MiB")
    yield consumer.close(servers[0])
    yield producer.close(servers[-1])


if __name__ == "__main__":
    discoro.run(client)
