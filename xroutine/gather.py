"""What becomes of the outputs of a block's trials: put into a buffer side by side, or folded into sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from xroutine.call import Array, fit
from xroutine.plan import Piece
from xroutine.reduce import Partial


@dataclass(frozen=True, eq=False)
class Place:
    """The few facts of an output that every block needs; what has a row a trial travels with the blocks.

    Attributes
    ----------
    name : str or None
        Name of the output, where there are several.
    kind : {"dense", "ragged", "single"}
    axis : int
        The dimension along which trials are stacked.
    shape : tuple of int
        The largest over all trials, with all channels.
    channel_axis : int or None
        The dimension that follows the channels, where they are split.
    dtype : numpy.dtype
    fill_value : scalar
    reduction : str or None
    aligned : bool
        Whether trials cover a part of the average only.
    """

    name: str | None
    kind: str
    axis: int
    shape: tuple[int, ...]
    channel_axis: int | None
    dtype: np.dtype[Any]
    fill_value: Any
    reduction: str | None
    aligned: bool


class Gathered:
    """One output of a block, as its trials come in.

    Attributes
    ----------
    values : numpy.ndarray or Partial
        What has been gathered.
    returned : str
        The dtype that the function returned, where it is not the declared one.
    """

    def __init__(self, place: Place, piece: Piece) -> None:
        self.place, self.returned = place, ""
        self._slot, self._width = piece.slot.tolist(), piece.width.tolist()
        self._dtype = place.dtype
        shape = list(place.shape)
        if place.channel_axis is not None:
            shape[place.channel_axis] = piece.shape[place.channel_axis + (place.kind == "dense")]
        self._before = tuple(shape[: place.axis])
        self._after = tuple(shape[place.axis + 1 :])
        # Where the output follows channels and trials along the same dimension, all trials are equally long there.
        self._fixed = tuple(shape) if not shape or place.axis == place.channel_axis else None
        self._whole = (slice(None),) * place.axis
        self.values: Array | Partial
        if place.reduction is None:
            self.values = np.empty(piece.shape, place.dtype)
            if place.kind == "ragged":
                self.values[(*self._whole, slice(self._slot[-1] + self._width[-1], None))] = place.fill_value
        else:
            axis = place.axis if place.aligned else None
            self.values = Partial.zeros(piece.shape, place.dtype, place.reduction, axis)

    def put(self, index: int, result: Array) -> None:
        """Take the output of the block's trial `index`.

        Raises
        ------
        OutputError
            Where it does not have the shape and dtype that its dry run declared.
        """
        self.place_fitting(index, self.fitting(index, result))

    def fitting(self, index: int, result: Array) -> Array:
        """The output of the block's trial `index` as its dry run declared it; raises as `put` does."""
        width = self._width[index]
        shape = self._fixed if self._fixed is not None else (*self._before, width, *self._after)
        if result.shape != shape or result.dtype != self._dtype:
            result = fit(result, shape, self._dtype, self.place.name)
            if result.dtype != self._dtype:
                self.returned = str(result.dtype)
        return result

    def place_fitting(self, index: int, result: Any) -> None:
        """Put what fits, or a single number for all of it, where the block's trial `index` belongs."""
        slot, width, values = self._slot[index], self._width[index], self.values
        if isinstance(values, Partial):
            values.add(result, (*self._whole, slice(slot, slot + width)) if self.place.aligned else ())
        elif self.place.kind == "dense":
            values[slot] = result
        elif self.place.kind == "ragged":
            values[(*self._whole, slice(slot, slot + width))] = result
        else:
            values[...] = result

    def leave_out(self, index: int) -> None:
        """The block's trial `index` failed: the fill value in its place; an average is of the others."""
        if not isinstance(self.values, Partial):
            self.place_fitting(index, self.place.fill_value)
