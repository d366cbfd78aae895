"""The plan: which blocks read what and write where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xroutine.blocks import spans
from xroutine.call import Call, PerTrial
from xroutine.dryrun import Answers, Shape
from xroutine.errors import NotEnoughMemoryError
from xroutine.layout import TargetLayout
from xroutine.trials import CHANNEL, TIME, TRIAL, IntArray, Layout, View


@dataclass(frozen=True, eq=False)
class Piece:
    """What a block gives of one output.

    Attributes
    ----------
    shape : tuple of int
        Shape of the buffer, or of the partial result.
    slot, width : numpy.ndarray of int64
        For each trial, its first row therein and its number of rows.
    writes : tuple of slice or None
        Region of the target that the buffer fills; None for averages, whose partial results are merged first.
    """

    shape: Shape
    slot: IntArray
    width: IntArray
    writes: tuple[slice, ...] | None


@dataclass(frozen=True, eq=False)
class Block:
    """One task: some whole trials and a range of their channels.

    Attributes
    ----------
    number, trial_block, channel_block : int
        Position in the plan; position among the trial blocks; and among the channel blocks.
    first : int
        Position of the first trial.
    trial : numpy.ndarray
        Labels of the trials.
    channels : str
        The channels in words, for errors.
    values : dict
        The per-trial arguments of these trials, by position or keyword.
    reads : tuple of dict
        Regions of the input, for `xarray.Variable.isel`.
    piece, row, size : numpy.ndarray of int64
        For each trial, which region holds it, its first row therein, and its number of rows.
    gives : tuple of Piece
        One an output.
    """

    number: int
    trial_block: int
    channel_block: int
    first: int
    trial: np.ndarray[Any, Any]
    channels: str
    values: dict[int | str, PerTrial]
    reads: tuple[dict[str, slice], ...]
    piece: IntArray
    row: IntArray
    size: IntArray
    gives: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class TrialOutput:
    """What the dry runs told of one trial's output, and how it follows trials and channels.

    Attributes
    ----------
    name : str
        Name of the result's variable.
    dims : tuple of str
    shape : tuple of int
        The largest over all trials, with all channels.
    dtype : numpy.dtype
    axis : int
        The dimension along which trials are stacked.
    width : numpy.ndarray of int64
        Size of each trial's output along `axis`.
    channel_axis : int or None
        The dimension that follows the channels, where they are split.
    channel_bounds : numpy.ndarray of int64
        Where the channel blocks begin and end along `channel_axis`.
    slot : numpy.ndarray of int64 or None
        First row of each trial in an average that is aligned on the trigger.
    answers : Answers
        The dry runs' own words.
    """

    name: str
    dims: tuple[str, ...]
    shape: Shape
    dtype: np.dtype[Any]
    axis: int
    width: IntArray
    channel_axis: int | None
    channel_bounds: IntArray
    slot: IntArray | None
    answers: Answers

    @property
    def chunk_shape(self) -> Shape:
        """`chunkShape` of the contract: the largest output shape that one call returns."""
        widest = int(np.diff(self.channel_bounds).max(initial=0))
        return tuple(widest if axis == self.channel_axis else n for axis, n in enumerate(self.shape))


@dataclass(frozen=True, eq=False)
class Output(TrialOutput):
    """One trial's output, and where it is written.

    Attributes
    ----------
    target : TargetLayout
        The array that is written.
    """

    target: TargetLayout

    def contributors(self, left_out: Sequence[int] = ()) -> int | IntArray:
        """How many trials an average is of, without those left out; where it is aligned, for each of its rows."""
        if self.slot is None:
            return len(self.width) - len(left_out)
        kept = np.delete(np.arange(len(self.width)), np.asarray(left_out, np.int64))
        change = np.zeros(self.target.shape[self.axis] + 1, np.int64)
        np.add.at(change, self.slot[kept], 1)
        np.add.at(change, (self.slot + self.width)[kept], -1)
        return np.cumsum(change)[:-1]


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that a run will do; printable, and picklable where the compute function is.

    Attributes
    ----------
    name : str
        What is computed: the name of the routine, and of the result's variable.
    call : Call
        The compute function and its arguments.
    variable, layout, dims, dtype, stack, sample
        The input: see `View`.
    trial_axis, stack_axis : int
        The input's dimension ``trial`` (dense only), and the dimension of a trial along `stack`.
    channel_size : int or None
        Number of input channels; None where the trials have no ``channel`` dim.
    trial, start, size
        The trial table: labels, first rows, numbers of rows.
    input_chunk : int
        Rows of one stored chunk of the input along its trials.
    outputs : tuple of Output
        What is computed of each trial, and where it goes.
    trial_bounds, channel_bounds : numpy.ndarray of int64
        Where the blocks begin and end: trials, and input channels.
    reduction : str or None
        How trials are averaged; None where single trials are stored.
    block_nbytes : int
        Memory that the largest block takes: input, output, and a copy of its largest trial.
    """

    name: str
    call: Call
    variable: str
    layout: Layout
    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    stack: str | None
    sample: str | None
    trial_axis: int
    stack_axis: int
    channel_size: int | None
    trial: np.ndarray[Any, Any]
    start: IntArray
    size: IntArray
    input_shape: Shape
    input_chunk: int
    outputs: tuple[Output, ...]
    trial_bounds: IntArray
    channel_bounds: IntArray
    reduction: str | None
    block_nbytes: int
    engine: str = ""

    def __len__(self) -> int:
        return (len(self.trial_bounds) - 1) * self.n_channel_blocks

    @property
    def n_trials(self) -> int:
        return len(self.trial)

    @property
    def output(self) -> Output:
        """The only output, or the first of several."""
        return self.outputs[0]

    @property
    def target(self) -> TargetLayout:
        """Where the only output goes, or the first of several."""
        return self.outputs[0].target

    @property
    def keeptrials(self) -> bool:
        """Whether single trials are stored, or their average."""
        return self.reduction is None

    @property
    def chunk_shape(self) -> Any:
        """`chunkShape` of the contract: the largest shape that a call returns; of several outputs, by name."""
        if self.call.outputs:
            return {output.name: output.chunk_shape for output in self.outputs}
        return self.output.chunk_shape

    @property
    def nbytes(self) -> int:
        """Bytes that are written, before they are compressed."""
        return sum(output.target.nbytes for output in self.outputs)

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all chunks, those at the edges whole, before they are compressed."""
        targets = [output.target for output in self.outputs]
        return sum(
            target.n_chunks * int(np.prod(target.chunks, dtype=np.int64)) * target.dtype.itemsize for target in targets
        )

    @property
    def n_trial_blocks(self) -> int:
        """Number of trial blocks."""
        return len(self.trial_bounds) - 1

    @property
    def n_channel_blocks(self) -> int:
        """Number of channel blocks."""
        return len(self.channel_bounds) - 1

    @property
    def input_nbytes(self) -> int:
        rows = int(self.size.sum()) if self.stack else self.n_trials
        other = [n for dim, n in zip(self.dims, self.input_shape, strict=True) if dim != self.stack]
        return rows * int(np.prod(other, dtype=np.int64)) * self.dtype.itemsize

    def blocks(self, numbers: IntArray | range | None = None) -> Iterator[Block]:
        """The blocks, or those with these numbers, made one at a time."""
        return (self.block(int(number)) for number in (range(len(self)) if numbers is None else numbers))

    def block(self, number: int) -> Block:
        """The block with this number: all channel blocks of a run of trials come one after the other."""
        trial_block, channel_block = divmod(number, self.n_channel_blocks)
        first, last = int(self.trial_bounds[trial_block]), int(self.trial_bounds[trial_block + 1])
        here = slice(first, last)
        low, high = int(self.channel_bounds[channel_block]), int(self.channel_bounds[channel_block + 1])
        channels: dict[str, slice] = {}
        if self.channel_size is not None and self.n_channel_blocks > 1:
            channels = {CHANNEL: slice(low, high)}
        size = self.size[here]
        reads: tuple[dict[str, slice], ...]
        if self.sample is not None:
            found = spans(self.start[here], size, self.input_chunk)
            reads = tuple(
                {self.sample: slice(int(a), int(b)), **channels} for a, b in zip(found.start, found.stop, strict=True)
            )
            piece, row = found.piece, found.row
        else:
            reads = ({**({TRIAL: here} if self.layout == "dense" else {}), **channels},)
            piece, row = np.zeros(last - first, np.int64), np.arange(last - first)
        return Block(
            number,
            trial_block,
            channel_block,
            first,
            self.trial[here],
            f"channels {low}-{high - 1}" if high > low else "",
            self.call.values(first, last),
            reads,
            piece,
            row,
            size,
            tuple(self._piece(output, first, last, channel_block) for output in self.outputs),
        )

    def region(self, output: Output, channel_block: int) -> tuple[slice, ...]:
        """What a channel block covers of an output without a trial dimension."""
        region = [slice(0, n) for n in output.target.shape[-len(output.shape) :]] if output.shape else []
        if output.channel_axis is not None:
            low, high = (int(bound) for bound in output.channel_bounds[channel_block : channel_block + 2])
            region[output.channel_axis] = slice(low, high)
        return tuple(region)

    def _piece(self, output: Output, first: int, last: int, channel_block: int) -> Piece:
        width, count = output.width[first:last], np.arange(last - first)
        target, region = output.target, self.region(output, channel_block)
        shape = tuple(part.stop - part.start for part in region)
        if not self.keeptrials:
            return Piece(shape, np.zeros_like(count) if output.slot is None else output.slot[first:last], width, None)
        if target.kind == "dense":
            return Piece((last - first, *shape), count, width, (slice(first, last), *region))
        if target.row_start is None:
            return Piece(shape, count, width, region)
        begin = int(target.row_start[first])
        end = int(target.row_start[last]) if last < self.n_trials else target.shape[output.axis]
        before, after = region[: output.axis], region[output.axis + 1 :]
        shape = (*shape[: output.axis], end - begin, *shape[output.axis + 1 :])
        return Piece(shape, target.row_start[first:last] - begin, width, (*before, slice(begin, end), *after))

    def on(self, engine: str) -> Plan:
        """The same plan, to be run by an engine."""
        return replace(self, engine=engine)

    def check_memory(self, available: int, share: float, where: str) -> None:
        """Refuse a plan whose largest block takes more than its share of the memory there is.

        Raises
        ------
        NotEnoughMemoryError
        """
        if self.block_nbytes > share * available:
            raise NotEnoughMemoryError(
                f"the largest block takes about {nbytes_text(self.block_nbytes)}, more than mem_thresh={share:g} of "
                f"the {nbytes_text(available)} available {where}: give a smaller block_size= (now trials of up to "
                f"{int(self.size.max())} rows in blocks of up to {int(np.diff(self.trial_bounds).max())} trials), "
                f"split the channels with chan_per_worker=, or raise mem_thresh="
            )

    def __repr__(self) -> str:
        sizes = f"{self.size.min():,}" + (f" to {self.size.max():,}" if self.size.min() != self.size.max() else "")
        channels = f" x {self.channel_size:,} channels" if self.channel_size is not None else ""
        lines = [
            f"{self.name}: {self.n_trials:,} trials of {sizes} rows{channels} in {len(self):,} "
            f"block{'s' * (len(self) != 1)}"
            + (f" ({self.n_channel_blocks} channel blocks each)" if self.n_channel_blocks > 1 else ""),
            f"  reads   {self.variable} ({', '.join(self.dims)}) {self.dtype}, {self.layout}, "
            f"{nbytes_text(self.input_nbytes)}",
            *(f"  writes  {self._writes(output)}" for output in self.outputs),
            f"  memory  about {nbytes_text(self.block_nbytes)} for the largest block",
        ]
        return "\n".join([*lines, f"  engine  {self.engine}"] if self.engine else lines)

    def _writes(self, output: Output) -> str:
        target = output.target
        name = f"{output.name} " if len(self.outputs) > 1 else ""
        shape = ", ".join(f"{dim}: {size:,}" for dim, size in zip(target.dims, target.shape, strict=True))
        unused = 0 if target.row_size is None else target.shape[output.axis] - int(target.row_size.sum())
        return (
            f"{name}({shape}) {target.dtype}, {self.reduction or target.kind}, "
            f"{nbytes_text(target.nbytes)} in {target.n_chunks:,} chunk{'s' * (target.n_chunks != 1)} of "
            f"{'x'.join(str(n) for n in target.chunks)}"
            + (f", {unused / target.shape[output.axis]:.1%} of the rows unused" if unused else "")
        )


def kept_offset(view: View, dims: tuple[str, ...], answers: Answers) -> IntArray | None:
    """Offsets of outputs that have the input's samples along ``time``; None for others."""
    if TIME not in dims or view.stack != TIME:
        return None
    return view.offset if np.array_equal(answers.sizes(dims.index(TIME)), view.size) else None


def nbytes_text(nbytes: float) -> str:
    """A number of bytes for people: 16.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:,.1f} TiB"
