"""`cfg`, `log` and `history`: strict JSON, exact, readable, and in the right order."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
import zarr
from forging import forge
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import xroutine as xrt
from xroutine.call import PerTrial
from xroutine.errors import PlanError, StoreError
from xroutine.record import decode, dumps, encode

plain = st.none() | st.binary() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text()
arrays = hnp.arrays(
    hnp.integer_dtypes() | hnp.floating_dtypes(sizes=(32, 64)) | hnp.complex_number_dtypes(sizes=(64, 128)),
    hnp.array_shapes(max_dims=3),
)
scalars = hnp.from_dtype(np.dtype("f4")) | hnp.from_dtype(np.dtype("i8")) | hnp.from_dtype(np.dtype("c16"))
values = st.recursive(
    plain | arrays | scalars | st.slices(10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5).filter(lambda key: not key.startswith("$")), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(values)
def test_any_argument_survives_json(value):
    beside: dict[str, np.ndarray] = {}
    text = dumps({"value": encode(value, "cfg", beside)})
    back = decode(json.loads(text, parse_constant=lambda token: pytest.fail(token)), beside)["value"]
    np.testing.assert_equal(back, value)
    assert repr(back) == repr(value)


@given(arrays)
def test_arrays_spelled_out_survive_json(value):
    back = decode(json.loads(dumps({"value": encode(value, "", None)})), {})["value"]
    np.testing.assert_array_equal(back, value)
    assert back.dtype == value.dtype


def mixture(trial, weights, *, scale=1.0, window=np.hanning, edges=(1, None), per=0):
    return trial * weights.sum() * scale + per


def test_replay_is_exact_with_arrays_defaults_and_per_trial_values(tmp_path):
    ds = xrt.from_arrays([np.random.default_rng(n).random((5, 2)) for n in range(3)], 10.0)
    weights = np.random.default_rng(0).random(1000)
    first = ds.trials.map(
        mixture,
        weights,
        scale=np.float32(0.1),
        window=None,
        per=xrt.per_trial([1.0, np.inf, 3.0]),
        out=tmp_path / "a.zarr",
    )
    cfg = first.trials.cfg
    np.testing.assert_array_equal(cfg["argv"][0], weights, strict=True)
    assert cfg["kwargs"]["scale"] == np.float32(0.1)
    assert cfg["kwargs"]["edges"] == (1, None)
    assert isinstance(cfg["kwargs"]["per"], PerTrial)
    assert set(cfg["versions"]) == {"xroutine", "python", "numpy", "xarray", "zarr", "dask", "distributed", "numcodecs"}
    assert cfg["input"]["n_trials"] == 3
    assert cfg["routine"].endswith(":mixture")
    again = xrt.replay(tmp_path / "a.zarr", ds)
    np.testing.assert_array_equal(again.mixture.values, first.mixture.values)


def test_replay_runs_only_what_is_imported_already(tmp_path):
    ds = xrt.from_arrays([np.ones((5, 2))] * 3, 10.0)
    ds.trials.map(np.negative, out=tmp_path / "a.zarr")
    cfg = json.loads(zarr.open_group(str(tmp_path / "a.zarr"), mode="r").attrs["cfg"])

    def record(text):
        forge(tmp_path / "a.zarr", lambda root: root["attributes"].update(cfg=text))

    for name, message in [
        ("antigravity:fly", "'antigravity' is not imported"),
        (f"{__name__}:nothing", "cannot be found by this name"),
        (f"{__name__}:test_x.<locals>.f", "cannot be found by this name"),
    ]:
        record(json.dumps({**cfg, "routine": name}))
        with pytest.raises(PlanError, match=message):
            xrt.replay(tmp_path / "a.zarr", ds)
    for text, message in [("{", "is not JSON"), ("[]", "should hold a JSON object"), ("{}", "lacks")]:
        record(text)
        with pytest.raises(StoreError, match=message):
            xrt.replay(tmp_path / "a.zarr", ds)


def test_objects_are_recorded_by_name_and_asked_for_on_replay(tmp_path):
    ds = xrt.from_arrays([np.ones((5, 2))] * 3, 10.0)
    result = ds.trials.map(mixture, np.ones(3), out=tmp_path / "a.zarr")
    assert result.trials.cfg["kwargs"]["window"] == {"$object": "numpy:hanning"}
    xr.testing.assert_identical(xrt.replay(tmp_path / "a.zarr", ds).mixture, result.mixture)
    ds.trials.map(mixture, np.ones(3), window=lambda n: n, out=tmp_path / "b.zarr")
    with pytest.raises(PlanError, match="cannot be found by this name"):
        xrt.replay(tmp_path / "b.zarr", ds)
    ds.trials.map(mixture, np.ones(3), edges={1, 2}, out=tmp_path / "c.zarr")
    with pytest.raises(StoreError, match=r"records '\{1, 2\}' by name only"):
        xrt.replay(tmp_path / "c.zarr", ds)
    ds.trials.map(np.ptp, axis=0, out_dims=("channel",), out=tmp_path / "d.zarr")
    assert xrt.replay(tmp_path / "d.zarr", ds).ptp.values.tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("make", [float, int, str, lambda n: n % 2 == 0, lambda n: (n, None), lambda n: 2**70 + n])
def test_a_value_for_each_trial_does_not_swell_the_attributes(make, tmp_path):
    values = [make(n) for n in range(3)]
    beside: dict[str, np.ndarray] = {}
    back = decode(json.loads(dumps({"v": encode(PerTrial(values), "cfg", beside)})), beside)["v"]
    assert list(back.values) == values
    assert list(map(type, back.values)) == list(map(type, values))
    ds = xrt.from_arrays([np.ones((1, 1))] * 5000, 10.0)
    ds.trials.map(np.multiply, xrt.per_trial([float(n) for n in range(5000)]), out=tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr" / "zarr.json").stat().st_size < 30_000


def gains(trial, first, *more, k=1):
    return trial * first.sum() * more[0].sum() * k.sum()


def test_arrays_are_stored_under_the_names_of_their_arguments(tmp_path):
    ds = xrt.from_arrays([np.ones((5, 2))] * 3, 10.0)
    result = ds.trials.map(gains, np.full(3, 0.1), np.ones(2), k=np.arange(4.0), out=tmp_path / "a.zarr")
    assert list(result.data_vars) == ["gains", "cfg_first", "cfg_k", "cfg_more_0"]
    again = xrt.replay(tmp_path / "a.zarr", ds)
    np.testing.assert_array_equal(again.gains.values, result.gains.values)


def test_log_is_kept_and_extended(tmp_path):
    ds = xrt.from_arrays([np.ones((5, 2))] * 3, 10.0)
    first = ds.trials.map(mixture, np.arange(50.0), out=tmp_path / "a.zarr")
    second = first.trials.map(np.negative)
    assert second.trials.log.startswith(first.trials.log)
    entries = [line for line in second.trials.log.splitlines() if line.startswith("|===")]
    assert [entry.split(": ")[1] for entry in entries] == ["mixture ===|", "negative ===|"]
    assert "\tscale = 1.0" in second.trials.log
    assert "noCompute" not in second.trials.log
    assert len(second.attrs["history"].splitlines()) == 2
    assert "mixture(<array 50 float64>, scale=1.0" in second.attrs["history"].splitlines()[0]
    saved = second.trials.save(tmp_path / "saved.zarr")
    assert saved.trials.log == second.trials.log
    np.testing.assert_equal(saved.trials.cfg, second.trials.cfg)


def test_log_dict_stands_in_for_the_arguments():
    class Quiet(xrt.ComputationalRoutine):
        computeFunction = staticmethod(mixture)

        def process_metadata(self, data, out):
            pass

    ds = xrt.from_arrays([np.ones((5, 2))] * 3, 10.0)
    routine, out = Quiet(np.ones(3)), xrt.Trials.empty()
    routine.initialize(ds, 0)
    routine.compute(ds, out, log_dict={"note": "by hand"})
    assert "\tnote = by hand\n" in out.log
    assert "scale" not in out.log


def test_results_in_memory_leave_by_netcdf(tmp_path):
    ds = xrt.from_arrays([np.ones((5 + n, 2)) for n in range(3)], 10.0)
    result = ds.trials.map(mixture, np.arange(5.0))
    result.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as back:
        assert back.trials.log == result.trials.log
        np.testing.assert_array_equal(back.trials[2].values, result.trials[2].values)
