"""`__main__` in a worker: the script of whichever computation runs, as far as its code came along.

Code of a client's `__main__` goes by value, into a namespace of its computation. But pickle, `typing.get_type_hints`,
dataclasses and inspect look for it by name, in `sys.modules`. There `ScriptModule` stands, and shows them the namespace of the
coroutine that asks, or of the code around which `calling` is; to threads, which know of neither, that of the computation opened
last. It holds nothing itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

from discoro.coro import sender
from discoro.payload import Namespace

NAME = "__main__"
_calling: contextvars.ContextVar[Namespace] = contextvars.ContextVar("discoro_calling")
_latest: weakref.WeakValueDictionary[str, Namespace] = weakref.WeakValueDictionary()
_replaced: list[types.ModuleType] = []  # the module that was run: without it in sys.modules, its globals would go


class ScriptModule(types.ModuleType):
    """The module `__main__` as the running code knows it; empty for code of no computation."""

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        coro = sender()
        namespace = _calling.get(None) or (coro and coro.namespace) or _latest.get(NAME)
        return namespace.globals_of(NAME) if namespace else {}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: object) -> None:
        self.__dict__[name] = value


def install() -> None:
    """Have `__main__` of this process be that from now on."""
    _replaced.append(sys.modules[NAME])
    sys.modules[NAME] = ScriptModule(NAME)


@contextlib.contextmanager
def calling(namespace: Namespace) -> Iterator[None]:
    """For code of that namespace which runs in no coroutine of its own."""
    _latest[NAME] = namespace
    token = _calling.set(namespace)
    try:
        yield
    finally:
        _calling.reset(token)
