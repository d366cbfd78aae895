"""The dry run: asking a compute function what it returns, once for each distinct trial shape and argument."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xroutine.call import Call, PerTrial, split_outputs, split_result
from xroutine.errors import DryRunError
from xroutine.trials import IntArray

Shape = tuple[int, ...]
# What one dry run tells of each output.
Answer = tuple[tuple[Shape, np.dtype[Any]], ...]
# Numbers in an argument that may decide the output's shape: a window does, a whole signal does not.
_FEW = 16
# So many different trials are all asked about: fewer where asking means computing.
_MOST_PROBED, _MOST_ASKED = 128, 2048
# Of all trials' outputs: beyond it int64 overflows, and no store is as large.
_MOST_NBYTES = 2**62
_SAMPLED = 64


@dataclass(frozen=True, eq=False)
class Answers:
    """What the dry runs told of one output.

    Attributes
    ----------
    shapes : list of tuple of int
        Output shapes.
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

    @property
    def nbytes(self) -> IntArray:
        """Bytes of each trial's output."""
        nbytes = [int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize for shape in self.shapes]
        return np.array(nbytes, np.int64)[self.kind]

    def sizes(self, axis: int) -> IntArray:
        """Size of each trial's output along one axis."""
        return np.array([shape[axis] for shape in self.shapes], np.int64)[self.kind]


def dry_run(call: Call, shape: Shape, dtype: np.dtype[Any], index: int = 0) -> Answer:
    """Output shapes and dtypes of a compute function for an input of this shape and dtype.

    A function that follows the contract is asked with ``noCompute=True``. A plain function is run on a seeded
    stand-in of the true shape.

    Raises
    ------
    DryRunError
        Where the answer is not one shape and one dtype of numbers for each output.
    """
    argv, kwargs = call.arguments(index)
    if call.contract:
        with _told(call, "with noCompute=True", shape, dtype):
            answer = call.function(no_memory(shape, dtype), *argv, **kwargs, noCompute=True)
            parts = split_outputs(answer, call.outputs) if call.outputs else (answer,)
        found = tuple(_declared(call, part, shape) for part in parts)
    else:
        why = "on a random stand-in; a function that takes chunkShape=None, noCompute=None is asked instead"
        with _told(call, why, shape, dtype), np.errstate(all="ignore"):
            results, _ = split_result(call.function(stand_in(shape, dtype), *argv, **kwargs), call.outputs)
        found = tuple((result.shape, result.dtype) for result in results)
    for output, declared in found:
        if declared.kind not in "biufc":
            raise DryRunError(f"{call.name} returns dtype {declared}: only numbers can be stored")
        if 0 in output:
            raise DryRunError(f"{call.name} returns an empty array of shape {output} for an input of shape {shape}")
    return found


def _declared(call: Call, answer: Any, shape: Shape) -> tuple[Shape, np.dtype[Any]]:
    """The shape and dtype in an answer."""
    try:
        found_shape, found_dtype = answer
        sizes = tuple(int(n) for n in found_shape)
        exact = all(n == given for n, given in zip(sizes, found_shape, strict=True))
        if exact and min(sizes, default=1) >= 0:
            return sizes, np.dtype(found_dtype)
    except (TypeError, ValueError, OverflowError):
        pass
    raise DryRunError(
        f"{call.name} with noCompute=True: expected (shape, dtype){' of each output' * bool(call.outputs)}, "
        f"got {answer!r} for a trial of shape {shape}"
    )


@contextmanager
def _told(call: Call, how: str, shape: Shape, dtype: np.dtype[Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"in the dry run of {call.name!r} for a trial of shape {shape} and dtype {dtype}, {how}")
        raise


def dry_runs(call: Call, size: IntArray, shape_of: Any, dtype: np.dtype[Any]) -> tuple[Answers, ...]:
    """Dry runs over all trials, one for each distinct input size and per-trial argument.

    Where these are too many, some of them are asked about: the shortest and the longest trials, those with the smallest
    and the largest arguments, and others between. If each output dimension is then either always as long as the trial
    or always the same, so it is taken to be for all (and checked when each is computed); else all are asked about.

    Parameters
    ----------
    size : numpy.ndarray of int64
        Rows of each trial.
    shape_of : callable
        Input shape for a number of rows.

    Returns
    -------
    tuple of Answers
        One an output.

    Raises
    ------
    DryRunError
        Where trials give different dtypes or numbers of dimensions.
    """
    most = _MOST_ASKED if call.contract else _MOST_PROBED
    first, kind = _distinct(call, size, most)
    if len(first) > most:
        taken = _sampled(call, size, shape_of, dtype)
        if taken is not None:
            return taken
        first, kind = _distinct(call, size, len(size))
    found = [dry_run(call, shape_of(int(size[index])), dtype, int(index)) for index in first]
    _check_agreeing(call, found, size[first], len(size))
    return tuple(
        Answers([answer[output][0] for answer in found], kind, declared)
        for output, (_, declared) in enumerate(found[0])
    )


def _sampled(call: Call, size: IntArray, shape_of: Any, dtype: np.dtype[Any]) -> tuple[Answers, ...] | None:
    """What some of the trials tell of all; None where their shapes follow no simple rule."""
    chosen = _sample(call, size)
    found = [dry_run(call, shape_of(int(size[index])), dtype, int(index)) for index in chosen]
    _check_agreeing(call, found, size[chosen], len(size))
    sizes, kind = np.unique(size, return_inverse=True)
    answers = []
    for output, (shape, declared) in enumerate(found[0]):
        told = np.array([answer[output][0] for answer in found], np.int64).reshape(len(found), -1)
        same = (told == told[0]).all(axis=0)
        if not (same | (told == size[chosen, None]).all(axis=0)).all():
            return None
        shapes = [tuple(n if kept else int(rows) for n, kept in zip(shape, same, strict=True)) for rows in sizes]
        answers.append(Answers(shapes, kind.reshape(-1), declared))
    return tuple(answers)


def _check_agreeing(call: Call, found: list[Answer], size: IntArray, n_trials: int) -> None:
    """Raise where answers differ in dtype or number of dimensions, or are absurd."""
    for output, (shape, declared) in enumerate(found[0]):
        most = max((answer[output][0] for answer in found), key=math.prod)
        if math.prod(most) * declared.itemsize * n_trials > _MOST_NBYTES:
            raise DryRunError(f"{call.name} returns {declared} of shape {most} for a trial: no store is so large")
        dtypes = {str(answer[output][1]): int(rows) for answer, rows in zip(found, size, strict=True)}
        if len(dtypes) > 1:
            listed = ", ".join(f"{name} for {rows} rows" for name, rows in dtypes.items())
            raise DryRunError(
                f"{call.name} returns different dtypes for different trials: {listed}; expected one for all"
            )
        shapes = [answer[output][0] for answer in found]
        if {len(other) for other in shapes} != {len(shape)}:
            raise DryRunError(f"{call.name} returns different numbers of dimensions for different trials: {shapes[:5]}")


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


def _distinct(call: Call, size: IntArray, most: int) -> tuple[IntArray, IntArray]:
    """The first of each kind of trials that can only give the same shapes, and each trial's kind.

    Where there are more than `most`, no more is looked at than shows it.
    """
    kind, first = np.zeros(len(size), np.int64), np.zeros(1, np.int64)
    for column in [size, *(column for value in _per_trial(call) for column in _columns(value, most))]:
        code = np.unique(column, return_inverse=True)[1].reshape(-1)
        _, first, kind = np.unique(kind * (int(code.max()) + 1) + code, return_index=True, return_inverse=True)
        if len(first) > most:
            break
    return first, kind.reshape(-1)


def _sample(call: Call, size: IntArray) -> IntArray:
    """Positions of trials that differ as much as any do."""
    every = np.linspace(0, len(size) - 1, _SAMPLED).astype(np.int64)
    chosen = [every, np.argsort(size, kind="stable")[every]]
    for value in _per_trial(call):
        for column in _columns(value, _SAMPLED):
            chosen.append(np.array([column.argmin(), column.argmax()]))
    found: IntArray = np.unique(np.concatenate(chosen))
    return found


def _per_trial(call: Call) -> list[PerTrial]:
    return [value for value in (*call.argv, *call.kwargs.values()) if isinstance(value, PerTrial)]


def _columns(argument: PerTrial, most: int) -> list[np.ndarray[Any, Any]]:
    """A per-trial argument as columns of numbers that may decide the output's shape, or of codes."""
    values = argument.values
    if not isinstance(values, np.ndarray) and set(map(type, values)) in ({bool}, {int}, {float}):
        values = np.asarray(values)
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        table = values.reshape(len(values), -1)
        return list(table.T) if table.shape[1] <= _FEW else []
    seen: dict[Any, int] = {}
    codes = np.zeros(len(values), np.int64)
    for position, value in enumerate(values):
        codes[position] = seen.setdefault(_key(value), len(seen))
        if len(seen) > most:  # more than can be asked about: which they are does not matter
            return [np.arange(len(values))]
    return [codes]


def _key(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim:
        return (value.shape, value.dtype, value.tobytes() if value.size <= _FEW else None)
    try:
        hash(value)
    except TypeError:
        text = repr(value)
        return (type(value), text if len(text) <= 100 * _FEW else None)
    return (type(value), value)
