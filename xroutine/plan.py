"""The plan: which blocks read what and write where, settled and proven before a byte is moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xroutine.blocks import channel_bounds, even_bounds, greedy_bounds, spans
from xroutine.call import Call
from xroutine.dryrun import Answers, Shape, dry_run, dry_runs
from xroutine.errors import DryRunError, NotEnoughMemoryError, PlanError
from xroutine.layout import TargetLayout, fill_value, prove_one_owner, row_chunk, row_starts
from xroutine.reduce import mean_dtype
from xroutine.trials import CHANNEL, SAMPLE, TIME, TRIAL, IntArray, Layout, View

BLOCK_SIZE = 16 * 2**20
# Blosc cannot compress more than 2 GiB at once, and whoever reads one trial decodes a whole chunk.
_LARGEST_CHUNK = 64 * 2**20


@dataclass(frozen=True, eq=False)
class Block:
    """One task: some whole trials and a range of their channels.

    Attributes
    ----------
    number, leaf, branch : int
        Position in the plan; position among the trial blocks; and among the channel blocks.
    first : int
        Position of the first trial.
    trial : numpy.ndarray
        Labels of the trials.
    channels : str
        The channels in words, for errors.
    call : Call
        The compute function with the arguments of these trials.
    reads : tuple of dict
        Regions of the input, for `xarray.Variable.isel`.
    piece, row, size : numpy.ndarray of int64
        For each trial, which region holds it, its first row therein, and its number of rows.
    shape : tuple of int
        Shape of the output buffer.
    slot, width : numpy.ndarray of int64
        For each trial, its first row in the output buffer and its number of rows.
    writes : tuple of slice or None
        Region of the target that the buffer fills; None for averages, whose partial results are merged first.
    """

    number: int
    leaf: int
    branch: int
    first: int
    trial: np.ndarray[Any, Any]
    channels: str
    call: Call
    reads: tuple[dict[str, slice], ...]
    piece: IntArray
    row: IntArray
    size: IntArray
    shape: Shape
    slot: IntArray
    width: IntArray
    writes: tuple[slice, ...] | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that a run will do; printable, and picklable where the compute function is.

    Attributes
    ----------
    name : str
        What is computed: the name of the routine, and of the result's variable.
    call : Call
        The compute function and its arguments.
    variable, layout, dims, dtype, stack
        The input: see `View`.
    trial_axis, stack_axis : int
        The input's dimension ``trial`` (dense only), and the dimension of a trial along `stack`.
    channel_size : int or None
        Number of input channels; None where the trials have no ``channel`` dim.
    trial, start, size
        The trial table: labels, first rows, numbers of rows.
    input_chunk : int
        Rows of one stored chunk of the input along its trials.
    out_dims, out_shape : tuple
        Dims and largest shape of one trial's output.
    out_dtype : numpy.dtype
        Dtype of one trial's output.
    axis : int
        The dimension of a trial's output along which trials are stacked.
    channel_axis : int or None
        The dimension of a trial's output that follows the channels, where they are split.
    width : numpy.ndarray of int64
        Output rows of each trial along `axis`.
    trial_bounds, channel_bounds, out_channel_bounds : numpy.ndarray of int64
        Where the blocks begin and end: trials, input channels, output along `channel_axis`.
    keeptrials : bool
        Whether single trials are stored, or their average.
    target : Target
        The array that is written.
    answers : Answers
        What the dry runs told.
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
    trial_axis: int
    stack_axis: int
    channel_size: int | None
    trial: np.ndarray[Any, Any]
    start: IntArray
    size: IntArray
    input_shape: Shape
    input_chunk: int
    out_dims: tuple[str, ...]
    out_shape: Shape
    out_dtype: np.dtype[Any]
    axis: int
    channel_axis: int | None
    width: IntArray
    trial_bounds: IntArray
    channel_bounds: IntArray
    out_channel_bounds: IntArray
    keeptrials: bool
    target: TargetLayout
    answers: Answers
    block_nbytes: int
    engine: str = ""

    def __len__(self) -> int:
        return (len(self.trial_bounds) - 1) * self.n_branches

    @property
    def n_trials(self) -> int:
        return len(self.trial)

    @property
    def n_leaves(self) -> int:
        """Number of trial blocks."""
        return len(self.trial_bounds) - 1

    @property
    def n_branches(self) -> int:
        """Number of channel blocks."""
        return len(self.channel_bounds) - 1

    @property
    def chunk_shape(self) -> Shape:
        """`chunkShape` of the contract: the largest output shape that a call returns."""
        if self.channel_axis is None:
            return self.out_shape
        widest = int(np.diff(self.out_channel_bounds).max())
        return tuple(widest if axis == self.channel_axis else n for axis, n in enumerate(self.out_shape))

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
        leaf, branch = divmod(number, self.n_branches)
        first, last = int(self.trial_bounds[leaf]), int(self.trial_bounds[leaf + 1])
        here = slice(first, last)
        low, high = int(self.channel_bounds[branch]), int(self.channel_bounds[branch + 1])
        channels: dict[str, slice] = {}
        if self.channel_size is not None and self.n_branches > 1:
            channels = {CHANNEL: slice(low, high)}
        size, width = self.size[here], self.width[here]
        reads: tuple[dict[str, slice], ...]
        if self.layout == "ragged":
            found = spans(self.start[here], size, self.input_chunk)
            reads = tuple(
                {SAMPLE: slice(int(a), int(b)), **channels} for a, b in zip(found.start, found.stop, strict=True)
            )
            piece, row = found.piece, found.row
        else:
            reads = ({**({TRIAL: here} if self.layout == "dense" else {}), **channels},)
            piece, row = np.zeros(last - first, np.int64), np.arange(last - first)
        shape, slot, writes = self._output(leaf, branch)
        return Block(
            number,
            leaf,
            branch,
            first,
            self.trial[here],
            f"channels {low}-{high - 1}" if high > low else "",
            self.call.at(first, last),
            reads,
            piece,
            row,
            size,
            shape,
            slot,
            width,
            writes,
        )

    def _output(self, leaf: int, branch: int) -> tuple[Shape, IntArray, tuple[slice, ...] | None]:
        first, last = int(self.trial_bounds[leaf]), int(self.trial_bounds[leaf + 1])
        one = list(self.out_shape)
        region = [slice(0, n) for n in one]
        if self.channel_axis is not None:
            low, high = (int(bound) for bound in self.out_channel_bounds[branch : branch + 2])
            one[self.channel_axis], region[self.channel_axis] = high - low, slice(low, high)
        count = np.arange(last - first)
        if not self.keeptrials:
            return tuple(one), np.zeros_like(count), None
        if self.target.kind == "single":
            return tuple(one), count, tuple(region)
        if self.target.kind == "dense":
            return (last - first, *one), count, (slice(first, last), *region)
        starts = self.target.row_start
        if starts is None:
            raise PlanError(f"a {self.target.kind} target has no rows")
        begin = int(starts[first])
        end = int(starts[last]) if last < self.n_trials else self.target.shape[self.axis]
        one[self.axis], region[self.axis] = end - begin, slice(begin, end)
        return tuple(one), starts[first:last] - begin, tuple(region)

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
        target = self.target
        shape = ", ".join(f"{dim}: {size:,}" for dim, size in zip(target.dims, target.shape, strict=True))
        sizes = f"{self.size.min():,}" + (f" to {self.size.max():,}" if self.size.min() != self.size.max() else "")
        channels = f" x {self.channel_size:,} channels" if self.channel_size is not None else ""
        unused = 0 if target.row_size is None else target.shape[self.axis] - int(target.row_size.sum())
        lines = [
            f"{self.name}: {self.n_trials:,} trials of {sizes} rows{channels} in {len(self):,} "
            f"block{'s' * (len(self) != 1)}"
            + (f" ({self.n_branches} channel blocks each)" if self.n_branches > 1 else ""),
            f"  reads   {self.variable} ({', '.join(self.dims)}) {self.dtype}, {self.layout}, "
            f"{nbytes_text(self.input_nbytes)}",
            f"  writes  ({shape}) {target.dtype}, {target.kind if self.keeptrials else 'average'}, "
            f"{nbytes_text(target.nbytes)} in {target.n_chunks:,} chunk{'s' * (target.n_chunks != 1)} of "
            f"{'x'.join(str(n) for n in target.chunks)}"
            + (f", {unused / target.shape[self.axis]:.1%} of the rows unused" if unused else ""),
            f"  memory  about {nbytes_text(self.block_nbytes)} for the largest block",
        ]
        return "\n".join([*lines, f"  engine  {self.engine}"] if self.engine else lines)


def kept_offset(view: View, dims: tuple[str, ...], width: IntArray) -> IntArray | None:
    """Offsets of outputs that have the input's samples along ``time``; None for others."""
    return view.offset if TIME in dims and np.array_equal(width, view.size) else None


def nbytes_text(nbytes: float) -> str:
    """A number of bytes for people: 16.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:,.1f} TiB"


def make_plan(
    view: View,
    call: Call,
    *,
    name: str,
    out_dims: tuple[str, ...] | None = None,
    number_dims: bool = False,
    out_stackingdim: int | None = None,
    chan_per_worker: int | None = None,
    keeptrials: bool = True,
    block_size: int = BLOCK_SIZE,
    tight: bool = False,
    answers: Answers | None = None,
) -> Plan:
    """Dry-run the call, cut the work into blocks, lay out the target, and prove that no chunk has two owners.

    Parameters
    ----------
    view : View
        The input.
    call : Call
        The compute function and its arguments.
    name : str
        What is computed.
    out_dims : tuple of str, optional
        Dims of one trial's output; those of the input where they are as many.
    number_dims : bool
        Call undeclared dims ``dim_0``, ``dim_1``, ... instead of raising.
    out_stackingdim : int, optional
        Output dimension along which trials of unequal size are stacked; found by the dry run if left out.
    chan_per_worker : int, optional
        Channels in a block; all of them if left out.
    keeptrials : bool
        Store single trials, or their average.
    block_size : int
        Bytes of input (or of output, where that is more) in a block.
    tight : bool
        Leave no unused rows: for targets without chunks.
    answers : Answers, optional
        What the dry runs of this very call told before.

    Raises
    ------
    DryRunError, PlanError, ChunkOverlapError, ArgumentError
        For whatever can be known to be wrong before anything is computed.
    """
    if not len(view):
        raise PlanError("there are no trials to compute: the selection is empty")
    if isinstance(block_size, bool) or not isinstance(block_size, (int, np.integer)) or block_size < 1:
        raise PlanError(f"block_size: expected a positive number of bytes, got {block_size!r}")
    call.check_length(len(view))
    channel_size, in_bounds = _channels(view, chan_per_worker)
    dtype = view.variable.dtype
    widths = np.diff(in_bounds)

    def shape_of(rows: int, channels: int | None = None) -> Shape:
        shape = view.shape(rows)
        if channels is None:
            return shape
        return tuple(channels if dim == CHANNEL else n for dim, n in zip(view.dims, shape, strict=True))

    split = len(widths) > 1
    answers = answers or dry_runs(
        call, view.size, lambda rows: shape_of(rows, int(widths[0]) if split else None), dtype
    )
    dims = _output_dims(call.name, out_dims, number_dims, view.dims, len(answers.shapes[0]))
    axis = _stacking_axis(call.name, answers, dims, out_stackingdim, keeptrials)
    out_shape, channel_axis, out_bounds = answers.largest, None, np.zeros(1, np.int64)
    if split:
        channel_axis, out_bounds = _follow_channels(view, call, answers, dims, shape_of, in_bounds)
        out_shape = tuple(int(out_bounds[-1]) if k == channel_axis else n for k, n in enumerate(out_shape))
        if axis == channel_axis and _unequal(answers, axis):
            raise PlanError(
                f"trials cannot be stacked along {dims[axis]!r} and split along it, too: drop chan_per_worker="
            )
    width = answers.sizes(axis) if dims else np.ones(len(view), np.int64)
    offset = kept_offset(view, dims, width)
    if not keeptrials and offset is not None and (offset != offset[0]).any():
        raise PlanError(
            f"trials start at different offsets from their trigger ({offset.min()} to {offset.max()} samples): "
            f"averaging them (keeptrials=False) would mix latencies; select a common latency first"
        )

    row_nbytes = [
        int(np.prod([n for k, n in enumerate(shape) if dim_names[k] != along], dtype=np.int64)) * item
        for shape, dim_names, along, item in (
            (
                shape_of(1, int(widths.max()) if channel_size is not None else None),
                view.dims,
                view.stack,
                dtype.itemsize,
            ),
            (
                tuple(int(np.diff(out_bounds).max()) if k == channel_axis else n for k, n in enumerate(out_shape)),
                dims,
                dims[axis] if dims else None,
                answers.dtype.itemsize,
            ),
        )
    ]
    nbytes_in, nbytes_out = view.size * row_nbytes[0], width * row_nbytes[1]
    per_trial = np.maximum(nbytes_in, nbytes_out) if keeptrials else nbytes_in

    kind = _target_kind(view, answers, dims, axis, keeptrials)
    input_chunk = _input_chunk(view)
    if kind == "ragged":
        bounds = greedy_bounds(per_trial, block_size)
    else:
        bounds = even_bounds(per_trial, block_size, input_chunk if view.layout == "dense" else 1)
    target = _target(
        kind, dims, axis, channel_axis, out_shape, out_bounds, width, bounds, answers.dtype, keeptrials, tight
    )
    held = np.add.reduceat(nbytes_in, bounds[:-1])
    held += np.add.reduceat(nbytes_out, bounds[:-1]) if keeptrials else 2 * nbytes_out.max()
    return Plan(
        name=name,
        call=call,
        variable=view.name,
        layout=view.layout,
        dims=view.dims,
        dtype=dtype,
        stack=view.stack,
        trial_axis=view.variable.dims.index(TRIAL) if view.layout == "dense" else 0,
        stack_axis=view.dims.index(view.stack) if view.stack else 0,
        channel_size=channel_size,
        trial=view.trial,
        start=view.start,
        size=view.size,
        input_shape=view.shape(int(view.size.max())),
        input_chunk=input_chunk,
        out_dims=dims,
        out_shape=out_shape,
        out_dtype=answers.dtype,
        axis=axis,
        channel_axis=channel_axis,
        width=width,
        trial_bounds=bounds,
        channel_bounds=in_bounds,
        out_channel_bounds=out_bounds,
        keeptrials=keeptrials,
        target=target,
        answers=answers,
        block_nbytes=int(held.max() + (nbytes_in + nbytes_out).max()),
    )


def _channels(view: View, chan_per_worker: int | None) -> tuple[int | None, IntArray]:
    if CHANNEL not in view.dims:
        if chan_per_worker is not None:
            raise PlanError(
                f"chan_per_worker={chan_per_worker}: {view.name!r} has no `channel` dim, its dims are {view.dims}"
            )
        return None, np.array([0, 0], np.int64)
    if chan_per_worker is not None and (
        isinstance(chan_per_worker, bool) or not isinstance(chan_per_worker, (int, np.integer)) or chan_per_worker < 1
    ):
        raise PlanError(f"chan_per_worker: expected a positive number of channels, got {chan_per_worker!r}")
    count = view.variable.sizes[CHANNEL]
    return count, channel_bounds(count, chan_per_worker)


def _output_dims(
    name: str, declared: tuple[str, ...] | None, number_dims: bool, dims: tuple[str, ...], ndim: int
) -> tuple[str, ...]:
    if declared is None:
        if ndim == len(dims):
            return dims
        if number_dims:
            return tuple(f"dim_{number}" for number in range(ndim))
        raise DryRunError(
            f"{name} returns {ndim} dimensions where a trial has {len(dims)} {dims}: name them with "
            f"out_dims=({', '.join(['...'] * ndim)})"
        )
    if len(declared) != ndim:
        raise DryRunError(f"out_dims={declared} names {len(declared)} dimensions, {name} returns {ndim}")
    if len(set(declared)) != ndim or {TRIAL, SAMPLE} & set(declared):
        raise PlanError(
            f"out_dims={declared}: expected distinct names of one trial's dims, without 'trial' and 'sample'"
        )
    return declared


def _unequal(answers: Answers, axis: int) -> bool:
    return len({shape[axis] for shape in answers.shapes}) > 1


def _stacking_axis(name: str, answers: Answers, dims: tuple[str, ...], wanted: int | None, keeptrials: bool) -> int:
    """The output dimension along which trials are stacked: the wanted one, or the only one that differs."""
    if wanted is not None and not (
        isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool) and 0 <= wanted < max(len(dims), 1)
    ):
        raise PlanError(
            f"out_stackingdim={wanted!r}: expected a dimension of the output, 0 to {len(dims) - 1} for {dims}"
        )
    unequal = [axis for axis in range(len(dims)) if _unequal(answers, axis)]
    default = dims.index(TIME) if TIME in dims else 0
    axis = int(wanted) if wanted is not None else unequal[0] if unequal else default
    if unequal and not keeptrials:
        raise DryRunError(
            f"{name} returns trials of different sizes along {[dims[k] for k in unequal]}: they cannot be averaged "
            f"(keeptrials=False); select a latency that all trials cover, or return one size for all"
        )
    others = [k for k in unequal if k != axis]
    if others:
        k = others[0]
        found = sorted({shape[k] for shape in answers.shapes})
        raise DryRunError(
            f"{name} returns different sizes along {dims[k]!r} for different trials ({found[:4]}), but trials are "
            f"stacked along {dims[axis]!r} (out_stackingdim={axis}): sizes may differ along one dimension only"
        )
    return axis


def _follow_channels(
    view: View, call: Call, answers: Answers, dims: tuple[str, ...], shape_of: Any, bounds: IntArray
) -> tuple[int, IntArray]:
    """The output dimension that follows the channels, and where each channel block lies along it."""
    rows, first, rest = int(view.size[0]), int(bounds[1] - bounds[0]), int(bounds[-1] - bounds[-2])
    shapes = {first: answers.shapes[answers.kind[0]]}
    # Without a rest, a call with all channels tells what follows their number.
    for channels in {rest, int(bounds[-1]) if rest == first else rest} - {first}:
        shape, dtype = dry_run(call, shape_of(rows, channels), view.variable.dtype)
        if len(shape) != len(dims) or dtype != answers.dtype:
            raise DryRunError(
                f"{call.name} returns {dtype} {shape} for {channels} channels, but {answers.dtype} "
                f"{shapes[first]} for {first}"
            )
        shapes[channels] = shape
    other = next(channels for channels in shapes if channels != first)
    follows = [k for k in range(len(dims)) if shapes[first][k] != shapes[other][k]]
    if len(follows) != 1:
        raise PlanError(
            f"chan_per_worker={first}: expected exactly one output dimension that follows the number of channels, "
            f"found {[dims[k] for k in follows]}: {call.name} returns {shapes[first]} for {first} channels and "
            f"{shapes[other]} for {other}; leave chan_per_worker out"
        )
    axis = follows[0]
    per_block = [shapes[first][axis]] * (len(bounds) - 2) + [shapes.get(rest, shapes[first])[axis]]
    return axis, np.append(0, np.cumsum(per_block)).astype(np.int64)


def _target_kind(view: View, answers: Answers, dims: tuple[str, ...], axis: int, keeptrials: bool) -> Layout:
    if not keeptrials or view.layout == "single":
        return "single"
    if dims and _unequal(answers, axis):
        return "ragged"
    on_time = bool(dims) and dims[axis] == TIME and view.offset is not None
    if on_time and view.offset is not None and (view.offset != view.offset[0]).any():
        return "ragged"
    return "dense"


def _input_chunk(view: View) -> int:
    dim = {"dense": TRIAL, "ragged": SAMPLE, "single": view.stack}[view.layout]
    chunks = view.variable.encoding.get("preferred_chunks", {}).get(dim, 1)
    return int(chunks[0] if isinstance(chunks, tuple) else chunks)


def _target(
    kind: Layout,
    dims: tuple[str, ...],
    axis: int,
    channel_axis: int | None,
    out_shape: Shape,
    out_bounds: IntArray,
    width: IntArray,
    bounds: IntArray,
    dtype: np.dtype[Any],
    keeptrials: bool,
    tight: bool,
) -> TargetLayout:
    """Shape and chunks of the target, with the proof that every chunk has one owner."""
    if not keeptrials:
        dtype = mean_dtype(dtype)
    shape, chunks, names = list(out_shape), list(out_shape), list(dims)
    start = size = None
    if channel_axis is not None:
        chunks[channel_axis] = int(out_bounds[1])
        prove_one_owner(out_bounds[:-1], out_bounds[1:], chunks[channel_axis], shape[channel_axis], dims[channel_axis])
    if kind == "ragged":
        rows = np.add.reduceat(width, bounds[:-1])
        chunks[axis] = 1 if tight else row_chunk(rows)
        start, size, names[axis] = row_starts(width, bounds, chunks[axis]), width, SAMPLE
        shape[axis] = int(start[-1] + width[-1])
        begin = start[bounds[:-1]]
        prove_one_owner(begin, begin + rows, chunks[axis], shape[axis], SAMPLE)
    elif kind == "dense":
        shape.insert(0, len(width))
        chunks.insert(0, int(np.diff(bounds).max()))
        names.insert(0, TRIAL)
        prove_one_owner(bounds[:-1], bounds[1:], chunks[0], shape[0], TRIAL)
    first_free = 1 if kind == "dense" else 0
    while not tight and int(np.prod(chunks, dtype=np.int64)) * dtype.itemsize > _LARGEST_CHUNK:
        free = [
            k
            for k in range(first_free, len(chunks))
            if not (kind == "ragged" and k == axis)
            and k != (None if channel_axis is None else channel_axis + first_free)
            and chunks[k] > 1
        ]
        if not free:
            break
        longest = max(free, key=lambda k: chunks[k])
        chunks[longest] = -(-chunks[longest] // 2)
    return TargetLayout(kind, tuple(names), tuple(shape), tuple(chunks), dtype, fill_value(dtype), start, size)
