"""What compute functions return beside their arrays, collected along ``trial``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from xroutine.plan import Plan
from xroutine.record import ROLE, decode, encode
from xroutine.trials import TRIAL

Array = np.ndarray[Any, Any]


def column_details(details: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """The details of a block's trials as JSON: for each name the positions of the trials that have it, and its values.

    Examples
    --------
    >>> column_details({4: {"peak": 1.5}, 5: {"peak": 2.0}})
    {'peak': {'trials': [4, 5], 'values': {'$values': ['<f8', [1.5, 2.0]]}}}
    """
    columns: dict[str, Any] = {}
    for position, found in details.items():
        for key, value in found.items():
            column = columns.setdefault(key, {"trials": [], "values": []})
            column["trials"].append(int(position))
            column["values"].append(value)
    for column in columns.values():
        values = column["values"]
        stacked = _stacked(values)
        column["values"] = encode(values if stacked is None else stacked, "", None)
    return columns


def collect_details(plan: Plan, receipts: dict[int, dict[str, Any]]) -> dict[str, xr.Variable]:
    """What the compute function returned beside its arrays, as variables along ``trial`` (and channel block).

    A trial that lacks a detail holds NaN, or an empty string. Details that differ in shape are kept as JSON text.
    """
    found: dict[str, list[tuple[list[int], int, Any]]] = {}
    for number, receipt in receipts.items():
        for key, column in receipt.get("details", {}).items():
            values = decode(column["values"], {}, strict=False)
            found.setdefault(key, []).append((column["trials"], number % plan.n_channel_blocks, values))
    return {key: _variable(plan, key, parts) for key, parts in found.items()}


def _variable(plan: Plan, key: str, parts: list[tuple[list[int], int, Any]]) -> xr.Variable:
    arrays = [values for _, _, values in parts if isinstance(values, np.ndarray)]
    if len(arrays) < len(parts) or len({(array.shape[1:], array.dtype.kind == "U") for array in arrays}) > 1:
        arrays = [np.array([json.dumps(encode(value, key, None)) for value in values]) for _, _, values in parts]
    dtype, count = np.result_type(*arrays), sum(map(len, arrays))
    if count < plan.n_trials * plan.n_channel_blocks and dtype.kind in "biu":
        dtype = np.dtype(np.float64)
    missing: Any = "" if dtype.kind == "U" else np.nan if dtype.kind in "fc" else 0
    filled = np.full((plan.n_trials, plan.n_channel_blocks, *arrays[0].shape[1:]), missing, dtype)
    for (trials, channel_block, _), array in zip(parts, arrays, strict=True):
        filled[trials, channel_block] = array
    dims = [TRIAL if plan.keeptrials else f"{key}_trial", "channel_block"]
    dims += [f"{key}_{axis}" for axis in range(filled.ndim - 2)]
    if plan.n_channel_blocks == 1:
        filled, dims = filled[:, 0], [dims[0], *dims[2:]]
    if plan.keeptrials and all(output.target.kind == "single" for output in plan.outputs):
        filled, dims = filled[0], dims[1:]
    return xr.Variable(dims, filled, {ROLE: "detail"})


def _stacked(values: Sequence[Any]) -> Array | None:
    """The values as one array, where they are numbers or texts of one shape."""
    try:
        arrays = [np.asarray(value) for value in values]
    except ValueError:  # nested lists of unequal length
        return None
    arrays = [array.astype("U") if array.dtype.kind == "S" else array for array in arrays]
    kinds = {array.dtype.kind for array in arrays}
    if len({array.shape for array in arrays}) > 1 or not (kinds == {"U"} or kinds <= set("biufc")):
        return None
    return np.stack(arrays)
