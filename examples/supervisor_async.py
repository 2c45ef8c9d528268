# A supervisor: it monitors a worker that fails, by an exception and by the death of its process, and starts another.
import os
import signal

import discoro

JOBS = range(10)


async def work(supervisor, coro):
    while True:
        job = await coro.receive()
        if job == 3:
            raise ValueError(f"job {job} is a bad one")
        if job == 6:
            os.kill(os.getpid(), signal.SIGKILL)  # as when the memory is over
        supervisor.send((job, job * job))


async def start(computation, server, coro):
    await computation.setup(server)  # anew each time: the whole process may be gone
    worker = await computation.run(server, coro.ref)
    await coro.monitor(worker)
    return worker


async def supervise(coro):
    server = await discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(work)
    worker = await start(computation, server, coro)
    done = {}
    for job in JOBS:
        worker.send(job)
        match await coro.receive():
            case discoro.ExitNotice(reason=reason, error=error):
                print(f"job {job}: {reason}: {str(error).splitlines()[0]}")
                worker = await start(computation, server, coro)
            case (number, square):
                done[number] = square
    print("done:", done)
    await computation.close(server)


if __name__ == "__main__":
    discoro.run(supervise)
