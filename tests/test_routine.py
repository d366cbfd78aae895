"""`ComputationalRoutine`, member by member, as its reference publishes it."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import xroutine as xrt
from xroutine.errors import (
    ArgumentError,
    DryRunError,
    NotEnoughMemoryError,
    OutputError,
    OutputTypeError,
    PlanError,
    TrialsError,
    UnfinishedError,
)
from xroutine.plan import Plan
from xroutine.run import Work


def make(n=6, rows=20, channels=4, dtype="f8", lengths=None, **options):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((length, channels)).astype(dtype) for length in lengths or [rows] * n]
    return xrt.from_arrays(arrays, 100.0, **options)


def subclass(function, metadata=lambda self, data, out: None, **body):
    members = {"computeFunction": staticmethod(function), "process_metadata": metadata, **body}
    return type("Routine", (xrt.ComputationalRoutine,), members)


def scale(arr, factor=2.0, *, chunkShape=None, noCompute=None):
    return (arr.shape, arr.dtype) if noCompute else arr * factor


def test_process_metadata_is_abstract():
    class Incomplete(xrt.ComputationalRoutine):
        computeFunction = staticmethod(scale)

    with pytest.raises(TypeError, match="process_metadata"):
        Incomplete()


def test_arguments_and_defaults():
    routine = subclass(scale)()
    assert routine.cfg == routine.defaultCfg == {"factor": 2.0}
    assert subclass(scale)(factor=3.0).cfg == {"factor": 3.0}
    assert subclass(scale)(3.0).argv == [3.0]
    with pytest.raises(ArgumentError, match="unexpected keyword argument 'factr'"):
        subclass(scale)(factr=3.0)
    with pytest.raises(ArgumentError, match="noCompute: given by xroutine itself"):
        subclass(scale)(noCompute=True)


def test_dry_run_is_asked_once_for_each_distinct_shape_and_gets_an_array_without_memory():
    asked = []

    def huge(arr, chunkShape=None, noCompute=None):
        asked.append(arr.shape)
        assert type(arr) is np.ndarray
        assert arr.dtype == np.float32
        assert arr.base.nbytes == 4
        arr[0] = 1  # in-place work before the dry run is noticed does no harm
        return (arr.shape[1],), "f4"

    ds = xrt.cut(
        xr.DataArray(np.zeros((10_000, 100), "f4"), dims=("time", "channel"), attrs={"samplerate": 1.0}),
        [[0, 10_000, 0], [0, 5_000, 0], [1, 10_000, 0], [5_000, 10_000, 0]],
    )
    subclass(huge)().initialize(ds, 0)
    assert asked == [(5_000, 100), (9_999, 100), (10_000, 100)]


def test_plain_function_is_probed_with_a_stand_in_of_the_true_shape():
    seen = []

    def plain(trial):
        seen.append((trial.shape, trial.dtype, trial.any()))
        return trial.mean(axis=0)

    make(dtype="i2", lengths=[5, 7, 5]).trials.plan(plain, out_dims=("channel",))
    assert seen == [((5, 4), np.dtype("i2"), True), ((7, 4), np.dtype("i2"), True)]


def test_chunk_shape_is_the_largest_output():
    told = set()

    def told_shape(arr, chunkShape=None, noCompute=None):
        if noCompute:
            return (arr.shape[0] // 2, arr.shape[1]), arr.dtype
        told.add(chunkShape)
        return arr[: arr.shape[0] // 2]

    ds = make(lengths=[10, 30, 21])
    routine = subclass(told_shape)()
    routine.initialize(ds, 0)
    assert (routine.chunkShape, routine.outputShape, routine.dtype) == ((15, 4), (30, 4), np.float64)
    assert (routine.numTrials, routine.numBlocksPerTrial, routine.numCalls) == (3, 1, 3)
    routine.compute(ds, xrt.Trials.empty())
    assert told == {(15, 4)}


def test_order_of_the_steps_and_named_method():
    called = []

    class Steps(xrt.ComputationalRoutine):
        computeFunction = staticmethod(scale)

        def preallocate_output(self, out, parallel_store=False):
            called.append(f"preallocate {parallel_store}")
            super().preallocate_output(out, parallel_store=parallel_store)

        def compute_sequential(self, data, out):
            called.append("sequential")
            super().compute_sequential(data, out)

        def compute_parallel(self, data, out):
            called.append("parallel")
            super().compute_parallel(data, out)

        def compute_mine(self, data, out):
            called.append("mine")
            super().compute_sequential(data, out)

        def process_metadata(self, data, out):
            called.append("metadata")

        def write_log(self, data, out, log_dict=None):
            called.append("log")
            super().write_log(data, out, log_dict)

    ds = make()
    for options, expected in [
        ({}, "preallocate False,sequential,metadata,log"),
        ({"parallel": True}, "preallocate True,parallel,metadata,log"),
        ({"parallel": True, "parallel_store": False}, "preallocate False,parallel,metadata,log"),
        ({"method": "mine"}, "preallocate False,mine,metadata,log"),
        ({"parallel_debug": True}, "preallocate False,parallel,metadata,log"),
    ]:
        called.clear()
        routine = Steps()
        routine.initialize(ds, 0)
        out = xrt.Trials.empty()
        routine.compute(ds, out, **options)
        assert ",".join(called) == expected
        np.testing.assert_array_equal(out.data.values, ds.data.values * 2)
    with pytest.raises(PlanError, match=r"no compute_other; there are \['mine', 'parallel', 'sequential'\]"):
        routine.compute(ds, xrt.Trials.empty(), method="other")


def test_parallel_debug_stays_in_the_calling_thread():
    threads = set()

    def here(arr, chunkShape=None, noCompute=None):
        if noCompute:
            return arr.shape, arr.dtype
        threads.add(threading.current_thread())
        return arr

    routine = subclass(here)()
    ds = make()
    routine.initialize(ds, 0)
    routine.compute(ds, xrt.Trials.empty(), parallel=True, parallel_debug=True)
    assert threads == {threading.current_thread()}


def test_compute_wants_what_initialize_was_given():
    ds = make()
    routine = subclass(scale)()
    with pytest.raises(PlanError, match="call initialize"):
        routine.compute(ds, xrt.Trials.empty())
    routine.initialize(ds, 0)
    with pytest.raises(PlanError, match="other data than initialize"):
        routine.compute(ds + 1, xrt.Trials.empty())
    routine.compute(ds.copy(), xrt.Trials.empty())
    with pytest.raises(PlanError, match="expected empty Trials"):
        routine.compute(ds, xrt.Trials(ds))
    routine.compute(xrt.Trials(ds), xrt.Trials.empty())


def test_attributes_that_published_code_reads_and_sets():
    def spectrum(arr, foi, chunkShape=None, noCompute=None):
        shape = (1, 1, len(foi), arr.shape[1])
        if noCompute:
            return shape, np.complex64
        return np.fft.rfft(arr, axis=0)[: len(foi)].astype("c8")[None, None]

    def label(self, data, out):
        assert data.dims == data.dimord == ("time", "channel")
        assert data.selection is None
        assert data.trials[0].shape == data.data.shape[1:]
        assert (data.sampleinfo == data.trialdefinition[:, :2]).all()
        assert data.time[0][0] == -0.05
        out.dimord = ["time", "taper", "freq", "channel"]
        rows = np.arange(len(data.trials))
        out.trialdefinition = np.stack([rows, rows + 1, np.zeros_like(rows), rows * 10], axis=1)
        out.samplerate = data.samplerate
        out.channel = [f"{name}!" for name in data.channel]
        out.freq = self.argv[0]
        out.taper = ["hann"]
        with pytest.raises(TrialsError, match="freq: expected 3 labels, got 1"):
            out.freq = [1.0]
        with pytest.raises(AttributeError, match="cannot set 'foo'"):
            out.foo = [1.0]

    ds = make(offset=-5, trialinfo={"rt": np.arange(6.0)})
    for target in (None, "zarr"):
        out = xrt.Trials.empty(None if target is None else MemoryStore())
        routine = subclass(spectrum, label)([1.0, 2.0, 3.0])
        routine.initialize(ds, out_stackingdim=0)
        routine.compute(ds, out)
        assert out.dims == ("time", "taper", "freq", "channel")
        assert out.freq.tolist() == out.dataset.freq.values.tolist() == [1.0, 2.0, 3.0]
        assert out.channel.tolist() == [f"channel{n + 1}!" for n in range(4)]
        assert out.dataset.trialinfo_0.values.tolist() == [0, 10, 20, 30, 40, 50]
        assert out.trialinfo.rt.tolist() == ds.rt.values.tolist()
        assert out.samplerate == 100.0
        for found, trial in zip(out.trials, ds.trials, strict=True):
            np.testing.assert_array_equal(found.values[0, 0], np.fft.rfft(trial.values, axis=0)[:3].astype("c8"))


def test_undeclared_dims_are_numbered_for_classes_and_asked_for_from_functions():
    def cube(arr, chunkShape=None, noCompute=None):
        return ((2, *arr.shape), arr.dtype) if noCompute else np.stack([arr, arr])

    assert subclass(cube)()(make()).cube.dims == ("trial", "dim_0", "dim_1", "dim_2")
    with pytest.raises(DryRunError, match=r"returns 3 dimensions where a trial has 2 .* out_dims="):
        make().trials.map(cube)
    out = xrt.Trials.empty(dims=("copy", "time", "channel"))
    routine, ds = subclass(cube)(), make()
    routine.initialize(ds, 1)
    routine.compute(ds, out)
    assert out.dataset.cube.dims == ("trial", "copy", "time", "channel")


@pytest.mark.parametrize(("stack", "dims"), [(0, ("time", "channel")), (1, ("channel", "time"))])
def test_trials_are_stacked_along_the_dimension_asked_for(stack, dims):
    def turned(arr, chunkShape=None, noCompute=None):
        out = arr if stack == 0 else arr.T
        return (out.shape, out.dtype) if noCompute else out

    ds = make(lengths=[5, 9, 7])
    result = subclass(turned, out_dims=dims)()(ds, out_stackingdim=stack)
    assert result.turned.dims[stack] == "sample"
    for found, trial in zip(result.trials, ds.trials, strict=True):
        np.testing.assert_array_equal(found.transpose("time", "channel").values, trial.values)
    with pytest.raises(
        DryRunError, match=f"sizes along 'time' .* stacked along 'channel' .out_stackingdim={1 - stack}"
    ):
        subclass(turned, out_dims=dims)()(ds, out_stackingdim=1 - stack)


@pytest.mark.parametrize(
    ("answer", "stack", "message"),
    [
        (lambda arr: (arr.shape, arr.dtype), 2, "out_stackingdim=2: expected a dimension of the output, 0 to 1"),
        (lambda arr: (arr.shape, arr.dtype), -1, "out_stackingdim=-1"),
        (
            lambda arr: (arr.shape, "f4" if len(arr) > 5 else "f8"),
            0,
            "different dtypes .*float64 for 5 rows, float32 for 9 rows",
        ),
        (lambda arr: (arr.shape[: 1 + (len(arr) > 5)], "f8"), 0, "different numbers of dimensions"),
        (lambda arr: arr.shape, 0, r"expected \(shape, dtype\), got \(5, 4\)"),
        (lambda arr: None, 0, r"expected \(shape, dtype\), got None"),
        (lambda arr: ((1.5, 2), "f8"), 0, r"expected \(shape, dtype\)"),
        (lambda arr: ((-1, 2), "f8"), 0, r"expected \(shape, dtype\)"),
        (lambda arr: ((3, 2), "no dtype"), 0, r"expected \(shape, dtype\)"),
        (lambda arr: ((3, 2), object), 0, "only numbers can be stored"),
        (lambda arr: ((0, 2), "f8"), 0, r"empty array of shape \(0, 2\)"),
    ],
)
def test_dry_run_answers_that_cannot_be_used(answer, stack, message):
    def function(arr, chunkShape=None, noCompute=None):
        return answer(arr)

    with pytest.raises((DryRunError, PlanError), match=message):
        subclass(function)().initialize(make(lengths=[5, 9]), stack)


def test_channels_are_split_along_the_output_dimension_that_follows_them():
    # As many frequencies as channels: only the dry run can tell which is which.
    def square(arr, chunkShape=None, noCompute=None):
        shape = (arr.shape[1], 4)
        return (shape, arr.dtype) if noCompute else arr[:4].T.copy()

    ds = make(channels=4)
    result = subclass(square, out_dims=("channel", "freq"))()(ds, chan_per_worker=3)
    np.testing.assert_array_equal(result.square.values, ds.data.values[:, :4].transpose(0, 2, 1))
    plan = ds.trials.plan(square, out_dims=("channel", "freq"), chan_per_worker=3)
    assert plan.output.channel_axis == 0
    assert plan.channel_bounds.tolist() == [0, 3, 4]

    def pairs(arr, chunkShape=None, noCompute=None):
        return ((arr.shape[1], arr.shape[1]), arr.dtype) if noCompute else arr.T @ arr

    with pytest.raises(PlanError, match=r"exactly one output dimension that follows .* found \['a', 'b'\]"):
        ds.trials.map(pairs, out_dims=("a", "b"), chan_per_worker=2)
    with pytest.raises(PlanError, match=r"found \[\]"):
        ds.trials.map(lambda trial: trial.sum(keepdims=True), out_dims=("a", "b"), chan_per_worker=2)
    with pytest.raises(PlanError, match="positive number of channels, got 0"):
        ds.trials.map(np.negative, chan_per_worker=0)


def test_the_dimension_called_channel_is_the_one_that_follows_the_channels():
    # Three frequencies for each channel, and three channels: no size tells one from the other.
    def spectrum(trial):
        return np.abs(np.fft.rfft(trial, n=4, axis=0))

    ds = make(channels=3)
    for options in ({}, {"chan_per_worker": 2}, {"chan_per_worker": 1, "keeptrials": False}):
        found = ds.trials.map(spectrum, out_dims=("freq", "channel"), **options).spectrum
        wanted = np.stack([spectrum(trial) for trial in ds.data.values])
        np.testing.assert_allclose(found, wanted.mean(axis=0) if "keeptrials" in options else wanted, rtol=1e-12)
        assert found.channel.values.tolist() == ds.channel.values.tolist()
        assert "freq" not in found.coords
    with pytest.raises(PlanError, match=r"'freq' of \('channel', 'freq'\) follows .* 'channel' does not.*put out_dims"):
        ds.trials.map(spectrum, out_dims=("channel", "freq"), chan_per_worker=2)


def test_arrays_handed_out_are_the_functions_own(tmp_path):
    def spoil(trial):
        assert (trial != 0).any()
        assert trial.flags.writeable
        assert trial.flags.c_contiguous
        trial[...] = 0
        return trial

    whole = xr.DataArray(np.ones((50, 3)), dims=("time", "channel"), attrs={"samplerate": 1.0})
    stored = [make().trials.save(where) for where in (tmp_path / "a.zarr", MemoryStore())]
    whole.drop_attrs().to_dataset(name="x").chunk(time=20).to_zarr(tmp_path / "whole.zarr", consolidated=False)
    lazy = xr.open_zarr(tmp_path / "whole.zarr", chunks=None, consolidated=False).x.assign_attrs(samplerate=1.0)
    table = [[0, 30, 0], [20, 50, 0]]
    for ds in (
        xrt.cut(whole, table).isel(trial=[0, 1, 0]),
        make().isel(trial=[1, 1]),
        *stored,
        stored[0].isel(trial=[1, 1]),
        xrt.cut(lazy, table).isel(trial=[0, 1, 0]),
        xrt.cut(lazy, [[0, 30, 0], [30, 50, 0]]),
        xrt.cut(lazy, table[:1]).chunk(sample=50),
    ):
        before = ds.copy(deep=True).load()
        for options in ({"parallel": False}, {"chan_per_worker": 2}, {"scheduler": "threads"}):
            ds.trials.map(spoil, **options)
        xr.testing.assert_identical(ds.load(), before)


def test_declared_dtype_is_what_is_stored():
    def narrow(arr, chunkShape=None, noCompute=None):
        return (arr.shape, np.float32) if noCompute else arr / 3

    ds = make()
    result = subclass(narrow)()(ds)
    np.testing.assert_array_equal(result.narrow.values, (ds.data.values / 3).astype("f4"), strict=True)
    assert "stored = float32, returned as float64" in result.trials.log

    def complex_result(arr, chunkShape=None, noCompute=None):
        return (arr.shape, np.float32) if noCompute else arr * 1j

    with pytest.raises(
        OutputTypeError, match=r"in trial 0 .*returned complex128, which cannot be stored as the float32"
    ):
        subclass(complex_result)()(ds)


def test_dimensions_of_size_one_are_forgiven_and_nothing_else():
    def flat(arr, chunkShape=None, noCompute=None):
        return ((1, arr.shape[1]), arr.dtype) if noCompute else arr.sum(axis=0)

    ds = make()
    np.testing.assert_array_equal(subclass(flat)()(ds).flat.values[:, 0], ds.data.values.sum(axis=1))

    def turned(arr, chunkShape=None, noCompute=None):
        return (arr.shape, arr.dtype) if noCompute else arr.T

    with pytest.raises(
        OutputError,
        match=r"in trial 0 \(id 0\), channels 0-3, of `turned`; input \(time=20, channel=4\) "
        r"float64: .*returned shape \(4, 20\), its dry run declared \(20, 4\)",
    ):
        subclass(turned)()(ds)


@pytest.mark.parametrize(
    "engine", [{"parallel": False}, {"scheduler": "threads"}, {"scheduler": "processes"}, "cluster"]
)
def test_exception_in_one_trial_keeps_its_type_and_says_where(engine, request):
    options = {} if engine == "cluster" and request.getfixturevalue("client") else engine
    ds = make(n=40, trial=[f"go-{n:02}" for n in range(40)])
    with pytest.raises(ZeroDivisionError, match="only in one trial") as found:
        ds.trials.map(Raising, xrt.per_trial(list(range(40))), block_size=4000, chan_per_worker=2, **options)
    (note,) = found.value.__notes__
    assert note.startswith("in trial 17 (id 'go-17'), channels ")
    assert note.endswith("of `raising`; input (time=20, channel=2) float64")
    assert "raising" in [entry.name for entry in found.traceback]


def raising(arr, position, chunkShape=None, noCompute=None):
    if noCompute:
        return arr.shape, arr.dtype
    if position == 17:
        raise ZeroDivisionError("only in one trial")
    return arr


Raising = subclass(raising)
Raising.__qualname__ = Raising.__name__ = "Raising"


class Awkward(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def awkward(trial):
    if trial[0, 0] == 0:
        raise Awkward("two", "arguments")
    return trial


def test_exception_that_cannot_travel_is_told_in_words(client):
    ds = xrt.from_arrays([np.zeros((3, 1))], 1.0)
    with pytest.raises(RuntimeError, match="Awkward: two arguments") as found:
        ds.trials.map(awkward)
    assert "in trial 0" in found.value.__notes__[0]


def test_wrong_result_writes_nothing_for_its_block(tmp_path):
    def wrong_at_the_end(arr, position, chunkShape=None, noCompute=None):
        if noCompute:
            return arr.shape, arr.dtype
        return arr[:-1] if position == 5 else arr

    ds = make()
    with pytest.raises(OutputError, match="in trial 5"):
        ds.trials.map(
            wrong_at_the_end, xrt.per_trial(range(6)), out=tmp_path / "a.zarr", parallel=False, block_size=1300
        )
    stored = xrt.open(tmp_path / "a.zarr", unfinished=True).wrong_at_the_end.values
    np.testing.assert_array_equal(stored[:4], ds.data.values[:4])
    assert np.isnan(stored[4:]).all()
    assert not list((tmp_path / "a.zarr" / "wrong_at_the_end" / "c" / "2").glob("**/*"))


def test_memory_is_checked_before_anything_is_allocated(tmp_path):
    whole = xr.DataArray(np.broadcast_to(0.0, (10**9, 10**3)), dims=("time", "channel"), attrs={"samplerate": 1.0})
    ds = xrt.cut(whole, [[0, 10**9, 0]])
    routine = subclass(scale)()
    routine.initialize(ds, 0)
    with pytest.raises(
        NotEnoughMemoryError, match=r"takes about 2\d.\d TiB, .* mem_thresh=0.5 of the .* chan_per_worker="
    ):
        routine.compute(ds, xrt.Trials.empty(tmp_path / "a.zarr"))
    with pytest.raises(PlanError, match="mem_thresh: expected a share"):
        routine.compute(ds, xrt.Trials.empty(tmp_path / "a.zarr"), mem_thresh=2)
    assert not (tmp_path / "a.zarr").exists()


def test_result_that_does_not_fit_in_memory_asks_for_out():
    whole = xr.DataArray(np.broadcast_to(0.0, (10**9, 10**3)), dims=("time", "channel"), attrs={"samplerate": 1.0})
    ds = xrt.cut(whole, np.stack([np.arange(1000), np.arange(1000) + 10**5, np.zeros(1000, int)], axis=1))
    with pytest.raises(NotEnoughMemoryError, match=r"the result takes .* give out="):
        subclass(scale)()(ds, parallel=False)


def test_per_trial_arguments_and_nothing_else_are_distributed():
    ds = make(n=5)
    weights = np.arange(5.0)
    whole = ds.trials.map(lambda trial, w: trial * w.sum(), weights)
    np.testing.assert_array_equal(whole.result.values, ds.data.values * 10)
    each = ds.trials.map(np.multiply, xrt.per_trial(weights), chan_per_worker=3, block_size=700)
    np.testing.assert_array_equal(each.multiply.values, ds.data.values * weights[:, None, None])
    lengths = xrt.per_trial([1, 2, 3, 2, 1])
    cut = ds.trials.map(lambda trial, n: trial[:n], lengths)
    assert cut.trials.lengths.tolist() == [1, 2, 3, 2, 1]
    with pytest.raises(ArgumentError, match="argument 'w': per_trial has 4 values, the data have 5 trials"):
        ds.trials.map(lambda trial, w: trial, w=xrt.per_trial([1, 2, 3, 4]))
    with pytest.raises(ArgumentError, match="sequence with one value a trial, got str"):
        xrt.per_trial("abcde")


def test_average_needs_trials_that_lie_alike():
    with pytest.raises(DryRunError, match=r"different sizes along \['time'\].*keeptrials=False"):
        make(lengths=[5, 6]).trials.map(np.negative, keeptrials=False)
    with pytest.raises(PlanError, match="different offsets from their trigger"):
        make(n=2, offset=[0, 1]).trials.map(np.negative, keeptrials=False)
    ints = xrt.from_arrays([np.full((3, 1), n, "i2") for n in range(4)], 1.0)
    assert ints.trials.map(np.negative, keeptrials=False).negative.values.tolist() == [[-1.5]] * 3


def both(arr):
    return arr * 2, {"largest": arr.max()}


@pytest.mark.parametrize("options", [{"parallel_store": False}, {"keeptrials": False}, {}])
def test_several_threads_share_one_input(options):
    ds = make(n=40)
    alone = ds.trials.map(both, block_size=2000, **options)
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(ds.trials.map, both, block_size=2000, **options) for _ in range(9)]
        for run in runs:
            xr.testing.assert_identical(run.result().drop_attrs(), alone.drop_attrs())


def test_one_routine_is_called_from_several_threads():
    routine = subclass(scale)()
    data = {n: make(n=n) for n in (3, 9)}
    with ThreadPoolExecutor(4) as pool:
        runs = [(n, pool.submit(routine, data[n], block_size=700)) for n in (3, 9) * 4]
        for n, run in runs:
            np.testing.assert_array_equal(run.result().scale.values, data[n].data.values * 2)


def test_executors_of_processes_are_known_as_such():
    ds = make()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result = ds.trials.map(np.negative, scheduler=pool)
    np.testing.assert_array_equal(result.negative.values, -ds.data.values)


def nested(n):
    return make(n=n).trials.map(np.negative, block_size=700).negative.values.sum()


def test_map_within_a_task_of_the_cluster(client):
    futures = [client.submit(nested, n) for n in (3, 4, 5)]
    np.testing.assert_allclose(client.gather(futures), list(map(nested, (3, 4, 5))))


def test_nothing_is_written_after_an_error_was_raised(tmp_path):
    begun = threading.Event()

    def slow(arr, position, value, wait, chunkShape=None, noCompute=None):
        if noCompute:
            return arr.shape, arr.dtype
        if position == 0:
            begun.wait(5)
            raise OSError("first")
        begun.set()
        time.sleep(wait)
        return arr * 0 + value

    ds, options = make(n=2), {"out": tmp_path / "a.zarr", "block_size": 1, "scheduler": "threads", "overwrite": True}
    with pytest.raises(OSError, match="first"):
        ds.trials.map(slow, xrt.per_trial([0, 1]), 1, 1.0, **options)
    ds.trials.map(slow, xrt.per_trial([1, 1]), 2, 0.0, **options)
    time.sleep(1.2)
    assert (xrt.open(tmp_path / "a.zarr").slow == 2).all()


def test_accessor_sees_what_its_array_holds_now():
    array = xr.DataArray(np.ones((3, 4, 2)), dims=("trial", "time", "channel"))
    assert array.trials.samplerate is None
    array.values = array.values * 5
    array.attrs["samplerate"] = 10.0
    assert array.trials.samplerate == 10.0
    assert (array.trials.map(np.negative).negative == -5).all()


def test_per_trial_takes_columns_by_position():
    ds = make(n=4, trialinfo={"gain": [1.0, 2.0, 3.0, 4.0]}).isel(trial=[2, 0, 3, 1])
    for values in (ds.trials.info["gain"], ds.gain):
        result = ds.trials.map(np.multiply, xrt.per_trial(values), block_size=700)
        np.testing.assert_array_equal(result.multiply.values, ds.data.values * ds.gain.values[:, None, None])


def test_masked_results_are_refused():
    with pytest.raises(OutputTypeError, match="got MaskedArray"):
        make().trials.map(lambda trial: np.ma.masked_less(trial, 0))
    with pytest.raises(TrialsError, match="would lose their mask"):
        xrt.from_arrays([np.ma.masked_less(np.ones((3, 2)), 0)], 1.0)


def test_few_numbers_of_an_argument_decide_the_shape_of_an_output():
    def crop(trial, window):
        return trial[window[0] : window[1]]

    for windows in (np.array([[0, 5], [0, 10]]), [[0, 5], [0, 10]], [(0, 5), (0, 10)]):
        assert make(n=2).trials.map(crop, xrt.per_trial(windows)).trials.lengths.tolist() == [5, 10]


def test_dims_are_inherited_only_where_they_fit():
    ds = make()
    with pytest.raises(DryRunError, match=r"returns shape \(4, 20\) for a trial of shape \(20, 4\)"):
        ds.trials.map(np.transpose)
    assert ds.trials.map(np.transpose, out_dims=("channel", "time"))["transpose"].dims == ("trial", "channel", "time")
    mean = ds.trials.map(lambda trial: trial.mean(axis=1, keepdims=True), out_dims=("time", "channel"))
    assert "channel" not in mean.coords
    assert mean.trials[0].time.identical(ds.trials[0].time)


def test_details_are_collected_along_trials():
    def both(trial, position):
        return trial, {"largest": trial.max(), "edges": trial[[0, -1], 0]} | ({"odd": position} if position % 2 else {})

    ds = make(n=5)
    result = ds.trials.map(both, xrt.per_trial(range(5)))
    assert result.largest.dims == ("trial",)
    np.testing.assert_array_equal(result.largest, ds.data.values.max(axis=(1, 2)))
    np.testing.assert_array_equal(result.edges, ds.data.values[:, [0, -1], 0])
    np.testing.assert_array_equal(result.odd, [np.nan, 1, np.nan, 3, np.nan])
    assert set(xrt.Trials(result).details) == {"largest", "edges", "odd"}
    assert xrt.Trials(result).trials[0].shape == (20, 4)


def test_plan_survives_pickle_and_is_frozen():
    plan = make(lengths=[5, 9, 7]).trials.plan(scale, chan_per_worker=3)
    again: Plan = pickle.loads(pickle.dumps(plan))
    assert str(again) == str(plan)
    with pytest.raises(AttributeError):
        plan.name = "x"


@pytest.mark.parametrize("name", ["row_start", "offset", "trial", "channel", "time", "rt", "detailed", "a/b", "a b"])
def test_details_cannot_hide_labels(name, tmp_path):
    def detailed(trial):
        return trial, {name: 1}

    ds = make(lengths=[5, 6], trialinfo={"rt": [0.1, 0.2]})
    with pytest.raises(OutputError, match=r"in trial 0 .*would hide labels"):
        ds.trials.map(detailed, out=tmp_path / "a.zarr", parallel=False)


def test_details_are_there_for_process_metadata_and_may_be_bytes():
    def told(arr, chunkShape=None, noCompute=None):
        found = {"mark": np.bytes_(b"abc"), "many": np.array([b"a", b"bc"])}
        return (arr.shape, arr.dtype) if noCompute else (arr, found)

    seen = []
    result = subclass(told, lambda self, data, out: seen.append(out.details))()(make(n=2))
    assert seen[0]["mark"].tolist() == result.mark.values.tolist() == ["abc", "abc"]
    assert result.many.values.tolist() == [["a", "bc"]] * 2


def test_method_that_skips_blocks_is_not_committed(tmp_path):
    routine, ds = subclass(scale, compute_nothing=lambda self, data, out: None)(), make()
    routine.initialize(ds, 0)
    with pytest.raises(PlanError, match="ran 0 of 1 blocks"):
        routine.compute(ds, xrt.Trials.empty(tmp_path / "a.zarr"), method="nothing")
    with pytest.raises(UnfinishedError):
        xrt.open(tmp_path / "a.zarr")


def test_offset_survives_whatever_is_set_first():
    def halve(arr, chunkShape=None, noCompute=None):
        return ((arr.shape[0] // 2, arr.shape[1]), arr.dtype) if noCompute else arr[::2]

    def slower(self, data, out):
        table = [[n * 10, n * 10 + 10, -5] for n in range(len(data.trials) if self.keeptrials else 1)]
        if self.cfg.get("rate_first"):
            out.samplerate, out.trialdefinition = data.samplerate / 2, table
        else:
            out.trialdefinition, out.samplerate = table, data.samplerate / 2

    for keeptrials in (True, False):
        result = subclass(halve, slower)()(make(offset=-10), keeptrials=keeptrials)
        assert result.trials[0].time.values[0] == -0.1
        assert result.trials.samplerate == 50.0


def test_arguments_changed_after_construction_are_the_ones_used_and_recorded():
    routine = subclass(scale)()
    routine.cfg["factor"] = 5.0
    result = routine(make())
    np.testing.assert_array_equal(result.scale.values, make().data.values * 5)
    assert result.trials.cfg["kwargs"] == {"factor": 5.0}


def test_what_a_function_does_to_its_dict_stays_with_it():
    def greedy(trial, options):
        return trial * options.pop("gain")

    options = {"gain": 2.0}
    result = make().trials.map(greedy, options)
    np.testing.assert_array_equal(result.greedy.values, make().data.values * 2)
    assert options == {"gain": 2.0}
    assert result.trials.cfg["argv"] == [{"gain": 2.0}]


def test_one_plan_into_memory_and_then_into_a_store(tmp_path):
    routine, ds = subclass(scale)(), make(lengths=[5, 9, 7])
    routine.initialize(ds, 0)
    routine.compute(ds, xrt.Trials.empty())
    out = xrt.Trials.empty(tmp_path / "a.zarr")
    routine.compute(ds, out)
    assert out.dataset.scale.encoding["chunks"] == (21, 4)


def test_log_set_in_process_metadata_is_kept():
    result = subclass(scale, lambda self, data, out: setattr(out, "log", "by hand\n"))()(make())
    assert result.trials.log.startswith("by hand\n|===")


def test_overrides_with_the_published_signatures():
    class Published(xrt.ComputationalRoutine):
        computeFunction = staticmethod(scale)

        def initialize(self, data, out_stackingdim, chan_per_worker=None, keeptrials=True):
            super().initialize(data, out_stackingdim, chan_per_worker, keeptrials)

        def compute(
            self,
            data,
            out,
            parallel=False,
            parallel_store=None,
            method=None,
            mem_thresh=0.5,
            log_dict=None,
            parallel_debug=False,
        ):
            super().compute(data, out, parallel, parallel_store, method, mem_thresh, log_dict, parallel_debug)

        def process_metadata(self, data, out):
            assert self.trialList == [0, 1]
            out.channel = None

    assert "channel" not in Published()(make(n=2)).coords


def test_tasks_do_not_grow_with_the_number_of_trials():
    import cloudpickle

    from xroutine.run import _facts
    from xroutine.source import Source

    ds = make(n=2000, rows=5)
    plan = ds.trials.plan(scale, block_size=20 * 5 * 4 * 8)
    assert len(plan) == 100
    sizes = {len(cloudpickle.dumps(plan.block(number))) for number in (0, 99)}
    assert max(sizes) < 5000
    assert len(cloudpickle.dumps(Work(_facts(plan), Source(xr.Variable((), 0.0)), None))) < 3000


def test_arrays_in_memory_travel_block_by_block(client, monkeypatch):
    from xroutine import engine

    sizes = []
    sealed = engine._sealed
    monkeypatch.setattr(engine, "_sealed", lambda work: sizes.append(len(sealed(work).payload)) or sealed(work))
    ds = make(n=400, rows=500)
    ragged = make(lengths=[500, 400, 300] * 50)
    for data in (ds, ds.chunk(trial=50), ragged.trials.to_dense(), ragged.chunk(sample=999).trials.to_dense()):
        result = data.trials.map(scale, block_size=2**18)
        np.testing.assert_array_equal(result.scale.values, data.data.values * 2)
    assert max(sizes) < 5000


def test_names_that_would_hide_labels_are_refused():
    def channel(trial):
        return trial

    with pytest.raises(PlanError, match="cannot be called 'channel'"):
        make().trials.map(channel)


def test_arguments_of_the_plan_that_cannot_work():
    ds = make()
    with pytest.raises(PlanError, match="selection is empty"):
        ds.isel(trial=[]).trials.map(np.negative)
    with pytest.raises(PlanError, match="block_size"):
        ds.trials.map(np.negative, block_size=0)
    with pytest.raises(PlanError, match="takes no scheduler"):
        ds.trials.map(np.negative, parallel=False, scheduler="threads")
    with pytest.raises(PlanError, match="expected a sequence of names"):
        ds.trials.map(np.negative, out_dims="time")
    with pytest.raises(DryRunError, match="names 3 dimensions"):
        ds.trials.map(np.negative, out_dims=("a", "b", "c"))
    with pytest.raises(PlanError, match="distinct names"):
        ds.trials.map(np.negative, out_dims=("trial", "b"))
    with pytest.raises(PlanError, match=r"coords\['freq'\] has 3 values along 'freq'; the output's dims are"):
        ds.trials.map(np.negative, out_dims=("freq", "channel"), coords={"freq": [1, 2, 3]})
    with pytest.raises(ArgumentError, match="expected a compute function, got int"):
        ds.trials.map(3)
    with pytest.raises(PlanError, match="has its arguments already"):
        ds.trials.map(subclass(scale)())
