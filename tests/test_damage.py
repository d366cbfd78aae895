"""Damage to any stored object is noticed and undone: nothing reads as another number."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import xarray as xr

import xroutine as xrt
from xroutine.errors import BusyError, DamagedError, StoreError, TargetExistsError, UnfinishedError, XroutineWarning
from xroutine.lease import Lease
from xroutine.store import locate


def summed(trial, weights, chunkShape=None, noCompute=None):
    """The cumulated sum, and two details."""
    if noCompute:
        return trial.shape, trial.dtype
    found = np.cumsum(trial * weights[0], axis=0)
    return found, {"last": float(found[-1, 0]), "name": "x"}


def both(trial, chunkShape=None, noCompute=None):
    """Two outputs."""
    if noCompute:
        return {"a": (trial.shape, trial.dtype), "b": ((trial.shape[1],), np.dtype("i4"))}
    return {"a": trial * 2, "b": (trial[0] * 100).astype("i4")}


def make(kind):
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 20, 12) if kind == "ragged" else np.full(12, 9)
    arrays = [rng.standard_normal((n, 3)) for n in lengths]
    return xrt.from_arrays(arrays, 100.0, channel=["Fz", "Cz", "Pz"], trialinfo={"c": ["go", "stop"] * 6}, offset=-3)


CASES = {
    "ragged": ("ragged", summed, {"chan_per_worker": 2}),
    "dense": ("dense", summed, {"coords": {"channel": ["a", "b", "c"]}, "compressors": None}),
    "average": ("ragged", summed, {"keeptrials": False, "align": "trigger"}),
    "two outputs": ("dense", both, {"outputs": {"a": ("time", "channel"), "b": ("channel",)}}),
}


ALL = [(case, damage) for case in CASES for damage in ("flip", "truncate", "delete")]
SOME = [("ragged", "flip"), ("dense", "delete"), ("average", "truncate"), ("two outputs", "flip")]


@pytest.mark.parametrize(("case", "damage"), ALL if "XROUTINE_THOROUGH" in os.environ else SOME)
def test_each_stored_object_in_turn(case, damage, tmp_path):
    kind, function, options = CASES[case]
    out, arguments = tmp_path / "a.zarr", (np.array([2.0, 3.0]),) if function is summed else ()
    ds = make(kind)
    whole = ds.trials.map(function, *arguments, out=out, block_size=2500, parallel=False, **options).load()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(xrt.verify(out).repaired) == 0
    signals = [str(out / name / "c") for name in ("summed", "a", "b")]
    for path, raw in before.items():
        if damage == "delete":
            path.unlink()
        elif damage == "truncate":
            path.write_bytes(raw[: len(raw) // 2])
        else:
            path.write_bytes(bytes([*raw[:-9], raw[-9] ^ 1, *raw[-8:]]))
        with contextlib.suppress(StoreError, ValueError, RuntimeError):
            found = xrt.open(out).load()
            assert found.identical(whole)
        signal = str(path).startswith(tuple(signals))
        trials = r" \(trials \d+ to \d+\)" if signal and case != "average" else ""
        with pytest.raises(DamagedError, match=f"1 damaged or missing objects:\n  {path.relative_to(out)}: .*{trials}"):
            xrt.verify(out)
        if signal:
            with pytest.raises(DamagedError, match="give the input"):
                xrt.verify(out, repair=True)
        report = xrt.verify(out, ds if signal else None, repair=True)
        assert f"repaired {path.relative_to(out)}" in str(report)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_repair_computes_exactly_what_is_damaged(tmp_path, monkeypatch):
    import xroutine.run

    ds, out, computed = make("ragged"), tmp_path / "a.zarr", []
    ds.trials.map(summed, np.ones(2), out=out, block_size=600, chan_per_worker=2)
    original = xroutine.run.Work.__call__

    def counted(self, block, regions=None):
        computed.append(block.number)
        return original(self, block, regions)

    monkeypatch.setattr(xroutine.run.Work, "__call__", counted)
    # A chunk of the first trials and of the second block of channels.
    (out / "summed" / "c" / "0" / "1").unlink()
    xrt.verify(out, ds, repair=True)
    assert computed == [1]


def test_what_repair_refuses_leaves_the_result_as_it_was(tmp_path):
    ds, out = make("ragged"), tmp_path / "a.zarr"
    ds.trials.map(summed, np.ones(2), out=out, block_size=600)
    next(path for path in out.glob("summed/c/*/0")).unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for options, kind in [({"data": ds * 2}, TargetExistsError), ({"data": ds, "routine": np.negative}, Exception)]:
        with pytest.raises(kind):
            xrt.verify(out, repair=True, **options)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    lease = Lease(locate(out), "here")
    with pytest.raises(BusyError):
        xrt.verify(out, ds, repair=True)
    lease.release()
    xrt.verify(out, ds, repair=True)


def test_what_is_added_to_a_result_is_nobodys_harm(tmp_path):
    import zarr

    out = tmp_path / "a.zarr"
    make("dense").trials.map(summed, np.ones(2), out=out)
    group = zarr.open_group(str(out), mode="r+")
    group.attrs["note"] = "the good one"
    assert xrt.open(out).attrs["note"] == "the good one"
    group["summed"].attrs["samplerate"] = 200.0
    group.attrs["cfg"] = "{}"
    with pytest.raises(DamagedError, match=r"what differs: /attributes/cfg"):
        xrt.open(out)


def test_unfinished_results_tell_which_trials_are_there(tmp_path):
    ds, out = make("ragged"), tmp_path / "a.zarr"

    values = xrt.per_trial(np.arange(12) == 7)

    def fragile(trial, bad, chunkShape=None, noCompute=None):
        if noCompute:
            return trial.shape, "i4"
        if bad:
            raise RuntimeError("stopped")
        return (trial * 10).astype("i4")

    with pytest.raises(RuntimeError, match="stopped"):
        ds.trials.map(fragile, values, out=out, block_size=600, parallel=False)
    with pytest.raises(UnfinishedError, match=r"is unfinished: \d of \d+ blocks"):
        xrt.open(out)
    found = xrt.open(out, unfinished=True)
    first = int(np.flatnonzero(~found.finished)[0])
    assert 0 < first <= 7
    assert not found.finished[first:].any()
    for k in range(first):
        np.testing.assert_array_equal(found.trials[k].values, (ds.trials[k].values * 10).astype("i4"))


def doubled(trial):
    return trial * 2


def test_another_version_of_a_function_is_a_warning_or_an_error(tmp_path, monkeypatch):
    ds, out = make("dense"), tmp_path / "a.zarr"
    first = ds.trials.map(doubled, out=out)
    source = "def doubled(trial):\n    return trial + trial\n"
    (tmp_path / "changed.py").write_text(source)
    namespace = {"__name__": __name__}
    exec(compile(source, str(tmp_path / "changed.py"), "exec"), namespace)
    monkeypatch.setattr(f"{__name__}.doubled", namespace["doubled"])
    with pytest.raises(TargetExistsError, match="source of computeFunction"):
        ds.trials.map(namespace["doubled"], out=out, strict=True)
    with pytest.warns(XroutineWarning, match=r"computed with another version of the same function(.|\n)*strict=True"):
        again = ds.trials.map(namespace["doubled"], out=out)
    xr.testing.assert_identical(again, first)


def test_versions_matter_to_what_is_not_finished(tmp_path, monkeypatch):
    ds, out = make("dense"), tmp_path / "a.zarr"
    ds.trials.map(doubled, out=out)
    from xroutine import provenance

    monkeypatch.setattr(provenance, "versions", lambda: {"xroutine": "99", "numpy": "1.0"})
    ds.trials.map(doubled, out=out)
    from xroutine.allocate import set_status

    set_status(locate(out), "running")
    with pytest.raises(TargetExistsError, match="versions"):
        ds.trials.map(doubled, out=out)


def test_read_only_and_missing_folders(tmp_path):
    import zarr

    ds = make("dense")
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(StoreError, match="cannot be written"):
        ds.trials.map(doubled, out=zarr.storage.LocalStore(tmp_path / "a.zarr", read_only=True))
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(StoreError, match="cannot be written"):
            ds.trials.map(doubled, out=tmp_path / "locked" / "a.zarr")
