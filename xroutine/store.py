"""Targets: allocated from a plan, written chunk by chunk, and committed by one last small write."""

from __future__ import annotations

import json
import os
import time
import uuid
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from xroutine.errors import StoreError, TargetExistsError, UnfinishedError
from xroutine.plan import Plan
from xroutine.record import MADE, dumps, loads

FORMAT = 1
MARK = "xroutine"
LEDGER = "ledger/receipt"
_LEDGER_CHUNK = 1024
_SECONDS_BETWEEN_RECORDS = 2.0

Location = str | os.PathLike[str] | Store


# Dims and attributes of a signal, as process_metadata left them.
Signal = tuple[tuple[str, ...], dict[str, Any]]


class Target(Protocol):
    """Where blocks are written; the coordinator alone writes metadata."""

    @property
    def in_memory(self) -> bool: ...
    @property
    def receipts(self) -> dict[int, dict[str, Any]]: ...
    def write(self, regions: Sequence[Any], values: Sequence[Any]) -> None:
        """Write an array into a region of each signal."""
        ...

    def record(self, number: int, receipt: dict[str, Any]) -> None: ...
    def flush(self) -> None: ...
    def variables(self) -> dict[str, xr.Variable]:
        """The signals as they are so far, by name."""
        ...

    def commit(self, labels: xr.Dataset, signals: Mapping[str, Signal]) -> xr.Dataset: ...


class MemoryTarget:
    """A result that stays in this process, as NumPy arrays."""

    in_memory = True

    def __init__(self, plan: Plan) -> None:
        self.arrays = {
            output.name: xr.Variable(
                output.target.dims, np.full(output.target.shape, output.target.fill_value, output.target.dtype)
            )
            for output in plan.outputs
        }
        self.receipts: dict[int, dict[str, Any]] = {}

    def write(self, regions: Sequence[Any], values: Sequence[Any]) -> None:
        for variable, region, value in zip(self.arrays.values(), regions, values, strict=True):
            variable.values[region] = value

    def record(self, number: int, receipt: dict[str, Any]) -> None:
        self.receipts[number] = receipt

    def flush(self) -> None:
        pass

    def variables(self) -> dict[str, xr.Variable]:
        return dict(self.arrays)

    def commit(self, labels: xr.Dataset, signals: Mapping[str, Signal]) -> xr.Dataset:
        arrays = {name: xr.Variable(dims, self.arrays[name].values, attrs) for name, (dims, attrs) in signals.items()}
        return xr.Dataset({**arrays, **labels.data_vars}, labels.coords, labels.attrs)


class ZarrTarget:
    """A group in a Zarr store: the signals, their labels, and the ledger of finished blocks."""

    def __init__(self, store: Store, names: tuple[str, ...], complete: bool = False) -> None:
        self.store, self.names, self.complete = store, names, complete
        self.receipts: dict[int, dict[str, Any]] = {}
        self._fresh: set[int] = set()
        self._recorded = time.monotonic()
        self._arrays: list[zarr.Array[Any]] = []
        self._allocated: Mapping[Hashable, xr.Variable] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A worker gets the recipe only, and opens the arrays once.
        return {"store": self.store, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def in_memory(self) -> bool:
        return isinstance(self.store, MemoryStore) or address(self.store).startswith("memory://")

    @property
    def arrays(self) -> list[zarr.Array[Any]]:
        if not self._arrays:
            # Without this setting, which is not stored, chunks that equal the fill value are not written,
            # and a finished block could not be told from a missing one. (zarr 3.1 ignores config= on opening.)
            arrays = [zarr.open_array(self.store, path=name, mode="r+") for name in self.names]
            self._arrays = [array.with_config({"write_empty_chunks": True}) for array in arrays]
        return self._arrays

    def variables(self) -> dict[str, xr.Variable]:
        stored = xr.open_zarr(self.store, chunks=None, consolidated=False)
        return {name: stored[name].variable for name in self.names}

    def write(self, regions: Sequence[Any], values: Sequence[Any]) -> None:
        for array, region, value in zip(self.arrays, regions, values, strict=True):
            array[region] = value

    def record(self, number: int, receipt: dict[str, Any]) -> None:
        """Note a finished block; what has gathered is written every few seconds, or by `flush`."""
        self.receipts[number] = receipt
        self._fresh.add(number)
        if time.monotonic() - self._recorded > _SECONDS_BETWEEN_RECORDS:
            self.flush()

    def flush(self) -> None:
        if not self._fresh:
            return
        ledger = zarr.open_array(self.store, path=LEDGER, mode="r+")
        for part in sorted({number // _LEDGER_CHUNK for number in self._fresh}):
            numbers = range(part * _LEDGER_CHUNK, min((part + 1) * _LEDGER_CHUNK, ledger.shape[0]))
            texts = [json.dumps(self.receipts[n], allow_nan=False) if n in self.receipts else "" for n in numbers]
            ledger[numbers.start : numbers.stop] = np.array(texts, dtype=object)
        self._fresh.clear()
        self._recorded = time.monotonic()

    def commit(self, labels: xr.Dataset, signals: Mapping[str, Signal]) -> xr.Dataset:
        """Write labels and attributes; the last write, of the root's metadata, makes the result complete."""
        self.flush()
        for name, (dims, attrs) in signals.items():
            zarr.open_array(self.store, path=name, mode="r+").attrs.update(attrs)
            _set_dims(self.store, name, dims)
        group = zarr.open_group(self.store, mode="r+", use_consolidated=False)
        mark = str(group.attrs[MARK])
        for gone in set(group.array_keys()) - {*self.names, *labels.variables}:
            del group[gone]
        there = [n for n, v in labels.variables.items() if n in self._allocated and v.identical(self._allocated[n])]
        write_labels(self.store, labels.drop_vars(there), mark)
        # What xarray calls coordinates, where it wrote all of them at once.
        names = " ".join(str(name) for name in labels.coords if name not in labels.dims)
        coordinates = {"coordinates": names} if names else {}
        with warnings.catch_warnings():
            # Consolidated metadata is an extension that xarray, zarr-python and others read.
            warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
            group = zarr.consolidate_metadata(self.store)
        complete = dumps({**loads(mark, MARK), "status": "complete"})
        made = uuid.uuid4().hex
        group.attrs.update({**labels.attrs, **coordinates, MADE: made, MARK: complete})
        return open_dataset(self.store)


def locate(out: Location, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at a path, a URL, or the store itself.

    Raises
    ------
    StoreError
        Where `out` is none of these, or is a file.
    """
    if isinstance(out, Store):
        if storage_options:
            raise StoreError("storage_options= go with a URL; a store was given")
        return out
    if not isinstance(out, (str, os.PathLike)):
        raise StoreError(f"expected a path, a URL or a zarr store, got {type(out).__name__}")
    text = os.fspath(out)
    if "://" in text and not text.startswith("file://"):
        try:
            return FsspecStore.from_url(text, storage_options=dict(storage_options or {}))
        except (ImportError, ValueError) as error:
            raise StoreError(f"{text}: {error}") from error
    if storage_options:
        raise StoreError(f"storage_options= go with a URL; {text!r} is a local path")
    path = Path(text.removeprefix("file://")).expanduser().absolute()
    if path.is_file():
        raise StoreError(f"{path} is a file: expected a folder that holds, or shall hold, a Zarr store")
    return LocalStore(path)


def address(store: Store) -> str:
    """Where a store is, for people."""
    if not isinstance(store, FsspecStore):
        return str(store)
    system = getattr(store.fs, "sync_fs", store.fs)
    protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    return f"{protocol}://{store.path.lstrip('/')}"


def allocate(
    store: Store, plan: Plan, identity: Mapping[str, Any], overwrite: bool, compressors: Any, labels: xr.Dataset
) -> ZarrTarget:
    """The target of a plan: made anew, or as an earlier run of the same plan left it.

    Raises
    ------
    TargetExistsError
        Where the store holds something else; the message lists what differs.
    """
    check_storable(labels)
    present = inspect(store)
    codecs = {output.name: with_checksum(compressors, output.target.dtype) for output in plan.outputs}
    identity = {
        **identity,
        "compressors": {name: [codec.to_dict() for codec in found] for name, found in codecs.items()},
    }
    if present is not None and present["status"] != "allocating" and not overwrite:
        old = present.get("plan", {})
        differing = [key for key in sorted({*old, *identity}) if old.get(key) != identity.get(key)]
        if differing:
            listed = "\n".join(
                f"  {key}: {_short(old.get(key))} there, {_short(identity.get(key))} now" for key in differing
            )
            raise TargetExistsError(
                f"{address(store)} holds another result ({present['status']}); what differs:\n{listed}\n"
                f"Give another out=, or overwrite=True to start afresh"
            )
        target = ZarrTarget(store, tuple(codecs), present["status"] == "complete")
        target.receipts = read_ledger(store, len(plan))
        return target
    # What is killed before the ledger is there cannot be gone on with, and is allocated again.
    mark = {"format": FORMAT, "status": "allocating", "variables": list(codecs), "blocks": len(plan), "plan": identity}
    root = zarr.create_group(store, overwrite=present is not None, zarr_format=3, attributes={MARK: dumps(mark)})
    for output in plan.outputs:
        layout = output.target
        root.create_array(
            output.name,
            shape=layout.shape,
            chunks=layout.chunks or "auto",
            dtype=layout.dtype,
            fill_value=layout.fill_value,
            dimension_names=layout.dims,
            compressors=codecs[output.name],
        )
    ledger = zarr.create_group(store, path=LEDGER.partition("/")[0], zarr_format=3)
    ledger.create_array(
        LEDGER.partition("/")[2],
        shape=(len(plan),),
        chunks=(min(_LEDGER_CHUNK, len(plan)),),
        dtype="string",
        fill_value="",
        dimension_names=("block",),
        compressors=[ZstdCodec(checksum=True)],
    )
    write_labels(store, labels, dumps({**mark, "status": "running"}))
    target = ZarrTarget(store, tuple(codecs))
    target._allocated = labels.variables
    return target


def with_checksum(compressors: Any, dtype: np.dtype[Any]) -> list[Any]:
    """The codecs asked for, with a checksum: zstd's own where zstd ends them, crc32c otherwise.

    The default, LZ4 on shuffled bits, was the fastest of those that make float recordings smaller; see
    ``docs/architecture.md``.
    """
    if isinstance(compressors, str) and compressors == "auto":
        codecs: list[Any] = [BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=5, shuffle="bitshuffle")]
    elif compressors is None:
        codecs = []
    else:
        codecs = list(compressors) if isinstance(compressors, Iterable) else [compressors]
    if codecs and isinstance(codecs[-1], ZstdCodec):
        return [*codecs[:-1], ZstdCodec(level=codecs[-1].level, checksum=True)]
    if codecs and isinstance(codecs[-1], Crc32cCodec):
        return codecs
    return [*codecs, Crc32cCodec()]


def check_storable(labels: xr.Dataset) -> None:
    """Raise for labels that cannot be stored under their name or with their values."""
    for name, coord in labels.variables.items():
        if " " in str(name) or "/" in str(name) or name == LEDGER.partition("/")[0]:
            raise StoreError(
                f"labels {name!r}: a name with a space or a slash, or 'ledger', cannot be stored, rename it"
            )
        if coord.dtype.kind == "S":
            raise StoreError(f"labels {name!r} are bytes: decode them with .astype(str)")
        if coord.dtype == object and not all(isinstance(value, str) for value in coord.values.flat):
            kinds = sorted({type(value).__name__ for value in coord.values.flat})
            raise StoreError(f"labels {name!r} hold objects ({', '.join(kinds)}): make them all strings or all numbers")


def write_labels(store: Store, labels: xr.Dataset, mark: str) -> None:
    """Write labels and other small variables into the root of a store, in place of those that are there.

    Each is one chunk, with a checksum.
    """
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    for name in set(labels.variables) & set(group.array_keys()):
        del group[str(name)]
    # xarray replaces the root's attributes; the mark has to be among them at every moment.
    plain = labels.drop_encoding().drop_attrs(deep=False).assign_attrs({MARK: mark})
    # Zarr v3 has a specified dtype for strings of any length, none yet for NumPy's fixed-length ones.
    fixed = {name: variable for name, variable in plain.variables.items() if variable.dtype.kind == "U"}
    plain = plain.assign({name: variable.astype(object) for name, variable in fixed.items()})
    codecs = {"compressors": [ZstdCodec(checksum=True)]}
    encoding = {
        name: {**codecs, **({"chunks": variable.shape} if variable.ndim and variable.size else {})}
        for name, variable in plain.variables.items()
    }
    plain.to_zarr(store, mode="a", consolidated=False, encoding=encoding, zarr_format=3, write_empty_chunks=True)


def inspect(store: Store) -> dict[str, Any] | None:
    """What xroutine noted in the root of a store; None where nothing is there.

    Raises
    ------
    StoreError
        Where something else is there.
    """
    try:
        group = zarr.open_group(store, mode="r", use_consolidated=False)
    except FileNotFoundError:
        if isinstance(store, LocalStore) and store.root.is_dir() and any(store.root.iterdir()):
            raise TargetExistsError(f"{store.root} is a folder with other things in it, and no Zarr group") from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{address(store)}: the root's metadata are damaged: {error}") from error
    if MARK not in group.attrs:
        raise TargetExistsError(
            f"{address(store)} holds a Zarr group that was not made by xroutine; as input, open it with "
            f"xarray.open_zarr and use its .trials; as target, give another out="
        )
    mark = loads(group.attrs[MARK], MARK)
    if mark.get("format") != FORMAT or not {"status", "variables", "blocks"} <= set(mark):
        raise StoreError(f"{address(store)}: format {mark.get('format')!r} is not one this xroutine reads ({FORMAT})")
    return mark


def read_ledger(store: Store, blocks: int) -> dict[int, dict[str, Any]]:
    """Receipts of the finished blocks, by number."""
    try:
        ledger = zarr.open_array(store, path=LEDGER, mode="r")
        texts = np.asarray(ledger[:])
    except FileNotFoundError:
        return {}
    except Exception as error:  # codecs raise whatever they like on damaged bytes
        raise StoreError(f"{address(store)}: the ledger is damaged: {error}") from error
    if ledger.shape != (blocks,):
        raise StoreError(f"{address(store)}: the ledger has {ledger.shape} entries for {blocks} blocks")
    return {number: loads(str(text), LEDGER) for number, text in enumerate(texts) if str(text)}


def open_dataset(
    location: Location, *, unfinished: bool = False, storage_options: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """Open what xroutine wrote, lazily.

    Parameters
    ----------
    location : path, URL or zarr store
    unfinished : bool
        Open a target whose run has not been completed: what is missing holds the fill value, and there are no labels.
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
    UnfinishedError
        Where the run has not been completed; the message tells how far it got.
    """
    store = locate(location, storage_options)
    mark = inspect(store)
    if mark is None:
        raise FileNotFoundError(f"there is no Zarr store at {address(store)}")
    if mark["status"] != "complete" and not unfinished:
        done = len(read_ledger(store, mark["blocks"]))
        raise UnfinishedError(
            f"{address(store)} is unfinished: {done} of {mark['blocks']} blocks are there. Run the same call again "
            f"to go on, or open it as it is with unfinished=True"
        )
    try:
        dataset = xr.open_zarr(store, chunks=None, consolidated=mark["status"] == "complete")
        for name in dataset.coords:
            dataset[name].load()
    except Exception as error:  # codecs raise whatever they like on damaged bytes
        raise StoreError(f"{address(store)}: metadata or labels are damaged: {error}") from error
    # What is noted for the store as a whole would not be true of a copy.
    attrs = {key: value for key, value in dataset.attrs.items() if key not in (MARK, MADE)}
    signals_first = sorted(dataset.data_vars, key=[*mark["variables"], *dataset.data_vars].index)
    opened = xr.Dataset({name: dataset[name] for name in signals_first}, dataset.coords, attrs)
    opened.encoding["source"] = str(store)
    return opened


def _set_dims(store: Store, name: str, dims: tuple[str, ...]) -> None:
    # Dimension names are part of an array's metadata, which zarr's public interface cannot change once it is made.
    from zarr.core.buffer import default_buffer_prototype

    prototype = default_buffer_prototype()
    key = f"{name}/zarr.json"
    raw = sync(store.get(key, prototype))
    metadata = json.loads(raw.to_bytes() if raw is not None else "{}")
    if metadata["dimension_names"] != list(dims):
        metadata["dimension_names"] = list(dims)
        sync(store.set(key, prototype.buffer.from_bytes(json.dumps(metadata).encode())))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "nothing"
    return text if len(text) < 120 else f"{text[:80]}...{text[-30:]}"
