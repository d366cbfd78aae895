"""Reductions over trials: stable, merged in any order to the same numbers, aligned where asked for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from reference import reduced

import xroutine as xrt
from xroutine.errors import DryRunError, PlanError
from xroutine.reduce import REDUCTIONS, Forest, Node, Partial

stats = pytest.importorskip("scipy.stats")


def same(trial):
    return trial


@pytest.fixture
def dense():
    return xrt.from_arrays(list(np.random.default_rng(0).standard_normal((30, 40, 3))), 100.0, offset=-10)


@pytest.fixture
def ragged():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((n, 3)) for n in rng.integers(5, 40, 30)]
    return xrt.from_arrays(arrays, 100.0, offset=rng.integers(-300, 300, 30))


def test_reductions_are_those_of_xarray_and_scipy(dense):
    found = {
        name: dense.trials.map(same, keeptrials=False, reduction=name, block_size=3000).same for name in REDUCTIONS
    }
    for name in ("mean", "sum", "var", "std"):
        np.testing.assert_allclose(found[name], getattr(dense.data, name)("trial"), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found["sem"], stats.sem(dense.data.values, axis=0), rtol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_aligned_trials_are_averaged_where_they_cover(ragged, reduction, tmp_path):
    arrays, offset = [trial.values for trial in ragged.trials], ragged.trials.offset
    wanted, count = reduced(arrays, offset - offset.min(), reduction)
    assert count.min() == 0  # some samples lie in no trial
    assert count.max() > 2
    out = tmp_path / "a.zarr"
    options = {"keeptrials": False, "reduction": reduction, "align": "trigger", "block_size": 600}
    found = ragged.trials.map(same, out=out, **options)
    np.testing.assert_allclose(found.same.values, wanted, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(found.n_trials, count)
    np.testing.assert_array_equal(found.time, (np.arange(len(count)) + offset.min()) / 100)
    assert f"an average of 0 to {count.max()}" in repr(found.trials)
    xr.testing.assert_identical(xrt.replay(out, ragged).same.drop_attrs(), found.same.drop_attrs())


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "u1", "bool", "c8", "c16"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_dtypes(dtype, reduction):
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal((20, 6, 2)) * 50 + 60).astype(dtype)
    if dtype.startswith("c"):
        arrays = arrays + (1j * rng.standard_normal(arrays.shape)).astype(dtype)
    found = xrt.from_arrays(list(arrays), 1.0).trials.map(
        same, keeptrials=False, reduction=reduction, block_size=100, parallel=False
    )
    wide = arrays.astype("c16" if dtype.startswith("c") else "f8")
    spread = reduction in ("var", "std", "sem")
    expected = {"f4": "f4", "c8": "f4" if spread else "c8", "c16": "f8" if spread else "c16"}.get(dtype, "f8")
    assert found.same.dtype == expected
    wanted, _ = reduced(list(wide), None, reduction)
    np.testing.assert_allclose(found.same.values, wanted.astype(expected), rtol=1e-12 if expected != "f4" else 3e-7)


def test_variance_is_stable_far_from_zero():
    values = np.random.default_rng(0).standard_normal((3000, 1, 1)) + 1e9
    exact = np.var(values.astype(np.longdouble))
    naive = (values**2).mean() - values.mean() ** 2
    assert abs(naive - exact) > 0.1 * exact  # what a single pass with sums of squares would give
    found = xrt.from_arrays(list(values), 1.0).trials.map(same, keeptrials=False, reduction="var", block_size=400)
    np.testing.assert_allclose(found.same.values, float(exact), rtol=1e-7)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20), st.sampled_from(["var", "mean"]), st.randoms(), st.booleans()
)
def test_however_trials_are_split_and_whichever_block_comes_first(blocks, reduction, random, aligned):
    rng = np.random.default_rng(len(blocks))
    trials = rng.standard_normal((sum(blocks), 4, 2)) * 10.0 ** rng.integers(-3, 3, (sum(blocks), 1, 1))
    start = rng.integers(0, 5, len(trials)) if aligned else np.zeros(len(trials), int)
    shape = (9, 2) if aligned else (4, 2)
    partials, bounds = [], np.append(0, np.cumsum(blocks))
    for first, last in itertools.pairwise(bounds):
        partial = Partial.zeros(shape, np.dtype("f8"), reduction, 0 if aligned else None)
        for trial, row in zip(trials[first:last], start[first:last], strict=True):
            partial.add(trial, (slice(row, row + 4),) if aligned else ())
        partials.append(partial)
    results = []
    for killed in (False, True):
        forest, order = Forest(len(blocks), 1), list(range(len(blocks)))
        random.shuffle(order)
        if killed:
            # Killed as it wrote: nodes of two moments are stored, and the receipts of the one or the other.
            moments, stored = sorted(random.choices(range(len(blocks) + 1), k=2)), {}
            for number, leaf in enumerate(order):
                stored |= forest.nodes if number in moments else {}
                forest.add(Node(0, 0, leaf), (partials[leaf],))
            receipts = set(order[: random.choice(moments)])
            forest = Forest(len(blocks), 1)
            held = set().union(*map(forest.blocks, forest.restore(stored, receipts)))
            assert held == receipts or len(blocks) in moments
            order = [leaf for leaf in order if leaf not in set().union(*map(forest.blocks, forest.nodes))]
        for leaf in order:
            forest.add(Node(0, 0, leaf), (partials[leaf],))
        results.append(forest.roots()[0][0].result(reduction, np.dtype("f8")))
    np.testing.assert_array_equal(*results)
    wanted, _ = reduced(list(trials), start if aligned else None, reduction)
    np.testing.assert_allclose(results[0][: len(wanted)], wanted, rtol=1e-10, atol=1e-10)


def test_one_trial_has_no_standard_error():
    one = xrt.from_arrays([np.ones((3, 2))], 1.0).trials
    assert np.isnan(one.map(same, keeptrials=False, reduction="sem").same).all()
    assert (one.map(same, keeptrials=False, reduction="std").same == 0).all()


def test_numbers_that_are_no_arrays():
    found = xrt.from_arrays([np.full((3, 2), n) for n in range(5)], 1.0).trials.map(
        np.mean, out_dims=(), keeptrials=False, reduction="var"
    )
    assert found["mean"].values == np.var(np.arange(5))


def test_what_cannot_be_averaged_says_what_would_help(ragged, dense):
    with pytest.raises(DryRunError, match=r"different sizes along \['time'\].*give align='trigger'"):
        ragged.trials.map(same, keeptrials=False)
    with pytest.raises(PlanError, match=r"reduction='median': expected one of mean, sum, var, std, sem"):
        dense.trials.map(same, keeptrials=False, reduction="median")
    for given_options in ({"reduction": "var"}, {"align": "trigger"}):
        with pytest.raises(PlanError, match="goes with keeptrials=False"):
            dense.trials.map(same, **given_options)
    with pytest.raises(PlanError, match="align='onset': expected 'trigger' or None"):
        dense.trials.map(same, keeptrials=False, align="onset")
    with pytest.raises(PlanError, match=r"keeps the samples of each trial along `time`, found ptp \('channel',\)"):
        ragged.trials.map(np.ptp, axis=0, out_dims=("channel",), keeptrials=False, align="trigger")
    # As long as the trial along time, and of another width for each.
    options = {"keeptrials": False, "align": "trigger", "out_dims": ("time", "channel")}
    with pytest.raises(DryRunError, match="different sizes along 'channel'"):
        ragged.trials.map(lambda trial: trial[:, [0] * len(trial)], **options)


def test_another_reduction_is_another_plan(dense, tmp_path):
    dense.trials.map(same, keeptrials=False, out=tmp_path / "a.zarr")
    with pytest.raises(FileExistsError, match='reduction: "mean" there, "var" now'):
        dense.trials.map(same, keeptrials=False, reduction="var", out=tmp_path / "a.zarr")
