"""Every combination of layout, channel blocks, reduction, selection, arguments, outputs and engine is the loop's."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
import xarray as xr
from distributed import Client
from reference import reduced

import xroutine as xrt

RATE, CHANNELS, N = 100.0, 7, 23
ENGINES = {
    "serial": {"parallel": False},
    "threads": {"scheduler": "threads"},
    "two processes": {"parallel": True},
}


def one(trial, gain=1.0):
    return np.cumsum(trial, axis=0) * gain


def detailed(trial, gain=1.0):
    return np.cumsum(trial, axis=0) * gain, {"peak": np.abs(trial).max(), "first": trial[0, :1]}


def two(trial, gain=1.0):
    return {"one": np.cumsum(trial, axis=0) * gain, "ends": trial[0] + gain * trial[-1]}


OUTPUTS = {"one": ("time", "channel"), "ends": ("channel",)}


class Recording:
    """Trials as plain arrays, and lazily in a store."""

    def __init__(self, kind, folder):
        rng = np.random.default_rng(0)
        self.size = np.full(N, 40) if kind == "dense" else rng.integers(30, 61, N)
        self.offset = np.full(N, -8) if kind == "dense" else rng.integers(-10, -5, N)
        self.ids = [f"t{number}" for number in range(N)]
        names = [f"c{number}" for number in range(CHANNELS)]
        if kind == "cut":
            signal = rng.standard_normal((400, CHANNELS))
            start = rng.integers(0, 340, N)
            whole = xr.DataArray(signal, dims=("time", "channel"), name="data")
            whole.to_dataset().chunk(time=37).to_zarr(folder, consolidated=False)
            lazy = xr.open_zarr(folder, chunks=None, consolidated=False).data
            lazy = lazy.assign_attrs(samplerate=RATE).assign_coords(channel=names)
            self.trials = [signal[a : a + n] for a, n in zip(start, self.size, strict=True)]
            self.ds = xrt.cut(lazy, np.stack([start, start + self.size, self.offset], axis=1), trial=self.ids)
        else:
            self.trials = [rng.standard_normal((n, CHANNELS)) for n in self.size]
            made = xrt.from_arrays(self.trials, RATE, channel=names, offset=self.offset, trial=self.ids)
            self.ds = made.trials.save(folder, block_size=9000)

    def selected(self):
        """Shuffled and repeated trials and channels, and a latency window, by plain indexing and by labels."""
        trials, channels, latency = [5, 2, 5, 19, 0, 11, 2, 22], [6, 0, 6, 3, 2], (-0.05, 0.12)
        rows = [slice(-5 - self.offset[k], 13 - self.offset[k]) for k in trials]
        arrays = [self.trials[k][where][:, channels] for k, where in zip(trials, rows, strict=True)]
        ds = self.ds.trials.sel([self.ids[k] for k in trials], [f"c{k}" for k in channels], latency)
        return arrays, np.full(len(trials), -5), ds


@pytest.fixture(scope="module", params=["dense", "ragged", "cut"])
def recording(request, tmp_path_factory):
    return Recording(request.param, tmp_path_factory.mktemp(request.param) / "in.zarr")


@pytest.fixture(scope="module")
def two_processes(cluster):
    # dask warns where other schedulers are used while a client is the active one.
    with Client(cluster, set_as_default=False) as found:
        yield found


@pytest.mark.parametrize(
    ("chan_per_worker", "reduction", "select", "vary", "function"),
    list(itertools.product([None, 3], [None, "mean", "var"], [False, True], [False, True], [one, detailed, two])),
)
def test_every_combination_is_the_loops(
    recording, two_processes, tmp_path, chan_per_worker, reduction, select, vary, function
):
    arrays, offset, ds = recording.selected() if select else (recording.trials, recording.offset, recording.ds)
    gains = np.random.default_rng(1).standard_normal(len(arrays))
    options = {"block_size": 2000 if select else 7000, "chan_per_worker": chan_per_worker}
    if reduction is not None:
        options |= {"keeptrials": False, "reduction": reduction, "align": "trigger"}
    if function is two:
        options["outputs"] = OUTPUTS
    results = {}
    for engine, chosen in ENGINES.items():
        # What is stored differs from what is in memory where single trials are kept; each engine meets both.
        out = tmp_path / "out.zarr" if engine == ("threads" if vary else "two processes") else None
        varying = {"gain": xrt.per_trial(gains)} if vary else {}
        with two_processes.as_current() if engine == "two processes" else nullcontext():
            results[engine] = ds.trials.map(function, out=out, **options, **chosen, **varying)
    with two_processes.as_current():
        assert ds.trials.plan(one).engine.startswith("dask cluster: 2 workers")
    plan = ds.trials.plan(function, **options, **({"gain": xrt.per_trial(gains)} if vary else {}))
    n_channels = arrays[0].shape[1]
    assert plan.n_channel_blocks == (1 if chan_per_worker is None else -(-n_channels // 3))
    assert plan.n_trial_blocks > 1

    told = [function(trial, **({"gain": gain} if vary else {})) for trial, gain in zip(arrays, gains, strict=True)]
    expected = {name: [output[name] for output in told] for name in OUTPUTS} if function is two else {}
    if function is not two:
        expected[function.__name__] = [output[0] if function is detailed else output for output in told]
    for result in results.values():
        for name, outputs in expected.items():
            if reduction is None:
                check_kept(result, name, outputs, list(expected), offset, ds)
            else:
                check_reduced(result, name, outputs, offset, reduction)
                xr.testing.assert_identical(result[name].drop_attrs(), results["serial"][name].drop_attrs())
        if function is detailed:
            check_details(result, arrays, plan, reduction)


def check_kept(result, name, outputs, names, offset, ds):
    trials = result.drop_vars([other for other in names if other != name]).trials
    assert len(trials) == len(outputs)
    for number, (found, wanted) in enumerate(zip(trials, outputs, strict=True)):
        np.testing.assert_array_equal(found.values, wanted, strict=True)
        assert found.trial.item() == ds.trial.values[number]
        assert found.channel.values.tolist() == ds.channel.values.tolist()
        if "time" in found.dims:
            np.testing.assert_array_equal(found.time.values, (np.arange(len(wanted)) + offset[number]) / RATE)


def check_reduced(result, name, outputs, offset, reduction):
    aligned = outputs[0].ndim == 2
    wanted, count = reduced(outputs, offset - offset.min() if aligned else None, reduction)
    scale = np.nanmax(np.abs(wanted))
    np.testing.assert_allclose(result[name].values, wanted, rtol=1e-12, atol=1e-12 * scale)
    if aligned:
        np.testing.assert_array_equal(result.n_trials.values, count)
        assert result.n_trials.dims == ("time",)
        np.testing.assert_array_equal(result.time.values, (np.arange(len(wanted)) + offset.min()) / RATE)


def check_details(result, arrays, plan, reduction):
    bounds = plan.channel_bounds
    blocks = [[trial[:, a:b] for a, b in itertools.pairwise(bounds)] for trial in arrays]
    peaks = np.array([[np.abs(block).max() for block in row] for row in blocks])
    firsts = np.array([[block[0, :1] for block in row] for row in blocks])
    if plan.n_channel_blocks == 1:
        peaks, firsts = peaks[:, 0], firsts[:, 0]
    assert result.peak.dims[0] == ("trial" if reduction is None else "peak_trial")
    np.testing.assert_array_equal(result.peak.values, peaks)
    np.testing.assert_array_equal(result["first"].values, firsts)
