"""Cutting the work into blocks: runs of whole trials, ranges of channels, and the rows that each run reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xroutine.trials import IntArray


def even_bounds(nbytes: IntArray, block_size: int, align: int = 1) -> IntArray:
    """Bounds of blocks of equally many trials, of about `block_size` bytes each.

    The last block takes the rest. The number of trials is a multiple of `align` where it is larger than that, and is
    halved while unequal trials make the largest block more than twice as large as asked for.

    Examples
    --------
    >>> even_bounds(np.full(10, 100), block_size=350)
    array([ 0,  3,  6,  9, 10])
    """
    total = len(nbytes)
    count = int(np.clip(block_size / max(float(nbytes.mean()), 1.0), 1, total))
    limit = 2 * max(block_size, int(nbytes.max()))
    while count > 1 and np.add.reduceat(nbytes, np.arange(0, total, count)).max() > limit:
        count //= 2
    if align < count < total:
        count -= count % align
    return np.append(np.arange(0, total, count), total)


def greedy_bounds(nbytes: IntArray, block_size: int) -> IntArray:
    """Bounds of blocks filled one after the other up to `block_size` bytes; a larger trial is a block of its own.

    Examples
    --------
    >>> greedy_bounds(np.array([100, 200, 300, 900, 100]), block_size=350)
    array([0, 2, 3, 4, 5])
    """
    ends = np.cumsum(nbytes)
    bounds, done = [0], 0
    while bounds[-1] < len(nbytes):
        bound = max(int(np.searchsorted(ends, done + block_size, side="right")), bounds[-1] + 1)
        done = int(ends[bound - 1])
        bounds.append(bound)
    return np.array(bounds, np.int64)


def channel_bounds(n_channels: int, per_worker: int | None) -> IntArray:
    """Bounds of the channel ranges, the rest included.

    Examples
    --------
    >>> channel_bounds(7, 3)
    array([0, 3, 6, 7])
    """
    step = n_channels if per_worker is None else min(per_worker, n_channels)
    return np.append(np.arange(0, n_channels, step), n_channels)


@dataclass(frozen=True)
class Spans:
    """The stretches of rows to read for some trials, and where each trial lies in them.

    Attributes
    ----------
    start, stop : numpy.ndarray of int64
        Disjoint, ascending stretches of rows.
    piece, row : numpy.ndarray of int64
        For each trial, the stretch that holds it and its first row therein.
    """

    start: IntArray
    stop: IntArray
    piece: IntArray
    row: IntArray


def spans(start: IntArray, size: IntArray, chunk: int) -> Spans:
    """The fewest stretches that cover the trials and never touch a stored chunk of `chunk` rows twice.

    Examples
    --------
    >>> found = spans(np.array([40, 0, 3]), np.array([5, 4, 4]), chunk=10)
    >>> found.start, found.stop, found.piece
    (array([ 0, 40]), array([ 7, 45]), array([1, 0, 0]))
    """
    order = np.argsort(start, kind="stable")
    first, last = start[order], np.maximum.accumulate((start + size)[order])
    # A new stretch begins where a trial is not next to those before it, nor in the last chunk that they touch.
    fresh = np.append(True, (first[1:] // chunk > (last[:-1] - 1) // chunk) & (first[1:] > last[:-1]))
    heads = np.flatnonzero(fresh)
    span_start = first[heads]
    span_stop = last[np.append(heads[1:], len(first)) - 1]
    piece = np.empty(len(start), np.int64)
    piece[order] = np.cumsum(fresh) - 1
    return Spans(span_start, span_stop, piece, start - span_start[piece])


def overlapping(piece: IntArray, row: IntArray, size: IntArray) -> bool:
    """Whether trials share rows of the stretches that they lie in.

    Examples
    --------
    >>> overlapping(np.array([0, 0]), np.array([5, 0]), np.array([4, 5]))
    False
    """
    order = np.lexsort((row, piece))
    piece, first, last = piece[order], row[order], (row + size)[order]
    return bool(((piece[1:] == piece[:-1]) & (first[1:] < last[:-1])).any())
