"""How systems of this kind go wrong: fourteen ways, each of which was seen in another one, and cannot happen here."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.signal import butter

import xroutine as xrt
from xroutine.errors import DryRunError, OutputError, UnfinishedError


def make(n=12, rows=10, channels=8, dtype="f8", **options):
    values = np.random.default_rng(0).standard_normal((n, rows, channels)) * 100
    return xrt.from_arrays(list(values.astype(dtype)), 100.0, **options)


def doubled(trial, chunkShape=None, noCompute=None):
    return (trial.shape, trial.dtype) if noCompute else trial * 2


def test_1_more_results_than_open_files(tmp_path):
    script = f"""
import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
import numpy as np, xroutine as xrt
ds = xrt.from_arrays([np.full((10, 2), k, float) for k in range(600)], 100.0)
options = dict(block_size=160, scheduler="threads", progress=False)
found = ds.trials.map(np.negative, out={str(tmp_path / "a.zarr")!r}, **options)
assert len(list(found.trials)) == 600
np.testing.assert_array_equal(found.negative[:, 0, 0], -np.arange(600))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "a.zarr" / "negative" / "c").iterdir())) == 600


def dies_once(trial, number, folder, chunkShape=None, noCompute=None):
    if noCompute:
        return trial.shape, trial.dtype
    mark = Path(folder, "died")
    if number == 9 and not mark.exists():
        mark.touch()
        os._exit(1)
    return trial


def test_2_a_worker_killed_while_averaging_adds_nothing_twice(client, tmp_path):
    ds = make(12)
    found = ds.trials.map(
        dies_once,
        xrt.per_trial(list(range(12))),
        str(tmp_path),
        keeptrials=False,
        block_size=700,
        out=tmp_path / "a.zarr",
    )
    np.testing.assert_allclose(found.dies_once, ds.data.mean("trial"), rtol=1e-12)
    assert int(found.n_trials) == 12


def test_3_coefficients_as_many_as_trials_are_not_distributed():
    b, a = butter(4, 0.2)
    ds = make(len(b))
    found = ds.trials.map(lambda trial, b, a: trial * b.sum() + len(a), b, a)
    np.testing.assert_allclose(found.result, ds.data * b.sum() + 5)


@pytest.mark.parametrize("options", [{"parallel": False}, {"scheduler": "threads"}])
def test_4_channel_blocks_in_a_sequential_run_are_all_computed(options):
    ds = make(channels=8)
    np.testing.assert_array_equal(ds.trials.map(doubled, chan_per_worker=1, **options).doubled, ds.data * 2)


def sometimes(trial, fails, chunkShape=None, noCompute=None):
    if noCompute:
        return trial.shape, trial.dtype
    if fails:
        raise ValueError("no")
    return trial


def test_5_an_error_leaves_no_lock_that_the_next_run_waits_for(client, tmp_path):
    ds = make()
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            ds.trials.map(sometimes, True, out=tmp_path / "a.zarr", block_size=700, overwrite=True)
    found = ds.trials.map(sometimes, False, out=tmp_path / "a.zarr", block_size=700, overwrite=True)
    np.testing.assert_array_equal(found.sometimes, ds.data)


def scaled(trial, weights, chunkShape=None, noCompute=None):
    return (trial.shape, trial.dtype) if noCompute else trial * weights[-1]


def test_6_large_arguments(client):
    ds, weights = make(), np.full(3 * 2**20, 2.0)
    for given in ({"weights": weights}, weights):
        found = ds.trials.map(scaled, **given) if isinstance(given, dict) else ds.trials.map(scaled, given)
        np.testing.assert_array_equal(found.scaled, ds.data * 2)


def test_7_what_a_killed_run_left_is_told_from_what_it_did_not_do(tmp_path):
    # Killed for real in test_kills.py.
    ds, fails = make(), xrt.per_trial([k == 7 for k in range(12)])
    with pytest.raises(ValueError, match="no"):
        ds.trials.map(sometimes, fails, out=tmp_path / "a.zarr", block_size=700, parallel=False)
    with pytest.raises(UnfinishedError, match="7 of 12 blocks"):
        xrt.open(tmp_path / "a.zarr")
    found = xrt.open(tmp_path / "a.zarr", unfinished=True)
    assert found.finished.values.tolist() == [True] * 7 + [False] * 5
    assert found.sometimes.isnull().all(("time", "channel")).values.tolist() == [False] * 7 + [True] * 5


@pytest.mark.parametrize("wrong", [lambda trial: trial.T, lambda trial: trial[:, :-1], lambda trial: trial[:-1]])
def test_8_a_result_of_the_wrong_shape_is_an_error(wrong):
    def declared(trial, chunkShape=None, noCompute=None):
        return (trial.shape, trial.dtype) if noCompute else wrong(trial)

    with pytest.raises(OutputError, match="in trial 0"):
        make().trials.map(declared)


def test_9_averages_of_integers_and_of_unequal_lengths():
    ds = make(dtype="i2")
    found = ds.trials.map(doubled, keeptrials=False)
    assert found.doubled.dtype == np.float64
    np.testing.assert_allclose(found.doubled, (ds.data * 2).mean("trial"))
    calls = []

    def counted(trial, chunkShape=None, noCompute=None):
        if noCompute:
            return trial.shape, trial.dtype
        calls.append(1)
        return trial

    ragged = xrt.from_arrays([np.ones((n, 2)) for n in (3, 4)], 1.0)
    with pytest.raises(DryRunError, match="align"):
        ragged.trials.map(counted, keeptrials=False)
    assert not calls


def test_10_a_file_of_the_users_is_deleted_by_nothing(tmp_path):
    folder = tmp_path / "ledger.xroutine.tmp.partial"
    folder.mkdir()
    precious = [tmp_path / "a.zarr.partial", folder / "a.partial", tmp_path / "zarr.json"]
    for path in precious:
        path.write_text("precious")
    for out in (tmp_path / "a.zarr", folder / "b.zarr"):
        for _ in range(2):
            make().trials.map(doubled, out=out, overwrite=True)
            make().trials.map(doubled, out=out)
    assert [path.read_text() for path in precious] == ["precious"] * 3


def test_11_labels_by_the_thousand(tmp_path):
    labels = [f"channel {k:05}" for k in range(20_000)]
    ds = xrt.from_arrays([np.ones((2, 20_000))], 1.0, channel=labels, trial=["a" * 70_000])
    found = ds.trials.map(doubled, out=tmp_path / "a.zarr")
    assert found.channel.values.tolist() == labels
    assert len(found.trial.values[0]) == 70_000


def test_12_a_failing_call_leaves_the_input_as_it_was():
    ds = make()
    before = ds.copy(deep=True)
    with pytest.raises(ValueError, match="no"):
        ds.trials.sel(trials=[3, 1], latency=(0.0, 0.05)).trials.map(sometimes, True)
    xr.testing.assert_identical(ds, before)


def test_13_several_threads_share_one_input(tmp_path):
    source, found = make().trials.save(tmp_path / "in.zarr"), {}

    def run(number):
        found[number] = source.trials.map(doubled, out=tmp_path / f"{number}.zarr", scheduler="threads").load()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 6
    for result in found.values():
        np.testing.assert_array_equal(result.doubled, source.data * 2)


def mixed(trial, a, b=2, *, c=3, chunkShape=None, noCompute=None):
    return (trial.shape, trial.dtype) if noCompute else trial * a + b - c


# Older versions of dask warn of a local scheduler beside a cluster.
@pytest.mark.filterwarnings("ignore:Running on a single-machine scheduler")
def test_14_arguments_mean_the_same_in_all_engines(client):
    ds = make()
    a, c = xrt.per_trial(np.arange(12.0)), xrt.per_trial([1] * 12)
    runs = [
        ds.trials.map(mixed, a, 5, c=c, **options) for options in ({"parallel": False}, {"scheduler": "threads"}, {})
    ]
    runs += [ds.trials.map(mixed, a, 5, c=c, chan_per_worker=3, parallel=False)]
    for found in runs:
        np.testing.assert_array_equal(found.mixed, ds.data * np.arange(12.0)[:, None, None] + 5 - 1)
