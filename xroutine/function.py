"""Plain functions as routines: `@routine`, and what `ds.trials.map` makes of a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xroutine.call import name_of
from xroutine.errors import PlanError
from xroutine.routine import ComputationalRoutine


def routine(
    out_dims: Sequence[str] | None = None,
    coords: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Sequence[str]] | None = None,
) -> Callable[[Callable[..., Any]], type[ComputationalRoutine]]:
    """Make a plain function of one trial a routine class.

    Parameters
    ----------
    out_dims : sequence of str, optional
        Dims of one trial's output; those of the input where they are as many.
    coords : mapping, optional
        Labels of the output's dims.
    outputs : mapping of str to sequence of str, optional
        For functions that return several arrays, as a tuple or dict: their names, and the dims of each.

    Returns
    -------
    callable
        A decorator; the class takes the function's further arguments.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt
    >>> @xrt.routine(out_dims=("freq", "channel"))
    ... def power(trial, nfft):
    ...     return np.abs(np.fft.rfft(trial, n=nfft, axis=0)) ** 2
    >>> ds = xrt.from_arrays([np.ones((8, 2))] * 3, samplerate=100.0)
    >>> dict(power(nfft=8)(ds).power.sizes)
    {'trial': 3, 'freq': 5, 'channel': 2}
    """

    def decorate(function: Callable[..., Any]) -> type[ComputationalRoutine]:
        return routine_class(function, out_dims, coords, outputs)

    return decorate


def routine_class(
    function: Callable[..., Any],
    out_dims: Sequence[str] | None,
    coords: Mapping[str, Any] | None,
    outputs: Mapping[str, Sequence[str]] | None,
) -> type[ComputationalRoutine]:
    """A routine class for a plain function, under the function's own name."""
    module, _, qualified = name_of(function).partition(":")
    if isinstance(out_dims, str):
        raise PlanError(f"out_dims={out_dims!r}: expected a sequence of names, like ({out_dims!r},)")
    if outputs is not None and not outputs:
        raise PlanError("outputs: expected a name and dims for each output, got none")
    for name, dims in (outputs or {}).items():
        if isinstance(dims, str) or not name.isidentifier():
            raise PlanError(f"outputs: expected names with a sequence of dims each, got {name!r}: {dims!r}")
    body = {
        "computeFunction": staticmethod(function),
        "process_metadata": lambda self, data, out: None,
        "out_dims": None if out_dims is None else tuple(out_dims),
        "coords": coords,
        "outputs": None if outputs is None else {name: tuple(dims) for name, dims in outputs.items()},
        "_number_dims": False,
        "__doc__": function.__doc__,
        "__module__": module,
        "__qualname__": qualified,
    }
    return type(qualified.rpartition(".")[2], (ComputationalRoutine,), body)
