"""The programs of the load: each does one kind of thing, again and again, and checks what comes back.

`THROUGH` (pairs of an address and the one to dial instead), `PEERS` and `KIND` stand before the source. A round that a fault
spoils is counted by the name of its error; whatever is no error of discoro's ends the program, which fails the run.
"""

SOURCE = '''
import collections, os, pathlib, random, threading
from discoro.transport import Transport

dial, through = Transport.dial, dict(THROUGH)
Transport.dial = lambda self, address: dial(self, through.get(address, address))

COUNT = 50

def echo(coro=None):
    while True:
        sender, number = yield coro.receive()
        sender.send(number)

def square(n, coro=None):
    yield coro.sleep(0)
    return n * n

def finder(name, coro=None):
    found = yield discoro.Coro.locate(name, timeout=20)
    return repr(found)

def consumer(queue, count, coro=None):
    got = []
    try:
        for _ in range(count):
            got.append((yield queue.get(20)))
    except discoro.DiscoroError:
        pass  # the queue is its client's, which may be killed: nobody is left to be told
    return got

def named(coro=None):
    yield coro.register(f"name {os.getpid()} {coro.ref.id}")
    yield coro.receive()

class Opened:
    """A computation that is open at one of the servers, for as long as the block."""

    def __init__(self, *functions):
        self.computation = discoro.Computation(functions[0], depends=functions[1:])

    async def __aenter__(self):
        self.server = random.choice(await discoro.servers(timeout=20))
        await self.computation.setup(self.server, timeout=200)  # others wait for workers at that slot, 30 s each
        return self

    async def run(self, *arguments):
        return await self.computation.run(self.server, *arguments)

    async def __aexit__(self, *_):
        try:
            await self.computation.close(self.server, close_timeout=30)
        except (discoro.PeerLost, discoro.NotSetUp):
            pass  # its worker was killed: nothing is left to close

async def messages(coro):
    """Numbers to a worker and back, until a fault ends the worker, or twenty rounds are over."""
    async with Opened(echo) as opened:
        remote = await opened.run()
        await coro.monitor(remote)
        for begin in range(0, 20 * COUNT, COUNT):
            for number in range(begin, begin + COUNT):
                remote.send((coro, number))
            for number in range(begin, begin + COUNT):
                got = await coro.receive(60)
                if isinstance(got, discoro.ExitNotice):
                    return await forget(coro)
                assert got == number, f"{got} came for {number}"
            counts["messages"] += 2 * COUNT
            await coro.sleep(0.02)
        await remote.terminate()
        notice = await coro.receive(60)
        assert isinstance(notice, discoro.ExitNotice), notice

async def forget(coro):
    """The worker is gone: what it sent came before the notice, and nothing comes after."""
    late = await coro.receive(0)
    assert late is None, late

async def runs(coro):
    async with Opened(square) as opened:
        remotes = [await opened.run(number) for number in range(10)]
        assert [await each.result(60) for each in remotes] == [number * number for number in range(10)]
    counts["runs"] += 10

async def files(coro):
    size = random.randrange(1_000_000)
    path = pathlib.Path(f"file-{os.getpid()}")
    path.write_bytes(content := random.randbytes(size))
    server = random.choice(await discoro.servers(timeout=20))
    await discoro.send_file(server, path, overwrite=True, timeout=60)
    back = await discoro.fetch_file(server, path.name, dir="fetched", overwrite=True, timeout=60)
    assert back.read_bytes() == content
    await discoro.del_file(server, path.name, timeout=60)
    counts["files"] += 1

async def names(coro):
    here = discoro.Coro(named)
    async with Opened(finder) as opened:
        remote = await opened.run(f"name {os.getpid()} {here.ref.id}")
        found = await remote.result(60)
    assert found == repr(here.ref), found
    here.send("end")
    await here.result(10)
    counts["names"] += 1

async def queues(coro):
    queue = discoro.Queue(COUNT)  # it never waits for room: its consumer may be killed
    async with Opened(consumer) as opened:
        remote = await opened.run(queue, COUNT)
        for number in range(COUNT):
            await queue.put(number, 60)
        assert await remote.result(60) == list(range(COUNT))
    counts["items"] += COUNT
    await queue.close()

counts, errors = collections.Counter(), collections.Counter()

async def client(coro=None):
    kind = globals()[KIND]
    ends = threading.Event()
    threading.Thread(target=lambda: (told(), ends.set()), daemon=True).start()  # where we fail, nobody waits for it
    say("ready")
    while not ends.is_set():
        try:
            await discoro.Coro(round_of, kind).result(400)
        except discoro.Timeout as error:
            raise SystemExit(f"left waiting: {error}")
        except discoro.DiscoroError as error:
            errors[type(error).__name__] += 1
            last.append(f"{type(error).__name__}: {str(error)[:200]}")
            del last[:-3]
        await coro.sleep(PAUSE)
    say("counts", {"done": counts, "errors": errors, "last": last})

last = []

class LeftWaiting(discoro.DiscoroError):
    pass

async def round_of(kind, coro=None):
    try:
        return await kind(coro)
    except discoro.Timeout as error:  # of one call: a fault took longer than it wanted to wait, or nobody told it
        raise LeftWaiting(str(error))

PAUSE = 0.05
discoro.run(client, mdns=False, peers=PEERS)
'''
