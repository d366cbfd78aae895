"""Replaying a result from its `cfg` alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import xarray as xr

from xroutine.call import Call
from xroutine.errors import PlanError, StoreError
from xroutine.function import routine_class
from xroutine.opening import open_dataset
from xroutine.record import decode, encode, loads
from xroutine.routine import ComputationalRoutine
from xroutine.store import Location


def replay(
    location: Location,
    data: Any,
    out: Location | None = None,
    *,
    routine: Callable[..., Any] | type[ComputationalRoutine] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Compute again what a stored result was made by, on the same or on other data.

    Nothing that is named in the store is imported: the module that holds the routine has to be imported already, or the
    routine is given.

    Parameters
    ----------
    location : path, URL or zarr store
        A result of xroutine.
    data : xarray.Dataset, xarray.DataArray or Trials
    out : path, URL or zarr store, optional
        Where the new result is stored; in memory if left out.
    routine : callable or ComputationalRoutine subclass, optional
        In place of the recorded one.
    **options
        As for `ComputationalRoutine.__call__`: ``parallel``, ``overwrite``, ...

    Raises
    ------
    StoreError
        Where there is no `cfg`, or it refers to objects that were recorded by name only.
    PlanError
        Where the recorded routine's module has not been imported.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt, zarr
    >>> store, ds = zarr.storage.MemoryStore(), xrt.from_arrays([np.ones((4, 2))] * 3, samplerate=1.0)
    >>> first = ds.trials.map(np.negative, out=store)
    >>> xrt.replay(store, ds, routine=np.negative).negative.equals(first.negative)
    True
    """
    made, asked = recorded_call(open_dataset(location), str(location), routine)
    return made(data, out, **{**asked, **options})


def recorded_call(
    stored: xr.Dataset, where: str, routine: Callable[..., Any] | type[ComputationalRoutine] | None
) -> tuple[ComputationalRoutine, dict[str, Any]]:
    """The routine that made a result, and what else was asked for; raises as `replay` does."""
    if "cfg" not in stored.attrs:
        raise StoreError(f"{where} has no cfg: it was saved, not computed")
    cfg = loads(stored.attrs["cfg"], "cfg")
    try:
        recorded, asked = cfg["routine"], decode(cfg["options"], stored)
        out_dims, outputs, coords = asked.pop("out_dims", None), asked.pop("outputs", None), asked.pop("coords")
        function = _imported(recorded) if routine is None else routine
        compute = getattr(function, "computeFunction", function)
        # A default need not be recorded in full: it is there again with the function.
        defaults = {key: encode(value, "", None) for key, value in Call.defaults(compute).items()}
        given = {key: value for key, value in cfg["kwargs"].items() if key not in defaults or defaults[key] != value}
        argv, kwargs = (decode(part, stored, objects=_imported) for part in (cfg["argv"], given))
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"attribute 'cfg' of {where} lacks {error}, or holds something else in its place") from None
    if not (isinstance(function, type) and issubclass(function, ComputationalRoutine)):
        function = routine_class(function, out_dims, coords, outputs)
    made: ComputationalRoutine = function(*argv, **kwargs)
    made.out_dims, made.coords = out_dims, coords
    return made, asked


def _imported(recorded: str) -> Any:
    """The object of a recorded name, found in what has been imported."""
    module, _, qualified = str(recorded).partition(":")
    found: Any = sys.modules.get(module)
    if found is None:
        raise PlanError(
            f"the result was made by {recorded!r}, but {module!r} is not imported: import it, or give routine="
        )
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise PlanError(f"the result was made by {recorded!r}, which cannot be found by this name: give routine=")
    return found
