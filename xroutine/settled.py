"""What `initialize` settles for a routine, under its published names."""

from __future__ import annotations

from typing import Any

import numpy as np

from xroutine.errors import PlanError
from xroutine.plan import Plan
from xroutine.trials import View


class Settled:
    """The plan of a routine, the trials it is for, and the published names of what they tell."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._view: View | None = None

    @property
    def view(self) -> View:
        """The input's trials."""
        if self._view is None:
            raise PlanError(f"{type(self).__name__}: call initialize(data, out_stackingdim) first")
        return self._view

    @property
    def plan(self) -> Plan:
        """What `initialize` settled."""
        if self._plan is None:
            raise PlanError(f"{type(self).__name__}: call initialize(data, out_stackingdim) first")
        return self._plan

    @property
    def outputShape(self) -> tuple[int, ...]:
        """Shape of all trials stacked along `out_stackingdim`, or of their average; of the first of several outputs."""
        output = self.plan.output
        if not self.plan.keeptrials:
            return output.target.shape
        rows = int(output.width.sum())
        return tuple(rows if axis == output.axis else size for axis, size in enumerate(output.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of one trial's output, the first of several."""
        return self.plan.output.dtype

    @property
    def chunkShape(self) -> Any:
        """Largest output shape over all trials; of several outputs, by name."""
        return self.plan.chunk_shape

    @property
    def numTrials(self) -> int:
        return self.plan.n_trials

    @property
    def trialList(self) -> list[int]:
        """Positions of the trials to process."""
        return list(range(self.plan.n_trials))

    @property
    def numBlocksPerTrial(self) -> int:
        """Number of channel blocks."""
        return self.plan.n_channel_blocks

    @property
    def numCalls(self) -> int:
        """How often `computeFunction` is called."""
        return self.plan.n_trials * self.plan.n_channel_blocks
