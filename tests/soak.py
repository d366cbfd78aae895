"""Runs, interruptions, kills and resumes for a long time: ``python tests/soak.py --minutes 30``.

Prints memory and open files of this process every minute, and ends with an error where they grow or a result is wrong.
"""

from __future__ import annotations

import argparse
import gc
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
from killed import CASES, CHANNELS, trials
from test_kills import kill, start

import xroutine as xrt


class Interrupted(Exception):
    """Raised in the middle of a run."""


# Calls until an interruption.
LEFT = [0]


def cumulated(trial, chunkShape=None, noCompute=None):
    """The cumulated sum; an exception when the calls that are left have been made."""
    if noCompute:
        return trial.shape, trial.dtype
    LEFT[0] -= 1
    if LEFT[0] == 0:
        raise Interrupted
    return np.cumsum(trial, axis=0)


def values(ds, case):
    """What is comparable, wherever rows lie that no trial uses."""
    return [ds.cumulated.values] if "kept" not in case else [trial.values for trial in ds.trials]


def interrupted(moments, folder, done):
    """One result, in this process, with interruptions on the way."""
    case = moments.choice(list(CASES))
    ds = trials(case)
    options = {"block_size": 1200, "progress": False, **CASES[case]}
    options |= moments.choice([{"parallel": False}, {"scheduler": "threads"}])
    LEFT[0] = 0
    wanted = ds.trials.map(cumulated, **options)
    while True:
        LEFT[0] = moments.choice([0, moments.randrange(1, 100)])
        done["runs"] += 1
        try:
            found = ds.trials.map(cumulated, out=folder / "a.zarr", **options)
        except Interrupted:
            done["interruptions"] += 1
            continue
        for one, other in zip(values(found, case), values(wanted, case), strict=True):
            np.testing.assert_array_equal(one, other)
        break
    if moments.random() < 0.3:
        LEFT[0] = 0
        chunk = moments.choice([path for path in (folder / "a.zarr").rglob("c/**/*") if path.is_file()])
        raw = chunk.read_bytes()
        chunk.write_bytes(raw[: len(raw) // 2])
        xrt.verify(folder / "a.zarr", ds, repair=True)
        assert chunk.read_bytes() == raw
        done["repairs"] += 1


def killed(moments, folder, done):
    """One result, in processes that are killed."""
    case, engine = moments.choice(list(CASES)), moments.choice(["serial", "threads", "cluster"])
    for _ in range(moments.randrange(4)):
        process = start(folder / "a.zarr", engine, case, folder / "log")
        time.sleep(moments.uniform(0.02, 0.8))
        kill(process, signal.SIGKILL)
        done["kills"] += 1
    process = start(folder / "a.zarr", engine, case, folder / "log")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert xrt.open(folder / "a.zarr").sizes["channel"] == CHANNELS
    xrt.verify(folder / "a.zarr")


def main():
    """Loop, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args()
    warnings.simplefilter("error")
    moments, done, began, rows = random.Random(), Counter(), time.monotonic(), []
    me = psutil.Process()
    while (now := time.monotonic() - began) < given.minutes * 60:
        folder = Path(tempfile.mkdtemp())
        moments.choices([interrupted, killed], [0.8, 0.2])[0](moments, folder, done)
        shutil.rmtree(folder)
        done["results"] += 1
        if now > 60 * len(rows):
            gc.collect()
            rows.append((now / 60, me.memory_info().rss / 2**20, me.num_fds(), me.num_threads()))
            print("minute {:5.1f}: {:6.1f} MiB, {} open files, {} threads".format(*rows[-1]), dict(done), flush=True)
    memory, files = (np.array([row[column] for row in rows]) for column in (1, 2))
    part = max(len(rows) // 4, 1)
    grown = memory[-part:].mean() / memory[part : 2 * part].mean() - 1
    print(f"memory, last quarter against second: {grown:+.1%}; open files {files[part:].min()}-{files[part:].max()}")
    assert abs(grown) < 0.1
    assert files[-1] <= files[part:].min() + 2


if __name__ == "__main__":
    main()
