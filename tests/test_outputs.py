"""Functions that return several arrays: a variable for each, with dims and a layout of its own."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zarr

import xroutine as xrt
from xroutine.errors import DryRunError, OutputError, OutputTypeError, PlanError, TrialsError


@pytest.fixture
def ragged():
    rng = np.random.default_rng(0)
    return xrt.from_arrays([rng.standard_normal((n, 4)) for n in rng.integers(20, 60, 25)], 100.0, offset=-5)


@pytest.fixture
def dense():
    return xrt.from_arrays(list(np.random.default_rng(0).standard_normal((25, 40, 4))), 100.0)


def several(trial, factor=2.0):
    """As long as the trial twice, half as long, of one length, and a number."""
    spectrum = np.fft.rfft(trial, n=16, axis=0)
    return trial * factor, trial[::2], trial.T.copy(), np.abs(spectrum), trial.sum()


SEVERAL = {
    "scaled": ("time", "channel"),
    "halved": ("time", "channel"),
    "turned": ("channel", "time"),
    "magnitude": ("freq", "channel"),
    "total": (),
}


def alone(result, name):
    return result.drop_vars([other for other in SEVERAL if other != name])


@pytest.mark.parametrize("where", ["memory", "store"])
def test_each_output_has_dims_and_a_layout_of_its_own(ragged, where, tmp_path):
    out = tmp_path / "a.zarr" if where == "store" else None
    freq = np.fft.rfftfreq(16, 0.01)
    result = ragged.trials.map(several, out=out, outputs=SEVERAL, coords={"freq": freq}, block_size=4000)
    assert list(result.data_vars) == list(SEVERAL)
    assert result.scaled.dims == ("sample", "channel")
    assert result.turned.dims == ("channel", "sample")
    assert result.halved.dims == ("sample_halved", "channel")
    assert result.magnitude.dims == ("trial", "freq", "channel")
    assert result.total.dims == ("trial",)
    for number, (name, dims) in enumerate(SEVERAL.items()):
        for found, trial in zip(alone(result, name).trials, ragged.trials, strict=True):
            wanted = several(trial.values)[number]
            np.testing.assert_array_equal(found.values, wanted)
            assert found.dims == dims
            if name in ("scaled", "turned"):
                np.testing.assert_array_equal(found.time, trial.time)
    np.testing.assert_array_equal(result.freq, freq)
    if out is not None:
        assert xrt.verify(out).blocks == len(ragged.trials.plan(several, outputs=SEVERAL, block_size=4000))
        again = xrt.replay(out, ragged, out=tmp_path / "b.zarr")
        xr.testing.assert_identical(again[list(SEVERAL)].drop_attrs(), result[list(SEVERAL)].drop_attrs())


def test_results_are_inputs(ragged):
    result = ragged.trials.map(several, outputs=SEVERAL)
    with pytest.raises(TrialsError, match=r"several data variables .* name one with variable=.*ds.drop_vars"):
        result.trials.map(np.negative)
    twice = result.trials.map(np.negative, variable="halved", block_size=3000)
    assert twice.negative.dims == ("sample", "channel")
    for found, trial in zip(twice.trials, ragged.trials, strict=True):
        np.testing.assert_array_equal(found.values, -trial.values[::2])
    shuffled = alone(result, "halved").isel(trial=[3, 1, 1])
    for found, number in zip(shuffled.trials, (3, 1, 1), strict=True):
        np.testing.assert_array_equal(found.values, ragged.trials[number].values[::2])


def test_outputs_are_stored_as_anybody_reads_them(dense, tmp_path):
    result = dense.trials.map(
        lambda trial: {"a": trial, "b": trial.max(axis=0).astype("f4")},
        out=tmp_path / "a.zarr",
        outputs={"a": ("time", "channel"), "b": ("channel",)},
        block_size=5000,
    )
    plain = xr.open_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(plain.a, dense.data)
    np.testing.assert_array_equal(plain.b, dense.data.values.max(axis=1).astype("f4"))
    assert result.b.dtype == np.float32
    array = zarr.open(str(tmp_path / "a.zarr"))["b"]
    assert array.nchunks == array.nchunks_initialized > 1


def told(arr, chunkShape=None, noCompute=None):
    if noCompute:
        return {"a": (arr.shape, "f4"), "b": ((arr.shape[1],), arr.dtype)}
    assert chunkShape == {"a": (40, 4), "b": (4,)}
    return {"b": arr[0], "a": arr}, {"peak": arr.max()}


def test_the_published_contract_with_several_outputs(dense):
    class Told(xrt.ComputationalRoutine):
        computeFunction = staticmethod(told)
        outputs = {"a": ("time", "channel"), "b": ("channel",)}

        def process_metadata(self, data, out):
            out.channel = [f"{name}!" for name in data.channel]

    result = Told()(dense, block_size=5000)
    np.testing.assert_array_equal(result.a, dense.data.astype("f4"))
    np.testing.assert_array_equal(result.b, dense.data[:, 0])
    np.testing.assert_array_equal(result.peak, dense.data.max(("time", "channel")))
    assert result.b.channel.values[0] == "channel1!"
    assert "a stored = float32, returned as float64" in result.trials.log

    @xrt.routine(outputs={"low": ("channel",), "high": ("channel",)})
    def extremes(trial):
        return trial.min(axis=0), trial.max(axis=0)

    found = extremes()(dense, keeptrials=False)
    np.testing.assert_allclose(found.low, dense.data.min("time").mean("trial"), rtol=1e-12)
    assert found.n_trials == 25


@pytest.mark.parametrize(
    ("function", "outputs", "error", "message"),
    [
        (lambda t: (t, t), None, OutputTypeError, r"returned a tuple of 2: name its outputs .* outputs="),
        (lambda t: {"a": t}, None, OutputTypeError, r"returned a dict of 1"),
        (lambda t: (t, t, t), ("a", "b"), OutputTypeError, r"the outputs \['a', 'b'\], got a tuple of 3"),
        (lambda t: {"a": t, "c": t}, ("a", "b"), OutputTypeError, r"got a dict with \['a', 'c'\]"),
        (lambda t: t, ("a", "b"), OutputTypeError, "got a ndarray"),
        (lambda t: (t, "x"), ("a", "b"), OutputTypeError, "got str"),
        (lambda t: (t, t[0]), ("a", "b"), DryRunError, r"names 2 dimensions, b returns 1"),
    ],
)
def test_what_was_returned_is_not_what_was_named(dense, function, outputs, error, message):
    named = None if outputs is None else dict.fromkeys(outputs, ("time", "channel"))
    with pytest.raises(error, match=message):
        dense.trials.map(function, outputs=named)


def test_outputs_that_do_not_fit_together(dense):
    halves = {"a": ("time", "channel"), "b": ("time", "channel")}
    with pytest.raises(PlanError, match="have 'time' with 40 and 20 elements"):
        dense.trials.map(lambda t: (t, t[::2]), outputs=halves)
    with pytest.raises(PlanError, match="cannot be called 'channel'"):
        dense.trials.map(lambda t: (t, t), outputs={"a": ("time", "channel"), "channel": ("time", "channel")})
    with pytest.raises(PlanError, match="expected names with a sequence of dims each, got 'a': 'time'"):
        dense.trials.map(lambda t: (t,), outputs={"a": "time"})
    with pytest.raises(PlanError, match="expected a name and dims for each output, got none"):
        dense.trials.map(lambda t: (t,), outputs={})
    with pytest.raises(PlanError, match=r"out_dims=.* names the dims of a single output"):
        dense.trials.map(lambda t: (t,), outputs={"a": ("time", "channel")}, out_dims=("time", "channel"))
    with pytest.raises(PlanError, match=r"exactly one output dimension that follows .* found \[\]: b is"):
        dense.trials.map(
            lambda t: (t, t.sum(axis=1)), outputs={"a": ("time", "channel"), "b": ("time",)}, chan_per_worker=2
        )

    def shrinks(trial, number):
        return trial, trial[: 5 - number // 20]

    with pytest.raises(OutputError, match=r"in trial 20 .* returned as its output 'b' shape \(4, 4\)"):
        dense.trials.map(
            lambda trial, cell: shrinks(trial, cell["number"]),
            # The dry run cannot see into what it is not told about: the first trial's answer stands for all equal ones.
            xrt.per_trial([Opaque(number) for number in range(25)]),
            outputs={"a": ("time", "channel"), "b": ("row", "channel")},
            parallel=False,
        )


class Opaque(dict):
    """Equal to every other, as far as its text tells."""

    def __init__(self, number):
        super().__init__(number=number)

    def __repr__(self):
        return "Opaque()"


def test_the_plan_shows_every_output(ragged):
    text = str(ragged.trials.plan(several, outputs=SEVERAL, parallel=False))
    assert text.count("  writes  ") == len(SEVERAL)
    assert "  writes  halved (sample_halved: " in text
