"""Saving trials: a routine that changes nothing, so that they are written as any result is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xroutine.container import Trials
from xroutine.errors import PlanError
from xroutine.record import plain_attrs
from xroutine.routine import ComputationalRoutine
from xroutine.trials import in_table, signals


def same(arr: Any, chunkShape: Any = None, noCompute: bool | None = None) -> Any:
    """The trial as it is."""
    return (arr.shape, arr.dtype) if noCompute else arr


class Save(ComputationalRoutine):
    """Writes trials as they are, and their provenance as it was."""

    computeFunction = staticmethod(same)

    @property
    def name(self) -> str:
        return "data" if self._view is None else self._view.name

    def preallocate_output(self, out: Trials, parallel_store: bool = False) -> None:
        """Refuse what would be lost, before anything is allocated."""
        along = {self.view.sample} if self.view.layout == "ragged" else set()
        others = set(self.view.dataset.variables) - {self.view.name}
        lost = sorted(str(name) for name in others if along & set(self.view.dataset.variables[name].dims))
        lost += sorted(name for name in signals(self.view.dataset) if name in others and name not in lost)
        if lost:
            raise PlanError(f"save writes one signal, {self.view.name!r}; {lost} would be lost: drop them first")
        super().preallocate_output(out, parallel_store)

    def process_metadata(self, data: Trials, out: Trials) -> None:
        rows = [name for name in data.dataset.coords if in_table(name) and name != "offset"]
        before = data.dataset.drop_vars([data._name, *rows, *out.dataset.variables], errors="ignore")
        out._dataset = out.dataset.assign_coords(before.coords).assign(before.data_vars)
        out._dataset[self.name].attrs.update(plain_attrs(data.dataset[data._name].attrs))

    def write_log(self, data: Trials, out: Trials, log_dict: Mapping[str, Any] | None = None) -> None:
        out._dataset = out.dataset.assign_attrs(plain_attrs(data.dataset.attrs))
