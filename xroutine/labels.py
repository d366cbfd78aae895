"""The labels of a result: what carries over from the input, and what the user gives."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from xroutine.errors import PlanError
from xroutine.plan import Plan, kept_offset
from xroutine.trials import SAMPLE, TIME, TRIAL, View, row_start_coord, seconds


def result_labels(view: View, plan: Plan, coords: Mapping[str, Any] | None = None) -> xr.Dataset:
    """Coordinates of a plan's result, and as attributes those of its signal variable.

    Labels of dims that keep their name and size are carried over, and so are the trial table and the trial info.

    Parameters
    ----------
    coords : mapping, optional
        Labels of further dims, as `xarray.Dataset` takes them.

    Raises
    ------
    PlanError
        Where given labels do not fit the output.
    """
    target = plan.target
    sizes = dict(zip(plan.output.dims, plan.output.shape, strict=True))
    if target.kind == "ragged":
        del sizes[plan.output.dims[plan.output.axis]]
    before = dict(zip(view.dims, plan.input_shape, strict=True))
    kept = {dim for dim, size in sizes.items() if before.get(dim) == size and dim != TIME}
    out: dict[Hashable, Any] = {name: coord for name, coord in view.labels.items() if set(map(str, coord.dims)) <= kept}
    attrs: dict[str, Any] = {}
    if target.kind != "single":
        out[TRIAL] = (TRIAL, plan.trial, view.dataset.coords[TRIAL].attrs if TRIAL in view.dataset.coords else {})
        out |= view.info
    if target.kind == "ragged":
        if target.row_start is not None:
            out["row_start"] = row_start_coord(target.row_start, target.shape[plan.output.axis])
        out["row_size"] = (TRIAL, target.row_size)
        if plan.output.dims[plan.output.axis] != TIME:
            attrs["stacked_dim"] = plan.output.dims[plan.output.axis]
    offset = kept_offset(view, plan.output.dims, plan.output.answers)
    if offset is not None:
        if target.kind != "single":
            out["offset"] = (TRIAL, offset)
        if view.samplerate is not None:
            attrs["samplerate"] = view.samplerate
        if target.kind != "ragged":
            kept |= {TIME}
            out |= {name: coord for name, coord in view.labels.items() if set(map(str, coord.dims)) <= kept}
            if TIME not in out and view.samplerate is not None:
                out[TIME] = (TIME, seconds(int(offset[0]), sizes[TIME], view.samplerate), {"units": "s"})
    if target.kind == "dense" and view.layout == "dense":
        out |= {
            name: coord.variable
            for name, coord in view.dataset.coords.items()
            if coord.ndim > 1 and TRIAL in coord.dims and set(map(str, coord.dims)) <= kept | {TRIAL}
        }
    out |= {str(name): _given(str(name), value, sizes) for name, value in (coords or {}).items()}
    return xr.Dataset(coords=out, attrs=attrs)


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
