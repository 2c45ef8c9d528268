# A supervisor: it monitors a worker that fails, by an exception and by the death of its process, and starts another.
import os
import signal

import discoro

JOBS = range(10)


def work(supervisor, coro=None):
    while True:
        job = yield coro.receive()
        if job == 3:
            raise ValueError(f"job {job} is a bad one")
        if job == 6:
            os.kill(os.getpid(), signal.SIGKILL)  # as when the memory is over
        supervisor.send((job, job * job))


def start(computation, server, coro):
    yield computation.setup(server)  # anew each time: the whole process may be gone
    worker = yield computation.run(server, coro.ref)
    yield coro.monitor(worker)
    return worker


def supervise(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(work)
    worker = yield start(computation, server, coro)
    done = {}
    for job in JOBS:
        worker.send(job)
        match (yield coro.receive()):
            case discoro.ExitNotice(reason=reason, error=error):
                print(f"job {job}: {reason}: {str(error).splitlines()[0]}")
                worker = yield start(computation, server, coro)
            case (number, square):
                done[number] = square
    print("done:", done)
    yield computation.close(server)


if __name__ == "__main__":
    discoro.run(supervise)
