"""Verifying a result: every block in the ledger, every chunk there and readable."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from xroutine.errors import DamagedError, UnfinishedError
from xroutine.plan import nbytes_text
from xroutine.store import Location, address, inspect, locate, read_ledger


@dataclass(frozen=True)
class Report:
    """What `verify` found in order.

    Attributes
    ----------
    location : str
    blocks : int
        Blocks in the ledger.
    chunks : int
        Chunks read back, labels included.
    nbytes : int
        Their size when decoded.
    """

    location: str
    blocks: int
    chunks: int
    nbytes: int

    def __str__(self) -> str:
        return (
            f"{self.location}: complete; {self.blocks:,} blocks in the ledger, {self.chunks:,} chunks read back, "
            f"{nbytes_text(self.nbytes)}"
        )


def verify(location: Location, storage_options: Mapping[str, Any] | None = None) -> Report:
    """Read every chunk of a result and compare what is there with the ledger.

    Parameters
    ----------
    location : path, URL or zarr store
    storage_options : mapping, optional
        Options for a URL's file system.

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError
        Where there is nothing.
    UnfinishedError
        Where blocks are missing in the ledger, or the run has not been completed.
    DamagedError
        Where chunks are missing or cannot be decoded; the message lists them, with the trials affected.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt, zarr
    >>> store = zarr.storage.MemoryStore()
    >>> result = xrt.from_arrays([np.ones((4, 2))] * 3, samplerate=1.0).trials.map(np.negative, out=store)
    >>> xrt.verify(store).blocks
    1
    """
    store = locate(location, storage_options)
    mark = inspect(store)
    if mark is None:
        raise FileNotFoundError(f"there is no Zarr store at {address(store)}")
    done = read_ledger(store, mark["blocks"])
    if mark["status"] != "complete" or len(done) < mark["blocks"]:
        missing = [number for number in range(mark["blocks"]) if number not in done]
        raise UnfinishedError(
            f"{address(store)} is {mark['status']}: {len(done)} of {mark['blocks']} blocks are in the ledger"
            + (f", missing are {missing[:10]}" if missing else "")
        )
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    listed = zarr.open_group(store, mode="r", use_consolidated=True)
    chunks, nbytes, damaged = 0, 0, []
    for name, expected in listed.arrays():
        try:
            array = group[name]
        except (KeyError, ValueError, TypeError) as error:
            damaged.append(f"{name}/zarr.json: missing or unreadable: {error}")
            continue
        if not isinstance(array, zarr.Array) or (array.shape, array.dtype) != (expected.shape, expected.dtype):
            damaged.append(f"{name}/zarr.json: is not what was committed")
            continue
        for index, region in _chunks(array):
            key = f"{array.path}/{array.metadata.encode_chunk_key(index)}"
            if not sync(store.exists(key)):
                damaged.append(f"{key}: missing{_trials(group, array, region)}")
                continue
            try:
                nbytes += np.asarray(array[region]).nbytes
            except Exception as error:  # noqa: BLE001  # codecs raise whatever they like on damaged bytes
                damaged.append(f"{key}: {type(error).__name__}: {error}{_trials(group, array, region)}")
            chunks += 1
    if damaged:
        raise DamagedError(
            f"{address(store)}: {len(damaged)} damaged or missing chunks:\n  " + "\n  ".join(damaged[:20])
        )
    return Report(address(store), len(done), chunks, nbytes)


def _chunks(array: zarr.Array[Any]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Index and region of every chunk of an array."""
    counts = [range(-(-size // chunk)) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    for index in itertools.product(*counts):
        yield (
            index,
            tuple(
                slice(i * chunk, min((i + 1) * chunk, size))
                for i, chunk, size in zip(index, array.chunks, array.shape, strict=True)
            ),
        )


def _trials(group: zarr.Group, array: zarr.Array[Any], region: tuple[slice, ...]) -> str:
    """The trials in a region, in words."""
    dims = list(getattr(array.metadata, "dimension_names", None) or [])
    if "trial" in dims:
        rows = region[dims.index("trial")]
        return f" (trials {rows.start} to {rows.stop - 1})"
    if "sample" in dims:
        rows = region[dims.index("sample")]
        start, size = (np.asarray(group[name][:]) for name in ("row_start", "row_size"))  # type: ignore[index]
        hit = np.flatnonzero((start < rows.stop) & (start + size > rows.start))
        return f" (trials {hit[0]} to {hit[-1]})" if hit.size else " (no trial)"
    return ""
