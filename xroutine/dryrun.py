"""The dry run: asking a compute function what it returns, once for each distinct trial shape and argument."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xroutine.call import Call, PerTrial, split_details
from xroutine.errors import DryRunError
from xroutine.trials import IntArray

Shape = tuple[int, ...]
_FEW = 16


@dataclass(frozen=True, eq=False)
class Answers:
    """What the dry runs told.

    Attributes
    ----------
    shapes : list of tuple of int
        The distinct output shapes, one a dry run.
    kind : numpy.ndarray of int64
        For each trial, which of `shapes` is its.
    dtype : numpy.dtype
        The dtype of all outputs.
    """

    shapes: list[Shape]
    kind: IntArray
    dtype: np.dtype[Any]

    @property
    def largest(self) -> Shape:
        """The largest output shape over all trials: `chunkShape` of the contract."""
        return tuple(int(n) for n in np.max(np.array(self.shapes, np.int64).reshape(len(self.shapes), -1), axis=0))

    def sizes(self, axis: int) -> IntArray:
        """Size of each trial's output along one axis."""
        return np.array([shape[axis] for shape in self.shapes], np.int64)[self.kind]


def dry_run(call: Call, shape: Shape, dtype: np.dtype[Any], index: int = 0) -> tuple[Shape, np.dtype[Any]]:
    """Output shape and dtype of a compute function for an input of this shape and dtype.

    A function that follows the contract is asked with ``noCompute=True``. A plain function is run on a seeded
    stand-in of the true shape.

    Raises
    ------
    DryRunError
        Where the answer is not one shape and one dtype of numbers.
    """
    argv, kwargs = call.arguments(index)
    if call.contract:
        with _told(call, "with noCompute=True", shape, dtype):
            answer = call.function(no_memory(shape, dtype), *argv, **kwargs, noCompute=True)
        try:
            found_shape, found_dtype = answer
            sizes = tuple(int(n) for n in found_shape)
            exact = all(n == given for n, given in zip(sizes, found_shape, strict=True))
            output, declared = (sizes if exact and min(sizes, default=1) >= 0 else None), np.dtype(found_dtype)
        except (TypeError, ValueError):
            output = None
        if output is None:
            raise DryRunError(
                f"{call.name} with noCompute=True: expected (shape, dtype), got {answer!r} for a trial of shape {shape}"
            )
    else:
        why = "on a random stand-in; a function that takes chunkShape=None, noCompute=None is asked instead"
        with _told(call, why, shape, dtype), np.errstate(all="ignore"):
            result, _ = split_details(call.function(stand_in(shape, dtype), *argv, **kwargs))
        output, declared = result.shape, result.dtype
    if declared.kind not in "biufc":
        raise DryRunError(f"{call.name} returns dtype {declared}: only numbers can be stored")
    if 0 in output:
        raise DryRunError(f"{call.name} returns an empty array of shape {output} for an input of shape {shape}")
    return output, declared


@contextmanager
def _told(call: Call, how: str, shape: Shape, dtype: np.dtype[Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"in the dry run of {call.name!r} for a trial of shape {shape} and dtype {dtype}, {how}")
        raise


def dry_runs(call: Call, size: IntArray, shape_of: Any, dtype: np.dtype[Any]) -> Answers:
    """Dry runs over all trials, one for each distinct input size and per-trial argument.

    Parameters
    ----------
    size : numpy.ndarray of int64
        Rows of each trial.
    shape_of : callable
        Input shape for a number of rows.

    Raises
    ------
    DryRunError
        Where trials give different dtypes or numbers of dimensions.
    """
    sizes, kind = np.unique(size, return_inverse=True)
    codes = _argument_codes(call, len(size))
    if codes is not None:
        _, first, kind = np.unique(kind * (codes.max() + 1) + codes, return_index=True, return_inverse=True)
        distinct = [(int(size[index]), int(index)) for index in first]
    else:
        distinct = [(int(rows), 0) for rows in sizes]
    found = [dry_run(call, shape_of(rows), dtype, index) for rows, index in distinct]
    dtypes = {str(declared): rows for (_, declared), (rows, _) in zip(found, distinct, strict=True)}
    if len(dtypes) > 1:
        listed = ", ".join(f"{name} for {rows} rows" for name, rows in dtypes.items())
        raise DryRunError(f"{call.name} returns different dtypes for different trials: {listed}; expected one for all")
    shapes = [shape for shape, _ in found]
    if len({len(shape) for shape in shapes}) > 1:
        raise DryRunError(f"{call.name} returns different numbers of dimensions for different trials: {shapes[:5]}")
    return Answers(shapes, kind.reshape(-1).astype(np.int64), found[0][1])


def no_memory(shape: Shape, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A real, writable array of zeros of any shape, in the memory of one number."""
    return np.ndarray(shape, dtype, buffer=np.zeros(1, dtype), strides=(0,) * len(shape))


def stand_in(shape: Shape, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A seeded random array of any shape and dtype of numbers."""
    rng = np.random.default_rng(0)
    if dtype.kind in "biu":
        return rng.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)
    values = rng.standard_normal(shape, np.float32 if dtype.itemsize <= 4 else np.float64)
    return (values + 1j * rng.standard_normal(shape) if dtype.kind == "c" else values).astype(dtype)


def _argument_codes(call: Call, n_trials: int) -> IntArray | None:
    """A number for each trial, equal where the per-trial arguments can only lead to the same output shape."""
    codes: IntArray | None = None
    for value in (*call.argv, *call.kwargs.values()):
        if not isinstance(value, PerTrial):
            continue
        seen: dict[Any, int] = {}
        column = np.fromiter((seen.setdefault(_key(one), len(seen)) for one in value.values), np.int64, n_trials)
        codes = column if codes is None else np.unique(codes * len(seen) + column, return_inverse=True)[1]
    return codes


def _key(value: Any) -> Any:
    # A scalar or a few numbers (a length, a window) may decide the output's shape; a whole signal does not.
    if isinstance(value, np.ndarray) and value.ndim:
        return (value.shape, value.dtype, value.tobytes() if value.size <= _FEW else None)
    try:
        hash(value)
    except TypeError:
        text = repr(value)
        return (type(value), text if len(text) <= 100 * _FEW else None)
    return (type(value), value)
