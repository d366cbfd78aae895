"""What a run was called with: to know it again (`fingerprint`), and to do it again (`cfg`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from xroutine.plan import Output, Plan
from xroutine.record import ROLE, code_digest, digest, encode, is_importable, versions

# Begins what tells one version of a function from another, where a name tells which function it is.
SOURCE = "source of "


def fingerprint(
    plan: Plan,
    routine: str,
    code: Mapping[str, Any],
    arguments: Mapping[str, Any],
    coords: Mapping[str, xr.Variable],
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """What has to be equal for a run to go on where another one stopped, in words and digests.

    Parameters
    ----------
    plan : Plan
    routine : str
        The routine's importable name.
    code : mapping
        The functions that decide what is computed, by name.
    arguments : mapping
        As given by the user.
    coords : mapping
        Labels that were given.
    source : mapping
        The input's identity.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    words = {f"argument {key}": encode(value, key, arrays) for key, value in arguments.items()}
    objects = {**code, **{key: value for key, value in arguments.items() if callable(value)}}
    return {
        "routine": routine,
        **words,
        # Without a name that stands for it, a function is known by its code only.
        **{
            f"{SOURCE if is_importable(value) else 'object '}{key}": code_digest(value)
            for key, value in objects.items()
        },
        **{f"coords {key}": code_digest([value.dims, value.values.tolist()]) for key, value in coords.items()},
        **{f"array {key}": digest(value) for key, value in arrays.items()},
        **{f"input {key}": value for key, value in source.items()},
        **{f"output {output.name}": _layout(output) for output in plan.outputs},
        "reduction": plan.reduction,
        "trial blocks": digest(plan.trial_bounds),
        "channel blocks": digest(plan.channel_bounds),
        "versions": {name: versions()[name] for name in ("xroutine", "numpy")},
    }


def record_call(
    plan: Plan,
    routine: str,
    argv: Mapping[str, Any],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    coords: Mapping[str, xr.Variable],
    source: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, xr.Variable]]:
    """The `cfg` of a run as JSON, and the arrays that it refers to as variables to be stored beside it.

    Parameters
    ----------
    plan : Plan
    routine : str
        The routine's importable name.
    argv, kwargs : mapping
        Positional arguments by name, and keyword arguments.
    options : mapping
        What else the plan was asked for.
    coords : mapping
        Labels that were given; they are stored as coordinates already.
    source : mapping
        The input's identity.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    given = {name: {"$variable": [list(map(str, coord.dims)), {"$array": name}]} for name, coord in coords.items()}
    declared = {output.name: output.dims for output in plan.outputs}
    dims = {"outputs": declared} if plan.call.outputs else {"out_dims": plan.output.dims}
    cfg = {
        "routine": routine,
        "argv": [encode(value, f"cfg_{name}", arrays) for name, value in argv.items()],
        "kwargs": encode(kwargs, "cfg", arrays),
        "options": {**encode({**dims, **options}, "cfg", arrays), "coords": given},
        "input": dict(source),
        "plan": {
            "blocks": len(plan),
            "trial_blocks": plan.n_trial_blocks,
            "channel_blocks": plan.n_channel_blocks,
            "outputs": {output.name: _layout(output) for output in plan.outputs},
        },
        "versions": dict(versions()),
    }
    return cfg, {
        name: xr.Variable([f"{name}_{axis}" for axis in range(value.ndim)], value, {ROLE: "argument"})
        for name, value in arrays.items()
    }


def _layout(output: Output) -> dict[str, Any]:
    target = output.target
    found = {"dims": list(target.dims), "shape": list(target.shape), "chunks": list(target.chunks)}
    return {**found, "dtype": target.dtype.str}
