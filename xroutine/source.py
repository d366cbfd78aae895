"""Reading the blocks' regions from the input, wherever it lies: memory, a lazily opened store, or a dask graph."""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, MemoryStore

from xroutine.intact import unwrapped
from xroutine.record import MADE, code_digest
from xroutine.trials import View


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

    def travels(self, remote: bool) -> bool:
        """Whether a task cannot read it from where it lies, so that its regions have to come with the tasks."""
        origin = self.variable
        while (padded := padded_view(origin)) is not None:
            origin = padded.variable
        if origin.chunks is not None:
            return True
        array = zarr_array(origin)
        in_memory = (
            isinstance(_backend(origin), np.ndarray)
            if array is None
            else isinstance(unwrapped(array.store), MemoryStore)
        )
        return remote and in_memory

    @property
    def reads_anew(self) -> bool:
        """Whether what is read is in memory that nobody else holds."""
        array = zarr_array(self.variable)
        return array is not None and not isinstance(unwrapped(array.store), MemoryStore)

    def read(self, region: dict[str, slice]) -> np.ndarray[Any, Any]:
        data = self.variable._data
        if isinstance(data, np.ndarray):  # xarray's own indexing takes longer than many a compute function
            return data[tuple(region.get(str(dim), slice(None)) for dim in self.variable.dims)]
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


def padded_view(variable: xr.Variable) -> View | None:
    """The trials behind an array that pads them."""
    found = getattr(_backend(variable), "view", None)
    return found if isinstance(found, View) else None


def zarr_array(variable: xr.Variable) -> zarr.Array[Any] | None:
    """The stored Zarr array behind a lazily opened variable."""
    found = getattr(_backend(variable), "_array", None)
    return found if isinstance(found, zarr.Array) else None


def identity(view: View) -> dict[str, Any]:
    """What tells one input from another: where it lies or what it holds, and its trials and labels.

    Arrays in memory are told apart by shape, dtype and a CRC-32 of all values. Stored ones by their address and, where
    xroutine made them, by the run that did; files by size and time of change; dask arrays by their name.
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
    columns = {"trial": view.trial, "start": view.start, "size": view.size, "offset": view.offset}
    columns |= {str(name): info.values for name, info in view.info.items()}
    found["trials"] = code_digest({name: np.asarray(column) for name, column in columns.items()})
    found["labels"] = code_digest({str(name): coord.values for name, coord in view.labels.items()})
    backend, array, padded = _backend(variable), zarr_array(variable), padded_view(variable)
    if padded is not None:
        found["padded"], found["selection"] = identity(padded), _indexer_digest(variable)
    elif variable.chunks is not None:
        found["source"] = f"dask:{variable.data.name}"
    elif isinstance(backend, np.ndarray):
        found["values"] = _checksum(backend)
    elif array is not None:
        found["source"] = str(array.store_path)
        found["selection"] = _indexer_digest(variable)
        found["made"] = zarr.open_group(array.store, mode="r").attrs.get(MADE)
    else:
        address = str(view.dataset.encoding.get("source", variable.encoding.get("source", type(backend).__name__)))
        found["source"], found["selection"] = address, _indexer_digest(variable)
        if os.path.isfile(address):
            found["made"] = [os.path.getsize(address), os.path.getmtime(address)]
    return found


def lies_in(view: View, store: Store) -> bool:
    """Whether the input is read, as far as it can be known, from a store or from within its folder."""
    padded = padded_view(view.variable)
    if padded is not None:
        return lies_in(padded, store)
    array = zarr_array(view.variable)
    encodings = [view.dataset.encoding, view.variable.encoding]
    sources = [str(encoding["source"]) for encoding in encodings if "source" in encoding]
    if array is not None:
        if unwrapped(array.store) == store:
            return True
        sources.append(str(array.store))
    if not isinstance(store, LocalStore):
        return str(store) in sources
    target = os.path.realpath(store.root)
    paths = [os.path.realpath(source.removeprefix("file://")) for source in sources]
    return any(os.path.commonpath([target, path]) in (target, path) for path in paths)


def _checksum(array: np.ndarray[Any, Any]) -> str:
    total = 0
    for part in np.array_split(array, max(array.nbytes // 2**24, 1)) if array.ndim else [array]:
        total = zlib.crc32(np.ascontiguousarray(part).view(np.uint8), total)
    return f"{total:08x}"


def _indexer_digest(variable: xr.Variable) -> str:
    """What has been selected of a lazily opened variable."""
    data = variable._data
    while hasattr(data, "array"):
        if hasattr(data, "key"):
            return code_digest([repr(key) if isinstance(key, slice) else np.asarray(key) for key in data.key.tuple])
        data = data.array
    return ""
