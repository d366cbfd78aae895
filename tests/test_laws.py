"""Any geometry x any engine x any source gives what the loop gives, bit for bit, under the right labels."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from geometry import FUNCTIONS, double, geometries
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import average, loop

import xroutine as xrt

ENGINES = {
    "serial": {"parallel": False},
    "threads": {"parallel": True, "scheduler": "threads"},
    "threads, written by the coordinator": {"scheduler": "threads", "parallel_store": False},
    "synchronous": {"scheduler": "synchronous"},
}


def check(result: xr.Dataset, name: str, geometry, function) -> None:
    expected = loop(geometry.trials, function)
    found = list(result.trials)
    assert len(found) == len(expected)
    for number, (trial, wanted) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(trial.values, wanted, strict=True)
        assert trial.trial.item() == geometry.ids[number]
        assert trial.channel.values.tolist() == [f"channel{k + 1}" for k in range(geometry.channels)]
        if "time" in trial.dims and trial.sizes["time"] == len(geometry.trials[number]) and _kept(geometry, function):
            seconds = (np.arange(len(geometry.trials[number])) + geometry.offset[number]) / 250.0
            np.testing.assert_array_equal(trial.time.values, seconds)


def _kept(geometry, function) -> bool:
    return all(
        output.size == trial.size
        for output, trial in zip(loop(geometry.trials, function), geometry.trials, strict=True)
    )


def prove(plan, n_channels) -> None:
    """Every cell of trials x channels is in one block, every chunk has one owner: by counting, not by arithmetic."""
    owners: dict[tuple[int, ...], int] = {}
    work = np.zeros((plan.n_trials, max(n_channels, 1)), int)
    for block in plan.blocks():
        low, high = plan.channel_bounds[block.channel_block : block.channel_block + 2]
        work[block.first : block.first + len(block.trial), low:high] += 1
        ranges = [
            range(piece.start // chunk, -(-piece.stop // chunk))
            for piece, chunk in zip(block.gives[0].writes, plan.target.chunks, strict=True)
        ]
        for index in np.ndindex(*(len(r) for r in ranges)):
            key = tuple(r[i] for r, i in zip(ranges, index, strict=True))
            assert owners.setdefault(key, block.number) == block.number
    assert (work == 1).all()
    assert len(owners) == plan.target.n_chunks


@settings(max_examples=40)
@given(geometries(), st.sampled_from(list(FUNCTIONS)), st.sampled_from(list(ENGINES)))
def test_stored_result_is_the_loops(geometry, function, engine):
    with tempfile.TemporaryDirectory() as folder:
        data = geometry.dataset(Path(folder))
        options = {"block_size": geometry.block_size, "chan_per_worker": geometry.chan_per_worker}
        out = Path(folder) / "out.zarr"
        result = data.trials.map(function, out=out, out_dims=FUNCTIONS[function], **options, **ENGINES[engine])
        check(result, function.__name__, geometry, function)
        xrt.verify(out)
        data.close()


@settings(max_examples=40)
@given(geometries(sources=("numpy", "dask")), st.sampled_from(list(FUNCTIONS)), st.sampled_from(list(ENGINES)))
def test_result_in_memory_is_the_loops(geometry, function, engine):
    data = geometry.dataset(Path())
    options = {"block_size": geometry.block_size, "chan_per_worker": geometry.chan_per_worker}
    result = data.trials.map(function, out_dims=FUNCTIONS[function], **options, **ENGINES[engine])
    check(result, function.__name__, geometry, function)


@settings(max_examples=300)
@given(geometries(sources=("numpy",), most_blocks=2000), st.sampled_from(list(FUNCTIONS)))
def test_every_cell_is_computed_once_and_every_chunk_has_one_owner(geometry, function):
    data = geometry.dataset(Path())
    options = {"block_size": geometry.block_size, "chan_per_worker": geometry.chan_per_worker}
    plan = data.trials.plan(function, out_dims=FUNCTIONS[function], **options)
    prove(plan, geometry.channels)


@pytest.mark.parametrize("store_by", ["workers", "coordinator"])
def test_two_processes_give_the_loops_result(client, store_by):
    @settings(max_examples=15)
    @given(geometries(most_trials=60), st.sampled_from(list(FUNCTIONS)))
    def law(geometry, function):
        with tempfile.TemporaryDirectory() as folder:
            data = geometry.dataset(Path(folder))
            result = data.trials.map(
                function,
                out=Path(folder) / "out.zarr",
                out_dims=FUNCTIONS[function],
                block_size=geometry.block_size,
                chan_per_worker=geometry.chan_per_worker,
                parallel_store=store_by == "workers",
            )
            check(result, function.__name__, geometry, function)
            data.close()

    law()


def test_dasks_own_processes_give_the_loops_result(tmp_path):
    rng = np.random.default_rng(1)
    trials = [rng.standard_normal((length, 5)) for length in rng.integers(10, 50, 40)]
    data = xrt.from_arrays(trials, 250.0)
    options = {"scheduler": "processes", "block_size": 4000, "chan_per_worker": 2}
    for out in (tmp_path / "out.zarr", None):
        result = data.trials.map(double, out=out, **options)
        for found, wanted in zip(result.trials, trials, strict=True):
            np.testing.assert_array_equal(found.values, wanted * 2, strict=True)


@settings(max_examples=30)
@given(geometries(sources=("numpy", "dask")), st.sampled_from(list(ENGINES)))
def test_average_is_the_loops_and_the_same_bits_on_every_engine(geometry, engine):
    data = geometry.dataset(Path())
    options = {
        "out_dims": ("channel",),
        "keeptrials": False,
        "block_size": geometry.block_size,
        "chan_per_worker": geometry.chan_per_worker,
    }
    found = data.trials.map(total_of, **options, **ENGINES[engine])
    expected = average(geometry.trials, total_of)
    # Sums that nearly cancel are as exact as what they are sums of.
    scale = np.mean([np.abs(output).max() for output in loop(geometry.trials, total_of)])
    np.testing.assert_allclose(found.total_of.values, expected, rtol=1e-12, atol=1e-12 * scale)
    assert found.n_trials == len(geometry.trials)
    again = data.trials.map(total_of, parallel=False, **options)
    np.testing.assert_array_equal(found.total_of.values, again.total_of.values, strict=True)


def total_of(trial):
    return trial.astype(np.result_type(trial, np.float64)).sum(axis=0)
