"""Many small trials cost a few tasks and a few chunks, and the planner never looks at them one by one."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr
import zarr

import xroutine as xrt
from xroutine.errors import ArgumentError, OutputError

MILLION = 1_000_000


@pytest.fixture(scope="module")
def many():
    signal = xr.DataArray(
        np.random.default_rng(0).standard_normal((200_000, 100, 8), dtype="f4"),
        dims=("trial", "time", "channel"),
        attrs={"samplerate": 1000.0},
        name="lfp",
    )
    return signal.to_dataset()


def ragged(n):
    """Trials of 50 to 150 samples x 4 channels that take no memory."""
    size = np.random.default_rng(0).integers(50, 151, n)
    start = np.cumsum(size) - size
    whole = xr.DataArray(
        np.broadcast_to(np.float32(0), (int(size.sum()), 4)), dims=("time", "channel"), attrs={"samplerate": 1.0}
    )
    return xrt.cut(whole, np.stack([start, start + size, np.zeros(n, int)], axis=1))


def double(arr, gain=2, chunkShape=None, noCompute=None):
    ASKED.append(arr.shape)
    return (arr.shape, arr.dtype) if noCompute else (arr * gain).astype(arr.dtype)


ASKED: list = []


def test_200_000_trials_in_a_few_dozen_tasks_and_chunks(many, tmp_path):
    plan = many.trials.plan(double)
    assert len(plan) == plan.target.n_chunks <= 48
    result = many.trials.map(double, out=tmp_path / "a.zarr", compressors=None)
    for first in range(0, 200_000, 20_000):
        part = slice(first, first + 20_000)
        np.testing.assert_array_equal(result.double[part].values, many.lfp[part].values * 2)


@pytest.mark.parametrize(
    ("gains", "options"),
    [
        (None, {}),
        (None, {"keeptrials": False, "reduction": "var", "align": "trigger"}),
        (lambda: np.random.default_rng(0).standard_normal(MILLION), {"chan_per_worker": 3}),
        (lambda: np.random.default_rng(0).standard_normal(MILLION).tolist(), {}),
        (lambda: [f"file-{number}" for number in range(MILLION)], {}),
        (lambda: xrt.seeds(1, MILLION), {"chan_per_worker": 2}),
        (lambda: np.broadcast_to(np.zeros(100), (MILLION, 100)), {}),
    ],
    ids=["plain", "aligned variance", "array", "floats", "texts", "seeds", "signals"],
)
def test_a_million_trials_are_planned_in_columns(gains, options):
    ds = ragged(MILLION)
    arguments = {} if gains is None else {"gain": xrt.per_trial(gains())}
    ASKED.clear()
    tracemalloc.start()
    plan = ds.trials.plan(double, **arguments, **options)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ASKED) < 300
    assert plan.n_trials == MILLION
    assert peak < 300e6
    assert held < 100e6


PEAK = """
import resource, sys
import numpy as np, xarray as xr, zarr
import xroutine as xrt

n, path, options = int(sys.argv[1]), sys.argv[2], eval(sys.argv[3])
# A chunk that is not stored reads as the fill value: any number of trials takes no disk.
zarr.create_array(path, name="lfp", shape=(n, 250, 16), chunks=(50, 250, 16), dtype="f8", fill_value=1.5,
                  dimension_names=("trial", "time", "channel"), attributes={"samplerate": 1000.0})
zarr.consolidate_metadata(path)
ds = xr.open_zarr(path, chunks=None)
result = ds.trials.map(np.negative, keeptrials=False, reduction="var", block_size=2**21, progress=False, **options)
assert result.n_trials == n and (result.negative == 0).all()
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{"parallel": False}, {"scheduler": "threads"}], ids=["serial", "threads"])
def test_memory_of_an_average_does_not_grow_with_the_number_of_trials(options, tmp_path):
    peaks = {}
    for n in (200, 20_000):
        command = [sys.executable, "-c", PEAK, str(n), str(tmp_path / f"{n}.zarr"), repr(options)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks[n] = int(done.stdout)
    assert peaks[20_000] < 1.1 * peaks[200], peaks


def lengths(n):
    """As many different lengths as trials: too many to ask about each."""
    trials = [np.ones((10 + (7 * number) % n, 1)) for number in range(n)]
    return trials, xrt.from_arrays(trials, 1.0)


@pytest.mark.parametrize(
    ("function", "out_dims"), [(lambda trial: trial, None), (lambda trial: trial.sum(axis=0), ("channel",))]
)
def test_lengths_that_the_output_follows_are_probed_few_times(function, out_dims):
    trials, ds = lengths(300)
    calls = []

    def counted(trial):
        calls.append(trial.shape)
        return function(trial)

    result = ds.trials.map(counted, out_dims=out_dims, parallel=False)
    assert len(calls) < 300 + 150
    for found, trial in zip(result.trials, trials, strict=True):
        np.testing.assert_array_equal(found.values, function(trial))


def test_lengths_that_follow_no_simple_rule_are_all_probed():
    trials, ds = lengths(300)
    result = ds.trials.map(lambda trial: trial[::3], parallel=False)
    for found, trial in zip(result.trials, trials, strict=True):
        np.testing.assert_array_equal(found.values, trial[::3])


def test_a_trial_that_is_not_as_the_probed_ones_is_an_error():
    _, ds = lengths(300)
    probed = set()
    ds.trials.plan(lambda trial: probed.add(len(trial)) or trial)
    odd = next(length for length in ds.trials.lengths.tolist() if length not in probed)
    with pytest.raises(OutputError, match=rf"returned shape \(1, 1\), its dry run declared \({odd}, 1\)"):
        ds.trials.map(lambda trial: trial[:1] if len(trial) == odd else trial, parallel=False)


def test_arguments_of_a_few_kinds_are_all_asked_about_however_many_trials():
    lengths = np.full(5000, 7)
    lengths[[1234, 4321]] = 3, 5
    ds = xrt.from_arrays(list(np.zeros((5000, 10, 1))), 1.0)
    result = ds.trials.map(lambda trial, n: trial[:n], xrt.per_trial(lengths))
    np.testing.assert_array_equal(result.trials.lengths, lengths)


def test_details_of_many_trials_are_columns(tmp_path):
    ds = xrt.from_arrays(list(np.random.default_rng(0).standard_normal((5000, 4, 2))), 1.0)
    result = ds.trials.map(lambda trial: (trial, {"peak": trial.max(), "n": 3}), out=tmp_path / "a.zarr")
    np.testing.assert_array_equal(result.peak, ds.data.max(("time", "channel")))
    assert result.n.dtype == np.int64
    (receipt,) = zarr.open(str(tmp_path / "a.zarr"))["ledger/receipt"][:]
    assert len(str(receipt)) < 5000 * 60
    assert set(json.loads(str(receipt))["details"]) == {"peak", "n"}
    assert (tmp_path / "a.zarr" / "zarr.json").stat().st_size < 50_000


def noisy(trial, seed):
    return trial + np.random.default_rng(seed).standard_normal(trial.shape)


@pytest.mark.parametrize(
    "options",
    [{"parallel": False}, {"scheduler": "threads", "block_size": 200}, {"block_size": 700}],
    ids=["serial", "threads", "cluster"],
)
def test_random_numbers_depend_on_the_trial_alone(options, request):
    if "scheduler" not in options and "parallel" not in options:
        request.getfixturevalue("client")
    ds = xrt.from_arrays([np.zeros((5, 2))] * 40, 1.0)
    seeds = xrt.seeds(12345, 40)
    expected = np.stack([np.random.default_rng(seed).standard_normal((5, 2)) for seed in seeds])
    assert len(np.unique(expected)) == expected.size
    found = ds.trials.map(noisy, xrt.per_trial(seeds), **options)
    np.testing.assert_array_equal(found.noisy.values, expected)


def test_seeds():
    seeds = xrt.seeds(12345, 40)
    np.testing.assert_array_equal(xrt.seeds(12345, 50)[:40], seeds)
    assert (xrt.seeds([1, 2], 3) != xrt.seeds([1, 3], 3)).all()
    for bad in ((None, 3), (1, 0), (1, 2.5)):
        with pytest.raises(ArgumentError, match="seeds: "):
            xrt.seeds(*bad)
