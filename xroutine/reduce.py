"""Averaging without storing single trials: sums that every block folds its trials into, and that meet in a tree."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

Array = np.ndarray[Any, Any]
Reduction = Literal["mean", "sum", "var", "std", "sem"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


def accumulator_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """At least double precision, whatever goes in."""
    return np.result_type(dtype, np.complex128 if dtype.kind == "c" else np.float64)


def reduced_dtype(dtype: np.dtype[Any], reduction: str) -> np.dtype[Any]:
    """The dtype of a reduction: that of the values, floating where they are integers, real where it is a spread."""
    if dtype.kind in "biu":
        return np.dtype(np.float64)
    return np.empty(0, dtype).real.dtype if reduction in ("var", "std", "sem") else dtype


@dataclass(eq=False)
class Partial:
    """Sums over some trials: enough for their mean and variance, and to be merged with those of others.

    Attributes
    ----------
    count : numpy.ndarray of int64
        Trials that contribute; of a shape that broadcasts against `total`, where not all cover all of it.
    total : numpy.ndarray
        Their sum.
    square : numpy.ndarray or None
        Sum of their squared distances from their mean, where a spread is asked for.
    """

    count: Array
    total: Array
    square: Array | None = None

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: np.dtype[Any], reduction: str, axis: int | None = None) -> Partial:
        """Sums over no trials.

        Parameters
        ----------
        shape : tuple of int
            Of one trial's output, or of what all of them cover together.
        dtype : numpy.dtype
            Of one trial's output.
        reduction : str
        axis : int, optional
            Dimension along which trials cover a part only.
        """
        total = np.zeros(shape, accumulator_dtype(dtype))
        count = np.zeros([n if k == axis else 1 for k, n in enumerate(shape)], np.int64)
        return cls(count, total, np.zeros_like(total.real) if reduction in ("var", "std", "sem") else None)

    def add(self, values: Array, where: tuple[Any, ...] = ()) -> None:
        """Fold one trial in, where it lies.

        The squares are updated as in Youngs and Cramer (1971), "Some results relevant to choice of sum and
        sum-of-product algorithms", Technometrics 13: as stable as two passes, however far the mean is from zero.
        """
        count = self.count[where] if self.count.size > 1 else self.count
        count += 1
        total = self.total[(*where, ...)]
        total += values
        if self.square is not None:
            square = self.square[(*where, ...)]
            # The first trial is its own mean: the distance is zero, whatever it is divided by.
            square += _squared(count * values.astype(total.dtype, copy=False) - total) / np.maximum(
                count * (count - 1), 1
            )

    def merge(self, other: Partial) -> Partial:
        """The sums over both.

        The squares are merged as in Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance",
        The American Statistician 37.
        """
        count, square = self.count + other.count, None
        if self.square is not None and other.square is not None:
            apart = _squared(self.total / np.maximum(self.count, 1) - other.total / np.maximum(other.count, 1))
            square = self.square + other.square + apart * (self.count / np.maximum(count, 1) * other.count)
        return Partial(count, self.total + other.total, square)

    def result(self, reduction: str, dtype: np.dtype[Any]) -> Array:
        """The reduction; NaN where no trial (for the standard error: fewer than two) contributes, save for the sum.

        ``var`` and ``std`` divide by the number of trials, as NumPy and xarray do; ``sem``, the standard error of the
        mean, is the square root of the unbiased variance over the number of trials, as in SciPy.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.square is None:
                found = self.total if reduction == "sum" else self.total / self.count
            elif reduction == "sem":
                found = np.sqrt(self.square / (self.count - 1) / self.count)
            else:
                found = self.square / self.count
                found = np.sqrt(found) if reduction == "std" else found
        return np.asarray(found, dtype)


def _squared(values: Array) -> Array:
    return values.real**2 + values.imag**2 if values.dtype.kind == "c" else values * values


class Node(NamedTuple):
    """A place in a tree of partial results: that of the blocks whose position, halved `level` times, is `index`."""

    channel_block: int
    level: int
    index: int  # type: ignore[assignment]  # tuples have a method of that name

    def __str__(self) -> str:
        return f"{self.channel_block}-{self.level}-{self.index}"


class Forest:
    """Merges the partial results of all blocks, in the same order whichever arrives first: a tree a channel block.

    Neighbours merge in pairs, and pairs of pairs, as soon as both are there; an odd one moves up alone. At most one
    partial a level waits for its neighbour when blocks arrive in order.

    Parameters
    ----------
    trial_blocks, channel_blocks : int

    Attributes
    ----------
    nodes : dict of Node to tuple of Partial
        What waits for its neighbour, or has met all: together they hold every block that was added.

    Examples
    --------
    >>> forest = Forest(3, 1)
    >>> for leaf in (2, 0, 1):
    ...     forest.add(Node(0, 0, leaf), (Partial(np.array(1), np.array(float(leaf))),))
    >>> [(str(node), partial.total, partial.count) for node, (partial,) in forest.nodes.items()]
    [('0-2-0', np.float64(3.0), np.int64(3))]
    """

    def __init__(self, trial_blocks: int, channel_blocks: int) -> None:
        self.trial_blocks, self.channel_blocks = trial_blocks, channel_blocks
        self.nodes: dict[Node, tuple[Partial, ...]] = {}

    def add(self, node: Node, partials: tuple[Partial, ...]) -> None:
        """Take the partial results, one an output, of a block or of a node of an earlier run."""
        (tree, level, index), width = node, self.trial_blocks
        for _ in range(level):
            width = (width + 1) // 2
        while width > 1:
            if not (index % 2 == 0 and index == width - 1):
                other = self.nodes.pop(Node(tree, level, index ^ 1), None)
                if other is None:
                    break
                left, right = (other, partials) if index % 2 else (partials, other)
                partials = tuple(a.merge(b) for a, b in zip(left, right, strict=True))
            level, index, width = level + 1, index // 2, (width + 1) // 2
        self.nodes[Node(tree, level, index)] = partials

    def blocks(self, node: Node) -> set[int]:
        """The numbers of the blocks whose partial results meet in a node."""
        first, last = node.index << node.level, min((node.index + 1) << node.level, self.trial_blocks)
        return {leaf * self.channel_blocks + node.channel_block for leaf in range(first, last)}

    def restore(self, nodes: Mapping[Node, tuple[Partial, ...]], finished: Set[int]) -> set[Node]:
        """Take those nodes of an earlier run whose blocks are all finished.

        A run that was killed as it wrote leaves nodes that are ahead of the receipts, or that have been merged since.
        """
        held: set[int] = set()
        taken = set()
        for node in sorted(nodes, key=lambda node: -node.level):
            blocks = self.blocks(node)
            if blocks and blocks <= finished and not blocks & held:
                held |= blocks
                taken.add(node)
                self.add(node, nodes[node])
        return taken

    def roots(self) -> list[tuple[Partial, ...]]:
        """The partial results of all blocks, for each channel block."""
        by_tree = {node.channel_block: partials for node, partials in self.nodes.items()}
        return [by_tree[tree] for tree in range(self.channel_blocks)]
