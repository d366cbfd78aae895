"""A run that is killed again and again ends with the bytes of one that was not, and computes nothing twice."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from killed import CASES, CHANNELS, TRIALS, run, trials

import xroutine as xrt
from xroutine.errors import BusyError, UnfinishedError
from xroutine.ledger import read_bounds, read_receipts
from xroutine.store import inspect, locate

THOROUGH = "XROUTINE_THOROUGH" in os.environ
KILLS = 4 if THOROUGH else 1
PAIRS = [("threads", "variance, ragged"), ("cluster", "kept, dense")]
if THOROUGH:
    PAIRS = [(engine, case) for engine in ("serial", "threads", "cluster") for case in CASES]


def start(*arguments):
    # Imported, so that the function has the same name here and there; where workers are spawned, they do not run it.
    script = "import sys\nif __name__ == '__main__': from killed import main; main(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        },
    )
    line = process.stdout.readline()
    assert line == "begun\n", process.communicate(timeout=60)
    return process


def wait_for_lines(log, count):
    limit = time.monotonic() + 60
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert time.monotonic() < limit
        time.sleep(0.01)


def kill(process, sign=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sign)
    return process.communicate(timeout=60)


def objects(out):
    """All that is stored, save when it was and how long it took."""
    found = {}
    for path in Path(out).rglob("*"):
        name = str(path.relative_to(out))
        if path.is_file() and not name.startswith("ledger/receipt/"):
            found[name] = path.read_bytes()
    root = json.loads(found.pop("zarr.json"))
    for key in ("history", "log", "xroutine_made"):
        root["attributes"].pop(key, None)
    return {**found, "root": root}


@pytest.mark.parametrize(("engine", "case"), PAIRS)
def test_killed_until_it_is_complete(engine, case, tmp_path):
    moments = random.Random(f"{engine}{case}" if "CI" in os.environ else None)
    log = tmp_path / "log"
    whole = tmp_path / "whole.zarr"
    run(whole, "serial", case, str(log))
    seconds = TRIALS * 0.008 * (2 if "ragged" in case else 1) / (1 if engine == "serial" else 2) + 0.3
    log.write_text("")
    out, finished, kills = tmp_path / "out.zarr", {}, 0
    while True:
        before = len(log.read_text().splitlines())
        process = start(out, engine, case, log)
        if kills < KILLS:
            time.sleep(moments.uniform(0.02, seconds))
            kill(process)
        else:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
        kills += 1
        # What was in the ledger when this run began, it has not computed.
        if finished:
            bounds = read_bounds(locate(out))
            by_width = {CHANNELS: 0} if "dense" in case else {2: 0, 1: 1}
            for line in log.read_text().splitlines()[before:]:
                number, width = map(int, line.split())
                block = np.searchsorted(bounds, number, "right") - 1
                assert int(block) * len(by_width) + by_width[width] not in finished
        mark = inspect(locate(out)) if out.exists() else None
        if mark is not None and mark["status"] == "complete":
            break
        if mark is not None:
            with pytest.raises(UnfinishedError):
                xrt.open(out)
            finished = read_receipts(locate(out), mark["blocks"])[0]
    xrt.verify(out)
    assert objects(out) == objects(whole)


def test_a_second_run_is_refused_while_the_first_one_lives(tmp_path):
    process = start(tmp_path / "out.zarr", "serial", "kept, ragged", tmp_path / "log")
    wait_for_lines(tmp_path / "log", 1)
    with pytest.raises(BusyError, match=rf"written by another run \(process {process.pid} on"):
        run(tmp_path / "out.zarr", "serial", "kept, ragged", str(tmp_path / "log"))
    os.killpg(process.pid, signal.SIGSTOP)
    with pytest.raises(BusyError):
        trials("kept, ragged").trials.map(np.negative, out=tmp_path / "out.zarr", overwrite=True)
    kill(process)
    trials("kept, ragged").trials.map(np.negative, out=tmp_path / "out.zarr", overwrite=True)
    xrt.verify(tmp_path / "out.zarr")


@pytest.mark.parametrize("engine", ["serial", "threads", "cluster"] if THOROUGH else ["threads"])
def test_ctrl_c_leaves_a_target_to_go_on_with_and_a_clean_terminal(engine, tmp_path):
    process = start(tmp_path / "out.zarr", engine, "kept, ragged", tmp_path / "log")
    wait_for_lines(tmp_path / "log", 20)
    # What dask's own workers print in a terminal, which tells them too, is not ours.
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("Traceback (most recent call last)") == 1, errors
    assert "KeyboardInterrupt" in errors.splitlines()[-2]
    assert "blocks are finished and kept in" in errors.splitlines()[-1]
    assert not (tmp_path / "out.zarr" / "ledger" / "receipt" / "lease").exists()
    with pytest.raises(UnfinishedError):
        xrt.open(tmp_path / "out.zarr")
    run(tmp_path / "out.zarr", "serial", "kept, ragged", str(tmp_path / "log"))
    xrt.verify(tmp_path / "out.zarr")
