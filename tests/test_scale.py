"""Many small trials cost a few tasks and a few chunks, and the planner never looks at them one by one."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xroutine as xrt


@pytest.fixture(scope="module")
def many():
    signal = xr.DataArray(
        np.random.default_rng(0).standard_normal((200_000, 100, 8), dtype="f4"),
        dims=("trial", "time", "channel"),
        attrs={"samplerate": 1000.0},
        name="lfp",
    )
    return signal.to_dataset()


def double(arr, chunkShape=None, noCompute=None):
    return (arr.shape, arr.dtype) if noCompute else arr * 2


def test_200_000_trials_in_a_few_dozen_tasks_and_chunks(many, tmp_path):
    plan = many.trials.plan(double)
    assert len(plan) == plan.target.n_chunks <= 48
    result = many.trials.map(double, out=tmp_path / "a.zarr", compressors=None)
    for first in range(0, 200_000, 20_000):
        part = slice(first, first + 20_000)
        np.testing.assert_array_equal(result.double[part].values, many.lfp[part].values * 2)


def test_plan_makes_no_object_per_trial():
    import tracemalloc

    def peak(n):
        size = np.random.default_rng(0).integers(50, 150, n)
        start = np.cumsum(size) - size
        whole = xr.DataArray(
            np.broadcast_to(np.float32(0), (int(size.sum()), 4)), dims=("time", "channel"), attrs={"samplerate": 1.0}
        )
        ds = xrt.cut(whole, np.stack([start, start + size, np.zeros(n, int)], axis=1))
        tracemalloc.start()
        ds.trials.plan(double)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(200_000) - peak(20_000) < 180_000 * 8 * 20
