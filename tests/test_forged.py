"""Metadata that somebody has forged, and input that is not what it claims to be: errors of ours, and nothing else."""

from __future__ import annotations

import copy
import functools
import json
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xroutine as xrt
from xroutine.cli import info
from xroutine.errors import XroutineError
from xroutine.objects import put
from xroutine.seal import read_copies, write_seals
from xroutine.store import locate


def doubled(trial, weight=(1.0, None), chunkShape=None, noCompute=None):
    """Twice the trial."""
    return (trial.shape, trial.dtype) if noCompute else trial * 2


def make():
    rng = np.random.default_rng(0)
    return xrt.from_arrays([rng.standard_normal((n, 3)) for n in (5, 8, 6)], 100.0, trialinfo={"go": [1, 2, 3]})


@functools.cache
def template():
    """A folder with a result, and the objects in it."""
    folder = Path(tempfile.mkdtemp(prefix="xroutine-test"))
    make().trials.map(doubled, out=folder / "a.zarr", block_size=200, progress=False)
    return folder, read_copies(locate(folder / "a.zarr"))


VALUES = [None, True, -1, 0, 3, 10**15, 1e308, "", "x", "../../outside", "/outside", "a\x00b", "{", [], [[]], {}]
VALUES += [[10**12], [0], ["../outside"], {"$object": "os:system"}, {"$array": "../outside"}, {"a": 1}]


def paths(value, here=()):
    """All places in a JSON document, those within the JSON texts of our attributes too."""
    yield here
    if isinstance(value, str) and value.startswith("{"):
        yield from paths(json.loads(value), (*here, "text"))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*here, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:3]):
            yield from paths(item, (*here, number))


def replaced(value, path, new, remove):
    """The document with something else in a place, or nothing."""
    if not path:
        return new
    if isinstance(value, str):
        return json.dumps(replaced(json.loads(value), path[1:], new, remove))
    value = copy.copy(value)
    if remove and len(path) == 1:
        del value[path[0]]
    else:
        value[path[0]] = replaced(value[path[0]], path[1:], new, remove)
    return value


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_forged_metadata_are_errors_of_ours(data):
    folder, objects = template()
    out = folder / "a.zarr"
    key = data.draw(st.sampled_from(sorted(key for key in objects if key.endswith("zarr.json"))))
    document = json.loads(objects[key])
    path = data.draw(st.sampled_from(sorted(paths(document), key=repr)))
    new = replaced(document, path, data.draw(st.sampled_from(VALUES)), data.draw(st.booleans()))
    store = locate(out)
    before, memory, began = snapshot(folder), psutil.Process().memory_info().rss, time.monotonic()
    try:
        put(store, key, json.dumps(new).encode())
        write_seals(store, {**objects, key: json.dumps(new).encode()})
        forged = snapshot(folder)
        for act in (
            lambda: xrt.open(out).load(),
            lambda: xrt.open(out, unfinished=True).trials[0].values,
            lambda: xrt.verify(out),
            lambda: info(str(out)),
            lambda: xrt.replay(out, make()),
        ):
            try:
                act()
            except (XroutineError, OSError, MemoryError):
                pass
            except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
                # Chunks that are read as something else than they are: zarr's own errors, once they are looked at.
                if not re.search(r"site-packages.(zarr|xarray|numcodecs).", _files(error)):
                    raise
        assert snapshot(folder) == forged
    finally:
        for name, value in before.items():
            name.write_bytes(value)
    assert psutil.Process().memory_info().rss - memory < 300 * 2**20
    assert time.monotonic() - began < 20


def _files(error):
    """The files that an exception came through."""
    found, step = [], error.__traceback__
    while step is not None:
        found.append(step.tb_frame.f_code.co_filename)
        step = step.tb_next
    return " ".join(found)


numbers = st.one_of(st.integers(-5, 30), st.just(2**62), st.floats(), st.none(), st.text(max_size=2))
tables = st.lists(st.lists(numbers, min_size=0, max_size=4), max_size=4)


@given(tables)
def test_any_trial_definition_is_trials_or_an_error_of_ours(table):
    recording = xr.DataArray(np.arange(40.0).reshape(20, 2), dims=("time", "channel"), attrs={"samplerate": 10.0})
    try:
        ds = xrt.cut(recording, table)
    except XroutineError:
        return
    whole = np.array(table, dtype=np.int64)
    for trial, (start, stop, *_) in zip(ds.trials, whole.tolist(), strict=True):
        np.testing.assert_array_equal(trial.values, recording.values[start:stop])


labels = st.one_of(st.none(), numbers, st.lists(numbers, max_size=3))


@given(labels, labels, st.one_of(st.none(), st.tuples(numbers, numbers), labels))
def test_any_selection_is_trials_or_an_error(trials, channel, latency):
    ds = make()
    try:
        found = ds.trials.sel(trials=trials, channel=channel, latency=latency)
    except (XroutineError, KeyError):
        return
    for trial in found.trials:
        assert trial.sizes["time"] <= 8


answers = st.one_of(
    numbers,
    st.tuples(numbers, numbers),
    st.tuples(st.lists(numbers, max_size=3), st.sampled_from(["f8", "i4", "O", "S3", "nonsense", None, 7, float])),
    st.tuples(st.tuples(st.sampled_from([5, 8, 6]), st.just(3)), st.just("f8")),
)


@given(answers)
def test_any_dry_run_answer_is_a_plan_or_an_error_of_ours(answer):
    def declared(trial, chunkShape=None, noCompute=None):
        return answer

    try:
        plan = make().trials.plan(declared, out_dims=("a", "b"))
    except XroutineError:
        return
    assert plan.nbytes >= 0
