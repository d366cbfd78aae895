"""Where every trial's output lies in the stored array, and the proof that no chunk has two owners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from xroutine.errors import ChunkOverlapError
from xroutine.trials import IntArray

# Share of unused rows up to which a larger chunk is preferred to a tighter one.
_SLACK = 0.045
_MOST_CHUNKS_PER_BLOCK = 32


@dataclass(frozen=True, eq=False)
class TargetLayout:
    """The array that the blocks of a plan write.

    Attributes
    ----------
    kind : {"dense", "ragged", "single"}
        With a leading ``trial`` dimension; with trials end to end along ``sample``; or without trials (an average, or
        the only trial).
    dims : tuple of str
        Dims of the array.
    shape, chunks : tuple of int
        Of the array; with `chunks` the write unit.
    dtype : numpy.dtype
    fill_value : scalar
        What unused rows hold.
    row_start, row_size : numpy.ndarray of int64 or None
        Ragged only: where each trial lies along ``sample``.
    """

    kind: Literal["dense", "ragged", "single"]
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: Any
    row_start: IntArray | None = None
    row_size: IntArray | None = None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def n_chunks(self) -> int:
        return int(np.prod([-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True)]))


def fill_value(dtype: np.dtype[Any]) -> Any:
    """NaN where the dtype has one, else zero."""
    return dtype.type(complex(np.nan, np.nan) if dtype.kind == "c" else np.nan if dtype.kind == "f" else 0)


def row_chunk(rows: IntArray, most: int | None = None) -> int:
    """Chunk length along ``sample`` for blocks of these numbers of rows, each starting on a chunk boundary.

    The longest of maximum / 1, maximum / 2, ... of no more than `most` rows that leaves less than 4.5 percent of the
    rows unused, or the one that leaves the fewest.

    Examples
    --------
    >>> row_chunk(np.array([100, 100, 30]))
    100
    """
    largest = int(rows.max())
    fewest = -(-largest // min(most or largest, largest))
    candidates = np.unique(-(-largest // np.arange(fewest, fewest + _MOST_CHUNKS_PER_BLOCK)))[::-1]
    unused = np.array([unused_rows(rows, int(chunk)) for chunk in candidates])
    good = np.flatnonzero(unused <= _SLACK * rows.sum())
    return int(candidates[good[0] if good.size else np.argmin(unused)])


def unused_rows(rows: IntArray, chunk: int) -> int:
    """Rows between the end of each block but the last and the start of the next."""
    return int((-rows[:-1] % chunk).sum())


def row_starts(size: IntArray, bounds: IntArray, chunk: int) -> IntArray:
    """First row of each trial along ``sample``: end to end in a block, each block from a chunk boundary on.

    Examples
    --------
    >>> row_starts(np.array([3, 4, 5]), bounds=np.array([0, 2, 3]), chunk=4)
    array([0, 3, 8])
    """
    rows = np.add.reduceat(size, bounds[:-1])
    room = -(-rows // chunk) * chunk
    block_start = np.cumsum(room) - room
    inside = np.cumsum(size) - size
    starts: IntArray = inside + np.repeat(block_start - inside[bounds[:-1]], np.diff(bounds))
    return starts


def prove_one_owner(start: IntArray, stop: IntArray, chunk: int, length: int, dim: str) -> None:
    """Show that the blocks, cut along one dimension, never share a chunk of it.

    Blocks are products of ranges along the dimensions; two of them share a chunk only if their ranges do along every
    dimension. So it is enough to look at each dimension by itself.

    Raises
    ------
    ChunkOverlapError
        Naming the two blocks and their chunk.
    """
    first, last = start // chunk, -(-stop // chunk)
    bad = np.flatnonzero(first[1:] < last[:-1])
    if bad.size:
        block = int(bad[0])
        raise ChunkOverlapError(
            f"blocks {block} (ends at {stop[block]}) and {block + 1} (starts at {start[block + 1]}) along {dim!r} "
            f"would both write chunk {first[block + 1]} of length {chunk}, and one would erase the other's cells: "
            f"a block has to start on a multiple of the chunk length"
        )
    if start[0] < 0 or stop[-1] > length or (stop < start).any():
        raise ChunkOverlapError(f"blocks along {dim!r} reach outside of the {length} rows that are allocated")
