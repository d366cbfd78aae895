"""What a user types, as documented: every snippet of the public interface, as written, with what it should give."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import xroutine as xrt
from xroutine.errors import UnfinishedError

scipy_signal = pytest.importorskip("scipy.signal")


def lowpass(arr, b, a, *, chunkShape=None, noCompute=None):
    if noCompute:
        return arr.shape, arr.dtype
    return scipy_signal.filtfilt(b, a, arr, axis=0)


class LowPass(xrt.ComputationalRoutine):
    computeFunction = staticmethod(lowpass)

    def process_metadata(self, data, out):
        out.trialdefinition = data.trialdefinition
        out.samplerate = data.samplerate
        out.channel = data.channel


def power(trial, nfft):
    return np.abs(np.fft.rfft(trial, n=nfft, axis=0)) ** 2


@xrt.routine(out_dims=("freq", "channel"))
def decorated(trial, nfft):
    return np.abs(np.fft.rfft(trial, n=nfft, axis=0)) ** 2


FREQ = np.fft.rfftfreq(256, 1e-3)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((700, 2)) for _ in range(6)]


@pytest.fixture(params=["dense", "ragged", "cut"])
def ds(request, arrays):
    ids, info = [f"go-{n:02}" for n in range(6)], {"condition": ["go", "stop"] * 3}
    if request.param == "dense":
        return xrt.from_arrays(
            arrays, samplerate=1000.0, channel=["Fz", "Cz"], offset=-200, trial=ids, trialinfo=info, name="lfp"
        )
    if request.param == "ragged":
        cutoff = [array[: 650 + 10 * n] for n, array in enumerate(arrays)]
        return xrt.from_arrays(
            cutoff, samplerate=1000.0, channel=["Fz", "Cz"], offset=-200, trial=ids, trialinfo=info, name="lfp"
        )
    recording = xr.DataArray(
        np.concatenate(arrays),
        dims=("time", "channel"),
        coords={"channel": ["Fz", "Cz"]},
        attrs={"samplerate": 1000.0},
        name="lfp",
    )
    return xrt.cut(recording, [[600 * n, 600 * n + 701 + n, -200] for n in range(6)], trial=ids, trialinfo=info)


def test_public_names():
    assert set(xrt.__all__) == {
        "ComputationalRoutine",
        "Plan",
        "Trials",
        "cut",
        "from_arrays",
        "open",
        "per_trial",
        "replay",
        "routine",
        "seeds",
        "verify",
    }


def test_making_and_saving(ds, tmp_path):
    ds.trials.save(tmp_path / "session.zarr")
    again = xrt.open(tmp_path / "session.zarr")
    assert isinstance(again, xr.Dataset)
    assert again.condition.values.tolist() == ["go", "stop"] * 3
    for before, after in zip(ds.trials, again.trials, strict=True):
        xr.testing.assert_equal(before.drop_encoding(), after)


def test_trial_table_is_a_table(ds):
    assert {"trial", "offset", "channel", "condition"} <= set(ds.coords)
    picked = ds.isel(trial=[3, 1, 1])
    for found, position in zip(picked.trials, (3, 1, 1), strict=True):
        xr.testing.assert_identical(found, ds.trials[position])
    assert ds.sel(channel=["Cz"]).trials[0].sizes["channel"] == 1
    stops = ds.isel(trial=np.flatnonzero(ds.condition == "stop"))
    assert stops.trials.info.index.tolist() == ["go-01", "go-03", "go-05"]


def test_looking(ds):
    assert len(ds.trials) == 6
    trial = ds.trials[4]
    assert trial.dims == ("time", "channel")
    assert trial.time.values[200] == 0
    xr.testing.assert_identical(ds.trials[-2], trial)
    assert [t.trial.item() for t in ds.trials] == [f"go-{n:02}" for n in range(6)]
    selected = ds.trials.sel(trials=["go-04", "go-01"], channel=["Fz"], latency=(-0.1, 0.4))
    assert isinstance(selected, xr.Dataset)
    assert [t.trial.item() for t in selected.trials] == ["go-04", "go-01"]
    xr.testing.assert_equal(selected.trials[0], trial.sel(channel=["Fz"], time=slice(-0.1, 0.4)))
    assert selected.trials.lengths.tolist() == [501, 501]
    assert ds.trials.samplerate == 1000.0
    assert ds.trials.channel.tolist() == ["Fz", "Cz"]
    assert ds.trials.offset.tolist() == [-200] * 6
    assert ds.trials.info.condition.tolist() == ["go", "stop"] * 3
    table = ds.trials.trialdefinition
    assert table.shape == (6, 3)
    assert (table[:, 1] - table[:, 0] == ds.trials.lengths).all()
    assert "trials" in repr(ds.trials)
    assert "<table" in ds.trials._repr_html_()
    assert ds.trials.cfg == {}
    assert ds.trials.log == ""


def test_to_dense(ds):
    dense = ds.trials.to_dense(fill_value=np.nan)
    signal = dense[ds.trials[0].name]
    assert signal.dims == ("trial", "time", "channel")
    assert signal.sizes["time"] == ds.trials.lengths.max()
    for number, trial in enumerate(ds.trials):
        row = signal[number]
        np.testing.assert_array_equal(row.values[: len(trial)], trial.values)
        assert np.isnan(row.values[len(trial) :]).all()
        np.testing.assert_array_equal(row.time.values[: len(trial)], trial.time.values)


def test_plain_function(ds, tmp_path):
    spectra = ds.trials.map(
        power, nfft=256, out=tmp_path / "power.zarr", out_dims=("freq", "channel"), coords={"freq": FREQ}
    )
    mean = ds.trials.map(power, nfft=256, out_dims=("freq", "channel"), keeptrials=False)
    plan = ds.trials.plan(power, nfft=256, out_dims=("freq", "channel"))
    expected = [power(trial.values, 256) for trial in ds.trials]
    np.testing.assert_array_equal(spectra.power.values, expected)
    np.testing.assert_array_equal(spectra.freq.values, FREQ)
    assert spectra.condition.values.tolist() == ["go", "stop"] * 3
    np.testing.assert_allclose(mean.power.values, np.mean(expected, axis=0), rtol=1e-12)
    assert mean.channel.values.tolist() == ["Fz", "Cz"]
    assert mean.n_trials == 6
    assert "6 trials" in str(plan)
    assert "channel: 2" in str(plan)


MACHINE: dict = {}


def counted(trial):
    MACHINE["calls"].append(1)
    return trial


def test_same_call_again_computes_nothing(ds, tmp_path):
    calls = MACHINE["calls"] = []
    options = {"out": tmp_path / "out.zarr", "parallel": False}
    first = ds.trials.map(counted, **options)
    probes = len(calls) - 6
    again = ds.trials.map(counted, **options)
    assert len(calls) - 6 == 2 * probes
    xr.testing.assert_identical(first.load(), again.load())


def fragile(arr, position, chunkShape=None, noCompute=None):
    if noCompute:
        return arr.shape, arr.dtype
    MACHINE["computed"].append(position)
    if MACHINE["broken"] and position == 3:
        raise OSError("the machine went away")
    return arr * 2


def test_killed_run_goes_on(ds, tmp_path):
    MACHINE.update(computed=[], broken=True)
    options = {"out": tmp_path / "out.zarr", "parallel": False, "block_size": 2 * 705 * 16}
    with pytest.raises(OSError, match="went away"):
        ds.trials.map(fragile, xrt.per_trial(range(6)), **options)
    with pytest.raises(UnfinishedError, match=r"1 of [34] blocks are there"):
        xrt.open(tmp_path / "out.zarr")
    assert "fragile" in xrt.open(tmp_path / "out.zarr", unfinished=True)
    MACHINE.update(computed=[], broken=False)
    result = ds.trials.map(fragile, xrt.per_trial(range(6)), **options)
    assert MACHINE["computed"] == [2, 3, 4, 5]
    for found, before in zip(result.trials, ds.trials, strict=True):
        np.testing.assert_array_equal(found.values, before.values * 2)


def test_class_in_two_steps_and_in_one(ds, tmp_path):
    b, a = scipy_signal.butter(4, 0.2)
    expected = [scipy_signal.filtfilt(b, a, trial.values, axis=0) for trial in ds.trials]
    data = ds
    out = xrt.Trials.empty(tmp_path / "filtered.zarr")
    routine = LowPass(b, a)
    routine.initialize(data, out_stackingdim=0, chan_per_worker=None, keeptrials=True)
    routine.compute(
        data, out, parallel=False, parallel_store=None, method=None, mem_thresh=0.5, log_dict=None, parallel_debug=False
    )
    filtered = LowPass(b, a)(ds, out=tmp_path / "again.zarr", parallel=True)
    for result in (out.dataset, filtered):
        for found, wanted, before in zip(result.trials, expected, ds.trials, strict=True):
            np.testing.assert_array_equal(found.values, wanted)
            np.testing.assert_array_equal(found.time.values, before.time.values)
            assert found.channel.values.tolist() == ["Fz", "Cz"]
    assert xrt.Trials(ds).selection is None


def test_decorated_function(ds, tmp_path):
    found = decorated(nfft=256)(ds, out=tmp_path / "power.zarr")
    np.testing.assert_array_equal(found.decorated.values, [power(trial.values, 256) for trial in ds.trials])


def test_after_computing(ds, tmp_path):
    b, a = scipy_signal.butter(4, 0.2)
    for number, first in enumerate(
        [
            ds.trials.map(
                power, nfft=256, out=tmp_path / "power0.zarr", out_dims=("freq", "channel"), coords={"freq": FREQ}
            ),
            LowPass(b, a)(ds, out=tmp_path / "power1.zarr", chan_per_worker=1),
            decorated(nfft=256)(ds, out=tmp_path / "power2.zarr", keeptrials=False),
        ]
    ):
        url = tmp_path / f"power{number}.zarr"
        report = xrt.verify(url)
        assert "blocks in the ledger" in str(report)
        again = xrt.replay(url, ds, out=tmp_path / f"again{number}.zarr")
        name = xrt.Trials(first)._name
        xr.testing.assert_identical(first[[name]].drop_attrs(), again[[name]].drop_attrs())
        assert again.trials.log.splitlines()[1:] == first.trials.log.splitlines()[1:]
