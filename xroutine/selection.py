"""Selecting trials, channels and a latency window, without touching the samples."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from xroutine.errors import TrialsError
from xroutine.trials import CHANNEL, TIME, TRIAL, IntArray, View, row_start_coord, table_name

# A sample belongs to a latency window when it lies within a millionth of a sample of it: times in
# seconds are rounded (0.1 s * 1000 Hz is not exactly 100).
_TOLERANCE = 1e-6


def select(
    view: View,
    trials: Hashable | Iterable[Hashable] | None = None,
    channel: Hashable | Iterable[Hashable] | None = None,
    latency: tuple[float, float] | None = None,
) -> xr.Dataset:
    """The selected trials, channels and samples, as a lazy Dataset.

    Parameters
    ----------
    view : View
        What to select from.
    trials, channel : label or iterable of labels, optional
        In any order; a label given twice is selected twice.
    latency : (float, float), optional
        First and last second relative to the trigger, both included where a sample falls on them.

    Raises
    ------
    KeyError
        For a label that is not there.
    TrialsError
        Where a trial does not cover the latency window, or times are not known.
    """
    dataset = view.dataset
    indexers: dict[str, Any] = {}
    if trials is not None:
        indexers[TRIAL] = _positions(view.trial, trials, TRIAL)
    if channel is not None:
        if CHANNEL not in view.labels:
            raise TrialsError(f"variable {view.name!r} has no channel labels: its dims are {view.dims}")
        indexers[CHANNEL] = _positions(view.labels[CHANNEL].values, channel, CHANNEL)
    if latency is not None:
        chosen = indexers.get(TRIAL, np.arange(len(view)))
        offset, first, count = _window(view, chosen, latency)
        if view.layout != "ragged":
            indexers[TIME] = slice(int(first[0]), int(first[0] + count)) if len(chosen) else slice(0, int(count))
            dataset = dataset.isel(indexers)
        else:
            start = row_start_coord(view.start[chosen] + first, dataset.sizes[view.sample])
            size = (TRIAL, np.full(len(chosen), count, np.int64))
            dataset = dataset.isel(indexers).assign_coords(
                {table_name("row_start", view.sample): start, table_name("row_size", view.sample): size}
            )
        if TRIAL in dataset.dims:
            dataset = dataset.assign_coords(offset=(TRIAL, offset + first))
        return dataset
    return dataset.isel(indexers)


def _positions(labels: Any, wanted: Any, dim: str) -> np.ndarray[Any, np.dtype[np.intp]]:
    index = pd.Index(np.asarray(labels))
    if isinstance(wanted, (str, bytes, tuple)) or not isinstance(wanted, Iterable):
        wanted = [wanted]
    wanted = pd.Index(wanted.values if isinstance(wanted, xr.DataArray) else list(wanted))
    if not index.is_unique:
        raise TrialsError(f"labels along {dim!r} repeat (a selection of a selection?): select by position with ds.isel")
    positions = index.get_indexer(wanted) if len(wanted) else np.empty(0, np.intp)
    if (positions < 0).any():
        missing = [label for label, position in zip(wanted.tolist(), positions, strict=True) if position < 0]
        raise KeyError(f"no {dim} with label {missing[:5]}; there are {index[:5].tolist()}{', ...' * (len(index) > 5)}")
    return positions


def _window(view: View, chosen: IntArray, latency: tuple[float, float]) -> tuple[IntArray, IntArray, int]:
    """Offset of each chosen trial, first row of the window in it, and how many rows the window has."""
    if view.offset is None:
        raise TrialsError(f"latency: variable {view.name!r} has no `time` dim, its dims are {view.dims}")
    if view.samplerate is None:
        raise TrialsError(f"latency: {view.name!r} has no attribute `samplerate` (Hz): set ds[{view.name!r}].attrs")
    try:
        start, stop = (float(edge) for edge in latency)
    except (TypeError, ValueError):
        raise TrialsError(f"latency: expected (first, last) in seconds, got {latency!r}") from None
    if not (np.isfinite([start, stop]).all() and start <= stop):
        raise TrialsError(f"latency: expected (first, last) in seconds, first <= last, got {latency}")
    sample_first = int(np.ceil(start * view.samplerate - _TOLERANCE))
    sample_last = int(np.floor(stop * view.samplerate + _TOLERANCE))
    if sample_last < sample_first:
        raise TrialsError(f"latency={latency}: no sample falls into this window at {view.samplerate} Hz")
    offset, size = view.offset[chosen], view.size[chosen]
    bad = np.flatnonzero((offset > sample_first) | (offset + size <= sample_last))
    if bad.size:
        position = int(bad[0])
        covered = np.array([offset[position], offset[position] + size[position] - 1]) / view.samplerate
        raise TrialsError(
            f"latency={latency}: trial {chosen[position]} (id {view.trial[chosen[position]]!r}) covers "
            f"{covered[0]:g} to {covered[1]:g} s only ({bad.size} such trials)"
        )
    return offset, sample_first - offset, sample_last - sample_first + 1
