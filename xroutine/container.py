"""`Trials`: the attributes that routines written to the published contract read and set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xroutine.create import labels, read_trialdefinition
from xroutine.errors import TrialsError
from xroutine.record import ROLE, decode, loads
from xroutine.store import Location
from xroutine.trials import CHANNEL, TIME, TRIAL, View, as_dataset, check_samplerate, is_sample, seconds, view


class Trials:
    """The trials of a Dataset, or an empty place for those of a result.

    Setting an attribute changes what this object holds, never the Dataset it was made from. A coordinate of any other
    dim is an attribute of its own name: ``out.freq = ...``.

    Parameters
    ----------
    dataset : xarray.Dataset, xarray.DataArray or Trials
    variable : str, optional
        Which data variable is the signal, where there are several.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt
    >>> data = xrt.Trials(xrt.from_arrays([np.zeros((4, 2))] * 3, samplerate=100.0, offset=-2))
    >>> data.samplerate, data.dimord, data.trialdefinition.tolist()
    (100.0, ('time', 'channel'), [[0, 4, -2], [4, 8, -2], [8, 12, -2]])
    """

    def __init__(self, dataset: Any, variable: str | None = None) -> None:
        self._location: Location | None = None
        self._options: dict[str, Any] = {}
        self._declared: tuple[str, ...] | None = None
        self._dataset: xr.Dataset | None = None
        self._name = ""
        self._offset: int | None = None
        if dataset is not None:
            self._dataset = as_dataset(dataset)
            self._name = view(self._dataset, variable).name

    @classmethod
    def empty(
        cls,
        out: Location | None = None,
        dims: Sequence[str] | None = None,
        *,
        overwrite: bool = False,
        strict: bool = False,
        compressors: Any = "auto",
        storage_options: Mapping[str, Any] | None = None,
    ) -> Trials:
        """A place for a result: a path, a URL, a zarr store, or (left out) memory.

        Parameters
        ----------
        out : path, URL or zarr store, optional
        dims : sequence of str, optional
            Dims of one trial's output, where the routine does not declare them.
        overwrite : bool
            Replace what xroutine has stored there before.
        strict : bool
            Refuse to go on with what another version of the same function has begun, instead of a warning.
        compressors : zarr codec or sequence of them, or "auto" or None
            How chunks are compressed; a checksum is always added.
        storage_options : mapping, optional
            Options for a URL's file system.
        """
        made = cls(None)
        made._location = out
        if isinstance(dims, str):
            raise TrialsError(f"dims={dims!r}: expected a sequence of names, like ({dims!r},)")
        made._declared = None if dims is None else tuple(dims)
        made._options = {
            "overwrite": overwrite,
            "strict": strict,
            "compressors": compressors,
            "storage_options": storage_options,
        }
        return made

    @property
    def dataset(self) -> xr.Dataset:
        """The labelled Dataset."""
        if self._dataset is None:
            raise TrialsError("these Trials are empty: compute a routine into them first")
        return self._dataset

    @property
    def view(self) -> View:
        return view(self.dataset, self._name)

    @property
    def data(self) -> xr.DataArray:
        """The signal of all trials as it is stored."""
        return self.dataset[self._name]

    @property
    def dims(self) -> tuple[str, ...]:
        """Dims of one trial."""
        return self._declared or () if self._dataset is None else self.view.dims

    @dims.setter
    def dims(self, dims: Sequence[str]) -> None:
        if self._dataset is None:
            self._declared = tuple(dims)
            return
        if len(dims) != len(self.dims):
            raise TrialsError(f"dims: the trials have {len(self.dims)} dims {self.dims}, got {tuple(dims)}")
        stored = zip(self.view.stored_dims, self.dims, dims, strict=True)
        new = {was: name for kept, was, name in stored if was != name and kept == was}
        self._dataset = self.dataset.rename(new)
        if self.view.layout == "ragged" and self.view.stack != (
            stack := list(dims)[self.dims.index(str(self.view.stack))]
        ):
            self._set_attr("stacked_dim", stack)

    dimord = dims

    @property
    def trials(self) -> View:
        """The trials, by position: each a DataArray."""
        return self.view

    @property
    def channel(self) -> np.ndarray[Any, Any] | None:
        """Channel labels."""
        return np.asarray(self.dataset.coords[CHANNEL].values) if CHANNEL in self.dataset.coords else None

    @channel.setter
    def channel(self, names: Sequence[Any] | np.ndarray[Any, Any] | None) -> None:
        self._set_coord(CHANNEL, names)

    @property
    def samplerate(self) -> float | None:
        """Samples per second (Hz)."""
        return self.view.samplerate

    @samplerate.setter
    def samplerate(self, rate: float | None) -> None:
        if rate is None:
            return
        self._set_attr("samplerate", check_samplerate(rate, "samplerate"))
        found = self.view
        if found.layout != "ragged" and TIME in found.dims and found.offset is not None:
            self._set_time(self._first_offset())

    @property
    def time(self) -> list[np.ndarray[Any, Any] | None]:
        """Times of each trial in seconds relative to its trigger."""
        found = self.view
        return [found.time(position) for position in range(len(found))]

    @property
    def trialdefinition(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """One row a trial: first row, row after the last, offset of the first row from the trigger."""
        return self.view.trialdefinition()

    @trialdefinition.setter
    def trialdefinition(self, table: Any) -> None:
        found = self.view
        start, stop, offset, columns = read_trialdefinition(table)
        size = stop - start
        if found.layout == "single" and (size == size[0]).all() and (offset == offset[0]).all():
            # Rows of one length and offset, for the average of the trials that they describe.
            size, offset = size[:1], offset[:1]
        if len(size) != len(found):
            raise TrialsError(f"trialdefinition: {len(size)} rows for {len(found)} trials")
        if TIME in found.dims:
            bad = np.flatnonzero(size != found.size)
            if bad.size:
                raise TrialsError(
                    f"trialdefinition: trial {bad[0]} has {size[bad[0]]} rows there, {found.size[bad[0]]} in the data"
                )
            if found.layout != "ragged":
                if (offset != offset[0]).any():
                    raise TrialsError("trialdefinition: trials that share a time axis have one offset")
                self._set_time(int(offset[0]))
            if found.layout != "single":
                self._dataset = self.dataset.assign_coords(offset=(TRIAL, offset))
        if found.layout != "single":
            self._dataset = self.dataset.assign_coords({key: (TRIAL, column) for key, column in columns.items()})

    @property
    def sampleinfo(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """First row, and row after the last, of each trial."""
        return self.trialdefinition[:, :2]

    @property
    def trialinfo(self) -> pd.DataFrame:
        """Everything else that is known of each trial."""
        return self.view.table()

    @trialinfo.setter
    def trialinfo(self, info: Mapping[str, Any] | pd.DataFrame) -> None:
        columns = {str(key): (TRIAL, np.asarray(column)) for key, column in info.items()}
        self._dataset = self.dataset.assign_coords(columns)

    @property
    def selection(self) -> None:
        """Always None: selections are applied already."""
        return None

    @property
    def cfg(self) -> dict[str, Any]:
        """What was called to make this; empty for data that xroutine did not compute."""
        return read_cfg(self.dataset)

    @cfg.setter
    def cfg(self, cfg: Mapping[str, Any]) -> None:
        raise TrialsError("cfg is written by write_log, from what was called: set out.log for further notes")

    @property
    def log(self) -> str:
        """What was done, entry by entry."""
        return str(self.dataset.attrs.get("log", ""))

    @log.setter
    def log(self, text: str) -> None:
        self._dataset = self.dataset.assign_attrs(log=text)

    @property
    def details(self) -> dict[str, np.ndarray[Any, Any]]:
        """What the compute function returned beside its array, by name, one value a trial."""
        return {
            str(name): np.asarray(found.values)
            for name, found in self.dataset.data_vars.items()
            if found.attrs.get(ROLE) == "detail"
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and self._dataset is not None and name in self._dataset.coords:
            return np.asarray(self._dataset.coords[name].values)
        raise AttributeError(f"Trials have no attribute or coordinate {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            self._set_coord(name, value)

    def __repr__(self) -> str:
        if self._dataset is None:
            return f"<xroutine.Trials: empty, for {'memory' if self._location is None else self._location}>"
        return f"<xroutine.Trials>\n{self._dataset!r}"

    def _set_coord(self, dim: str, values: Any) -> None:
        found = self.view
        if values is None:
            self._dataset = self.dataset.drop_vars(dim, errors="ignore")
            return
        if dim not in self.dataset.dims or dim == TRIAL or is_sample(self.dataset, dim):
            raise AttributeError(
                f"cannot set {dim!r}: the trials' dims are {found.dims}; set .dims to call them otherwise"
            )
        self._dataset = self.dataset.assign_coords({dim: (dim, labels(values, dim, self.dataset.sizes[dim]))})

    def _set_attr(self, key: str, value: Any) -> None:
        changed = self.dataset.copy()
        changed[self._name].attrs[key] = value
        self._dataset = changed

    def _first_offset(self) -> int:
        if "offset" in self.dataset.coords:
            return int(self.dataset.coords["offset"].values[0])
        offset = self.view.offset
        if self._offset is not None or offset is None:
            return self._offset or 0
        return int(offset[0])

    def _set_time(self, offset: int) -> None:
        found, self._offset = self.view, offset
        if found.samplerate is not None:
            time = seconds(offset, found.variable.sizes[TIME], found.samplerate)
            self._dataset = self.dataset.assign_coords({TIME: (TIME, time, {"units": "s"})})
        elif found.layout != "single":
            self._dataset = self.dataset.assign_coords(offset=(TRIAL, np.full(len(found), offset, np.int64)))


def read_cfg(dataset: xr.Dataset) -> dict[str, Any]:
    """The `cfg` of a Dataset with its arrays in place; empty where there is none."""
    if "cfg" not in dataset.attrs:
        return {}
    found: dict[str, Any] = decode(loads(dataset.attrs["cfg"], "cfg"), dataset, strict=False)
    return found
