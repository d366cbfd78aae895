"""The ledger: receipts of finished blocks, and partial results of averages, stored beside the output."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from xroutine.errors import DamagedError
from xroutine.intact import IntactStore
from xroutine.objects import clear, keys, names
from xroutine.record import loads
from xroutine.reduce import Node, Partial
from xroutine.trials import IntArray

logger = logging.getLogger("xroutine")

GROUP = "ledger"
RECEIPTS = f"{GROUP}/receipt"
BOUNDS = f"{GROUP}/trial_bounds"
PARTIALS = f"{GROUP}/partial"
_CHUNK = 1024
_SECONDS_BETWEEN_WRITES = 2.0
# Writing the ledger shall not take more than this share of the time.
_SHARE = 0.05
_PARTS = ("count", "total", "square")


class Ledger:
    """What is finished, in this process and, written every few seconds, in the store.

    Attributes
    ----------
    receipts : dict
        Of the finished blocks, by number.
    """

    def __init__(self, store: Store, blocks: int, receipts: dict[int, dict[str, Any]] | None = None) -> None:
        self.store, self.blocks, self.receipts = store, blocks, receipts or {}
        self._changed: set[int] = set()
        self._written, self._took = time.monotonic(), 0.0
        self._nodes: set[Node] = set()

    @classmethod
    def create(cls, store: Store, trial_bounds: IntArray, channel_blocks: int) -> Ledger:
        """An empty ledger for the blocks of a plan."""
        blocks = (len(trial_bounds) - 1) * channel_blocks
        group = zarr.create_group(store, path=GROUP, zarr_format=3)
        group.create_array(
            RECEIPTS.rpartition("/")[2],
            shape=(blocks,),
            chunks=(min(_CHUNK, blocks),),
            dtype="string",
            fill_value="",
            dimension_names=("block",),
            compressors=[ZstdCodec(checksum=True)],
        )
        bounds = group.create_array(
            BOUNDS.rpartition("/")[2],
            shape=trial_bounds.shape,
            chunks=trial_bounds.shape,
            dtype="int64",
            dimension_names=("bound",),
            compressors=[ZstdCodec(checksum=True)],
        )
        bounds[:] = trial_bounds
        return cls(store, blocks)

    def record(self, number: int, receipt: dict[str, Any]) -> None:
        """Note a finished block; `write` stores it."""
        self.receipts[number] = receipt
        self._changed.add(number)

    def forget(self, numbers: Iterable[int]) -> None:
        """Take blocks for not finished; `write` stores that."""
        for number in numbers:
            self.receipts.pop(number, None)
            self._changed.add(number)

    @property
    def due(self) -> bool:
        """Whether it is time to write what has gathered."""
        pause = max(_SECONDS_BETWEEN_WRITES, self._took / _SHARE)
        return bool(self._changed) and time.monotonic() - self._written > pause

    def write(self, nodes: Mapping[Node, tuple[Partial, ...]]) -> None:
        """Store what has gathered: partial results first, so that no receipt is without them."""
        if not self._changed:
            return
        began = time.monotonic()
        for node in nodes.keys() - self._nodes:
            self._write_node(node, nodes[node])
        receipts = zarr.open_array(self.store, path=RECEIPTS, mode="r+")
        for part in sorted({number // _CHUNK for number in self._changed}):
            numbers = range(part * _CHUNK, min((part + 1) * _CHUNK, self.blocks))
            texts = [json.dumps(self.receipts[n], allow_nan=False) if n in self.receipts else "" for n in numbers]
            receipts[numbers.start : numbers.stop] = np.array(texts, dtype=object)
        for node in self._nodes - nodes.keys():
            clear(self.store, f"{PARTIALS}/{node}")
        self._nodes = set(nodes)
        self._changed.clear()
        self._written = time.monotonic()
        self._took = self._written - began

    def read_nodes(self) -> dict[Node, tuple[Partial, ...]]:
        """The partial results that an earlier run has stored."""
        found: dict[Node, tuple[Partial, ...]] = {}
        for node in self._stored_nodes():
            try:
                found[node] = self._read_node(node)
            except Exception:  # noqa: BLE001  # half-written or damaged: zarr and codecs raise whatever they like
                logger.warning("the partial result %s cannot be read, its blocks are computed again", node)
        return found

    def keep_nodes(self, nodes: Set[Node]) -> None:
        """Remove all others: what is ahead of the receipts may be half-written."""
        for node in self._stored_nodes():
            if node not in nodes:
                clear(self.store, f"{PARTIALS}/{node}")
        self._nodes = set(nodes)

    def _stored_nodes(self) -> list[Node]:
        matches = (re.fullmatch(r"(\d{1,9})-(\d{1,2})-(\d{1,9})", name) for name in names(self.store, PARTIALS))
        return [Node(*map(int, match.groups())) for match in matches if match]

    def clear_nodes(self) -> None:
        """Remove all partial results: the average is written."""
        clear(self.store, PARTIALS)
        self._nodes = set()

    def _write_node(self, node: Node, partials: tuple[Partial, ...]) -> None:
        group = zarr.create_group(self.store, path=f"{PARTIALS}/{node}", overwrite=True, zarr_format=3)
        arrays = 0
        for number, partial in enumerate(partials):
            for part in _PARTS:
                value = getattr(partial, part)
                if value is not None:
                    array = group.create_array(
                        f"{number}-{part}",
                        shape=value.shape,
                        chunks=tuple(max(n, 1) for n in value.shape),
                        dtype=value.dtype,
                        compressors=[ZstdCodec(level=1, checksum=True)],
                        config={"write_empty_chunks": True},
                    )
                    array[...] = value
                    arrays += 1
        group.attrs["arrays"] = arrays

    def _read_node(self, node: Node) -> tuple[Partial, ...]:
        group = zarr.open_group(IntactStore(self.store), path=f"{PARTIALS}/{node}", mode="r")
        arrays = {name: np.asarray(array[...]) for name, array in group.arrays()}
        if len(arrays) != group.attrs["arrays"]:
            raise DamagedError(f"{PARTIALS}/{node}: {len(arrays)} of {group.attrs['arrays']} arrays are there")
        outputs = {int(name.partition("-")[0]) for name in arrays}
        return tuple(
            Partial(*(arrays.get(f"{number}-{part}") for part in _PARTS))  # type: ignore[arg-type]
            for number in range(len(outputs))
        )


def read_bounds(store: Store) -> IntArray:
    """The first trial of each trial block, and the end of the last."""
    return np.asarray(zarr.open_array(store, path=BOUNDS, mode="r")[:], np.int64)


def read_receipts(store: Store, blocks: int) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Receipts of the finished blocks, by number, and what of the ledger cannot be read, in words."""
    try:
        array = zarr.open_array(store, path=RECEIPTS, mode="r")
    except Exception as error:  # noqa: BLE001  # zarr raises whatever it likes on damaged metadata
        return {}, [f"{RECEIPTS}/zarr.json: {type(error).__name__}: {error}"]
    if array.shape != (blocks,) or array.chunks != (min(_CHUNK, blocks),):
        return {}, [f"{RECEIPTS}/zarr.json: {array.shape} entries in chunks of {array.chunks} for {blocks} blocks"]
    found: dict[int, dict[str, Any]] = {}
    damaged = []
    # Only what is there: a forged number of blocks would have us look for as many chunks.
    for key in keys(store, f"{RECEIPTS}/c/"):
        name = key.rpartition("/")[2]
        first = int(name) * _CHUNK if name.isdecimal() else blocks
        if first >= blocks:
            continue
        try:
            texts = [str(text) for text in np.asarray(array[first : first + _CHUNK])]
            found |= {first + number: loads(text, RECEIPTS) for number, text in enumerate(texts) if text}
        except Exception as error:  # noqa: BLE001  # codecs raise whatever they like on damaged bytes
            damaged.append(f"{key}: {type(error).__name__}: {error}")
    return found, damaged
