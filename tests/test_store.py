"""What is stored: readable by anybody, checked, owned chunk by chunk, and never overwritten unasked."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from functools import partial

import dask
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

import xroutine
import xroutine as xrt
from xroutine.blocks import even_bounds, greedy_bounds, spans
from xroutine.errors import (
    ChunkOverlapError,
    DamagedError,
    PlanError,
    StoreError,
    TargetExistsError,
    UnfinishedError,
)
from xroutine.layout import prove_one_owner, row_chunk, row_starts, unused_rows


@pytest.fixture
def ragged():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((length, 3)) for length in rng.integers(50, 90, 30)]
    return xrt.from_arrays(arrays, 100.0, channel=["Fz", "Cz", "Pz"], trialinfo={"condition": ["go", "stop", "é"] * 10})


@pytest.fixture
def dense():
    return xrt.from_arrays(list(np.random.default_rng(0).standard_normal((30, 40, 3))), 100.0)


@pytest.mark.parametrize("kind", ["dense", "ragged"])
@pytest.mark.parametrize("keeptrials", [True, False])
def test_opens_with_plain_xarray_and_zarr_without_a_warning(kind, keeptrials, request, tmp_path):
    ds = request.getfixturevalue(kind)
    if kind == "ragged" and not keeptrials:
        ds = ds.trials.sel(latency=(0.1, 0.3))
    path = str(tmp_path / "a.zarr")
    result = ds.trials.map(np.negative, out=path, block_size=20_000, keeptrials=keeptrials)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for consolidated in (None, True, False):
            plain = xr.open_zarr(path, consolidated=consolidated)
            np.testing.assert_array_equal(plain.negative.values, result.negative.values)
            assert set(plain.coords) == set(result.coords)
            for name in plain.coords:
                assert plain[name].values.tolist() == result[name].values.tolist()
        group = zarr.open(path)
        np.testing.assert_array_equal(group["negative"][:], result.negative.values)
    assert group.metadata.consolidated_metadata is not None
    listed = set(group.metadata.consolidated_metadata.metadata)
    assert {str(name) for name in result.variables} | {"ledger"} == listed
    mark = json.loads(group.attrs["xroutine"])
    assert mark["status"] == "complete"
    for name in ("cfg", "xroutine"):
        json.loads(group.attrs[name], parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))


def test_chunks_are_checked_and_empty_ones_are_there(dense, tmp_path):
    zeros = dense.trials.map(np.zeros_like, out=tmp_path / "zeros.zarr", parallel=False, block_size=5000)
    assert (zeros.zeros_like == 0).all()
    array = zarr.open(str(tmp_path / "zeros.zarr"))["zeros_like"]
    assert array.nchunks_initialized == array.nchunks > 1
    ints = dense.astype("i2").trials.map(np.zeros_like, out=tmp_path / "ints.zarr", block_size=5000)
    array = zarr.open(str(tmp_path / "ints.zarr"))["zeros_like"]
    assert array.nchunks_initialized == array.nchunks > 1
    assert ints.zeros_like.dtype == np.int16


@pytest.mark.parametrize(
    "compressors", ["auto", None, ZstdCodec(level=3), [ZstdCodec(level=1, checksum=True)], BloscCodec(), GzipCodec()]
)
def test_a_flipped_bit_never_reads_as_a_number(dense, tmp_path, compressors):
    good = dense.trials.map(np.negative, out=tmp_path / "a.zarr", compressors=compressors).negative.values
    (chunk,) = (path for path in (tmp_path / "a.zarr" / "negative" / "c").rglob("*") if path.is_file())
    raw = chunk.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(raw), 25):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << int(rng.integers(8))
        chunk.write_bytes(bytes(damaged))
        try:
            read = xr.open_zarr(tmp_path / "a.zarr").negative.values
        except Exception:
            continue
        np.testing.assert_array_equal(read, good)


@pytest.mark.parametrize("kind", ["dense", "ragged"])
def test_verify_names_missing_and_damaged_chunks(kind, request, tmp_path):
    ds = request.getfixturevalue(kind)
    ds.trials.map(np.negative, out=tmp_path / "a.zarr", block_size=10_000)
    report = xrt.verify(tmp_path / "a.zarr")
    assert report.blocks == len(ds.trials.plan(np.negative, block_size=10_000))
    chunks = sorted(path for path in (tmp_path / "a.zarr" / "negative" / "c").rglob("*") if path.is_file())
    raw = chunks[1].read_bytes()
    chunks[1].write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DamagedError, match=r"1 damaged or missing objects:\n  negative/c/.*\(trials \d+ to \d+\)"):
        xrt.verify(tmp_path / "a.zarr")
    chunks[1].unlink()
    with pytest.raises(DamagedError, match=r"missing \(trials"):
        xrt.verify(tmp_path / "a.zarr")


def test_two_blocks_on_one_chunk_lose_cells_when_the_proof_is_bypassed(tmp_path):
    lost = 0
    for attempt in range(5):
        array = zarr.create_array(str(tmp_path / f"{attempt}.zarr"), shape=(64, 2000), chunks=(64, 2000), dtype="f8")
        writes = [dask.delayed(array.__setitem__)(slice(row, row + 8), np.ones((8, 2000))) for row in range(0, 64, 8)]
        dask.compute(*writes, scheduler="threads", num_workers=8)
        lost += int((array[:] == 0).sum())
    assert lost > 0
    with pytest.raises(
        ChunkOverlapError, match=r"blocks 0 \(ends at 8\) and 1 \(starts at 8\) along 'trial' would both"
    ):
        prove_one_owner(np.arange(0, 64, 8), np.arange(8, 72, 8), 64, 64, "trial")


def test_each_chunk_is_written_once_and_each_input_chunk_read_once_per_block(ragged, tmp_path, monkeypatch):
    source = ragged.trials.save(tmp_path / "in.zarr", block_size=10_000)
    original_set, original_get = zarr.storage.LocalStore.set, zarr.storage.LocalStore.get
    written, read = [], []

    async def count_set(self, key, *args, **kwargs):
        written.append(key)
        return await original_set(self, key, *args, **kwargs)

    async def count_get(self, key, *args, **kwargs):
        read.append(key)
        return await original_get(self, key, *args, **kwargs)

    shuffled = source.isel(trial=np.random.default_rng(0).permutation(30))
    plan = shuffled.trials.plan(np.negative, block_size=30_000)
    monkeypatch.setattr(zarr.storage.LocalStore, "set", count_set)
    monkeypatch.setattr(zarr.storage.LocalStore, "get", count_get)
    shuffled.trials.map(np.negative, out=tmp_path / "out.zarr", block_size=30_000, parallel=False)
    chunks = [key for key in written if key.startswith("negative/c/")]
    assert len(chunks) == len(set(chunks)) == plan.target.n_chunks
    stored = source.data.encoding["chunks"][0]
    touched = 0
    for block in plan.blocks():
        rows = np.concatenate(
            [
                np.arange(a, a + n)
                for a, n in zip(plan.start[block.first : block.first + len(block.trial)], block.size, strict=True)
            ]
        )
        touched += len(np.unique(rows // stored))
    reads = [key for key in read if key.startswith("data/c/")]
    assert len(reads) == touched


@pytest.mark.parametrize("chan_per_worker", [None, 2])
@pytest.mark.parametrize("kind", ["dense", "ragged", "cut"])
def test_a_block_reads_what_is_selected_and_no_chunk_twice(kind, chan_per_worker, tmp_path, monkeypatch):
    from xroutine.source import Source
    from xroutine.trials import view

    rng = np.random.default_rng(0)
    signal = rng.standard_normal((40, 60, 6)) if kind == "dense" else rng.standard_normal((2400, 6))
    dims, chunks = (("trial", "time", "channel"), (4, 20, 1)) if kind == "dense" else (("sample", "channel"), (50, 1))
    array = zarr.create_array(
        str(tmp_path / "in.zarr"),
        name="data",
        data=signal,
        chunks=chunks,
        dimension_names=dims,
        attributes={"samplerate": 100.0},
    )
    lazy = xr.open_zarr(tmp_path / "in.zarr", chunks=None, consolidated=False)
    lazy = lazy.assign_coords(channel=[f"c{number}" for number in range(6)])
    start = np.arange(40) * 60 if kind != "cut" else rng.integers(0, 2340, 40)
    if kind != "dense":
        lazy = lazy.assign_coords(row_start=("trial", start), row_size=("trial", np.full(40, 60)))
    trials, channels = [7, 31, 7, 0, 2, 30, 39, 8], [5, 1, 5, 0]
    chosen = lazy.trials.sel(trials, [f"c{k}" for k in channels], latency=(0.11, 0.18))
    plan = chosen.trials.plan(np.negative, chan_per_worker=chan_per_worker, block_size=800)
    source, found, keys = Source(view(chosen).variable), [], []
    original = zarr.storage.LocalStore.get

    async def count(self, key, *args, **kwargs):
        keys.append(key)
        return await original(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", count)
    for block in plan.blocks():
        keys.clear()
        for region in block.reads:
            found.append(source.read(region))
        read = [key for key in keys if key.startswith("data/c/")]
        low, high = plan.channel_bounds[block.channel_block : block.channel_block + 2]
        needed = set()
        for k in trials[block.first : block.first + len(block.trial)]:
            rows = {(0, row) for row in range(11, 19)} if kind == "dense" else set()
            cells = {(k // 4, row // 20) for _, row in rows} or {
                (row // 50,) for row in range(start[k] + 11, start[k] + 19)
            }
            needed |= {"data/c/" + "/".join(map(str, (*cell, c))) for cell in cells for c in channels[low:high]}
        assert len(read) == len(set(read))
        assert set(read) == needed
    assert array.nchunks > len(needed)
    result = chosen.trials.map(np.negative, chan_per_worker=chan_per_worker, block_size=800)
    for found_trial, k in zip(result.trials, trials, strict=True):
        whole = signal[k] if kind == "dense" else signal[start[k] : start[k] + 60]
        np.testing.assert_array_equal(found_trial.values, -whole[11:19, channels])


def test_nothing_is_overwritten_unasked(dense, tmp_path):
    out = tmp_path / "a.zarr"
    dense.trials.map(np.negative, out=out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(
        TargetExistsError, match=r'what differs:\n(.*\n)*  routine: "numpy:negative" there, "numpy:absolute" now'
    ):
        dense.trials.map(np.absolute, out=out)
    with pytest.raises(TargetExistsError, match=r"input values"):
        (dense + 1).trials.map(np.negative, out=out)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    dense.trials.map(np.absolute, out=out, overwrite=True)
    assert set(xrt.open(out).data_vars) == {"absolute"}


class Affine:
    def __init__(self, gain):
        self.gain = gain

    def __call__(self, values):
        return values * self.gain


def applied(trial, change):
    return change(trial)


def enclosing(gain):
    def inner(trial):
        return trial * gain

    return inner


def test_another_function_under_the_same_name_is_another_plan(dense, tmp_path):
    pairs = [
        (lambda trial: trial * 2, lambda trial: trial * 3),
        (enclosing(2), enclosing(3)),
        (partial(np.multiply, 2), partial(np.multiply, 3)),
        (Affine(2), Affine(3)),
    ]
    for number, (first, second) in enumerate(pairs):
        for as_argument in (False, True):
            out = tmp_path / f"{number}{as_argument}.zarr"
            run = partial(dense.trials.map, applied) if as_argument else dense.trials.map
            again = run(first, out=out)
            with pytest.raises(TargetExistsError, match=r"what differs:\n  object (computeFunction|change): "):
                run(second, out=out)
            xr.testing.assert_identical(run(first, out=out), again)
    dense.trials.map(np.negative, out=tmp_path / "coords.zarr", coords={"time": np.arange(40.0)})
    with pytest.raises(TargetExistsError, match="coords time"):
        dense.trials.map(np.negative, out=tmp_path / "coords.zarr", coords={"time": np.arange(40.0) + 1})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("step", range(0, 15, 2))
def test_allocation_killed_half_way_is_made_again(dense, tmp_path, monkeypatch, step, overwrite):
    out, original, calls = tmp_path / "a.zarr", xroutine.allocate.put, itertools.count()

    def killed(*args, **kwargs):
        if next(calls) == step:
            raise KeyboardInterrupt
        original(*args, **kwargs)

    if overwrite:
        dense.trials.map(np.absolute, out=out)
    with monkeypatch.context() as patch:
        patch.setattr("xroutine.allocate.put", killed)
        with pytest.raises(KeyboardInterrupt):
            dense.trials.map(np.negative, out=out, overwrite=overwrite)
    if step and not overwrite:
        with pytest.raises(UnfinishedError, match="0 of 1 blocks"):
            xrt.open(out)
    if step == 0 and overwrite:
        xr.testing.assert_identical(xrt.open(out).absolute.variable, abs(dense.data).variable)
        return
    dense.trials.map(np.negative, out=out)
    xrt.verify(out)
    assert {path.name for path in out.iterdir()} == {*xrt.open(out).variables, "ledger", "zarr.json"}


def test_what_cannot_be_allocated_leaves_the_old_result(dense, tmp_path, monkeypatch):
    out = tmp_path / "a.zarr"
    before = dense.trials.map(np.negative, out=out)
    monkeypatch.setattr("xroutine.allocate.write_labels", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dense.trials.map(np.absolute, out=out, overwrite=True)
    xr.testing.assert_identical(xrt.open(out), before)
    xrt.verify(out)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: xr.open_zarr(path),
        lambda path: xr.open_zarr(path, chunks=None),
        lambda path: xrt.open(path).data,
        lambda path: xrt.open(path).isel(trial=[2, 1]),
        lambda path: xrt.open(path.parent / ".." / path.parent.name / path.name),
    ],
)
def test_the_input_is_never_overwritten(dense, tmp_path, read):
    dense.trials.save(tmp_path / "in.zarr")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "in.zarr")
    for out in ("in.zarr", "link.zarr", "in.zarr/inner.zarr"):
        with pytest.raises(PlanError, match="where the input is read from"):
            read(tmp_path / "in.zarr").trials.map(np.negative, out=tmp_path / out, overwrite=True)
    xrt.verify(tmp_path / "in.zarr")


def test_input_that_changed_is_another_input(dense, tmp_path):
    source, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    first = dense.trials.save(source)
    first.trials.map(np.negative, out=out)
    first.trials.map(np.negative, out=out)
    again = (dense * 2).trials.save(source, overwrite=True)
    with pytest.raises(TargetExistsError, match="input made"):
        again.trials.map(np.negative, out=out)
    with pytest.raises(TargetExistsError, match="input selection"):
        again.drop_vars("trial").isel(trial=np.arange(30)[::-1]).trials.map(np.negative, out=out)
    touched = dense.copy(deep=True)
    touched.data[3, 4, 0] += 1
    dense.trials.map(np.negative, out=tmp_path / "memory.zarr")
    recording = xr.DataArray(np.arange(40.0).reshape(20, 2), dims=("time", "channel"), attrs={"samplerate": 1.0})
    one, other = (xrt.cut(recording, [[first, first + 5, 0], [10, 14, 0]]).trials.to_dense() for first in (0, 1))
    one.trials.map(np.negative, out=tmp_path / "padded.zarr")
    with pytest.raises(TargetExistsError, match="input padded"):
        other.trials.map(np.negative, out=tmp_path / "padded.zarr")
    with pytest.raises(TargetExistsError, match="input values"):
        touched.trials.map(np.negative, out=tmp_path / "memory.zarr")
    dense.drop_vars("channel").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as file:
        file.trials.map(np.negative, out=tmp_path / "file.zarr")
    (dense * 2).drop_vars("channel").to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    changed = pytest.raises(TargetExistsError, match="input made")
    with xr.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as file, changed:
        file.trials.map(np.negative, out=tmp_path / "file.zarr")


def test_workers_open_a_target_that_was_made_anew(dense, tmp_path, client):
    for block_size, compressors in ((40_000, None), (3_000, None), (3_000, GzipCodec())):
        options = {"block_size": block_size, "compressors": compressors, "overwrite": True}
        result = dense.trials.map(np.negative, out=tmp_path / "a.zarr", **options)
        np.testing.assert_array_equal(result.negative.values, -dense.data.values)


def test_saving_keeps_everything_or_says_what_it_cannot(dense, tmp_path):
    full = dense.assign_coords(
        weight=(("trial", "channel"), np.arange(90.0).reshape(30, 3)),
        scalar=7,
        trial=("trial", np.arange(30), {"a": "b"}),
    ).assign_attrs(numbers=np.arange(3))
    full["extra"] = ("channel", [1.0, 2.0, 3.0], {"xroutine_role": "detail"})
    full.data.attrs["units"] = "uV"
    saved = full.trials.save(tmp_path / "a.zarr")
    assert saved.weight.variable.identical(full.weight.variable)
    assert saved.data.attrs == full.data.attrs
    assert saved.trial.attrs == {"a": "b"}
    assert saved.attrs["numbers"] == [0, 1, 2]
    assert saved.extra.values.tolist() == [1.0, 2.0, 3.0]
    assert full.trials.map(np.negative).weight.variable.identical(full.weight.variable)
    with pytest.raises(PlanError, match=r"\['second'\] would be lost"):
        full.assign(second=full.data).trials.save(tmp_path / "b.zarr", variable="data")
    ragged = xrt.from_arrays([np.ones((n, 1)) for n in (2, 3)], 1.0).assign_coords(mark=("sample", np.arange(5)))
    with pytest.raises(PlanError, match=r"\['mark'\] would be lost"):
        ragged.trials.save(tmp_path / "b.zarr")


def test_labels_dropped_in_process_metadata_are_not_stored(dense, tmp_path):
    class Renamed(xrt.ComputationalRoutine):
        computeFunction = staticmethod(np.negative)

        def process_metadata(self, data, out):
            out.dims = ("time", "component")

    for out in (tmp_path / "a.zarr", None):
        found = Renamed()(dense, out=out)
        assert set(found.coords) == {"trial", "time", "offset", "component"}


def test_labels_that_cannot_be_stored_are_refused_before_anything_is(dense, tmp_path):
    odd = dense.assign_coords({"reaction time": ("trial", np.arange(30))})
    with pytest.raises(StoreError, match="'reaction time': a name with a space"):
        odd.trials.map(np.negative, out=tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_verify_misses_nothing_that_was_committed(dense, tmp_path):
    for lost in ("negative", "trial", "channel/c", "negative/zarr.json", "offset/zarr.json"):
        out = tmp_path / lost.replace("/", "-")
        dense.trials.map(np.negative, out=out)
        xrt.verify(out)
        shutil.rmtree(out / lost) if (out / lost).is_dir() else (out / lost).write_text("{")
        with pytest.raises(DamagedError, match=lost.partition("/")[0]):
            xrt.verify(out)


def test_targets_that_are_something_else(dense, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StoreError, match="is a file"):
        dense.trials.map(np.negative, out=tmp_path / "file")
    for overwrite in (False, True):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "precious.txt").write_text("precious")
        with pytest.raises(FileExistsError, match="other things in it"):
            dense.trials.map(np.negative, out=tmp_path / "folder", overwrite=overwrite)
        xr.Dataset({"x": ("t", [1.0])}).to_zarr(tmp_path / "foreign.zarr", mode="w", consolidated=False)
        with pytest.raises(FileExistsError, match="not made by xroutine"):
            dense.trials.map(np.negative, out=tmp_path / "foreign.zarr", overwrite=overwrite)
    assert (tmp_path / "folder" / "precious.txt").read_text() == "precious"
    saved = dense.trials.save(tmp_path / "in.zarr")
    with pytest.raises(PlanError, match="where the input is read from"):
        saved.trials.map(np.negative, out=tmp_path / "in.zarr", overwrite=True)
    with pytest.raises(StoreError, match="expected a path, a URL or a zarr store, got int"):
        dense.trials.map(np.negative, out=3)
    odd = dense.assign_coords(mixed=("trial", np.array([1, "a"] * 15, dtype=object)))
    with pytest.raises(StoreError, match=r"labels 'mixed' hold objects \(int, str\)"):
        odd.trials.map(np.negative, out=tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()


def test_opening_what_is_not_there_or_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Zarr store"):
        xrt.open(tmp_path / "nothing.zarr")
    with pytest.raises(FileNotFoundError):
        xrt.verify(tmp_path / "nothing.zarr")
    xr.Dataset({"x": ("t", [1.0])}).to_zarr(tmp_path / "foreign.zarr", consolidated=False)
    with pytest.raises(StoreError, match=r"not made by xroutine; as input, open it with xarray\.open_zarr"):
        xrt.open(tmp_path / "foreign.zarr")


def test_memory_of_this_process_is_refused_to_other_processes(dense, client):
    store = zarr.storage.MemoryStore()
    with pytest.raises(PlanError, match=r"cannot write into this process's memory.*parallel_store=False"):
        dense.trials.map(np.negative, out=store)
    with pytest.raises(UnfinishedError):
        xrt.open(store)
    result = dense.trials.map(np.negative, out=store, parallel_store=False)
    np.testing.assert_array_equal(result.negative.values, -dense.data.values)
    again = result.trials.map(np.negative)
    np.testing.assert_array_equal(again.negative.values, dense.data.values)


def test_fsspec_urls(dense):
    url = "memory://xroutine-test/a.zarr"
    dense.trials.map(np.negative, out=url, parallel=False)
    np.testing.assert_array_equal(xrt.open(url).negative.values, -dense.data.values)
    xrt.verify(url)


sizes = st.lists(st.integers(1, 1000), min_size=1, max_size=200).map(lambda found: np.array(found, np.int64))


@given(sizes, st.integers(1, 5000))
def test_blocks_tile_the_trials(nbytes, block_size):
    for bounds in (greedy_bounds(nbytes, block_size), even_bounds(nbytes, block_size)):
        assert bounds[0] == 0
        assert bounds[-1] == len(nbytes)
        assert (np.diff(bounds) > 0).all()
    filled = np.add.reduceat(nbytes, greedy_bounds(nbytes, block_size)[:-1])
    counts = np.diff(greedy_bounds(nbytes, block_size))
    assert ((filled <= block_size) | (counts == 1)).all()
    assert len(set(np.diff(even_bounds(nbytes, block_size))[:-1])) <= 1


@given(sizes, st.integers(1, 5000))
def test_rows_of_trials_never_overlap_and_blocks_start_on_chunks(size, block_size):
    bounds = greedy_bounds(size, block_size)
    chunk = row_chunk(np.add.reduceat(size, bounds[:-1]))
    start = row_starts(size, bounds, chunk)
    taken = np.zeros(int(start[-1] + size[-1]), int)
    for a, n in zip(start, size, strict=True):
        taken[a : a + n] += 1
    assert taken.max() == 1
    assert (start[bounds[:-1]] % chunk == 0).all()
    assert int((taken == 0).sum()) == unused_rows(np.add.reduceat(size, bounds[:-1]), chunk)


@pytest.mark.parametrize(
    ("low", "high", "n"), [(500, 3500, 1600), (50, 150, 100_000), (200_000, 400_000, 60), (None, None, 3000)]
)
def test_few_rows_are_left_unused(low, high, n):
    rng = np.random.default_rng(0)
    size = (rng.pareto(1.5, n) * 500 + 50).astype(np.int64) if low is None else rng.integers(low, high, n)
    bounds = greedy_bounds(size * 64 * 8, 16 * 2**20)
    rows = np.add.reduceat(size, bounds[:-1])
    chunk = row_chunk(rows)
    assert unused_rows(rows, chunk) < 0.05 * rows.sum()
    assert chunk >= rows.max() // 32


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 60)), min_size=1, max_size=30), st.integers(1, 40))
def test_spans_cover_the_trials_and_touch_each_chunk_once(rows, chunk):
    start = np.array([a for a, _ in rows])
    size = np.array([n for _, n in rows])
    found = spans(start, size, chunk)
    touched = [c for a, b in zip(found.start, found.stop, strict=True) for c in range(a // chunk, (b - 1) // chunk + 1)]
    assert len(touched) == len(set(touched))
    assert set(touched) == {c for a, n in rows for c in range(a // chunk, (a + n - 1) // chunk + 1)}
    signal = np.arange(1000)
    pieces = [signal[a:b] for a, b in zip(found.start, found.stop, strict=True)]
    for a, n, piece, row in zip(start, size, found.piece, found.row, strict=True):
        np.testing.assert_array_equal(pieces[piece][row : row + n], signal[a : a + n])
