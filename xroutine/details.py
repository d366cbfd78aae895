"""What compute functions return beside their arrays, collected along ``trial``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from xroutine.plan import Plan
from xroutine.record import ROLE, decode, encode
from xroutine.trials import TRIAL


def collect_details(plan: Plan, receipts: dict[int, dict[str, Any]]) -> dict[str, xr.Variable]:
    """What the compute function returned beside its arrays, as variables along ``trial`` (and channel block).

    A trial that lacks a detail holds NaN, or an empty string. Details that differ in shape are kept as JSON text.
    """
    cells: dict[str, dict[tuple[int, int], Any]] = {}
    for number, receipt in receipts.items():
        for position, found in receipt.get("details", {}).items():
            for key, value in decode(found, {}, strict=False).items():
                cells.setdefault(key, {})[int(position), number % plan.n_channel_blocks] = value
    variables = {}
    for key, values in cells.items():
        arrays = [_text(np.asarray(value)) for value in values.values()]
        shapes, texts = {array.shape for array in arrays}, {array.dtype.kind == "U" for array in arrays}
        if len(shapes) > 1 or len(texts) > 1 or any(array.dtype.kind not in "biufcU" for array in arrays):
            arrays = [np.asarray(json.dumps(encode(value, key, None))) for value in values.values()]
        dtype = np.result_type(*arrays)
        if len(values) < plan.n_trials * plan.n_channel_blocks and dtype.kind in "biu":
            dtype = np.dtype(np.float64)
        missing: Any = "" if dtype.kind == "U" else np.nan
        column = np.full(
            (plan.n_trials, plan.n_channel_blocks, *arrays[0].shape), missing if dtype.kind not in "biu" else 0, dtype
        )
        for place, array in zip(values, arrays, strict=True):
            column[place] = array
        dims = [TRIAL if plan.keeptrials else f"{key}_trial", "channel_block"]
        dims += [f"{key}_{axis}" for axis in range(arrays[0].ndim)]
        if plan.n_channel_blocks == 1:
            column, dims = column[:, 0], [dims[0], *dims[2:]]
        if plan.target.kind == "single" and plan.keeptrials:
            column, dims = column[0], dims[1:]
        variables[key] = xr.Variable(dims, column, {ROLE: "detail"})
    return variables


def _text(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype("U") if array.dtype.kind == "S" else array
