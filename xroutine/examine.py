"""Examining a committed result: every object there, readable, and what was committed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store

from xroutine.errors import DamagedError, UnfinishedError
from xroutine.failures import failed_trials
from xroutine.intact import IntactStore
from xroutine.ledger import read_receipts
from xroutine.objects import get
from xroutine.plan import nbytes_text
from xroutine.seal import METADATA, ROOT, read_copies, read_metadata, seals
from xroutine.store import ALLOCATING, RUNNING, address, as_store_errors, inspect
from xroutine.trials import TRIAL, table_name

# Where more than so many chunks of an array are damaged, the rest is not looked at.
_MOST_DAMAGE = 10_000


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes
    ----------
    location : str
    blocks : int
        Blocks in the ledger.
    chunks : int
        Chunks read back, labels included.
    nbytes : int
        Their size when decoded.
    failed : int
        Trials whose computation failed, as was recorded.
    repaired : tuple of str
        Objects that were restored, with what had been wrong.
    """

    location: str
    blocks: int
    chunks: int
    nbytes: int
    failed: int = 0
    repaired: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{self.location}: complete; {self.blocks:,} blocks in the ledger, {self.chunks:,} chunks read back, "
            f"{nbytes_text(self.nbytes)}"
        )
        text += f"; {self.failed:,} trials had failed" if self.failed else ""
        return "\n  ".join([text, *(f"repaired {line}" for line in self.repaired)])


@dataclass(frozen=True)
class Damage:
    """An object that is missing, or not what was committed.

    Attributes
    ----------
    key : str
    reason : str
    trials : str
        The trials in it, in words.
    name : str
        The signal it is a chunk of; empty for all others.
    region : tuple of slice
        What it covers of the signal.
    """

    key: str
    reason: str
    trials: str = ""
    name: str = ""
    region: tuple[slice, ...] = ()

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}{self.trials}"


@dataclass(frozen=True)
class Findings:
    """What was found in a store, in order and not."""

    report: Report
    damaged: list[Damage]
    objects: dict[str, bytes]


def examine(store: Store) -> Findings:
    """Read all of a committed result.

    Raises
    ------
    FileNotFoundError, StoreError, UnfinishedError
        Where there is no committed result.
    DamagedError
        Where neither of the two copies of the metadata can be read.
    """
    where, objects, damaged = address(store), *_kept(store)
    mark = inspect(store)
    if mark is None:
        raise FileNotFoundError(f"there is no Zarr store at {where}")
    blocks = mark["blocks"]
    if mark["status"] in (ALLOCATING, RUNNING):
        receipts, _ = read_receipts(store, blocks)
        missing = list(itertools.islice((number for number in range(blocks) if number not in receipts), 10))
        raise UnfinishedError(
            f"{where} is {mark['status']}: {len(receipts)} of {blocks} blocks are in the ledger"
            + (f", missing are {missing}" if missing else "")
        )
    if not objects:
        raise DamagedError(f"{where}: {'; '.join(map(str, damaged))}; the result has to be computed again")
    for key, value in objects.items():
        found = get(store, key)
        if found != value:
            damaged.append(Damage(key, "missing" if found is None else "is not what was committed"))
    sound = IntactStore(store, objects)
    names = [key.removesuffix(f"/{ROOT}") for key in objects if key.endswith(f"/{ROOT}")]
    with as_store_errors(store, "has metadata that cannot be understood"):
        names = [name for name in names if json.loads(objects[f"{name}/{ROOT}"])["node_type"] == "array"]
        arrays = {name: zarr.open_array(sound, path=name, mode="r") for name in names}
        absurd = [name for name, array in arrays.items() if 0 in array.chunks and 0 not in array.shape]
        if absurd:
            raise ValueError(f"chunks of {absurd} are empty")
    chunks, nbytes = 0, 0
    for name, array in arrays.items():
        most = len(damaged) + _MOST_DAMAGE
        for index, region in _chunks(array):
            key = f"{name}/{array.metadata.encode_chunk_key(index)}"
            try:
                nbytes += np.asarray(array[region]).nbytes
                chunks += 1
            except Exception as error:  # noqa: BLE001  # codecs raise whatever they like on damaged bytes
                reason = "missing" if isinstance(error, DamagedError) else f"{type(error).__name__}: {error}"
                signal = name if name in mark["variables"] else ""
                damaged.append(Damage(key, reason, _trials(arrays, name, region), signal, region))
                if len(damaged) == most:
                    break
            else:
                if name not in mark["variables"] and key not in objects:
                    objects[key] = get(store, key) or b""
    receipts = read_receipts(sound, blocks)[0]
    return Findings(Report(where, blocks, chunks, nbytes, len(failed_trials(receipts))), damaged, objects)


def _kept(store: Store) -> tuple[dict[str, bytes], list[Damage]]:
    """The small objects as they were committed, from whichever copy is sound, and what is wrong with the other."""
    damaged = []
    objects: dict[str, bytes] = {}
    try:
        objects = read_copies(store)
    except DamagedError as error:
        damaged.append(_lost(error))
    try:
        documents = {key: text.encode() for key, text in read_metadata(store).items()}
    except DamagedError as error:
        damaged.append(_lost(error))
        return objects, damaged
    if objects and seals(objects)[METADATA] != get(store, METADATA):
        return objects, [Damage(METADATA, "is not what was committed")]
    return objects or documents, damaged


def _lost(error: DamagedError) -> Damage:
    key, _, reason = str(error).partition(": ")
    return Damage(key, reason)


def _chunks(array: zarr.Array[Any]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Index and region of every chunk."""
    counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
    # One after the other: a forged shape may have more than fit into memory.
    for number in range(math.prod(counts)):
        index: tuple[int, ...] = ()
        for count in reversed(counts):
            number, rest = divmod(number, count)
            index = (rest, *index)
        yield (
            index,
            tuple(
                slice(i * chunk, min((i + 1) * chunk, size))
                for i, chunk, size in zip(index, array.chunks, array.shape, strict=True)
            ),
        )


def _trials(arrays: dict[str, zarr.Array[Any]], name: str, region: tuple[slice, ...]) -> str:
    """The trials in a region, in words."""
    dims = list(getattr(arrays[name].metadata, "dimension_names", None) or [])
    if TRIAL in dims:
        rows = region[dims.index(TRIAL)]
        return f" (trials {rows.start} to {rows.stop - 1})"
    for dim, rows in zip(dims, region, strict=True):
        table = [table_name(column, dim) for column in ("row_start", "row_size")]
        if set(table) <= set(arrays):
            start, size = (np.asarray(arrays[column][:]) for column in table)
            hit = np.flatnonzero((start < rows.stop) & (start + size > rows.start))
            return f" (trials {hit[0]} to {hit[-1]})" if hit.size else " (no trial)"
    return ""
