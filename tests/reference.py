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
