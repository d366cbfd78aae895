"""A block's journey (read, compute, write) and the run that sends every block on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from xroutine.blas import one_blas_thread
from xroutine.blocks import overlapping
from xroutine.call import Array, Call, split_result
from xroutine.details import column_details
from xroutine.engine import Engine, tried
from xroutine.errors import OutputError, PlanError
from xroutine.failures import FAILED, Failure, pack_failures
from xroutine.gather import Gathered, Place
from xroutine.plan import Block, Plan
from xroutine.reduce import Forest, Node, Partial
from xroutine.source import Source
from xroutine.target import Target


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
    returned : dict
        The dtypes that the function returned, by output, where they were cast to the declared ones.
    details : dict
        Details that the function returned, as columns over the trials that have them; see `column_details`.
    failed : dict
        Why trials failed, by position, where that is recorded.
    regions : tuple
        Where the outputs go; None for averages.
    values : tuple
        What the coordinator has to write or merge, one an output; empty where the block wrote it.
    """

    number: int
    trial_block: int
    channel_block: int
    n_trials: int
    nbytes: int
    seconds: float
    returned: dict[str, str]
    details: dict[str, Any]
    failed: dict[int, Failure]
    regions: tuple[tuple[slice, ...] | None, ...]
    values: tuple[Array | Partial, ...]

    def summary(self) -> dict[str, Any]:
        """What the ledger keeps, as JSON."""
        kept: dict[str, Any] = {"n_trials": self.n_trials, "nbytes": self.nbytes, "seconds": round(self.seconds, 6)}
        if self.returned:
            kept["returned"] = self.returned
        if self.details:
            kept["details"] = self.details
        if self.failed:
            kept[FAILED] = pack_failures(self.failed)
        return kept


@dataclass(frozen=True, eq=False)
class PlanFacts:
    """The few facts of a plan that every block needs; what has a row a trial travels with the blocks."""

    name: str
    call: Call
    layout: str
    variable_dims: tuple[str, ...]
    stack_axis: int
    trial_axis: int
    chunk_shape: Any
    places: tuple[Place, ...]
    reserved: frozenset[str]

    def trials(self, block: Block, pieces: list[Array], ours: bool) -> Iterator[Array]:
        """The block's trials, each an array of its own that the compute function may change.

        `ours` tells that nobody else holds the pieces, so that trials that do not overlap need not be copied.
        """
        found: Iterable[Array] = pieces
        if self.layout == "dense":
            found = np.moveaxis(pieces[0], self.trial_axis, 0)
        elif self.layout == "ragged":
            ours = ours and not overlapping(block.piece, block.row, block.size)
            rows_first = [np.moveaxis(piece, self.stack_axis, 0) for piece in pieces]
            table = zip(block.piece.tolist(), block.row.tolist(), block.size.tolist(), strict=True)
            found = (rows_first[piece][row : row + size] for piece, row, size in table)
            if self.stack_axis:
                found = (np.moveaxis(trial, 0, self.stack_axis) for trial in found)
        for trial in found:
            yield trial if ours and trial.flags.c_contiguous else trial.copy()


@dataclass(frozen=True, eq=False)
class Work:
    """What all blocks of a run have in common.

    Attributes
    ----------
    plan : PlanFacts
    source : Source or None
        None where regions travel with the blocks.
    target : Target or None
        None where the coordinator writes.
    attempts : int or None
        How often a failing trial is tried before its failure is recorded; None where failures are raised.
    """

    plan: PlanFacts
    source: Source | None
    target: Target | None
    attempts: int | None = None

    def __call__(self, block: Block, regions: list[Array] | None = None) -> Receipt:
        """Read a block's trials, compute them one by one, and write them at once."""
        began = time.perf_counter()
        facts = self.plan
        with one_blas_thread():
            pieces, ours = regions or [], False
            if self.source is not None:
                pieces, ours = [self.source.read(region) for region in block.reads], self.source.reads_anew
            outputs = [Gathered(place, piece) for place, piece in zip(facts.places, block.gives, strict=True)]
            trials = facts.trials(block, pieces, ours)
            details, failed = _compute(facts, block, trials, outputs, self.attempts)
        nbytes = sum(piece.nbytes for piece in pieces)
        # Encoding takes memory of its own: the input has to be gone by then.
        del pieces, regions
        values = tuple(output.values for output in outputs)
        regions_out = tuple(piece.writes for piece in block.gives)
        if self.target is not None:
            self.target.write(regions_out, values)
            values = ()
        return Receipt(
            block.number,
            block.trial_block,
            block.channel_block,
            len(block.trial),
            nbytes,
            time.perf_counter() - began,
            {output.place.name or facts.name: output.returned for output in outputs if output.returned},
            column_details(details),
            failed,
            regions_out,
            values,
        )


def _compute(
    facts: PlanFacts, block: Block, trials: Iterator[Array], outputs: list[Gathered], attempts: int | None
) -> tuple[dict[int, dict[str, Any]], dict[int, Failure]]:
    """Call the function trial by trial, and hand on what it returns; details and failures, by position of the trial."""
    call = facts.call.with_values(block.values)
    function, names, put = call.function, call.outputs, outputs[0].put
    extra = {"chunkShape": facts.chunk_shape} if call.contract else {}
    varies = call.varies
    given = call.arguments(0)
    details: dict[int, dict[str, Any]] = {}
    failed: dict[int, Failure] = {}

    def compute(index: int, trial: Array) -> None:
        argv, kwargs = call.arguments(index) if varies else given
        given_shape = trial.shape
        try:
            result = function(trial, *argv, **kwargs, **extra)
        except Exception as error:
            error.add_note(_where(facts, block, index, given_shape, trial.dtype))
            raise
        try:
            if names is None and type(result) is np.ndarray:
                put(index, result)
                return
            arrays, found = split_result(result, names)
            clash = [key for key in found or () if key in facts.reserved or not str(key).isidentifier()]
            if clash:
                raise OutputError(f"details {clash} would hide labels of the result: give them other names")
            fitting = [output.fitting(index, array) for output, array in zip(outputs, arrays, strict=True)]
        except OutputError as error:
            raise type(error)(f"{_where(facts, block, index, given_shape, trial.dtype)}: {error}") from None
        # All of them fit: a trial is in all averages or in none.
        for output, array in zip(outputs, fitting, strict=True):
            output.place_fitting(index, array)
        if found:
            details[block.first + index] = found

    for index, trial in enumerate(trials):
        if attempts is None:
            compute(index, trial)
            continue
        failure = _attempt(compute, index, trial, attempts)
        if failure is not None:
            failed[block.first + index] = failure
            for output in outputs:
                output.leave_out(index)
    return details, failed


def _attempt(compute: Callable[[int, Array], None], index: int, trial: Array, attempts: int) -> Failure | None:
    """Compute a trial, as often as it fails and may; why it failed the last time."""
    for left in range(attempts - 1, -1, -1):
        try:
            # A function may change its trial; the next attempt needs it as it was.
            compute(index, trial.copy() if left else trial)
        except Exception as error:  # noqa: BLE001  # whatever the function raises is recorded
            failure = Failure.of(error)
        else:
            return None
    return failure


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
    retries: int = 0,
    on_error: str = "raise",
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
    retries : int
        How often a block, or a trial whose failure would be recorded, is tried again.
    on_error : {"raise", "record"}
        What becomes of a trial that fails.

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
    attempts = retries + 1 if on_error == "record" else None
    work = Work(_facts(plan, reserved), None if travels else source, target if writes else None, attempts)
    forest = Forest(plan.n_trial_blocks, plan.n_channel_blocks)
    if not plan.keeptrials:
        taken = forest.restore(target.nodes(), set(target.receipts))
        target.keep(taken)
        held = set().union(*map(forest.blocks, taken))
        target.forget([number for number in target.receipts if number not in held])
    missing = np.array([number for number in range(len(plan)) if number not in target.receipts], np.int64)

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
        failed = 0

        def done(receipt: Receipt) -> None:
            nonlocal failed
            partials = tuple(value for value in receipt.values if isinstance(value, Partial))
            if partials:
                forest.add(Node(receipt.channel_block, 0, receipt.trial_block), partials)
            elif receipt.values:
                tried(
                    partial(target.write, receipt.regions, receipt.values), retries, f"writing block {receipt.number}"
                )
            target.record(receipt.number, receipt.summary())
            if target.due:
                tried(partial(target.flush, forest.nodes), retries, "writing the ledger")
            failed += len(receipt.failed)
            if failed:
                bar.set_postfix(failed=failed, refresh=False)
            bar.update()

        try:
            # Looking for the linear algebra libraries takes milliseconds: in this process once, not for every block.
            with nullcontext() if engine.remote else one_blas_thread():
                engine.run(plan.name, work, plan.blocks(missing), attach, done, retries)
        finally:
            tried(partial(target.flush, forest.nodes), retries, "writing the ledger")
    if len(target.receipts) != len(plan):
        raise PlanError(
            f"{engine.name} returned {len(target.receipts)} of {len(plan)} receipts: give another scheduler="
        )
    if plan.reduction is not None:
        for channel_block, root in enumerate(forest.roots()):
            regions = [plan.region(output, channel_block) for output in plan.outputs]
            dtypes = [output.target.dtype for output in plan.outputs]
            target.write(regions, [a.result(plan.reduction, dtype) for a, dtype in zip(root, dtypes, strict=True)])


def _facts(plan: Plan, reserved: frozenset[str] = frozenset()) -> PlanFacts:
    return PlanFacts(
        name=plan.name,
        call=plan.call.with_values(dict.fromkeys(plan.call.values(0, 0))),
        layout=plan.layout,
        variable_dims=plan.dims,
        stack_axis=plan.stack_axis,
        trial_axis=plan.trial_axis,
        chunk_shape=plan.chunk_shape,
        places=tuple(
            Place(
                name=output.name if plan.call.outputs else None,
                kind=output.target.kind,
                axis=output.axis,
                shape=output.shape,
                channel_axis=output.channel_axis,
                dtype=output.dtype,
                fill_value=output.target.fill_value,
                reduction=plan.reduction,
                aligned=output.slot is not None,
            )
            for output in plan.outputs
        ),
        reserved=reserved,
    )
