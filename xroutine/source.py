"""Reading the blocks' regions from the input, wherever it lies: memory, a lazily opened store, or a dask graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from xroutine.record import digest
from xroutine.trials import View

_SAMPLED = 64
_SAMPLE_BYTES = 4096


class Source:
    """Reads regions of one variable.

    Attributes
    ----------
    variable : xarray.Variable
        NumPy-backed, lazily opened, or dask-backed.
    """

    def __init__(self, variable: xr.Variable) -> None:
        self.variable = variable

    @property
    def is_dask(self) -> bool:
        return self.variable.chunks is not None

    @property
    def in_memory(self) -> bool:
        """Whether another process could not read it from where it lies."""
        array = zarr_array(self.variable)
        if array is not None:
            return isinstance(array.store, MemoryStore)
        return isinstance(_backend(self.variable), np.ndarray)

    def read(self, region: dict[str, slice]) -> np.ndarray[Any, Any]:
        return np.asarray(self.variable.isel(region).values)

    def lazy(self, region: dict[str, slice]) -> Any:
        """The region as a dask array, where the source is one."""
        return self.variable.isel(region).data


def _backend(variable: xr.Variable) -> Any:
    """What lies below xarray's layers of lazy indexing."""
    data = variable._data
    while not isinstance(data, np.ndarray) and hasattr(data, "array"):
        data = data.array
    return data


def zarr_array(variable: xr.Variable) -> zarr.Array[Any] | None:
    """The stored Zarr array behind a lazily opened variable."""
    found = getattr(_backend(variable), "_array", None)
    return found if isinstance(found, zarr.Array) else None


def identity(view: View) -> dict[str, Any]:
    """What tells one input from another: where it lies or what it holds, and its trials and labels.

    Arrays in memory are told apart by their shape, dtype, and a sample of their values: 64 evenly spread stretches of
    4 KiB. Lazily opened ones by their address, dask arrays by their name.
    """
    variable = view.variable
    found: dict[str, Any] = {
        "variable": view.name,
        "layout": view.layout,
        "dims": list(map(str, variable.dims)),
        "shape": list(variable.shape),
        "dtype": variable.dtype.str,
        "n_trials": len(view),
        "samplerate": view.samplerate,
    }
    columns = [view.trial, view.start, view.size] + ([] if view.offset is None else [view.offset])
    found["trials"] = digest(*columns, *(info.values for info in view.info.values()))
    found["labels"] = digest(*(coord.values for coord in view.labels.values()))
    backend, array = _backend(variable), zarr_array(variable)
    if array is not None and not isinstance(array.store, MemoryStore):
        found["source"] = str(array.store_path)
        if tuple(array.shape) != variable.shape:
            found["selection"] = _indexer_text(variable)
    elif isinstance(backend, np.ndarray):
        flat = backend.reshape(-1) if backend.flags.c_contiguous else backend.ravel(order="K")
        length = max(_SAMPLE_BYTES // backend.dtype.itemsize, 1)
        starts = np.linspace(0, max(flat.size - length, 0), _SAMPLED).astype(np.int64)
        found["sampled_values"] = digest(*(flat[start : start + length] for start in np.unique(starts)))
    elif variable.chunks is not None:
        found["source"] = f"dask:{variable.data.name}"
    else:
        found["source"] = str(view.dataset.encoding.get("source", type(backend).__name__))
        found["selection"] = _indexer_text(variable)
    return found


def _indexer_text(variable: xr.Variable) -> str:
    data = variable._data
    while hasattr(data, "array"):
        if hasattr(data, "key"):
            return digest(
                *(
                    np.array([k.start or 0, k.stop or 0, k.step or 1]) if isinstance(k, slice) else k
                    for k in data.key.tuple
                )
            )
        data = data.array
    return ""
