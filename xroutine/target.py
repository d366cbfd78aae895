"""Targets: written chunk by chunk, and committed by one last small write."""

from __future__ import annotations

import json
import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from typing import Any, Protocol

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import MemoryStore

from xroutine.errors import (
    StoreError,
)
from xroutine.failures import failed_trials
from xroutine.intact import IntactStore
from xroutine.lease import Lease
from xroutine.ledger import BOUNDS, GROUP, RECEIPTS, Ledger
from xroutine.objects import get, keys, put
from xroutine.opening import open_finished
from xroutine.plan import Plan
from xroutine.record import MADE, dumps, loads
from xroutine.reduce import Node, Partial
from xroutine.seal import ROOT, write_seals
from xroutine.store import COMPLETE, MARK, PARTIAL, address, as_store_errors
from xroutine.stored_labels import write_labels

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

    @property
    def due(self) -> bool:
        """Whether it is time to `flush`."""
        ...

    def record(self, number: int, receipt: dict[str, Any]) -> None:
        """Note a finished block; `flush` stores it."""
        ...

    def forget(self, numbers: Iterable[int]) -> None:
        """Take blocks for not finished."""
        ...

    def nodes(self) -> dict[Node, tuple[Partial, ...]]:
        """Partial results of an average that an earlier run has left."""
        ...

    def keep(self, nodes: Set[Node]) -> None:
        """Remove all others of them."""
        ...

    def flush(self, nodes: Mapping[Node, tuple[Partial, ...]]) -> None:
        """Store what has been noted, with the partial results of an average."""
        ...

    def release(self) -> None:
        """Let others write."""
        ...

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

    due = False

    def forget(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.receipts.pop(number, None)

    def nodes(self) -> dict[Node, tuple[Partial, ...]]:
        return {}

    def keep(self, nodes: Set[Node]) -> None:
        pass

    def flush(self, nodes: Mapping[Node, tuple[Partial, ...]]) -> None:
        pass

    def release(self) -> None:
        pass

    def variables(self) -> dict[str, xr.Variable]:
        return dict(self.arrays)

    def commit(self, labels: xr.Dataset, signals: Mapping[str, Signal]) -> xr.Dataset:
        arrays = {name: xr.Variable(dims, self.arrays[name].values, attrs) for name, (dims, attrs) in signals.items()}
        return xr.Dataset({**arrays, **labels.data_vars}, labels.coords, labels.attrs)


class ZarrTarget:
    """A group in a Zarr store: the signals, their labels, and the ledger of finished blocks.

    Attributes
    ----------
    complete : bool
        Whether an earlier run has left nothing to do.
    """

    def __init__(
        self,
        store: Store,
        names: tuple[str, ...],
        ledger: Ledger | None = None,
        lease: Lease | None = None,
        allocated: xr.Dataset | None = None,
    ) -> None:
        self.store, self.names, self.complete = store, names, ledger is None
        self._ledger = Ledger(store, 0) if ledger is None else ledger
        self._lease = lease
        self._arrays: list[zarr.Array[Any]] = []
        self._allocated = {} if allocated is None else allocated.variables

    def __getstate__(self) -> dict[str, Any]:
        # A worker gets the recipe only, and opens the arrays once.
        return {"store": self.store, "names": self.names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def in_memory(self) -> bool:
        return isinstance(self.store, MemoryStore) or address(self.store).startswith("memory://")

    @property
    def receipts(self) -> dict[int, dict[str, Any]]:
        return self._ledger.receipts

    @property
    def due(self) -> bool:
        return self._ledger.due

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
        self._ledger.record(number, receipt)
        self._check_lease()

    def forget(self, numbers: Iterable[int]) -> None:
        self._ledger.forget(numbers)

    def nodes(self) -> dict[Node, tuple[Partial, ...]]:
        return self._ledger.read_nodes()

    def keep(self, nodes: Set[Node]) -> None:
        self._ledger.keep_nodes(nodes)

    def flush(self, nodes: Mapping[Node, tuple[Partial, ...]]) -> None:
        self._check_lease()
        self._ledger.write(nodes)

    def release(self) -> None:
        if self._lease is not None:
            self._lease.release()

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def commit(self, labels: xr.Dataset, signals: Mapping[str, Signal]) -> xr.Dataset:
        """Write labels and attributes; the last write, of the root's metadata, makes the result complete."""
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
        attrs = {**labels.attrs, **({"coordinates": names} if names else {}), MADE: uuid.uuid4().hex}
        status = PARTIAL if failed_trials(self.receipts) else COMPLETE
        self._check_lease()
        done = {**loads(mark, MARK), "status": status}
        _seal(self.store, {**attrs, MARK: dumps(done)}, self.names, labels.variables)
        self._ledger.clear_nodes()
        return open_finished(self.store, done)


def _seal(store: Store, attrs: Mapping[str, Any], signals: Sequence[str], labels: Iterable[Hashable]) -> None:
    """Consolidate the metadata, keep copies of all that is small, and complete the root's by one last write."""
    listed = sorted([GROUP, RECEIPTS, BOUNDS, *signals, *map(str, labels)])
    texts = {name: get(store, f"{name}/{ROOT}") or b"" for name in listed}
    root = json.loads(get(store, ROOT) or b"{}")
    # As zarr.consolidate_metadata writes it, which lists all of the store, and warns that it is an extension (that
    # xarray, zarr-python and others read). Warnings cannot be ignored in one of several threads.
    with as_store_errors(store, "was written, and cannot be read back"):
        metadata = {name: json.loads(text) for name, text in texts.items()}
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": metadata}
    root["attributes"] |= attrs
    try:
        text = json.dumps(root, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"the attributes {attrs} cannot be stored as JSON: {error}") from None
    objects = {**{f"{name}/{ROOT}": text for name, text in texts.items()}, ROOT: text.encode()}
    small = [key for name in listed if name not in signals for key in keys(store, f"{name}/c")]
    objects |= {key: get(store, key) or b"" for key in small}
    for name in listed:
        if name not in (*signals, GROUP):
            # What a store has lost without a word shall not be kept as what it should be.
            with as_store_errors(store, "was written, and cannot be read back"):
                zarr.open_array(IntactStore(store, objects), path=name, mode="r")[...]
    write_seals(store, objects)
    put(store, ROOT, text.encode())


def _set_dims(store: Store, name: str, dims: tuple[str, ...]) -> None:
    # Dimension names are part of an array's metadata, which zarr's public interface cannot change once it is made.
    key = f"{name}/{ROOT}"
    metadata = json.loads(get(store, key) or b"{}")
    if metadata["dimension_names"] != list(dims):
        metadata["dimension_names"] = list(dims)
        put(store, key, json.dumps(metadata, indent=2).encode())
