"""Opening what xroutine wrote."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
import xarray as xr
from zarr.abc.store import Store

from xroutine.errors import (
    DamagedError,
    StoreError,
    UnfinishedError,
    XroutineWarning,
)
from xroutine.failures import FAILED
from xroutine.intact import IntactStore
from xroutine.ledger import read_bounds, read_receipts
from xroutine.objects import get
from xroutine.plan import nbytes_text
from xroutine.record import MADE
from xroutine.seal import ROOT, check_root
from xroutine.store import ALLOCATING, COMPLETE, MARK, PARTIAL, RUNNING, Location, address, inspect, locate
from xroutine.trials import TRIAL


def open_dataset(
    location: Location, *, unfinished: bool = False, storage_options: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Open what xroutine wrote, lazily.

    Parameters
    ----------
    location : path, URL or zarr store
    unfinished : bool
        Open a target whose run has not been completed. What is missing holds the fill value, and is told by a
        coordinate ``finished`` along ``trial``; labels that are made after the run are not there yet.
    storage_options : mapping, optional
        Options for a URL's file system.

    Returns
    -------
    xarray.Dataset
        Labels in memory, the signal still in the store.

    Raises
    ------
    FileNotFoundError
        Where there is nothing.
    StoreError
        Where the store was not made by xroutine.
    DamagedError
        Where labels or metadata are missing, or not those that were committed. Chunks of the signal are looked at when
        they are read, and raise it then.
    UnfinishedError
        Where the run has not been completed; the message tells how far it got.
    """
    store = locate(location, storage_options)
    mark = inspect(store)
    if mark is None:
        raise FileNotFoundError(f"there is no Zarr store at {address(store)}")
    if mark["status"] == PARTIAL:
        warnings.warn(
            f"{address(store)}: trials failed, which hold the fill value; they are those in the variable {FAILED!r}",
            XroutineWarning,
            stacklevel=2,
        )
    if mark["status"] in (COMPLETE, PARTIAL):
        return open_finished(store, mark)
    receipts, _ = read_receipts(store, mark["blocks"])
    if not unfinished or mark["status"] == ALLOCATING:
        raise UnfinishedError(
            f"{address(store)} is unfinished: {len(receipts)} of {mark['blocks']} blocks are there. Run the same call "
            f"again to go on" + (", or open it as it is with unfinished=True" if mark["status"] == RUNNING else "")
        )
    opened = _read(store, store, mark, consolidated=False)
    if TRIAL in opened.sizes:
        opened = opened.assign_coords(finished=(TRIAL, _finished(store, mark, receipts, opened.sizes[TRIAL])))
    return opened


def open_finished(store: Store, mark: Mapping[str, Any]) -> xr.Dataset:
    """Open a committed result, whose mark has been read; raises as `open_dataset` does."""
    check_root(store, (get(store, ROOT) or b"").decode(errors="replace"), address(store))
    return _read(store, IntactStore(store), mark, consolidated=True)


def _read(store: Store, read: Store, mark: Mapping[str, Any], consolidated: bool) -> xr.Dataset:
    try:
        dataset = xr.open_zarr(read, chunks=None, consolidated=consolidated)
        _check_sizes(dataset, mark)
        for name in dataset.coords:
            dataset[name].load()
    except DamagedError:
        raise
    except Exception as error:  # codecs raise whatever they like on damaged bytes
        raise StoreError(f"{address(store)}: metadata or labels are damaged: {error}") from error
    # What is noted for the store as a whole would not be true of a copy.
    attrs = {key: value for key, value in dataset.attrs.items() if key not in (MARK, MADE)}
    signals_first = sorted(dataset.data_vars, key=[*mark["variables"], *dataset.data_vars].index)
    opened = xr.Dataset({name: dataset[name] for name in signals_first}, dataset.coords, attrs)
    opened.encoding["source"] = str(store)
    return opened


def _check_sizes(dataset: xr.Dataset, mark: Mapping[str, Any]) -> None:
    """Refuse labels that would fill the memory: those that we wrote never do."""
    missing = [name for name in mark["variables"] if name not in dataset.data_vars]
    if missing:
        raise StoreError(f"the signals {missing} are missing")
    nbytes, free = sum(coord.nbytes for coord in dataset.coords.values()), psutil.virtual_memory().available
    if nbytes > free / 2:
        raise StoreError(f"the labels would take {nbytes_text(nbytes)} of the {nbytes_text(free)} of memory there is")


def _finished(
    store: Store, mark: Mapping[str, Any], receipts: Mapping[int, Any], n_trials: int
) -> np.ndarray[Any, Any]:
    """Which trials of an unfinished result are there, in all their blocks of channels."""
    bounds = read_bounds(store)
    done = np.zeros(mark["blocks"], bool)
    done[list(receipts)] = True
    found = np.repeat(done.reshape(len(bounds) - 1, -1).all(axis=1), np.diff(bounds))
    return found if len(found) == n_trials else np.zeros(n_trials, bool)
