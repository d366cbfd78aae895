"""Where each trial of a Dataset lies: one frozen view, in NumPy columns, over every layout."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from xroutine.errors import TrialsError

TRIAL, SAMPLE, TIME, CHANNEL = "trial", "sample", "time", "channel"

# Bytes that iterating over trials reads at once.
_READ_AHEAD = 16 * 2**20

Layout = Literal["dense", "ragged", "single"]
IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class View:
    """The trials of one variable: where each lies, how long it is, and what it is called.

    Attributes
    ----------
    dataset : xarray.Dataset
        The Dataset that is looked at; it is never changed.
    name : str
        The variable that holds the signal.
    layout : {"dense", "ragged", "single"}
        With a ``trial`` dimension; laid end to end along ``sample``; or one trial that fills the variable.
    dims : tuple of str
        Dims of one trial, in the order in which a compute function sees them.
    stack : str or None
        The dim along which trials may differ in length; None for trials without dims.
    trial : numpy.ndarray
        Labels of the trials.
    start, size : numpy.ndarray of int64
        First row and number of rows of each trial along `stack`.
    offset : numpy.ndarray of int64 or None
        Sample of each trial's first row relative to its trigger; None without a ``time`` dim.
    samplerate : float or None
        In Hz.
    """

    dataset: xr.Dataset
    name: str
    layout: Layout
    dims: tuple[str, ...]
    stack: str | None
    trial: np.ndarray[Any, Any]
    start: IntArray
    size: IntArray
    offset: IntArray | None
    samplerate: float | None

    def __len__(self) -> int:
        return len(self.trial)

    def __iter__(self) -> Iterator[xr.DataArray]:
        if not len(self):
            return
        row_nbytes = int(np.prod(self.shape(1))) * self.variable.dtype.itemsize
        run = np.cumsum(self.size * row_nbytes) // _READ_AHEAD
        bounds = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(self)]
        for first, last in itertools.pairwise(bounds):
            part = self._loaded(first, last)
            yield from (part[position] for position in range(last - first))

    def __getitem__(self, index: int) -> xr.DataArray:
        """Trial `index` by position, lazily, with its labels."""
        position = range(len(self))[index]
        part = xr.DataArray(self.variable.isel(self.region(position)), name=self.name)
        if self.layout == "ragged":
            part = part.rename({self.sample: self.stack})
        coords: dict[Hashable, Any] = dict(self.labels)
        if self.layout != "single":
            coords[TRIAL] = self.trial[position]
            coords |= {name: variable[position] for name, variable in self.info.items()}
        if TIME in self.dims and TIME not in coords and (time := self.time(position)) is not None:
            coords[TIME] = (TIME, time, {"units": "s"})
        return part.assign_coords(coords)

    def _loaded(self, first: int, last: int) -> View:
        """Some trials, read at once: one by one, each would decode the chunk that it shares with many others."""
        part = self.dataset.isel({TRIAL: slice(first, last)}) if self.layout != "single" else self.dataset
        if self.layout == "ragged":
            start, size = self.start[first:last], self.size[first:last]
            low, high = int(start.min()), int((start + size).max())
            if high - low > 2 * size.sum():  # scattered: most of what lies between them is not theirs
                return view(part, self.name)
            part = part.isel({self.sample: slice(low, high)}).assign_coords(
                {table_name("row_start", self.sample): row_start_coord(start - low, high - low)}
            )
        return view(part.assign({self.name: part[self.name].compute()}), self.name)

    @property
    def variable(self) -> xr.Variable:
        return self.dataset.variables[self.name]

    @property
    def sample(self) -> str:
        """The dimension along which trials lie end to end: ``sample``, or another where a Dataset has several."""
        return next(str(dim) for dim in self.variable.dims if is_sample(self.dataset, dim))

    @property
    def stored_dims(self) -> tuple[str, ...]:
        """`dims` as the variable calls them: `stack` is ``sample`` where trials lie end to end."""
        return tuple(self.sample if self.layout == "ragged" and dim == self.stack else dim for dim in self.dims)

    @cached_property
    def labels(self) -> dict[Hashable, xr.Variable]:
        """Coordinates along the dims of a trial that all trials share."""
        return {
            name: coord.variable
            for name, coord in self.dataset.coords.items()
            if coord.dims and set(coord.dims) <= set(self.dims)
        }

    @cached_property
    def info(self) -> dict[Hashable, xr.Variable]:
        """Everything else that is known of each trial."""
        return {
            name: coord.variable
            for name, coord in self.dataset.coords.items()
            if coord.dims == (TRIAL,) and name != TRIAL and not in_table(name)
        }

    def table(self) -> pd.DataFrame:
        """`info`, one row a trial."""
        index = pd.Index(self.trial, name=TRIAL)
        return pd.DataFrame({str(name): column.values for name, column in self.info.items()}, index=index)

    def region(self, position: int) -> dict[str, slice | int]:
        """Where a trial lies in the variable, for `xarray.Variable.isel`."""
        if self.layout == "dense":
            return {TRIAL: position}
        if self.layout == "single":
            return {}
        start = int(self.start[position])
        return {self.sample: slice(start, start + int(self.size[position]))}

    def shape(self, size: int) -> tuple[int, ...]:
        """Shape of a trial that has `size` rows along `stack`."""
        return tuple(size if dim == self.stack else self.variable.sizes[dim] for dim in self.dims)

    def time(self, position: int) -> np.ndarray[Any, Any] | None:
        """Seconds relative to the trigger; None where they are not known."""
        if TIME in self.labels:
            return np.asarray(self.labels[TIME].values)
        if self.offset is None or self.samplerate is None:
            return None
        return seconds(int(self.offset[position]), int(self.size[position]), self.samplerate)

    def trialdefinition(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """One row a trial: first row, row after the last, offset of the first row from the trigger."""
        offset = np.zeros(len(self), np.int64) if self.offset is None else self.offset
        return np.stack([self.start, self.start + self.size, offset], axis=1)


def is_sample(dataset: xr.Dataset, dim: Hashable) -> bool:
    """Whether trials lie end to end along a dim: ``sample``, or ``sample_...`` with a trial table of its own."""
    return dim == SAMPLE or (str(dim).startswith(f"{SAMPLE}_") and table_name("row_start", str(dim)) in dataset.coords)


def table_name(column: str, sample: str) -> str:
    """The name of `row_start` or `row_size` for a sample dim: ``row_start_phase`` for ``sample_phase``."""
    return column + sample.removeprefix(SAMPLE)


def in_table(name: Hashable) -> bool:
    """Whether a coordinate on ``trial`` is a column of the trial table, which belongs to a layout."""
    return name == "offset" or str(name).startswith(("row_start", "row_size"))


def row_start_coord(start: IntArray, rows: int) -> xr.Variable:
    """First rows of ragged trials, with the number of rows along ``sample`` that they count among."""
    return xr.Variable(TRIAL, start, {"sample_size": rows})


def seconds(offset: int, size: int, samplerate: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Times of `size` samples, in seconds relative to the trigger, the first one `offset` samples from it."""
    return np.arange(offset, offset + size, dtype=np.float64) / samplerate


def as_dataset(data: Any) -> xr.Dataset:
    """The Dataset behind a Dataset, a DataArray or anything that has it as ``dataset``."""
    if isinstance(data, xr.DataArray):
        return data.to_dataset(name=data.name or "data", promote_attrs=False)
    dataset = getattr(data, "dataset", data)
    if not isinstance(dataset, xr.Dataset):
        raise TrialsError(f"expected an xarray Dataset or DataArray with trials, got {type(data).__name__}")
    return dataset


def signals(dataset: xr.Dataset) -> list[str]:
    """Names of the data variables that can be the signal."""
    names = [str(name) for name, var in dataset.data_vars.items() if "xroutine_role" not in var.attrs]
    if TRIAL not in dataset.dims:
        return [name for name in names if dataset[name].ndim] or names
    several = [
        name
        for name in names
        if any(is_sample(dataset, dim) for dim in dataset[name].dims)
        or (TRIAL in dataset[name].dims and dataset[name].ndim > 1)
    ]
    return several or [name for name in names if TRIAL in dataset[name].dims]


def view(data: Any, variable: str | None = None) -> View:
    """Look at the trials of a Dataset or DataArray.

    Parameters
    ----------
    data : xarray.Dataset or xarray.DataArray
        Dense (``trial`` dimension), ragged (``sample`` dimension, `row_start` and `row_size` on ``trial``) or
        continuous (neither: one trial).
    variable : str, optional
        Which data variable is the signal, where there are several.

    Raises
    ------
    TrialsError
        Where no variable, or more than one, can be the signal, or where the trial table does not fit it.
    """
    dataset = as_dataset(data)
    name = _pick(dataset, variable)
    array = dataset.variables[name]
    if array.dtype.kind not in "biufc":
        raise TrialsError(f"variable {name!r} has dtype {array.dtype}: expected numbers")
    stored = tuple(str(dim) for dim in array.dims)
    samplerate = _samplerate(name, array)
    offset: IntArray | None = None

    sample = next((dim for dim in stored if is_sample(dataset, dim)), None)
    if sample is not None:
        stack: str | None = str(array.attrs.get("stacked_dim", TIME))
        dims = tuple(str(stack) if dim == sample else dim for dim in stored)
        start, size = _rows(dataset, name, sample)
        if stack == TIME:
            offset = _column(dataset, "offset") if "offset" in dataset.coords else np.zeros(len(start), np.int64)
        return View(dataset, name, "ragged", dims, stack, _ids(dataset), start, size, offset, samplerate)

    dims = tuple(dim for dim in stored if dim != TRIAL)
    stack = TIME if TIME in dims else dims[0] if dims else None
    length = array.sizes[stack] if stack else 1
    n_trials = array.sizes[TRIAL] if TRIAL in stored else 1
    ids = _ids(dataset) if TRIAL in stored else np.arange(1)
    if TIME in dims:
        offset = _offset(dataset, samplerate, n_trials)
    return View(
        dataset,
        name,
        "dense" if TRIAL in stored else "single",
        dims,
        stack,
        ids,
        np.arange(n_trials, dtype=np.int64) * length,
        np.full(n_trials, length, np.int64),
        offset,
        samplerate,
    )


def _pick(dataset: xr.Dataset, variable: str | None) -> str:
    names = signals(dataset)
    if variable is not None:
        if variable not in names:
            raise TrialsError(f"variable={variable!r} is not a signal of this Dataset; there are: {names}")
        return variable
    if len(names) != 1:
        if not names:
            raise TrialsError(
                "found no data variable with trials: expected one with a `trial` dimension, or with a `sample` "
                f"dimension beside `row_start` and `row_size`; the Dataset has {dict(dataset.sizes)}"
            )
        raise TrialsError(
            f"several data variables could be the signal: {names}; name one with variable=, or leave the others out "
            f"first, as with ds.drop_vars({names[1:]}).trials"
        )
    return names[0]


def _ids(dataset: xr.Dataset) -> np.ndarray[Any, Any]:
    if TRIAL in dataset.coords:
        return np.asarray(dataset.coords[TRIAL].values)
    return np.arange(dataset.sizes[TRIAL])


def _column(dataset: xr.Dataset, name: str) -> IntArray:
    column = dataset.coords[name]
    if column.dims != (TRIAL,) or column.dtype.kind not in "iu":
        raise TrialsError(
            f"coordinate {name!r} should hold integers along `trial`, found {column.dtype} along {column.dims}"
        )
    return np.asarray(column.values, dtype=np.int64)


def _rows(dataset: xr.Dataset, name: str, sample: str) -> tuple[IntArray, IntArray]:
    starts, sizes = table_name("row_start", sample), table_name("row_size", sample)
    missing = [key for key in (starts, sizes) if key not in dataset.coords]
    if missing:
        raise TrialsError(
            f"variable {name!r} lies along `{sample}`, but the Dataset has no coordinate {' and '.join(missing)} on "
            "`trial`: select with ds.isel(trial=...) on the whole Dataset, not on the variable"
        )
    start, size = _column(dataset, starts), _column(dataset, sizes)
    rows = dataset.sizes[sample]
    counted = dataset.coords[starts].attrs.get("sample_size", rows)
    if counted != rows:
        raise TrialsError(
            f"`{starts}` counts among {counted} rows along `{sample}`, but {name!r} has {rows}: select trials or "
            f"a latency with ds.trials.sel, not rows with ds.isel({sample}=...)"
        )
    bad = np.flatnonzero((start < 0) | (size < 1) | (start + size > rows))
    if bad.size:
        first = int(bad[0])
        raise TrialsError(
            f"trial {first} (id {_ids(dataset)[first]!r}) covers rows {start[first]} to {start[first] + size[first]}, "
            f"but {name!r} has rows 0 to {rows} along `{sample}`"
        )
    return start, size


def _samplerate(name: str, array: xr.Variable) -> float | None:
    value = array.attrs.get("samplerate")
    return None if value is None else check_samplerate(value, f"attribute `samplerate` of {name!r}")


def check_samplerate(value: Any, where: str) -> float:
    """The sampling rate as a float, or a `TrialsError` that tells where it came from."""
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = np.nan
    if not (np.isfinite(rate) and rate > 0):
        raise TrialsError(f"{where} should be a positive, finite number of samples per second (Hz), found {value!r}")
    return rate


def _offset(dataset: xr.Dataset, samplerate: float | None, n_trials: int) -> IntArray:
    # In the dense layout `time` is what xarray's own selections keep up to date, so it is asked first.
    if TIME in dataset.coords and samplerate is not None and dataset.sizes[TIME]:
        time = dataset.coords[TIME].values
        if time.dtype.kind not in "iuf":
            raise TrialsError(f"coordinate `time` should hold seconds relative to the trigger, found {time.dtype}")
        step = (time[-1] - time[0]) / max(len(time) - 1, 1) * samplerate
        if len(time) > 1 and not abs(step - 1) < 1e-3:
            raise TrialsError(
                f"`time` runs in steps of {step / samplerate:g} s, which is not one sample at "
                f"samplerate={samplerate:g} Hz: set the attribute `samplerate` of the signal to what it is"
            )
        return np.full(n_trials, int(np.rint(float(time[0]) * samplerate)), np.int64)
    if "offset" in dataset.coords and dataset.coords["offset"].dims == (TRIAL,):
        return _column(dataset, "offset")
    return np.zeros(n_trials, np.int64)
