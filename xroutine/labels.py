"""The labels of a result: what carries over from the input, and what the user gives."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xroutine.errors import PlanError
from xroutine.plan import Output, Plan, kept_offset
from xroutine.trials import SAMPLE, TIME, TRIAL, View, row_start_coord, seconds, table_name


def result_labels(
    view: View, plan: Plan, coords: Mapping[str, Any] | None = None
) -> tuple[xr.Dataset, dict[str, dict[str, Any]]]:
    """Coordinates of a plan's result, and the attributes of each of its signals.

    Labels of dims that keep their name and size are carried over, and so are the trial table and the trial info.

    Parameters
    ----------
    coords : mapping, optional
        Labels of further dims, as `xarray.Dataset` takes them.

    Raises
    ------
    PlanError
        Where given labels do not fit the outputs, or outputs do not fit together.
    """
    out: dict[Hashable, Any] = {}
    attrs: dict[str, dict[str, Any]] = {}
    sizes: dict[str, int] = {}
    for output in plan.outputs:
        found, attrs[output.name] = _output_labels(view, plan, output)
        out |= found
        for dim, size in _sizes(output).items():
            if sizes.setdefault(dim, size) != size:
                raise PlanError(
                    f"outputs {[other.name for other in plan.outputs]} have {dim!r} with {sizes[dim]} and {size} "
                    f"elements: one Dataset cannot hold both, call one dim otherwise"
                )
    if any(output.target.kind != "single" for output in plan.outputs):
        out[TRIAL] = (TRIAL, plan.trial, view.dataset.coords[TRIAL].attrs if TRIAL in view.dataset.coords else {})
        out |= view.info
    if not plan.keeptrials:
        aligned = [output for output in plan.outputs if output.slot is not None]
        out["n_trials"] = (TIME, aligned[0].contributors()) if aligned else plan.n_trials
    out |= {str(name): _given(str(name), value, sizes) for name, value in (coords or {}).items()}
    return xr.Dataset(coords=out), attrs


def _sizes(output: Output) -> dict[str, int]:
    """Sizes of a result's dims that are also those of one trial."""
    sizes = dict(zip(output.dims, output.shape, strict=True))
    if output.target.kind == "ragged":
        del sizes[output.dims[output.axis]]
    elif output.slot is not None:
        sizes[output.dims[output.axis]] = output.target.shape[output.axis]
    return sizes


def _output_labels(view: View, plan: Plan, output: Output) -> tuple[dict[Hashable, Any], dict[str, Any]]:
    """Coordinates of one output, and its attributes."""
    target, sizes = output.target, _sizes(output)
    before = dict(zip(view.dims, plan.input_shape, strict=True))
    kept = {dim for dim, size in sizes.items() if before.get(dim) == size and dim != TIME}
    out: dict[Hashable, Any] = {}
    attrs: dict[str, Any] = {}
    if target.row_start is not None:
        sample = target.dims[output.axis]
        out[table_name("row_start", sample)] = row_start_coord(target.row_start, target.shape[output.axis])
        out[table_name("row_size", sample)] = (TRIAL, target.row_size)
        if output.dims[output.axis] != TIME:
            attrs["stacked_dim"] = output.dims[output.axis]
    offset = kept_offset(view, output.dims, output.answers)
    if offset is not None:
        if target.kind != "single":
            out["offset"] = (TRIAL, offset)
        if view.samplerate is not None:
            attrs["samplerate"] = view.samplerate
            if target.kind != "ragged":
                out[TIME] = (TIME, seconds(int(offset.min()), sizes[TIME], view.samplerate), {"units": "s"})
        if target.kind != "ragged" and before[TIME] == sizes[TIME]:
            kept |= {TIME}
    out |= {name: coord for name, coord in view.labels.items() if set(map(str, coord.dims)) <= kept}
    if target.kind == "dense" and view.layout == "dense":
        out |= {
            name: coord.variable
            for name, coord in view.dataset.coords.items()
            if coord.ndim > 1 and TRIAL in coord.dims and set(map(str, coord.dims)) <= kept | {TRIAL}
        }
    return out, attrs


def _given(name: str, value: Any, sizes: dict[str, int]) -> xr.Variable:
    if isinstance(value, (xr.DataArray, xr.Variable)):
        variable = value.variable if isinstance(value, xr.DataArray) else value
    elif isinstance(value, tuple) and len(value) in (2, 3) and isinstance(value[0], (str, tuple, list)):
        variable = xr.Variable(*value)
    else:
        variable = xr.Variable((name,) if np.ndim(value) == 1 else (), value)
    for dim, size in variable.sizes.items():
        if dim not in sizes or sizes[str(dim)] != size:
            raise PlanError(
                f"coords[{name!r}] has {size} values along {dim!r}; the output's dims are {sizes}"
                + (f" (trials lie end to end along {SAMPLE!r})" if dim not in sizes else "")
            )
    return variable
