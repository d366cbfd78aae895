"""A block's journey (read, compute, write) and the run that sends every block on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from xroutine.blas import one_blas_thread
from xroutine.call import Call, fit, split_details
from xroutine.engine import Engine
from xroutine.errors import OutputError, PlanError
from xroutine.plan import Block, Plan
from xroutine.record import encode
from xroutine.reduce import Partial, Tree, accumulator_dtype
from xroutine.source import Source
from xroutine.store import Target

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Receipt:
    """What a block returns.

    Attributes
    ----------
    number, trial_block, channel_block : int
        Which block.
    n_trials, nbytes : int
        Trials computed, and bytes of input.
    seconds : float
        From first read to last write.
    returned : str
        The dtype the function returned, where it was cast to the declared one.
    details : dict
        Details that the function returned, by position of the trial.
    values : numpy.ndarray or Partial or None
        What the coordinator has to write or merge; None where the block wrote it.
    """

    number: int
    trial_block: int
    channel_block: int
    n_trials: int
    nbytes: int
    seconds: float
    returned: str
    details: dict[int, dict[str, Any]]
    region: tuple[slice, ...] | None
    values: Array | Partial | None

    def summary(self) -> dict[str, Any]:
        """What the ledger keeps, as JSON."""
        kept: dict[str, Any] = {"n_trials": self.n_trials, "nbytes": self.nbytes, "seconds": round(self.seconds, 6)}
        if self.returned:
            kept["returned"] = self.returned
        if self.details:
            kept["details"] = {str(position): encode(found, "", None) for position, found in self.details.items()}
        return kept


@dataclass(frozen=True, eq=False)
class PlanFacts:
    """The few facts of a plan that every block needs; what has a row a trial travels with the blocks."""

    name: str
    call: Call
    layout: str
    kind: str
    variable_dims: tuple[str, ...]
    stack_axis: int
    trial_axis: int
    axis: int
    out_shape: tuple[int, ...]
    channel_axis: int | None
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: Any
    keeptrials: bool
    reserved: frozenset[str]

    def trials(self, block: Block, pieces: list[Array]) -> Iterator[Array]:
        """The block's trials, each an array of its own that the compute function may change."""
        if self.layout == "single":
            yield np.array(pieces[0], order="C")
        elif self.layout == "dense":
            stacked = np.moveaxis(pieces[0], self.trial_axis, 0)
            for position in range(len(block.trial)):
                yield np.array(stacked[position], order="C")
        else:
            before = (slice(None),) * self.stack_axis
            for piece, row, size in zip(block.piece.tolist(), block.row.tolist(), block.size.tolist(), strict=True):
                yield np.array(pieces[piece][(*before, slice(row, row + size))], order="C")

    def place(self, slot: int, width: int) -> tuple[Any, ...]:
        """Where a trial's output lies in the block's buffer."""
        if self.kind == "dense":
            return (slot,)
        if self.kind == "ragged":
            return (*(slice(None),) * self.axis, slice(slot, slot + width))
        return ()


@dataclass(frozen=True, eq=False)
class Work:
    """What all blocks of a run have in common.

    `source` is None where regions travel with the blocks, `target` where the coordinator writes.
    """

    plan: PlanFacts
    source: Source | None
    target: Target | None

    def __call__(self, block: Block, regions: list[Array] | None = None) -> Receipt:
        """Read a block's trials, compute them one by one, and write them at once."""
        began = time.perf_counter()
        facts = self.plan
        with one_blas_thread():
            pieces = regions or []
            if self.source is not None:
                pieces = [self.source.read(region) for region in block.reads]
            trials = facts.trials(block, pieces)
            if facts.keeptrials:
                out = np.full(block.shape, facts.fill_value, facts.dtype)
            else:
                out = np.zeros(block.shape, accumulator_dtype(facts.dtype))
            returned, details = _compute(facts, block, trials, out)
        values: Array | Partial | None = out
        if not facts.keeptrials:
            values = Partial(out, len(block.trial))
        elif self.target is not None and block.writes is not None:
            self.target.write(block.writes, out)
            values = None
        return Receipt(
            block.number,
            block.trial_block,
            block.channel_block,
            len(block.trial),
            sum(piece.nbytes for piece in pieces),
            time.perf_counter() - began,
            returned,
            details,
            block.writes,
            values,
        )


def _compute(
    facts: PlanFacts, block: Block, trials: Iterator[Array], out: Array
) -> tuple[str, dict[int, dict[str, Any]]]:
    call, returned = facts.call.with_values(block.values), ""
    extra = {"chunkShape": facts.chunk_shape} if call.contract else {}
    details: dict[int, dict[str, Any]] = {}
    shape = list(facts.out_shape)
    if facts.channel_axis is not None:
        shape[facts.channel_axis] = block.shape[facts.channel_axis + (facts.kind == "dense")]
    for index, (trial, slot, width) in enumerate(zip(trials, block.slot.tolist(), block.width.tolist(), strict=True)):
        argv, kwargs = call.arguments(index)
        given_shape = trial.shape
        try:
            result = call.function(trial, *argv, **kwargs, **extra)
        except Exception as error:
            error.add_note(_where(facts, block, index, given_shape, trial.dtype))
            raise
        if shape and facts.axis != facts.channel_axis:
            shape[facts.axis] = width
        try:
            values, found = split_details(result)
            values = fit(values, tuple(shape), facts.dtype)
        except OutputError as error:
            raise type(error)(f"{_where(facts, block, index, given_shape, trial.dtype)}: {error}") from None
        if values.dtype != facts.dtype:
            returned = str(values.dtype)
            values = values.astype(facts.dtype) if not facts.keeptrials else values
        if facts.keeptrials:
            out[facts.place(slot, width)] = values
        else:
            out += values
        if found:
            clash = [key for key in found if key in facts.reserved or not str(key).isidentifier()]
            if clash:
                where = _where(facts, block, index, given_shape, trial.dtype)
                raise OutputError(f"{where}: details {clash} would hide labels of the result: give them other names")
            details[block.first + index] = found
    return returned, details


def _where(facts: PlanFacts, block: Block, index: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    dims = ", ".join(f"{dim}={size}" for dim, size in zip(facts.variable_dims, shape, strict=True))
    channels = f", {block.channels}" if block.channels else ""
    label = block.trial[index]
    label = label.item() if isinstance(label, np.generic) else label
    return f"in trial {block.first + index} (id {label!r}){channels}, of `{facts.name}`; input ({dims}) {dtype}"


def execute(
    plan: Plan,
    source: Source,
    target: Target,
    engine: Engine,
    *,
    parallel_store: bool,
    reserved: frozenset[str] = frozenset(),
    progress: bool | None = None,
) -> None:
    """Run every block of a plan that the target does not hold yet.

    Parameters
    ----------
    parallel_store : bool
        Blocks write their own chunks; otherwise the coordinator writes them one after the other.
    reserved : frozenset of str
        Names that details cannot have.
    progress : bool, optional
        Show a progress bar; if left out, where a person is looking.

    Raises
    ------
    PlanError
        Where blocks in other processes could not reach the target.
    """
    if engine.remote and parallel_store and plan.keeptrials and target.in_memory:
        raise PlanError(
            f"blocks would run in other processes ({engine.name}), which cannot write into this process's memory: give "
            f"out= a path or a URL, or parallel_store=False, so that results travel back and are written here"
        )
    writes = parallel_store and plan.keeptrials
    travels = source.travels(engine.remote)
    work = Work(_facts(plan, reserved), None if travels else source, target if writes else None)
    if not plan.keeptrials:
        # Partial results are not stored: an average that was interrupted starts again.
        target.receipts.clear()
    missing = np.array([number for number in range(len(plan)) if number not in target.receipts], np.int64)
    trees = [Tree(plan.n_trial_blocks) for _ in range(plan.n_channel_blocks)]

    def attach(block: Block) -> list[Any] | None:
        if not travels:
            return None
        return [source.lazy(region) if source.is_dask else source.read(region) for region in block.reads]

    with tqdm(
        total=len(plan),
        initial=len(target.receipts),
        desc=plan.name,
        unit="block",
        disable=None if progress is None else not progress,
    ) as bar:

        def done(receipt: Receipt) -> None:
            if isinstance(receipt.values, Partial):
                trees[receipt.channel_block].add(receipt.trial_block, receipt.values)
            elif receipt.values is not None and receipt.region is not None:
                target.write(receipt.region, receipt.values)
            target.record(receipt.number, receipt.summary())
            bar.update()

        try:
            # Looking for the linear algebra libraries takes milliseconds: in this process once, not for every block.
            with nullcontext() if engine.remote else one_blas_thread():
                engine.run(plan.name, work, plan.blocks(missing), attach, done)
        finally:
            target.flush()
    if len(target.receipts) != len(plan):
        raise PlanError(
            f"{engine.name} returned {len(target.receipts)} of {len(plan)} receipts: give another scheduler="
        )
    if not plan.keeptrials:
        for channel_block, tree in enumerate(trees):
            region = [slice(0, size) for size in plan.target.shape]
            if plan.output.channel_axis is not None:
                low, high = (int(bound) for bound in plan.output.channel_bounds[channel_block : channel_block + 2])
                region[plan.output.channel_axis] = slice(low, high)
            target.write(tuple(region), tree.root.mean(plan.target.dtype))


def _facts(plan: Plan, reserved: frozenset[str] = frozenset()) -> PlanFacts:
    return PlanFacts(
        name=plan.name,
        call=plan.call.with_values(dict.fromkeys(plan.call.values(0, 0))),
        layout=plan.layout,
        kind=plan.target.kind,
        variable_dims=plan.dims,
        stack_axis=plan.stack_axis,
        trial_axis=plan.trial_axis,
        axis=plan.output.axis,
        out_shape=plan.output.shape,
        channel_axis=plan.output.channel_axis,
        chunk_shape=plan.output.chunk_shape,
        dtype=plan.output.dtype,
        fill_value=plan.target.fill_value,
        keeptrials=plan.keeptrials,
        reserved=reserved,
    )
