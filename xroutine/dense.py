"""Trials of unequal length as one padded array, read trial by trial when values are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from xroutine.errors import TrialsError
from xroutine.trials import TIME, TRIAL, View, in_table, seconds


class _Padded(BackendArray):
    """A (trial, ...) array whose trials are read from a view and padded along its stacking dim."""

    def __init__(self, view: View, first: np.ndarray[Any, np.dtype[np.int64]], rows: int, fill_value: Any) -> None:
        self.view, self.first, self.rows, self.fill_value = view, first, rows, fill_value
        self.shape = (len(view), *view.shape(rows))
        self.dtype = view.variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        trials, rest = key[0], key[1:]
        if isinstance(trials, (int, np.integer)):
            return self._trial(int(trials))[rest]
        positions = range(len(self.view))[trials]
        parts = [self._trial(position)[rest] for position in positions]
        return np.stack(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)[(slice(None), *rest)]

    def _trial(self, position: int) -> np.ndarray[Any, Any]:
        view = self.view
        out = np.full(self.shape[1:], self.fill_value, self.dtype)
        start = int(self.first[position])
        rows = slice(start, start + int(view.size[position]))
        out[tuple(rows if dim == view.stack else slice(None) for dim in view.dims)] = view.variable.isel(
            view.region(position)
        ).values
        return out


def to_dense(view: View, fill_value: Any = np.nan) -> xr.Dataset:
    """The trials as one (trial, time, channel) array, padded with `fill_value` where a trial has no sample.

    Trials are aligned on their trigger; without a ``time`` dim, on their first row.

    Raises
    ------
    TrialsError
        Where `fill_value` cannot be held by the signal's dtype.
    """
    if view.layout != "ragged":
        return view.dataset[[view.name]]
    if not len(view):
        raise TrialsError("there are no trials: the selection is empty")
    dtype = view.variable.dtype
    filled = np.asarray(fill_value)
    same_size = (view.size == view.size[0]).all()
    same_offset = view.offset is None or (view.offset == view.offset[0]).all()
    if not (same_size and same_offset) and not _holds(dtype, filled):
        raise TrialsError(
            f"fill_value={fill_value!r} cannot be stored as {dtype}: give one that can, or cast the signal"
        )
    first = np.zeros(len(view), np.int64) if view.offset is None else view.offset - view.offset.min()
    rows = int((first + view.size).max())
    padded = _Padded(view, first, rows, filled if _holds(dtype, filled) else 0)
    attrs = {key: value for key, value in view.variable.attrs.items() if key != "stacked_dim"}
    signal = xr.Variable((TRIAL, *view.dims), indexing.LazilyIndexedArray(padded), attrs)
    keep = [name for name, coord in view.dataset.coords.items() if set(coord.dims) <= {TRIAL, *view.dims}]
    coords = {name: view.dataset.coords[name].variable for name in keep if not in_table(name)}
    if view.offset is not None:
        coords["offset"] = xr.Variable(TRIAL, np.full(len(view), view.offset.min(), np.int64))
        if view.samplerate is not None:
            time = seconds(int(view.offset.min()), rows, view.samplerate)
            coords[TIME] = xr.Variable(TIME, time, {"units": "s"})
    return xr.Dataset({view.name: signal}, coords=coords, attrs=view.dataset.attrs)


def _holds(dtype: np.dtype[Any], value: np.ndarray[Any, Any]) -> bool:
    with np.errstate(all="ignore"):
        if value.ndim or not np.can_cast(value.dtype, dtype, "unsafe"):
            return False
        if value.dtype.kind in "fc" and dtype.kind in "biu" and not np.isfinite(value):
            return False
        cast = value.astype(dtype)
    return bool(np.array_equal(cast, value, equal_nan=value.dtype.kind in "fc")) or (
        dtype.kind in "fc" and value.dtype.kind in "fiu"
    )
