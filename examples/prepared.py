# A data file that travels along, and globals that are set once at each server.
from pathlib import Path

import discoro

COLOURS = Path(__file__).with_name("colours.txt")


def load(name):
    global table
    table = dict(line.split() for line in open(name))


def unload():
    global table
    del table


def look_up(colour, coro=None):
    yield coro.sleep(0.1)
    return table[colour]


def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(look_up, depends=[COLOURS])
    yield computation.setup(server, func=load, args=["colours.txt"])
    for colour in ("teal", "gold"):
        remote = yield computation.run(server, colour)
        print(colour, (yield remote.result()))
    yield computation.close(server, func=unload)


discoro.run(client)
