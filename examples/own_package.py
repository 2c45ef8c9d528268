# A package of one's own travels along unnamed, with its data file; the file that the coroutine writes is fetched.
from pathlib import Path

from letters import counting

import discoro

TEXT = Path(__file__).with_name("colours.txt")


async def count(coro):
    name = await coro.receive()
    table = [f"{letter} {number}\n" for letter, number in counting.most_common(Path(name).read_text(), 3)]
    Path("table.txt").write_text("".join(table))
    coro.reply("table.txt")
    await coro.receive()  # the worker's directory goes with the worker: stay until the file is fetched


async def main():
    server = (await discoro.servers())[0]
    computation = discoro.Computation(count, depends=[TEXT])
    await computation.setup(server)
    there = await computation.run(server)
    name = await there.ask(TEXT.name)
    table = await discoro.fetch_file(there, name, dir="results", overwrite=True)
    print(table.read_text(), end="")
    there.send("done")
    await computation.close(server)


discoro.run(main)
