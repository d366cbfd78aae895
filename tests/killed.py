"""A run that may be killed, in a process of its own: `main` with OUT ENGINE CASE LOG. It prints a line as it begins."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext

import numpy as np

import xroutine as xrt
import xroutine.ledger

TRIALS, CHANNELS = 48, 3
CASES = {
    "kept, dense": {},
    "kept, ragged": {"chan_per_worker": 2},
    "mean, dense": {"keeptrials": False},
    "variance, ragged": {"keeptrials": False, "reduction": "var", "align": "trigger", "chan_per_worker": 2},
}


def trials(case):
    """Some trials, always the same."""
    rng = np.random.default_rng(0)
    lengths = np.full(TRIALS, 20) if "dense" in case else rng.integers(10, 30, TRIALS)
    arrays = [rng.standard_normal((n, CHANNELS)) for n in lengths]
    return xrt.from_arrays(arrays, 100.0, offset=-5, trialinfo={"condition": ["go", "stop"] * (TRIALS // 2)})


def slow(trial, number, log, chunkShape=None, noCompute=None):
    """The cumulated sum, slowly; every call leaves a line with the trial's number and the channels'."""
    if noCompute:
        return trial.shape, trial.dtype
    with open(log, "a") as file:
        file.write(f"{number} {trial.shape[1]}\n")
    time.sleep(0.008)
    return np.cumsum(trial, axis=0), {"total": float(trial.sum())}


def run(out, engine, case, log):
    """Compute a case on an engine."""
    from distributed import Client, LocalCluster

    cluster = nullcontext()
    if engine == "cluster":
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    with cluster, Client(cluster) if engine == "cluster" else nullcontext():
        print("begun", flush=True)
        trials(case).trials.map(
            slow,
            xrt.per_trial(list(range(TRIALS))),
            log,
            out=out,
            block_size=1200,
            parallel=engine != "serial",
            scheduler="threads" if engine == "threads" else None,
            progress=False,
            **CASES[case],
        )


def main(*arguments):
    """Run in a process group of its own."""
    # The ledger as often as can be, so that there is something to go on with.
    xroutine.ledger._SECONDS_BETWEEN_WRITES = 0.05
    xroutine.ledger._SHARE = 0.5
    os.setpgid(0, 0)
    run(*arguments)
