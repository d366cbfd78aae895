"""Making, selecting and padding trials: the layouts, the labels, and staying lazy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import xroutine as xrt
from xroutine.errors import TrialsError


def recording(rows=100, channels=2, **attrs):
    values = np.arange(rows * channels, dtype=float).reshape(rows, channels)
    return xr.DataArray(values, dims=("time", "channel"), attrs={"samplerate": 100.0, **attrs})


def test_layout_follows_from_lengths_and_offsets():
    same, longer = np.zeros((5, 2)), np.zeros((6, 2))
    assert "sample" not in xrt.from_arrays([same, same], 100.0).dims
    assert "sample" in xrt.from_arrays([same, longer], 100.0).dims
    assert "sample" in xrt.from_arrays([same, same], 100.0, offset=[0, -1]).dims
    assert "sample" in xrt.cut(recording(), [[0, 5, 0], [5, 10, 0]]).dims


def test_documented_coordinates():
    dense = xrt.from_arrays([np.zeros((5, 2))] * 3, 100.0, offset=-2, trialinfo={"rt": [0.1, 0.2, 0.3]})
    assert dense.time.attrs["units"] == "s"
    assert dense.time.values.tolist() == [-0.02, -0.01, 0.0, 0.01, 0.02]
    assert dense.offset.dims == dense.rt.dims == ("trial",)
    assert dense.data.attrs["samplerate"] == 100.0
    ragged = xrt.from_arrays([np.zeros((5, 2)), np.zeros((3, 2))], 100.0)
    assert ragged.row_start.values.tolist() == [0, 5]
    assert ragged.row_size.values.tolist() == [5, 3]


def test_cut_does_not_copy():
    whole = recording()
    cut = xrt.cut(whole, [[0, 10, -5], [5, 20, 0]])
    assert np.shares_memory(cut.data.values, whole.values)
    assert "sample" not in whole.dims
    np.testing.assert_array_equal(cut.trials[1].values, whole.values[5:20])


def test_cut_keeps_further_columns_and_labels():
    cut = xrt.cut(
        recording().assign_coords(channel=["a", "b"], time=np.arange(100) / 100), [[0, 10, 0, 7], [5, 9, 0, 8]]
    )
    assert cut.trialinfo_0.values.tolist() == [7, 8]
    assert cut.trials[0].channel.values.tolist() == ["a", "b"]
    assert "time" not in cut.coords


@pytest.mark.parametrize("source", ["zarr", "netcdf", "dask"])
def test_nothing_is_read_before_values_are_asked_for(source, tmp_path, monkeypatch):
    ds = xrt.from_arrays([np.random.default_rng(n).random((5 + n, 2)) for n in range(4)], 100.0)
    if source == "zarr":
        lazy = ds.trials.save(tmp_path / "a.zarr")
    elif source == "netcdf":
        ds.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
        lazy = xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf")
    else:
        lazy = ds.chunk(sample=3)

    def refuse(*args, **kwargs):
        raise AssertionError("values were read")

    with monkeypatch.context() as patch:
        for reader in (
            "xarray.backends.zarr.ZarrArrayWrapper.__getitem__",
            "xarray.backends.h5netcdf_.H5NetCDFArrayWrapper.__getitem__",
            "dask.array.core.Array.__array__",
        ):
            patch.setattr(reader, refuse)
        for name in ("row_start", "row_size", "offset"):
            lazy = lazy.assign_coords({name: ds[name]})
        lazy = lazy.assign_coords(trial=ds.trial, channel=ds.channel)
        selected = lazy.trials.sel(trials=[3, 1], channel=["channel2"], latency=(0.01, 0.03))
        trial = selected.trials[0]
        padded = lazy.trials.to_dense()
        plan = selected.trials.plan(xrt.accessor.np.negative, parallel=False)
        assert plan.n_trials == 2
        assert padded.data.shape == (4, 8, 2)
    xr.testing.assert_equal(trial.load(), ds.trials[3].sel(channel=["channel2"])[1:4])
    np.testing.assert_array_equal(padded.data[2, :7].values, ds.trials[2].values)
    lazy.close()


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.integers(-40, 0)), min_size=1, max_size=10),
    st.data(),
)
def test_selection_is_that_of_the_arrays(rows, data):
    whole = recording()
    table = np.array([[start, start + size, offset] for start, size, offset in rows])
    cut = xrt.cut(whole, table)
    order = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, max_size=6))
    first = int(max(table[order, 2]))
    last = int(min(table[order, 2] + table[order, 1] - table[order, 0])) - 1
    if first > last:
        return
    latency = (first / 100.0, last / 100.0)
    found = cut.trials.sel(trials=order, channel=["channel2", "channel1", "channel2"], latency=latency)
    for trial, position in zip(found.trials, order, strict=True):
        start, _, offset = table[position]
        expected = whole.values[start + first - offset : start + last - offset + 1][:, [1, 0, 1]]
        np.testing.assert_array_equal(trial.values, expected)
        np.testing.assert_allclose(trial.time.values[[0, -1]], latency, atol=1e-12)


def test_latency_includes_the_samples_on_its_edges():
    ds = xrt.from_arrays([np.zeros((2001, 1))], 1000.0, offset=-1000)
    for edge in np.arange(0, 1, 0.007):
        found = ds.trials.sel(latency=(-edge, edge))
        assert found.trials.lengths[0] == 2 * round(edge * 1000) + 1


@pytest.mark.parametrize("kind", ["dense", "ragged", "scattered"])
def test_iterating_reads_each_chunk_about_once(kind, tmp_path, monkeypatch):
    lengths = [40] * 60 if kind == "dense" else np.random.default_rng(0).integers(20, 60, 60)
    ds = xrt.from_arrays([np.random.default_rng(n).random((length, 3)) for n, length in enumerate(lengths)], 100.0)
    stored = ds.trials.save(tmp_path / "a.zarr", block_size=10_000)
    if kind == "scattered":
        stored, ds = stored.isel(trial=[0, 59]), ds.isel(trial=[0, 59])
    read, original = [], zarr.storage.LocalStore.get

    async def counted(self, key, *args, **kwargs):
        read.append(key)
        return await original(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    for found, wanted in zip(stored.trials, ds.trials, strict=True):
        xr.testing.assert_equal(found, wanted)
    chunks = [key for key in read if key.startswith("data/c/")]
    assert len(chunks) == len(set(chunks))


def test_continuous_recording_is_one_trial():
    whole = recording(name=None)
    assert len(whole.trials) == 1
    np.testing.assert_array_equal(whole.trials[0].values, whole.values)
    doubled = whole.rename("x").trials.map(np.negative)
    assert doubled.negative.dims == ("time", "channel")
    np.testing.assert_array_equal(doubled.negative.values, -whole.values)


def test_dense_array_of_any_origin():
    array = xr.DataArray(np.random.default_rng(0).random((3, 4, 5)), dims=("channel", "trial", "time"))
    result = array.trials.map(np.negative)
    assert result.negative.dims == ("trial", "channel", "time")
    np.testing.assert_array_equal(result.negative.values, -array.values.transpose(1, 0, 2))


def test_time_stays_true_under_xarrays_own_selection():
    ds = xrt.from_arrays([np.arange(10.0)[:, None]] * 3, 10.0, offset=-5)
    late = ds.isel(time=slice(4, None))
    assert late.trials.offset.tolist() == [-1] * 3
    assert late.trials.sel(latency=(0.0, 0.2)).trials[0].values.ravel().tolist() == [5.0, 6.0, 7.0]
    assert late.trials.map(np.negative).trials.offset.tolist() == [-1] * 3


def test_rows_taken_from_under_the_trials_are_noticed(tmp_path):
    cut = xrt.cut(recording(), [[10, 20, 0], [30, 45, 0]])
    stored = cut.trials.save(tmp_path / "a.zarr")
    for ds in (cut, stored, stored.trials.map(np.negative), cut.trials.sel(latency=(0.0, 0.05))):
        with pytest.raises(TrialsError, match=r"counts among \d+ rows .* ds.trials.sel"):
            ds.isel(sample=slice(5, None)).trials[0]


def test_time_that_does_not_run_at_the_sampling_rate_is_noticed():
    ds = xrt.from_arrays([np.zeros((20, 1))] * 2, 100.0)
    with pytest.raises(TrialsError, match=r"steps of 0.02 s, which is not one sample at samplerate=100 Hz"):
        ds.isel(time=slice(None, None, 2)).trials.sel(latency=(0.0, 0.1))
    with pytest.raises(TrialsError, match="should hold seconds"):
        ds.assign_coords(time=pd.date_range("2026-01-01", periods=20)).trials[0]


def test_no_trials_are_no_error_until_values_are_needed():
    ragged = xrt.cut(recording(), [[0, 5, 0], [5, 9, 0]]).isel(trial=[])
    assert list(ragged.trials) == []
    with pytest.raises(TrialsError, match="selection is empty"):
        ragged.trials.to_dense()


def test_info_is_a_table():
    ds = xrt.from_arrays(
        [np.zeros((5, 1))] * 2, 10.0, trialinfo=pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), trial=["p", "q"]
    )
    pd.testing.assert_frame_equal(
        ds.trials.info,
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}, index=pd.Index(["p", "q"], name="trial")),
        check_index_type=False,
        check_dtype=False,
        check_column_type=False,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xrt.from_arrays([], 10.0), "at least one array"),
        (
            lambda: xrt.from_arrays([np.zeros(3)], 10.0),
            r"array 0: expected a non-empty \(time, channel\) array, got shape \(3,\)",
        ),
        (lambda: xrt.from_arrays([np.zeros((0, 2))], 10.0), "non-empty"),
        (lambda: xrt.from_arrays([np.zeros((3, 2)), np.zeros((3, 1))], 10.0), "array 1 has 1 channels, array 0 has 2"),
        (lambda: xrt.from_arrays([np.zeros((3, 2)), np.zeros((3, 2), "f4")], 10.0), "array 1 has dtype float32"),
        (lambda: xrt.from_arrays([np.full((3, 2), "x")], 10.0), "expected numbers"),
        (lambda: xrt.from_arrays([np.zeros((3, 2))], np.nan), "samplerate should be a positive, finite"),
        (lambda: xrt.from_arrays([np.zeros((3, 2))], 10.0, channel=["a", "a"]), "'a' occurs more than once"),
        (lambda: xrt.from_arrays([np.zeros((3, 2))], 10.0, channel=["a"]), "channel: expected 2 labels, got 1"),
        (lambda: xrt.from_arrays([np.zeros((3, 2))] * 2, 10.0, trial=[1, 1]), "trial: labels should be unique"),
        (lambda: xrt.from_arrays([np.zeros((3, 2))] * 2, 10.0, offset=[0.5, 1]), "offset: expected whole numbers"),
        (
            lambda: xrt.from_arrays([np.zeros((3, 2))] * 2, 10.0, trialinfo={"rt": [1]}),
            "expected 2 values, one a trial",
        ),
        (lambda: xrt.from_arrays([np.zeros((3, 2))], 10.0, trialinfo={"offset": [1]}), "a name of the trial table"),
        (
            lambda: xrt.cut(recording().rename(time="t"), [[0, 1, 0]]),
            r"dims \('time', 'channel'\), got \('t', 'channel'\)",
        ),
        (lambda: xrt.cut(recording(samplerate=-1), [[0, 1, 0]]), "found -1"),
        (lambda: xrt.cut(recording().drop_attrs(), [[0, 1, 0]]), "no attribute `samplerate`"),
        (lambda: xrt.cut(recording(), [[0, 101, 0]]), "trial 0: rows 0 to 101 .* rows 0 to 100"),
        (lambda: xrt.cut(recording(), [[0, 5, 0], [7, 7, 0]]), "trial 1: rows 7 to 7"),
        (lambda: xrt.cut(recording(), [[0, 5]]), r"shape \(n, 3\) or wider"),
        (lambda: recording().drop_attrs().rename("x").trials.sel(latency=(0, 0.1)), "no attribute `samplerate`"),
        (
            lambda: xrt.from_arrays([np.zeros((5, 1))] * 2, 10.0).trials.sel(latency=(0, 0.9)),
            r"trial 0 \(id .*0.*\) covers 0 to 0.4 s",
        ),
        (lambda: xrt.from_arrays([np.zeros((5, 1))] * 2, 10.0).trials.sel(latency=(0.01, 0.02)), "no sample falls"),
        (lambda: xrt.from_arrays([np.zeros((5, 1))] * 2, 10.0).trials.sel(latency=(0.2, 0.1)), "first <= last"),
        (
            lambda: xr.Dataset({"a": ("trial", [1.0]), "b": ("trial", [1.0])}).trials[0],
            "several data variables.*variable=",
        ),
        (lambda: xr.Dataset().trials[0], "no data variable with trials"),
        (lambda: xr.Dataset({"a": (("trial", "time"), np.full((2, 2), "x"))}).trials[0], "expected numbers"),
        (
            lambda: xrt.cut(recording(), [[0, 5, 0]]).assign_coords(row_size=("trial", [500])).trials[0],
            "covers rows 0 to 500",
        ),
        (lambda: xrt.cut(recording(), [[0, 5, 0]]).data.trials[0], "select with ds.isel"),
        (
            lambda: xrt.from_arrays([np.zeros((n, 1), "i4") for n in (2, 3)], 1.0).trials.to_dense(),
            "fill_value=nan cannot be",
        ),
    ],
)
def test_bad_input_says_what_was_expected_and_what_came(make, message):
    with pytest.raises(TrialsError, match=message):
        make()


def test_unknown_labels_are_key_errors():
    ds = xrt.from_arrays([np.zeros((5, 1))] * 2, 10.0)
    with pytest.raises(KeyError, match=r"no trial with label \[7\]"):
        ds.trials.sel(trials=[7])
    with pytest.raises(KeyError, match="no channel with label"):
        ds.trials.sel(channel="Cz")
    with pytest.raises(IndexError):
        ds.trials[2]
    with pytest.raises(TypeError, match="isel"):
        ds.trials[0:1]
