"""Averaging without storing single trials: partial sums that meet in a tree whose shape the plan decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def accumulator_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """At least double precision, whatever goes in."""
    return np.result_type(dtype, np.complex128 if dtype.kind == "c" else np.float64)


def mean_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of an average: the one of the values, promoted to floating where they are integers."""
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype


@dataclass(frozen=True, eq=False)
class Partial:
    """The sum of some trials, and how many they are."""

    total: Array
    count: int

    def merge(self, other: Partial) -> Partial:
        return Partial(self.total + other.total, self.count + other.count)

    def mean(self, dtype: np.dtype[Any]) -> Array:
        return (self.total / self.count).astype(dtype)


@dataclass
class Tree:
    """Merges the partial results of blocks 0 to `leaves` - 1, in the same order whichever arrives first.

    Neighbours merge in pairs, and pairs of pairs, as soon as both are there; an odd one moves up alone. At most one
    partial a level waits for its neighbour when blocks arrive in order.

    Examples
    --------
    >>> tree = Tree(3)
    >>> for leaf in (2, 0, 1):
    ...     tree.add(leaf, Partial(np.array([float(leaf)]), 1))
    >>> tree.root.total, tree.root.count
    (array([3.]), 3)
    """

    leaves: int
    _waiting: dict[tuple[int, int], Partial] = field(default_factory=dict)

    def add(self, leaf: int, partial: Partial) -> None:
        level, index, width = 0, leaf, self.leaves
        while width > 1:
            if not (index % 2 == 0 and index == width - 1):
                other = self._waiting.pop((level, index ^ 1), None)
                if other is None:
                    break
                partial = other.merge(partial) if index % 2 else partial.merge(other)
            level, index, width = level + 1, index // 2, (width + 1) // 2
        self._waiting[level, index] = partial

    @property
    def root(self) -> Partial:
        (partial,) = self._waiting.values()
        return partial
