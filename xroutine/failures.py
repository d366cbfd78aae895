"""Trials whose computation failed: as a block's receipt holds them, and as variables along ``trial``."""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from xroutine.plan import Plan
from xroutine.record import ROLE
from xroutine.trials import TIME, TRIAL

FAILED = "failed"
ERROR = "error"
_LONGEST = 10_000


class Failure(NamedTuple):
    """Why a trial failed: in a line, and as a traceback, of which a very long one is cut."""

    error: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        text = "".join(traceback.format_exception(error)).rstrip()
        return cls(" ".join(f"{type(error).__name__}: {error}".split()), text[-_LONGEST:])


def pack_failures(failed: dict[int, Failure]) -> dict[str, Any]:
    """Failed trials as JSON, each failure once.

    Examples
    --------
    >>> bad = Failure("ValueError: bad", "Traceback (most recent call last): ...")
    >>> pack_failures({4: bad, 7: bad})["trials"], pack_failures({4: bad, 7: bad})["failure"]
    ([4, 7], [0, 0])
    """
    kinds = {failure: number for number, failure in enumerate(dict.fromkeys(failed.values()))}
    numbers = [kinds[failure] for failure in failed.values()]
    return {"trials": list(failed), "failure": numbers, "failures": [failure._asdict() for failure in kinds]}


def failed_trials(receipts: dict[int, dict[str, Any]]) -> dict[int, Failure]:
    """Why each trial that failed did, by position; the first reason, where several blocks of channels failed."""
    found: dict[int, Failure] = {}
    for receipt in receipts.values():
        packed = receipt.get(FAILED)
        if packed:
            for trial, number in zip(packed["trials"], packed["failure"], strict=True):
                found.setdefault(trial, Failure(**packed["failures"][number]))
    return dict(sorted(found.items()))


def collect_failures(plan: Plan, receipts: dict[int, dict[str, Any]]) -> dict[str, xr.Variable]:
    """Variables ``failed`` (bool) and ``error`` (in a line) along ``trial``; none where all trials are there.

    Averages have no trials: there they lie along ``failed_trial``, which counts the input's trials.
    """
    failed = failed_trials(receipts)
    if not failed:
        return {}
    flags, errors = np.zeros(plan.n_trials, bool), np.full(plan.n_trials, "", object)
    for trial, failure in failed.items():
        flags[trial], errors[trial] = True, failure.error
    dims = [TRIAL if plan.keeptrials else f"{FAILED}_trial"]
    values: dict[str, Any] = {FAILED: flags, ERROR: errors.astype(str)}
    if plan.keeptrials and all(output.target.kind == "single" for output in plan.outputs):
        values, dims = {name: value[0] for name, value in values.items()}, []
    return {name: xr.Variable(dims, value, {ROLE: "failure"}) for name, value in values.items()}


def reduced_n_trials(plan: Plan, receipts: dict[int, dict[str, Any]]) -> xr.Variable:
    """``n_trials`` of an average that some trials failed to get into; along the channels, where they differ there."""
    aligned = [output for output in plan.outputs if output.slot is not None]
    output = (aligned or plan.outputs)[0]
    by_block: list[set[int]] = [set() for _ in range(plan.n_channel_blocks)]
    for number, receipt in receipts.items():
        by_block[number % plan.n_channel_blocks].update(receipt.get(FAILED, {}).get("trials", ()))
    counts = [np.asarray(output.contributors(sorted(left_out))) for left_out in by_block]
    dims = [TIME] if aligned else []
    if output.channel_axis is None or all(np.array_equal(count, counts[0]) for count in counts):
        return xr.Variable(dims, counts[0])
    widths = np.diff(output.channel_bounds)
    return xr.Variable([*dims, output.dims[output.channel_axis]], np.repeat(np.stack(counts, -1), widths, axis=-1))
