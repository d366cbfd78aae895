"""Stores, functions and disks that fail: the right result, or a clear error and a target to go on with."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from zarr.storage import LocalStore, WrapperStore

import xroutine as xrt
from xroutine.errors import BusyError, NotEnoughSpaceError, PlanError, StoreError, XroutineWarning
from xroutine.failures import failed_trials
from xroutine.lease import Lease
from xroutine.ledger import read_receipts
from xroutine.store import inspect, locate

# zarr leaves coroutines behind where a store raises; they are to be found here, and not in whatever test comes next.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def leftovers():
    yield
    gc.collect()


def make(n=20, **options):
    rng = np.random.default_rng(0)
    return xrt.from_arrays(list(rng.standard_normal((n, 10, 3))), 100.0, trialinfo={"block": np.arange(n)}, **options)


def doubled(trial):
    return trial * 2


class FaultyStore(WrapperStore):
    """A store in which the first so many operations on some keys go wrong."""

    def __init__(self, store, operation="", keys="", kind="", times=1):
        super().__init__(store)
        self.fault = (operation, keys, kind, times)
        self.left = itertools.count(times, -1)

    def _with_store(self, store):
        made = type(self)(store, *self.fault)
        made.left = self.left
        return made

    @property
    def _supports_sync_io(self):
        return False

    def goes_wrong(self, operation, key):
        return operation == self.fault[0] and re.search(self.fault[1], key) and next(self.left) > 0

    async def get(self, key, prototype, byte_range=None):
        found = await self._store.get(key, prototype, byte_range)
        if found is not None and self.goes_wrong("get", key):
            kind = self.fault[2]
            if kind == "delay":
                await asyncio.sleep(0.05)
            elif kind == "fail":
                raise OSError("the line was cut")
            else:
                return found[: len(found) // 2]
        return found

    async def set(self, key, value):
        if not self.goes_wrong("set", key):
            return await self._store.set(key, value)
        kind = self.fault[2]
        if kind == "delay":
            await asyncio.sleep(0.05)
            return await self._store.set(key, value)
        if kind != "fail":
            await self._store.set(key, value[: len(value) // 2])
        if kind != "truncate":
            raise OSError("the line was cut")
        return None


FAULTS = [
    ("set", keys, kind)
    for keys in ("doubled/c/", "doubled/zarr", "ledger/receipt/c", "block/c", "^zarr.json", "metadata$", "copies$")
    for kind in ("fail", "delay", "truncate", "half")
] + [("get", keys, kind) for keys in ("doubled", "ledger", "block/c", "^zarr.json") for kind in ("fail", "truncate")]


# Half of the faults, each in one combination with engine and average, or all.
ALL = [(*fault, scheduler, keep) for fault in FAULTS for scheduler in (None, "threads") for keep in (True, False)]
SOME = [case for number, case in enumerate(ALL) if number % 8 == number // 8 % 8]


@pytest.mark.filterwarnings("ignore:.*parts of the ledger are damaged:xroutine.errors.XroutineWarning")
@pytest.mark.parametrize(
    ("operation", "keys", "kind", "scheduler", "keeptrials"), ALL if "XROUTINE_THOROUGH" in os.environ else SOME
)
def test_whatever_the_store_does(operation, keys, kind, scheduler, keeptrials, tmp_path):
    ds, out = make(), LocalStore(tmp_path / "a.zarr")
    options = {"scheduler": scheduler, "parallel": scheduler is not None, "block_size": 1000, "keeptrials": keeptrials}
    wanted = ds.trials.map(doubled, **options).drop_attrs()
    for skipped in (0, 1, 4):
        faulty = FaultyStore(out, operation, keys, kind)
        # The first, the second, the fifth operation of its kind.
        faulty.left = itertools.chain([0] * skipped, [1], itertools.repeat(0))
        found = None
        with contextlib.suppress(Exception):
            found = ds.trials.map(doubled, out=faulty, overwrite=skipped > 0, **options).drop_attrs().load()
        if found is not None:
            # Reading what a store has lost without a word is an error, and never other numbers.
            xr.testing.assert_identical(found, wanted)
        mark = inspect_or_none(out)
        if mark is not None and mark["status"] == "complete":
            xrt.verify(out, ds, repair=True)
        xr.testing.assert_identical(ds.trials.map(doubled, out=out, **options).drop_attrs().load(), wanted)
        xrt.verify(out)


def inspect_or_none(store):
    try:
        return inspect(store)
    except StoreError:
        return None


def test_a_block_is_tried_again(tmp_path, caplog):
    ds, wanted = make(), make().trials.map(doubled)
    for scheduler in (None, "threads"):
        store = FaultyStore(LocalStore(tmp_path / f"{scheduler}.zarr"), "set", "doubled/c/", "fail", times=2)
        options = {"scheduler": scheduler, "parallel": scheduler is not None, "block_size": 1000}
        with pytest.raises(OSError, match="the line was cut") as caught:
            ds.trials.map(doubled, out=store, **options)
        assert re.search(r"\d+ of 5 blocks are finished and kept in", caught.value.__notes__[-1])
        store.left = itertools.count(2, -1)
        with caplog.at_level(logging.WARNING, "xroutine"):
            found = ds.trials.map(doubled, out=store, retries=2, **options)
        np.testing.assert_array_equal(found.doubled, wanted.doubled)
        assert "is tried again" in caplog.text


def stubborn(trial, number, folder, bad, attempts, how, chunkShape=None, noCompute=None):
    """Fails for the trials in `bad`, in their first so many attempts, each of which leaves a file."""
    if noCompute:
        return trial.shape, trial.dtype
    if number in bad:
        done = len(list(Path(folder).glob(f"{number}-*")))
        Path(folder, f"{number}-{done}").touch()
        if done < attempts:
            trial[:] = 7
            if how == "shape":
                return trial[:-1]
            raise ValueError(f"no spike in {number}")
    return trial * 2


ENGINES = {"serial": {"parallel": False}, "threads": {"scheduler": "threads"}, "cluster": {}}


def engine_of(name, request):
    if name == "cluster":
        request.getfixturevalue("client")
    return dict(ENGINES[name])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("on_error", "how"), [("raise", "shape"), ("record", "raise")])
def test_a_trial_that_fails_at_first_is_computed_in_the_end(engine, on_error, how, tmp_path, request):
    ds, options = make(), engine_of(engine, request)
    arguments = (xrt.per_trial(list(range(20))), str(tmp_path), [3, 17], 2, how)
    found = ds.trials.map(
        stubborn, *arguments, out=tmp_path / "a.zarr", block_size=1000, retries=4, on_error=on_error, **options
    )
    np.testing.assert_array_equal(found.stubborn, ds.data * 2)
    assert "failed" not in found
    assert len(list(tmp_path.glob("3-*"))) == 3
    xrt.verify(tmp_path / "a.zarr")


@pytest.mark.parametrize("engine", ENGINES)
def test_failed_trials_are_recorded(engine, tmp_path, request):
    ds, options = make(), engine_of(engine, request)
    arguments = (xrt.per_trial(list(range(20))), str(tmp_path), [3, 17], 99, "raise")
    options |= {"out": tmp_path / "a.zarr", "block_size": 1000}
    with pytest.raises(ValueError, match="no spike in") as caught:
        ds.trials.map(stubborn, *arguments, retries=1, **options)
    assert "in trial" in caught.value.__notes__[0]
    with pytest.warns(XroutineWarning, match="2 of 20 trials failed.*ValueError: no spike in 3"):
        found = ds.trials.map(stubborn, *arguments, on_error="record", **options)
    np.testing.assert_array_equal(np.flatnonzero(found.failed), [3, 17])
    assert found.error.values[[3, 4]].tolist() == ["ValueError: no spike in 3", ""]
    assert found.stubborn.isnull().all(("time", "channel")).values.tolist() == found.failed.values.tolist()
    good = ~found.failed
    np.testing.assert_array_equal(found.stubborn[good], 2 * ds.data[good.values])
    receipts = read_receipts(locate(tmp_path / "a.zarr"), 5)[0]
    traceback = failed_trials(receipts)[17].traceback
    assert "Traceback" in traceback
    assert "in trial 17 (id 17)" in traceback
    with pytest.warns(XroutineWarning, match="trials failed"):
        xr.testing.assert_identical(xrt.open(tmp_path / "a.zarr").load(), found.load())
    assert "2 trials had failed" in str(xrt.verify(tmp_path / "a.zarr"))
    # The same call again computes what is missing: the blocks with failures, which no longer occur.
    before = set(tmp_path.glob("*-*"))
    done = ds.trials.map(stubborn, *(*arguments[:3], 99, "raise"), on_error="record", retries=99, **options)
    assert {int(path.name.partition("-")[0]) for path in set(tmp_path.glob("*-*")) - before} == {3, 17}
    assert "failed" not in done
    np.testing.assert_array_equal(done.stubborn, ds.data * 2)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chan_per_worker", [None, 2])
def test_an_average_without_the_trials_that_failed(engine, chan_per_worker, tmp_path, request):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((n, 3)) for n in rng.integers(5, 12, 20)]
    ds, options = xrt.from_arrays(arrays, 100.0, offset=-2), engine_of(engine, request)
    arguments = (xrt.per_trial(list(range(20))), str(tmp_path), [3, 17], 9999, "raise")
    options |= {"keeptrials": False, "align": "trigger", "block_size": 1000, "chan_per_worker": chan_per_worker}
    with pytest.warns(XroutineWarning, match="2 of 20"):
        found = ds.trials.map(stubborn, *arguments, on_error="record", **options)
    kept = ds.isel(trial=[k for k in range(20) if k not in (3, 17)])
    wanted = kept.trials.map(doubled, **options)
    rows = wanted.sizes["time"]
    np.testing.assert_allclose(found.stubborn[:rows], wanted.doubled, rtol=1e-12)
    np.testing.assert_array_equal(found.n_trials[:rows], wanted.n_trials)
    assert np.flatnonzero(found.failed).tolist() == [3, 17]


def narrow(trial, number, chunkShape=None, noCompute=None):
    """Fails for trial 5 where it has one channel, and for trial 2."""
    if noCompute:
        return trial.shape, trial.dtype
    if number == 2 or (number == 5 and trial.shape[1] == 1):
        raise ValueError
    return trial


def test_an_average_counts_its_trials_channel_by_channel():
    ds, numbers = make(), xrt.per_trial(list(range(20)))
    for chan_per_worker, counts, left_out in ((None, 19, [2]), (2, [19, 19, 18], [2, 5])):
        with pytest.warns(XroutineWarning, match=f"{len(left_out)} of 20"):
            found = ds.trials.map(narrow, numbers, keeptrials=False, on_error="record", chan_per_worker=chan_per_worker)
        np.testing.assert_array_equal(found.n_trials, counts)
        for k in range(3):
            kept = [n for n in range(20) if n not in left_out[: 1 + (k == 2)]]
            wanted = ds.data.isel(channel=k, trial=kept).mean("trial")
            np.testing.assert_allclose(found.narrow[:, k], wanted, rtol=1e-12)


def test_options_that_are_none():
    for options, message in [({"retries": -1}, "0 or more, got -1"), ({"on_error": "skip"}, "expected 'raise' or 're")]:
        with pytest.raises(PlanError, match=message):
            make().trials.map(doubled, **options)


def dies(trial, folder, number, chunkShape=None, noCompute=None):
    """Kills its worker, the first time."""
    if noCompute:
        return trial.shape, trial.dtype
    mark = Path(folder, "died")
    if number == 7 and not mark.exists():
        mark.touch()
        os._exit(1)
    return trial * 2


def test_a_worker_that_dies_is_survived(client, tmp_path):
    numbers = xrt.per_trial(list(range(20)))
    for keeptrials in (True, False):
        folder = tmp_path / str(keeptrials)
        folder.mkdir()
        found = make().trials.map(
            dies, str(folder), numbers, out=folder / "a.zarr", block_size=500, keeptrials=keeptrials
        )
        wanted = make().trials.map(doubled, keeptrials=keeptrials, block_size=500)
        np.testing.assert_array_equal(found.dies, wanted.doubled)
        assert (folder / "died").exists()


FILLS = """
import sys, resource, numpy as np, xroutine as xrt
ds = xrt.from_arrays(list(np.random.default_rng(0).standard_normal((20, 5000, 8))), 100.0)
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
def cumulated(trial, chunkShape=None, noCompute=None):
    return (trial.shape, trial.dtype) if noCompute else np.cumsum(trial, axis=0)
ds.trials.map(cumulated, out=sys.argv[1], block_size=700_000, scheduler="threads", progress=False)
xrt.verify(sys.argv[1])
"""


def fill(out, *limit):
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:the result takes", "-c", FILLS, str(out), *map(str, limit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_files_that_may_not_grow(tmp_path):
    done = fill(tmp_path / "a.zarr", 200_000)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "0 of 10 blocks are finished and kept in" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("cumulated/c/*/0/0"))
    assert fill(tmp_path / "a.zarr").returncode == 0


def test_a_disk_that_is_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system cannot be mounted here")
    try:
        ds = xrt.from_arrays(list(np.random.default_rng(0).standard_normal((20, 5000, 8))), 100.0)
        with pytest.raises(NotEnoughSpaceError, match=r"the result takes 6.1 MiB, 4.0 MiB are free.*: make room"):
            ds.trials.map(np.negative, out=disk / "a.zarr", compressors=None)
        assert not list(disk.rglob("*.json"))
        done = fill(disk / "a.zarr")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert re.search(r"[1-9] of 10 blocks are finished and kept in", done.stderr.splitlines()[-1])
        chunks = {path: path.stat().st_mtime_ns for path in disk.glob("a.zarr/cumulated/c/*/0/0")}
        assert chunks
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True, capture_output=True)
        again = fill(disk / "a.zarr")
        assert again.returncode == 0, again.stderr
        # At most what two threads had written without a receipt is written again.
        assert sum(path.stat().st_mtime_ns == time for path, time in chunks.items()) >= len(chunks) - 3
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_run_that_lost_its_lease_stops(tmp_path, monkeypatch):
    calls = itertools.count()

    def slow(trial):
        if next(calls) == 60:
            monkeypatch.setattr(Lease, "check", lambda self: (_ for _ in ()).throw(BusyError("taken over")))
        return trial

    with pytest.raises(BusyError):
        make(100).trials.map(slow, out=tmp_path / "a.zarr", block_size=1000, parallel=False)
    assert inspect(locate(tmp_path / "a.zarr"))["status"] == "running"


def test_a_lease_is_renewed_and_runs_out(tmp_path, monkeypatch):
    monkeypatch.setattr("xroutine.lease.SECONDS", 1.5)
    store = LocalStore(tmp_path / "a.zarr")
    lease = Lease(store, "here")
    time.sleep(2)
    # As of another machine, which cannot be asked whether the process is alive.
    monkeypatch.setattr("xroutine.lease._here", lambda: {"node": "elsewhere"})
    with pytest.raises(BusyError, match=r"its lease ends within 1\.5 s"):
        Lease(store, "here")
    lease._released.set()
    time.sleep(1.7)
    Lease(store, "here").release()
    # The first one comes too late.
    lease._released.clear()
    lease._renew()
    with pytest.raises(BusyError, match="could not renew its lease"):
        lease.check()
