"""The plain loop over trials that every result is compared with: no zarr, no dask, no xroutine."""

from __future__ import annotations

import numpy as np


def loop(trials, function, *argv, **kwargs):
    """Outputs of `function`, one a trial, each on a copy of its own."""
    return [np.asarray(function(np.array(trial), *argv, **kwargs)) for trial in trials]


def average(trials, function, *argv, **kwargs):
    """Mean over trials, accumulated in double precision."""
    outputs = loop(trials, function, *argv, **kwargs)
    wide = np.result_type(outputs[0], np.float64)
    return sum(output.astype(wide) for output in outputs) / len(outputs)


def reduced(outputs, first=None, reduction="mean"):
    """A reduction over outputs, and how many contribute; `first` tells the row at which each begins."""
    first = np.zeros(len(outputs), int) if first is None else first
    dtype = np.result_type(outputs[0], np.float64)
    shape = np.shape(outputs[0])
    if shape:
        shape = (max(a + len(output) for a, output in zip(first, outputs, strict=True)), *shape[1:])
    padded = np.full((len(outputs), *shape), np.nan, dtype)
    for row, a, output in zip(padded, first, outputs, strict=True):
        row[(slice(a, a + len(output)),) if shape else ()] = output
    count = (~np.isnan(padded)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(padded, axis=0) / count
        square = np.nansum(np.abs(padded - mean) ** 2, axis=0)
        found = {
            "mean": mean,
            "sum": np.nansum(padded, axis=0),
            "var": square / count,
            "std": np.sqrt(square / count),
            "sem": np.sqrt(square / (count - 1) / count),
        }[reduction]
    return found, count.reshape(len(count), -1)[:, 0] if count.ndim else count
