"""Saving trials: a routine that changes nothing, so that they are written as any result is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xroutine.container import Trials
from xroutine.record import ROLE
from xroutine.routine import ComputationalRoutine
from xroutine.trials import SAMPLE


def same(arr: Any, chunkShape: Any = None, noCompute: bool | None = None) -> Any:
    """The trial as it is."""
    return (arr.shape, arr.dtype) if noCompute else arr


class Save(ComputationalRoutine):
    """Writes trials as they are, and their provenance as it was."""

    computeFunction = staticmethod(same)

    @property
    def name(self) -> str:
        return "data" if self._view is None else self._view.name

    def process_metadata(self, data: Trials, out: Trials) -> None:
        beside = {
            name: found.variable
            for name, found in data.dataset.data_vars.items()
            if name != data._name and SAMPLE not in found.dims and ROLE in found.attrs
        }
        scalars = {name: coord for name, coord in data.dataset.coords.items() if not coord.dims}
        out._dataset = out.dataset.assign(beside).assign_coords(scalars)

    def write_log(self, data: Trials, out: Trials, log_dict: Mapping[str, Any] | None = None) -> None:
        out._dataset = out.dataset.assign_attrs(data.dataset.attrs)
