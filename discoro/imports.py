"""What code imports, read from code objects; nothing is imported or run.

It never says where a module comes from (modules.py does), and reads files through Python's own loader only: compiled as for an
import, from `__pycache__` where that is fresh, so that a syntax warning is not shown twice.

How its parts play together. `imports_of` walks a code object, and those inside it, for imports and for `import_module("…")`.
`_Flow` answers, for one place in one code object, whether it is reached for certain when that code runs, and whether a handler
catches a failing import there. `imports_of_file` is the same for a source file, remembered until the file changes.
"""

from __future__ import annotations

import dis
import importlib.util
import os
from collections.abc import Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from discoro.errors import ConfigError

FILES_KEPT = 10_000  # whose imports are remembered: 1 KB each, and far more modules than a program has
_IMPORT = dis.opmap["IMPORT_NAME"]
_PADDING = {"CACHE", "EXTENDED_ARG", "NOP", "NOT_TAKEN", "PRECALL", "PUSH_NULL", "TO_BOOL"}
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_RETURNS = {"RETURN_VALUE", "RETURN_CONST"}
_CATCHES = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_DYNAMIC = {"import_module", "__import__"}


class Import(NamedTuple):
    """One import: of `module`, in full, out of which `names` are taken (each an attribute, or a module below it).

    `certain` says that it is run whenever the code is, and that nothing catches its failing: it is a statement, and neither in
    a branch, nor in a function inside, nor in a `try` with a handler for ImportError.
    """

    module: str
    names: tuple[str, ...]
    certain: bool


def imports_of(code: CodeType, package: str) -> list[Import]:
    """Every import in a code object, relative ones from `package`; none under `if TYPE_CHECKING`, `if __name__ == "__main__"`.

    A name that is put together while the code runs is not found.
    """
    return list(_imports(code, package, certain=True))


def _imports(code: CodeType, package: str, certain: bool) -> Iterator[Import]:
    inside = [const for const in code.co_consts if isinstance(const, CodeType)]
    if code.co_name == "<module>" or _IMPORT in code.co_code[::2] or not _DYNAMIC.isdisjoint(code.co_names):
        flow = _Flow(code)
        inside = [each for each in inside if not flow.is_skipped(flow.made_at.get(each, -1))]
        for index, step in enumerate(flow.steps):
            found = _static(flow, index, package) or _dynamic(flow, index, package)
            if found and not flow.is_skipped(step.offset):
                yield found if certain else found._replace(certain=False)
    for each in inside:
        yield from _imports(each, package, certain=False)


def _static(flow: _Flow, index: int, package: str) -> Import | None:
    """`import a.b` and `from a import b`: its level and its names are the two constants before."""
    step = flow.steps[index]
    if step.opname != "IMPORT_NAME":
        return None
    level, names = flow.steps[index - 2].argval, flow.steps[index - 1].argval
    module, sure = _absolute("." * level + step.argval, package), flow.is_certain(step.offset)
    return Import(module, tuple(name for name in names or () if name != "*"), sure) if module else None


def _dynamic(flow: _Flow, index: int, package: str) -> Import | None:
    """`import_module("a.b")` and `__import__("a.b")`, whoever's functions these are: some return None where there is none."""
    step, *arguments = flow.steps[index : index + 3]
    if step.argval not in _DYNAMIC or not step.opname.startswith("LOAD_"):
        return None
    name, home = (_text(each) for each in [*arguments, step, step][:2])  # home as in import_module(".a", "package")
    module = _absolute(name, home or package) if name else None
    return Import(module, (), certain=False) if module else None


def _text(step: dis.Instruction) -> str:
    """The text that this step loads as it stands there, or none."""
    return step.argval if step.opname == "LOAD_CONST" and isinstance(step.argval, str) else ""


def _absolute(name: str, package: str) -> str | None:
    """The module in full; None for a relative name that leads nowhere, which is an error where it is run."""
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:
        return None


class _Flow:
    """Which places of one code object are reached for certain, and which never, on a worker."""

    def __init__(self, code: CodeType) -> None:
        found = dis.Bytecode(code)
        self.steps = [step for step in found if step.opname not in _PADDING]
        self.made_at = {step.argval: step.offset for step in self.steps if isinstance(step.argval, CodeType)}
        self._handlers: Sequence[Any] = found.exception_entries  # type: ignore[attr-defined]  # since 3.11
        self._index = {step.offset: index for index, step in enumerate(self.steps)}
        self._skipped = [(step.offset, step.argval) for index, step in enumerate(self.steps) if self._skips(index)]
        self._uncertain = list(self._jumped_over())

    def is_skipped(self, offset: int) -> bool:
        return any(start < offset < end for start, end in self._skipped)

    def is_certain(self, offset: int) -> bool:
        return not (any(start < offset < end for start, end in self._uncertain) or self._is_caught(offset))

    def _is_caught(self, offset: int) -> bool:
        """Whether a handler around it takes an ImportError: the innermost one, or one around that."""
        entry = self._handler_of(offset)
        while entry is not None:
            if self._takes_import_errors(entry.target):
                return True
            entry = self._handler_of(entry.target)
        return False

    def _skips(self, index: int) -> bool:
        """A jump past what only a type checker, or a script, runs."""
        step, before = self.steps[index], self.steps[max(index - 3, 0) : index]
        if not (step.opcode in _JUMPS and step.opname.endswith("IF_FALSE") and before):
            return False
        values = [each.argval for each in before]
        return values[-1] == "TYPE_CHECKING" or values[:-1] == ["__name__", "__main__"] and before[-1].opname == "COMPARE_OP"

    def _jumped_over(self) -> Iterator[tuple[int, int]]:
        """The stretches that a jump may pass over, and all that follows the first return."""
        for step in self.steps:
            if self.is_skipped(step.offset):
                continue
            if step.opcode in _JUMPS and step.argval > step.offset:
                yield step.offset, step.argval
            elif step.opname in _RETURNS:
                yield step.offset, self.steps[-1].offset + 1
                return

    def _handler_of(self, offset: int) -> Any:
        return next((entry for entry in self._handlers if entry.start <= offset < entry.end), None)

    def _takes_import_errors(self, target: int) -> bool:
        """Read the clauses of a handler: `except:`, or one that names an ImportError or a class above it."""
        clauses = self.steps[self._index.get(target, len(self.steps)) :]
        if len(clauses) < 2 or clauses[0].opname != "PUSH_EXC_INFO":
            return False
        if clauses[1].opname == "POP_TOP":
            return True
        named: set[str] = set()
        for step in clauses[1:]:
            if step.opname == "CHECK_EXC_MATCH" and named & _CATCHES:
                return True
            if step.opname in ("RERAISE", "WITH_EXCEPT_START"):
                return False
            named = set() if step.opname == "CHECK_EXC_MATCH" else named | {str(step.argval)}
        return False


# ------------------------------------------------------------------ files

_known: dict[str, tuple[tuple[int, int], list[Import]]] = {}  # by path: what the file was then, and its imports


def imports_of_file(path: Path, module: str) -> list[Import]:
    """The imports of a source file, as `module`; ConfigError where it cannot be read, or does not compile."""
    key = f"{module} {path}"
    try:
        stat = os.stat(path)
        state = stat.st_mtime_ns, stat.st_size
        if key not in _known or _known[key][0] != state:
            if len(_known) >= FILES_KEPT:
                del _known[next(iter(_known))]
            _known[key] = state, _read(path, module)
    except OSError as error:
        raise ConfigError(f"the module {module} cannot be read: {path}: {error.strerror}") from error
    return _known[key][1]


def _read(path: Path, module: str) -> list[Import]:
    try:
        code = SourceFileLoader(module, str(path)).get_code(module)
    except SyntaxError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}; a worker could not import {module}") from error
    except (ValueError, RecursionError) as error:  # a null byte, before 3.12; nesting without end
        raise ConfigError(f"{path} does not compile: {error}; a worker could not import {module}") from error
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imports_of(code, package) if code else []
