"""Exceptions as values: taken apart without their `__init__`, and put together again with their causes.

It never packs anything (payload.py does), and never calls the `__init__` or `__setattr__` of somebody's exception class: that
often wants more than stands in `args`.

How its parts play together. `taken_apart` gives what rebuilds one exception alone, `joined` and `set_state` rebuild it;
`reduce_error` makes of them a reduction for an exception that lies in a message. For one that was raised, `lay_out` lists it
with all its causes and the members of groups, as nodes that refer to each other by number; at the other side `put_together`
rebuilds each, and `linked` ties them together again.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from discoro.errors import RemoteError

MAX_CAUSES = 16  # one from another, and groups in groups: what a person still reads; further ones stand in the traceback
MAX_NODES = 1000  # exceptions that travel as themselves: a group may hold one for each of many tasks

_TRACE = "the traceback where it was raised:\n\n"


# ---- one exception -------------------------------------------------------------------------------


class Attributes(NamedTuple):
    """What an exception has beside `args`: in its `__dict__`; elsewhere (slots, `ImportError.name`); by its own account."""

    own: dict[str, Any]
    members: dict[str, Any]
    state: Any = None


Pieces = tuple[Any, tuple[Any, ...], Attributes]  # what is called, with what, and what is set afterwards


def taken_apart(error: BaseException) -> Pieces:
    """What rebuilds an exception, its causes left aside; raises whatever the exception's own reduction raises."""
    kind = type(error)
    if _reduces_itself(kind):
        return _own_reduction(error)
    reduced: Any = error.__reduce__()
    _, args, *more = reduced
    state: Any = object.__getstate__(error)
    members = {**(state[1] if isinstance(state, tuple) else {}), **(more[0] if more else {})}
    own = dict(vars(error))
    return joined, (kind, args), Attributes(own, {name: value for name, value in members.items() if name not in own})


def _reduces_itself(kind: type[BaseException]) -> bool:
    """Whether its class says how it is pickled; the built-in ways all call the class, and so its `__init__`."""
    built_in = getattr(getattr(kind.__reduce__, "__objclass__", None), "__module__", None) == "builtins"
    return not built_in or kind.__reduce_ex__ is not object.__reduce_ex__ or kind in copyreg.dispatch_table


def _own_reduction(error: BaseException) -> Pieces:
    registered = copyreg.dispatch_table.get(type(error))
    reduced: Any = registered(error) if registered is not None else error.__reduce_ex__(5)
    if not isinstance(reduced, tuple) or any(part is not None for part in reduced[3:]):
        raise TypeError(f"cannot take apart {type(error).__qualname__}: its own reduction is none of an exception")
    made, args, *more = reduced
    notes = {"__notes__": error.__notes__} if hasattr(error, "__notes__") else {}  # few think of them
    return made, args, Attributes(notes, {}, more[0] if more else None)


def joined(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """A new exception of that class, made by the built-in class below it, which sets what only it can: args, an exit code."""
    base = next(cls for cls in kind.__mro__ if cls.__module__ == "builtins")
    wanted = args[:2] if issubclass(base, BaseExceptionGroup) else args  # a group of a class that takes more has more in `args`
    error: BaseException = base.__new__(kind, *wanted)
    base.__init__(error, *args)  # type: ignore[misc]
    return error


def made_of(kind: type[BaseException], *args: Any) -> BaseException:
    """The same with the arguments apart, as one calls a class."""
    return joined(kind, args)


def set_state(error: BaseException, attributes: Attributes) -> None:
    """What `taken_apart` found beside the arguments."""
    own, members, state = attributes
    if state is not None:
        error.__setstate__(state)
    error.__dict__.update(own)
    for name, value in members.items():
        _set(error, name, value)


def _set(error: BaseException, name: str, value: object) -> None:
    object.__setattr__(error, name, value)  # a frozen dataclass refuses its own


def add_note(error: BaseException, note: str) -> None:
    """Note something on an exception of whatever class."""
    _set(error, "__notes__", [*getattr(error, "__notes__", ()), note])


def reduce_error(error: BaseException) -> Any:
    """A reduction for pickle, of an exception that is a value like others; it keeps its causes, but no traceback."""
    made, args, state = taken_apart(error)
    return made, args, (state, error.__cause__, error.__suppress_context__), None, None, set_all


def set_all(error: BaseException, state: tuple[Attributes, BaseException | None, bool]) -> None:
    """What `reduce_error` found beside the arguments."""
    attributes, cause, suppressed = state
    set_state(error, attributes)
    _set_cause(error, cause, suppressed)


def _set_cause(error: BaseException, cause: BaseException | None, suppressed: bool) -> None:
    _set(error, "__cause__", cause)
    _set(error, "__suppress_context__", suppressed)


def error_text(error: BaseException) -> str:
    """The text of an exception of whatever class."""
    try:
        return str(error)
    except Exception:  # somebody's __str__ is at fault, and must not hide the error that it describes
        return "<its str() failed>"


def reason(error: BaseException) -> str:
    """The same with its class, which pickle's own errors and TypeErrors do without: their texts say enough."""
    text = error_text(error)
    plain = text and (isinstance(error, TypeError) or type(error).__module__ in ("pickle", "_pickle"))
    return text if plain else f"{type(error).__name__}: {text}"


# ---- with its causes -----------------------------------------------------------------------------


@dataclass
class Node:
    """One exception among those that travel together; causes and members of groups by their numbers."""

    error: BaseException
    cause: int | None = None
    suppressed: bool = False
    members: list[int] | None = None  # of a group


def lay_out(error: BaseException) -> list[Node]:
    """The exception, its causes, and the members of groups with theirs: each once, without circles, at most 16 deep.

    A group that lies deeper, or has more members than may travel, has an empty list of them.
    """
    nodes: list[Node] = []
    _add(error, nodes, {}, ())
    return nodes


def _add(error: BaseException, nodes: list[Node], known: dict[int, int], above: tuple[int, ...]) -> int:
    if id(error) in known:
        return known[id(error)]
    number = known[id(error)] = len(nodes)
    node = Node(error, suppressed=error.__suppress_context__)
    nodes.append(node)
    within = (*above, id(error))
    cause = error.__cause__
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    room = len(within) < MAX_CAUSES and len(nodes) + len(members) < MAX_NODES
    if cause is not None and room and id(cause) not in within and not _is_trace(cause):
        node.cause = _add(cause, nodes, known, within)
    if isinstance(error, BaseExceptionGroup):
        node.members = [_add(each, nodes, known, within) for each in members] if room else []
    return number


def alone(node: Node) -> Pieces:
    """What rebuilds one of the nodes, without what it refers to by number."""
    made, args, state = taken_apart(node.error)
    if node.members == []:
        raise ValueError(f"a group with more than {MAX_NODES} exceptions, or more than {MAX_CAUSES} deep")
    if node.members is not None and made is joined:
        kind, (message, _, *more) = args
        args = kind, (message, None, *more)
    return made, args, state


def put_together(pieces: Pieces, members: Sequence[BaseException]) -> BaseException:
    """The exception that `alone` took apart; raises whatever its class raises."""
    made, args, state = pieces
    if members and made is joined:
        kind, (message, _, *more) = args
        args = kind, (message, list(members), *more)
    error: BaseException = made(*args)
    set_state(error, state)
    return error.with_traceback(None)  # which also shows that it is an exception


def linked(errors: Sequence[BaseException], causes: Sequence[tuple[int | None, bool]], trace: str) -> BaseException:
    """The first of them, with the causes of all, and as the last of its causes the traceback where it was raised."""
    for error, (cause, suppressed) in zip(errors, causes, strict=True):
        _set_cause(error, errors[cause] if cause is not None else None, suppressed)
    last = first = errors[0]
    while last.__cause__ is not None:
        last = last.__cause__
    _set_cause(last, RemoteError(_TRACE + trace), last.__suppress_context__)
    return first


def _is_trace(error: BaseException) -> bool:
    """Whether it is the traceback of an earlier journey: it stands in that of this one, and would double with each."""
    return type(error) is RemoteError and str(error).startswith(_TRACE)


def told_there(error: BaseException | None) -> str:
    """The text of the traceback that an exception from elsewhere brought; "" for one that brought none."""
    for _ in range(MAX_CAUSES + 1):
        if error is None or _is_trace(error):
            break
        error = error.__cause__
    return str(error) if error is not None and _is_trace(error) else ""
