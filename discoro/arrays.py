"""Memory in messages: what pickle refuses (memoryviews), or what would arrive otherwise than it left (arrays).

It never copies memory that can travel as it lies, and never imports an array library: it knows numpy's arrays where the process
has loaded numpy, and leaves those of other libraries to their own reductions.

How its parts play together. The picklers of shipping.py ask `reducer_for` once per type. What it gives them is numpy's own
reduction where that is good enough, else one that ends in `view_of`, `typed` or `set_read_only`: the pickle names them, and
plain pickle finds them at the other side. `may_change` tells payload.py what has to be copied before `send` returns.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pickle import PickleBuffer
from typing import Any


def reducer_for(kind: type) -> Callable[[Any], Any] | None:
    """What takes apart the objects of this type; None where pickle does it well."""
    if kind is memoryview:
        return _reduce_view
    numpy = sys.modules.get("numpy")
    if numpy is None or not issubclass(kind, numpy.ndarray):
        return None
    return _reduce_mapped if issubclass(kind, numpy.memmap) else _reduce_array


def is_large(obj: Any, size: int) -> bool:
    """Whether it is memory of that many bytes, of a type of which plain pickle may make copies; of pandas, anything."""
    kind = type(obj)
    library = str(kind.__module__)[:6]  # on the way of every message with an object in it
    if library in ("numpy", "numpy.") or kind is memoryview:
        return bool(getattr(obj, "nbytes", 0) >= size)
    return library == "pandas" or (library == "array" and len(obj) * obj.itemsize >= size)


def may_change(view: memoryview) -> bool:
    """Whether somebody can write to this memory after it was sent: it is writable, or part of an array that is.

    A read-only view is its maker's promise. But numpy and pandas hand out such views of writable arrays without being asked
    (`broadcast_to`, `Series.to_numpy`), and there it promises nothing.
    """
    if not view.readonly:
        return True
    owner: Any = view.obj
    while isinstance(owner, memoryview):
        owner = owner.obj
    numpy = sys.modules.get("numpy")
    while numpy is not None and isinstance(owner, numpy.ndarray):
        if owner.flags.writeable:
            return True
        owner = owner.base
    return False


# ---- memoryviews ---------------------------------------------------------------------------------


def _reduce_view(view: memoryview) -> Any:
    if not view.c_contiguous:
        raise TypeError("cannot pickle a memoryview that is not C-contiguous")
    if not _can_be_cast(view):
        raise TypeError(f"cannot pickle a memoryview of format {view.format!r} and shape {view.shape}")
    return view_of, (PickleBuffer(view), view.format, view.shape)


def _can_be_cast(view: memoryview) -> bool:
    """Whether plain memory becomes such a view again: not with formats of numpy's records, nor empty in several dimensions."""
    if view.nbytes == 0 and view.ndim > 1:
        return False
    try:
        memoryview(bytes(view.itemsize)).cast(view.format)  # type: ignore[call-overload]
    except ValueError:
        return False
    return True


def view_of(memory: Any, format: str, shape: tuple[int, ...]) -> memoryview:
    """A memoryview over what a message brought, as the one that was sent; read-only where the memory is."""
    view = memoryview(memory).cast("B")
    if math.prod(shape):
        return view.cast(format, shape)  # type: ignore[call-overload, no-any-return]
    one = memoryview(bytes(8) if view.readonly else bytearray(8))  # no format is longer, and `cast` wants an item
    return one.cast(format)[:0]  # type: ignore[call-overload, no-any-return]


# ---- numpy ---------------------------------------------------------------------------------------


def _reduce_array(array: Any) -> Any:
    """numpy's own reduction where it keeps all of the array; it forgets read-only wherever it copies the memory."""
    raw = _as_raw(array)
    if raw is not None:
        return typed, (raw, array.dtype)
    reduced = array.__reduce_ex__(5)
    if array.flags.writeable or len(reduced) != 3:
        return reduced
    return (*reduced, None, None, set_read_only)


def _as_raw(array: Any) -> Any:
    """The array as one of nameless bytes, for dtypes whose memory numpy shows nobody (dates); None for all others."""
    numpy = sys.modules["numpy"]
    dtype, flags = array.dtype, array.flags
    if type(array) is not numpy.ndarray or not (flags.c_contiguous or flags.f_contiguous):
        return None
    if dtype.hasobject or not dtype.itemsize:
        return None
    try:
        memoryview(array)
    except ValueError:
        return array.view(f"V{dtype.itemsize}")
    return None


def typed(array: Any, dtype: Any) -> Any:
    """Those bytes as what they were."""
    return array.view(dtype)


def set_read_only(array: Any, state: Any) -> None:
    """Fill an array that pickle made, and close it to writing, as the original was."""
    array.__setstate__(state)
    array.setflags(write=False)


def _reduce_mapped(array: Any) -> Any:
    """A mapped file as the array in it: the file may not exist at the other side."""
    numpy = sys.modules["numpy"]
    return numpy.asarray, (array.view(numpy.ndarray),)
