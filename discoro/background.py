"""A mesh in a thread of its own, for code that waits by blocking.

One daemon thread, with one event loop and one mesh in it, from the constructor to `close`, or to the end of the interpreter.
`call` has something done there and blocks its caller meanwhile, whichever thread that is. What is done is done as one
coroutine of the mesh (`coro`), which does nothing itself but stay: so messages of ordinary code have a sender, keep their
order, and are answered to a mailbox. Nothing here knows what is called: `blocking` does.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from discoro.coro import Coro
from discoro.driving import Driven
from discoro.errors import CoroEnded, NoMesh, Timeout
from discoro.mesh import Mesh
from discoro.options import veil
from discoro.watchdog import lines_of

log = logging.getLogger("discoro.background")

CLOSE_TIMEOUT = 10.0  # seconds: a mesh leaves in 3, and kills a node of its own that does not end after 5 more
EXIT_TIMEOUT = 2.5  # seconds at the end of the interpreter, which is promised within 3; a local node then ends by itself

Started = concurrent.futures.Future[None]


class Background:
    """A mesh with these options, running when the constructor returns.

    Raises what the start of the mesh raises, in the caller's thread; then, and after Ctrl-C, nothing is left of it.
    """

    coro: Coro  # in whose name everything is done
    _context: contextvars.Context  # of that coroutine
    _loop: asyncio.AbstractEventLoop
    _main: asyncio.Task[Any] | None

    def __init__(self, options: dict[str, Any]) -> None:
        veil(options)
        self.mesh = Mesh(**options)
        self._pid = os.getpid()
        self._lock = threading.RLock()  # so that nothing is begun once it is over; a signal handler may close it meanwhile
        self._over = ""  # why nothing more is done
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._cancelled = False
        started = Started()
        self._thread = threading.Thread(target=self._run, args=(started,), name="discoro.BlockingMesh", daemon=True)
        try:
            self._thread.start()
            started.result()
            atexit.register(self._at_exit)
        except BaseException:  # Ctrl-C too: a start that is given up leaves no thread
            if not started.cancel():  # it has begun
                self.leave()
            with contextlib.suppress(KeyboardInterrupt):  # again: then at once
                if self._thread.is_alive():
                    self._thread.join(CLOSE_TIMEOUT)
            raise

    @property
    def state(self) -> str:
        """For people: "running", "closed", or "of another process" in a fork."""
        return ("closed" if self._over else "running") if self._is_ours() else "of another process"

    # -------------------------------------------------------------- for the callers' threads

    def check(self) -> None:
        """Whether a call may be made, from where it is made. RuntimeError in the loop's own thread; NoMesh where it is over."""
        if not self._is_ours():
            raise NoMesh(self._of_parent())
        self._not_here()
        if self._over:
            raise NoMesh(self._over)

    def call(self, begin: Callable[[], Any], timeout: float | None = None) -> Any:
        """Call `begin` in the loop's thread, and block until what it gives is done, if that can be awaited; give its value.

        Raises what it raises; Timeout after `timeout` seconds; NoMesh, RuntimeError as `check` does. Who is interrupted while
        it waits, by Ctrl-C say, leaves nothing running: what was begun is cancelled.
        """
        self.check()
        call = _Call(begin, timeout)
        call.done.add_done_callback(self._waiting.discard)
        try:
            with self._lock:
                if self._over:
                    raise NoMesh(self._over)
                self._waiting.add(call.done)
                self._loop.call_soon_threadsafe(call.start, context=self._context)
            return call.done.result()
        except concurrent.futures.CancelledError:
            if self._over:
                raise NoMesh(f"{self._over}. That was while this call waited") from None
            raise
        except KeyboardInterrupt:  # how threads wait tells nobody anything
            raise KeyboardInterrupt from None
        finally:
            call.done.cancel()  # nothing where it is done

    def leave(self) -> None:
        """Begin to end it, without waiting; may be called anywhere, in the loop's thread and by the garbage collector too."""
        if self._is_ours():
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._cancel_main)

    def close(self, timeout: float = CLOSE_TIMEOUT, at_exit: bool = False) -> None:
        """End it, and wait until that is done. Every call that waits raises NoMesh, and so does every later one."""
        if not self._is_ours():
            return  # a fork has nothing to end
        self._not_here()
        self._say_over("this BlockingMesh was closed: make another one, discoro.BlockingMesh(...)")
        self.leave()
        self._thread.join(timeout)
        if self._thread.is_alive():
            stands = lines_of(sys._current_frames().get(self._thread.ident or 0))
            where = f"; it stands at\n{''.join(stands.format())}" if stands else ""
            level = logging.WARNING if stands or not at_exit else logging.INFO  # its node ends by itself: no news at the exit
            log.log(level, "! the mesh did not leave in %g s, and is left behind: its thread is stuck%s", timeout, where)

    def _at_exit(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C means at once; a local node ends by itself
            self.close(EXIT_TIMEOUT, at_exit=True)

    def _is_ours(self) -> bool:
        return os.getpid() == self._pid

    def _of_parent(self) -> str:
        return f"this BlockingMesh belongs to process {self._pid}; this is a fork of it, and needs one of its own: make it here"

    def _not_here(self) -> None:
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError(
                "a BlockingMesh cannot wait in its own thread: coroutines run there, and would all stand still. In a coroutine "
                "use discoro.Coro, discoro.Computation and references (a blocking one's `.ref`), with yield or await"
            )

    def _say_over(self, why: str) -> None:
        """Nothing more is taken; who waits is told at once, even if the loop is stuck."""
        with self._lock:
            self._over = self._over or why
            waiting = list(self._waiting)
        for done in waiting:
            done.cancel()

    # -------------------------------------------------------------- in the loop's thread

    def _run(self, started: Started) -> None:
        """What the thread does. A start that fails is told when everything of it is gone."""
        failed: BaseException | None = None
        loop = asyncio.new_event_loop()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(self._live(started))
        except BaseException as error:
            if started.done():
                raise
            failed = error
        finally:
            # No `loop.shutdown_default_executor`: it waits for threads of the user's, and starts one, which is not
            # possible any more at the end of the interpreter (Python 3.12). `loop.close` lets them end by themselves.
            loop.run_until_complete(_end_tasks(loop))
            loop.close()
            atexit.unregister(self._at_exit)
            if failed is not None:
                started.set_exception(failed)

    async def _live(self, started: Started) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        if not started.set_running_or_notify_cancel():
            return
        async with self.mesh:
            self.coro = Coro.start(self.mesh, self._stay, (started,), name="script")
            self.coro.set_daemon()  # nobody waits for its end
            try:
                await self.coro.stopped()
            finally:
                self._cancelled = True  # closing goes on undisturbed
                self._say_over(f"this BlockingMesh has ended with its own coroutine {self.coro}, which somebody ended")

    async def _stay(self, started: Started) -> None:
        self._context = contextvars.copy_context()
        started.set_result(None)
        await asyncio.Event().wait()

    def _cancel_main(self) -> None:
        if not self._cancelled and self._main is not None:
            self._cancelled = True
            self._main.cancel()


class _Call:
    """One call, in the loop's thread but for `done`, which its caller waits for, and cancels to give it up."""

    def __init__(self, begin: Callable[[], Any], timeout: float | None) -> None:
        self.done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._begin = begin
        self._timeout = timeout

    def start(self) -> None:
        if self.done.cancelled():
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._run())

        def given_up(done: concurrent.futures.Future[Any]) -> None:
            if done.cancelled():
                with contextlib.suppress(RuntimeError):  # the loop is closed: the task was cancelled before
                    loop.call_soon_threadsafe(task.cancel)

        self.done.add_done_callback(given_up)

    async def _run(self) -> None:
        """Tell the caller what came of it, at once: what was begun may hold the loop from its next turn on."""
        try:
            value = await self._operation()
        except asyncio.CancelledError:
            self.done.cancel()
            raise
        except BaseException as error:
            if self.done.set_running_or_notify_cancel():  # else it was given up
                self.done.set_exception(error)
        else:
            if self.done.set_running_or_notify_cancel():
                self.done.set_result(value)

    async def _operation(self) -> Any:
        try:
            async with asyncio.timeout(self._timeout) as limit:
                made = self._begin()
                if inspect.isgenerator(made):
                    made = Driven(made)
                return await made if inspect.isawaitable(made) else made
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Timeout(f"what was waited for was not done in {self._timeout:g} s") from error
        except (SystemExit, KeyboardInterrupt) as error:  # either would end the loop, and with it everything
            raise CoroEnded(f"what was waited for ended itself with {error!r}") from error


async def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """What the mesh does not know of: tasks that coroutines of users started and left."""
    left = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await loop.shutdown_asyncgens()
