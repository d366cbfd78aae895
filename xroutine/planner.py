"""Making the plan: dry runs, blocks, layout and proof, and every error that can be known before a byte is moved."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xroutine.blocks import channel_bounds, even_bounds, greedy_bounds
from xroutine.call import Call
from xroutine.dryrun import Answers, Shape, dry_run, dry_runs
from xroutine.errors import DryRunError, PlanError
from xroutine.layout import TargetLayout, fill_value, prove_one_owner, row_chunk, row_starts
from xroutine.plan import Output, Plan, TrialOutput, kept_offset
from xroutine.reduce import REDUCTIONS, reduced_dtype
from xroutine.trials import CHANNEL, SAMPLE, TIME, TRIAL, IntArray, Layout, View

BLOCK_SIZE = 16 * 2**20
# Blosc cannot compress more than 2 GiB at once, and whoever reads one trial decodes a whole chunk.
_LARGEST_CHUNK = 64 * 2**20


def make_plan(
    view: View,
    call: Call,
    *,
    name: str,
    out_dims: Mapping[str, tuple[str, ...] | None] | None = None,
    number_dims: bool = False,
    out_stackingdim: int | None = None,
    chan_per_worker: int | None = None,
    keeptrials: bool = True,
    reduction: str = "mean",
    align: str | None = None,
    block_size: int = BLOCK_SIZE,
    tight: bool = False,
    answers: tuple[Answers, ...] | None = None,
) -> Plan:
    """Dry-run the call, cut the work into blocks, lay out the targets, and prove that no chunk has two owners.

    Parameters
    ----------
    view : View
        The input.
    call : Call
        The compute function and its arguments.
    name : str
        What is computed.
    out_dims : mapping of str to tuple of str or None, optional
        Names of the outputs, and dims of one trial's; None for those of the input, where they are as many. `name`
        alone if left out.
    number_dims : bool
        Call undeclared dims ``dim_0``, ``dim_1``, ... instead of raising.
    out_stackingdim : int, optional
        Output dimension along which trials of unequal size are stacked; found by the dry run if left out.
    chan_per_worker : int, optional
        Channels in a block; all of them if left out.
    keeptrials : bool
        Store single trials, or their average.
    reduction : {"mean", "sum", "var", "std", "sem"}
        What of the trials is stored, where single ones are not.
    align : {"trigger"}, optional
        Average trials of unequal length, each sample over the trials that cover it.
    block_size : int
        Bytes of input (or of output, where that is more) in a block.
    tight : bool
        Leave no unused rows: for targets without chunks.
    answers : tuple of Answers, optional
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
    _check_reduction(keeptrials, reduction, align)
    call.check_length(len(view))
    in_bounds = _channel_bounds(view, chan_per_worker)
    channels = int(in_bounds[1])
    if answers is None:
        answers = dry_runs(call, view.size, lambda rows: _shape(view, rows, channels), view.variable.dtype)
    named = {name: None} if out_dims is None else out_dims
    told = [
        _trial_output(view, call, in_bounds, title, dims, number_dims, out_stackingdim, keeptrials, align, found)
        for (title, dims), found in zip(named.items(), answers, strict=True)
    ]
    if align is not None and all(output.slot is None for output in told):
        raise PlanError(
            f"align={align!r}: expected an output that keeps the samples of each trial along `time`, found "
            f"{', '.join(f'{output.name} {output.dims}' for output in told)}"
        )
    kinds = [_target_kind(view, output, keeptrials) for output in told]
    widest = _shape(view, int(view.size.max()), int(np.diff(in_bounds).max()))
    row_nbytes = int(np.prod(widest, dtype=np.int64)) // int(view.size.max()) * view.variable.dtype.itemsize
    nbytes_in, nbytes_out = view.size * row_nbytes, np.sum([found.nbytes for found in answers], axis=0)
    in_block = np.maximum(nbytes_in, nbytes_out) if keeptrials else nbytes_in
    input_chunk = _input_chunk(view)
    if set(kinds) == {"ragged"}:
        bounds = greedy_bounds(in_block, block_size)
    else:
        bounds = even_bounds(in_block, block_size, input_chunk if view.layout == "dense" else 1)
    targets = _targets(told, kinds, bounds, None if keeptrials else reduction, tight)
    outputs = tuple(Output(**vars(output), target=target) for output, target in zip(told, targets, strict=True))
    held = np.add.reduceat(nbytes_in, bounds[:-1])
    if keeptrials:
        held += np.add.reduceat(nbytes_out, bounds[:-1])
    else:  # sums, of squares too, and what they are merged with
        held += 4 * sum(int(np.prod(target.shape, dtype=np.int64)) * 16 for target in targets)
    return Plan(
        name=name,
        call=call,
        variable=view.name,
        layout=view.layout,
        dims=view.dims,
        dtype=view.variable.dtype,
        stack=view.stack,
        sample=view.sample if view.layout == "ragged" else None,
        trial_axis=view.variable.dims.index(TRIAL) if view.layout == "dense" else 0,
        stack_axis=view.dims.index(view.stack) if view.stack else 0,
        channel_size=view.variable.sizes.get(CHANNEL),
        trial=view.trial,
        start=view.start,
        size=view.size,
        input_shape=view.shape(int(view.size.max())),
        input_chunk=input_chunk,
        outputs=outputs,
        trial_bounds=bounds,
        channel_bounds=in_bounds,
        reduction=None if keeptrials else reduction,
        block_nbytes=int(held.max() + (nbytes_in + nbytes_out).max()),
    )


def _check_reduction(keeptrials: bool, reduction: str, align: str | None) -> None:
    if reduction not in REDUCTIONS:
        raise PlanError(f"reduction={reduction!r}: expected one of {', '.join(REDUCTIONS)}")
    if align not in (None, "trigger"):
        raise PlanError(f"align={align!r}: expected 'trigger' or None")
    if keeptrials and (reduction != "mean" or align is not None):
        given = f"align={align!r}" if align is not None else f"reduction={reduction!r}"
        raise PlanError(f"{given} goes with keeptrials=False: single trials are stored as they are")


def _shape(view: View, rows: int, channels: int) -> Shape:
    """Shape of a trial of so many rows, with so many channels where it has any."""
    return tuple(channels if dim == CHANNEL else n for dim, n in zip(view.dims, view.shape(rows), strict=True))


def _trial_output(
    view: View,
    call: Call,
    bounds: IntArray,
    name: str,
    declared: tuple[str, ...] | None,
    number_dims: bool,
    out_stackingdim: int | None,
    keeptrials: bool,
    align: str | None,
    answers: Answers,
) -> TrialOutput:
    """Along which dimensions an output follows trials and channels."""
    dims = _output_dims(view, name, declared, number_dims, answers, int(bounds[1]))
    offset = kept_offset(view, dims, answers)
    aligned = align is not None and offset is not None
    wanted = dims.index(TIME) if aligned else out_stackingdim
    axis = _stacking_axis(name, answers, dims, wanted, keeptrials or aligned)
    shape, channel_axis, out_bounds = answers.largest, None, np.zeros(1, np.int64)
    if len(bounds) > 2:
        channel_axis, out_bounds = _follow_channels(view, call, name, answers, dims, bounds)
        shape = tuple(int(out_bounds[-1]) if k == channel_axis else n for k, n in enumerate(shape))
        if axis == channel_axis and _unequal(answers, axis):
            raise PlanError(
                f"trials cannot be stacked along {dims[axis]!r} and split along it, too: drop chan_per_worker="
            )
    width = answers.sizes(axis) if dims else np.ones(len(view), np.int64)
    if not keeptrials and not aligned and offset is not None and (offset != offset[0]).any():
        raise PlanError(
            f"trials start at different offsets from their trigger ({offset.min()} to {offset.max()} samples): "
            f"averaging them (keeptrials=False) would mix latencies; select a common latency first, or give "
            f"align='trigger' to average each sample over the trials that cover it"
        )
    slot = offset - offset.min() if offset is not None and aligned else None
    return TrialOutput(name, dims, shape, answers.dtype, axis, width, channel_axis, out_bounds, slot, answers)


def _channel_bounds(view: View, chan_per_worker: int | None) -> IntArray:
    if CHANNEL not in view.dims:
        if chan_per_worker is not None:
            raise PlanError(
                f"chan_per_worker={chan_per_worker}: {view.name!r} has no `channel` dim, its dims are {view.dims}"
            )
        return np.array([0, 0], np.int64)
    if chan_per_worker is not None and (
        isinstance(chan_per_worker, bool) or not isinstance(chan_per_worker, (int, np.integer)) or chan_per_worker < 1
    ):
        raise PlanError(f"chan_per_worker: expected a positive number of channels, got {chan_per_worker!r}")
    return channel_bounds(view.variable.sizes[CHANNEL], chan_per_worker)


def _output_dims(
    view: View, name: str, declared: tuple[str, ...] | None, number_dims: bool, answers: Answers, channels: int
) -> tuple[str, ...]:
    dims, ndim = view.dims, len(answers.shapes[0])
    if declared is None:
        given = _shape(view, int(view.size.max()), channels)
        fixed = [k for k, dim in enumerate(dims) if dim != view.stack]
        if ndim == len(dims):
            if all(answers.largest[k] == given[k] for k in fixed):
                return dims
            if not number_dims:
                raise DryRunError(
                    f"{name} returns shape {answers.largest} for a trial of shape {given}: if its dims are still "
                    f"{dims}, say so with out_dims={dims}, else name them"
                )
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
            f"(keeptrials=False); select a latency that all trials cover, return one size for all, or, where outputs "
            f"keep the samples along `time`, give align='trigger'"
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
    view: View, call: Call, name: str, answers: Answers, dims: tuple[str, ...], bounds: IntArray
) -> tuple[int, IntArray]:
    """The output dimension that follows the channels, and where each channel block lies along it."""
    rows, first, rest = int(view.size[0]), int(bounds[1] - bounds[0]), int(bounds[-1] - bounds[-2])
    shapes = {first: answers.shapes[answers.kind[0]]}
    # Without a rest, a call with all channels tells what follows their number.
    position = call.outputs.index(name) if call.outputs else 0
    for channels in {rest, int(bounds[-1]) if rest == first else rest} - {first}:
        shape, dtype = dry_run(call, _shape(view, rows, channels), view.variable.dtype)[position]
        if len(shape) != len(dims) or dtype != answers.dtype:
            raise DryRunError(
                f"{name} is {dtype} {shape} for {channels} channels, but {answers.dtype} {shapes[first]} for {first}"
            )
        shapes[channels] = shape
    other = next(channels for channels in shapes if channels != first)
    follows = [k for k in range(len(dims)) if shapes[first][k] != shapes[other][k]]
    if len(follows) != 1:
        raise PlanError(
            f"chan_per_worker={first}: expected exactly one output dimension that follows the number of channels, "
            f"found {[dims[k] for k in follows]}: {name} is {shapes[first]} for {first} channels and "
            f"{shapes[other]} for {other}; leave chan_per_worker out"
        )
    axis = follows[0]
    if CHANNEL in dims and dims[axis] != CHANNEL:
        raise PlanError(
            f"chan_per_worker={first}: {dims[axis]!r} of {dims} follows the number of channels, 'channel' does not: "
            f"{name} is {shapes[first]} for {first} channels and {shapes[other]} for {other}; put out_dims right"
        )
    per_block = [shapes[first][axis]] * (len(bounds) - 2) + [shapes.get(rest, shapes[first])[axis]]
    return axis, np.append(0, np.cumsum(per_block)).astype(np.int64)


def _target_kind(view: View, output: TrialOutput, keeptrials: bool) -> Layout:
    if not keeptrials or view.layout == "single":
        return "single"
    if (output.width != output.width[0]).any():
        return "ragged"
    stacks_time = bool(output.dims) and output.dims[output.axis] == TIME
    if stacks_time and view.offset is not None and (view.offset != view.offset[0]).any():
        return "ragged"
    return "dense"


def _input_chunk(view: View) -> int:
    dim = TRIAL if view.layout == "dense" else view.sample if view.layout == "ragged" else view.stack
    chunks = view.variable.encoding.get("preferred_chunks", {}).get(dim, 1)
    return int(chunks[0] if isinstance(chunks, tuple) else chunks)


def _targets(
    outputs: list[TrialOutput], kinds: list[Layout], bounds: IntArray, reduction: str | None, tight: bool
) -> list[TargetLayout]:
    """Where each output is written. Ragged ones whose trials are equally long share the dimension ``sample``."""
    ragged = [output for output, kind in zip(outputs, kinds, strict=True) if kind == "ragged"]
    targets = []
    for output, kind in zip(outputs, kinds, strict=True):
        alike = [other for other in ragged if np.array_equal(other.width, output.width)]
        sample = SAMPLE if not ragged or ragged[0] in alike else f"{SAMPLE}_{alike[0].name if alike else output.name}"
        row_nbytes = max((_row_nbytes(other) for other in alike), default=1)
        targets.append(_target(kind, output, bounds, reduction, sample, 0 if tight else row_nbytes))
    return targets


def _row_nbytes(output: TrialOutput) -> int:
    others = [n for axis, n in enumerate(output.chunk_shape) if axis != output.axis]
    return int(np.prod(others, dtype=np.int64)) * output.dtype.itemsize


def _target(
    kind: Layout, output: TrialOutput, bounds: IntArray, reduction: str | None, sample: str, row_nbytes: int
) -> TargetLayout:
    """Shape and chunks of a target, with the proof that every chunk has one owner."""
    dtype = output.dtype if reduction is None else reduced_dtype(output.dtype, reduction)
    shape, names = list(output.shape), list(output.dims)
    if output.slot is not None:
        shape[output.axis] = int((output.slot + output.width).max())
    chunks = list(shape)
    start = size = None
    # Dimensions whose chunks are where blocks meet; the others are cut only to keep chunks small.
    owned = set()
    if output.channel_axis is not None:
        axis, out_bounds = output.channel_axis, output.channel_bounds
        chunks[axis] = int(out_bounds[1])
        prove_one_owner(out_bounds[:-1], out_bounds[1:], chunks[axis], shape[axis], names[axis])
        owned.add(names[axis])
    if kind == "ragged":
        axis, rows = output.axis, np.add.reduceat(output.width, bounds[:-1])
        chunks[axis] = row_chunk(rows, max(_LARGEST_CHUNK // row_nbytes, 1)) if row_nbytes else 1
        start, size, names[axis] = row_starts(output.width, bounds, chunks[axis]), output.width, sample
        shape[axis] = int(start[-1] + size[-1])
        begin = start[bounds[:-1]]
        prove_one_owner(begin, begin + rows, chunks[axis], shape[axis], sample)
        owned.add(sample)
    elif kind == "dense":
        shape.insert(0, len(output.width))
        chunks.insert(0, int(np.diff(bounds).max()))
        names.insert(0, TRIAL)
        prove_one_owner(bounds[:-1], bounds[1:], chunks[0], shape[0], TRIAL)
        owned.add(TRIAL)
    while int(np.prod(chunks, dtype=np.int64)) * dtype.itemsize > _LARGEST_CHUNK:
        free = [k for k, name in enumerate(names) if name not in owned and chunks[k] > 1]
        if not free:
            break
        longest = max(free, key=lambda k: chunks[k])
        chunks[longest] = -(-chunks[longest] // 2)
    return TargetLayout(kind, tuple(names), tuple(shape), tuple(chunks), dtype, fill_value(dtype), start, size)
