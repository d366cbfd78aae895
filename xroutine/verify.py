"""Verifying a result, and repairing it: small objects from their copies, blocks by computing them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from zarr.abc.store import Store

from xroutine.allocate import set_status
from xroutine.codecs import from_words
from xroutine.errors import DamagedError, PlanError
from xroutine.examine import Damage, Report, examine
from xroutine.lease import Lease
from xroutine.ledger import Ledger, read_receipts
from xroutine.objects import put
from xroutine.opening import open_dataset
from xroutine.plan import Plan
from xroutine.replay import recorded_call
from xroutine.routine import ComputationalRoutine
from xroutine.seal import ROOT, write_seals
from xroutine.store import RUNNING, Location, address, inspect, locate


def verify(
    location: Location,
    data: Any = None,
    *,
    repair: bool = False,
    routine: Callable[..., Any] | type[ComputationalRoutine] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Report:
    """Read every chunk of a result and compare what is there with what was committed.

    Parameters
    ----------
    location : path, URL or zarr store
    data : xarray.Dataset, xarray.DataArray or Trials, optional
        The input, where blocks have to be computed again.
    repair : bool
        Restore what is damaged or missing: labels, ledger and metadata from their copies, chunks of signals by
        computing exactly the blocks that wrote them (of an average: all blocks).
    routine : callable or ComputationalRoutine subclass, optional
        What computes them; if left out, the recorded one, whose module has to be imported.
    storage_options : mapping, optional
        Options for a URL's file system.

    Returns
    -------
    Report

    Raises
    ------
    FileNotFoundError
        Where there is nothing.
    UnfinishedError
        Where the run has not been completed.
    DamagedError
        Where objects are missing, or not what was committed, and are not to be or cannot be repaired; the message lists
        them, with the trials affected.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt, zarr
    >>> store = zarr.storage.MemoryStore()
    >>> result = xrt.from_arrays([np.ones((4, 2))] * 3, samplerate=1.0).trials.map(np.negative, out=store)
    >>> xrt.verify(store).blocks
    1
    """
    store = locate(location, storage_options)
    found = examine(store)
    if not found.damaged:
        return found.report
    listed = "\n  ".join(map(str, found.damaged[:20]))
    message = f"{address(store)}: {len(found.damaged)} damaged or missing objects:\n  {listed}"
    if not repair:
        raise DamagedError(f"{message}\nrepair=True restores them, given the input where chunks of signals are damaged")
    chunks = [damage for damage in found.damaged if damage.name]
    if chunks and data is None:
        raise DamagedError(f"{message}\nto compute their trials again, give the input: verify(..., data, repair=True)")
    lease = Lease(store, address(store))
    try:
        _restore(store, found.objects)
    finally:
        lease.release()
    if chunks:
        try:
            _recompute(store, chunks, data, routine, "record" if found.report.failed else "raise")
        finally:
            # The same result as before, with the same marks; where it could not be computed, as damaged as it was.
            _restore(store, found.objects)
    again = examine(store)
    if again.damaged:
        raise DamagedError(
            f"{address(store)}: after repair, still damaged are:\n  " + "\n  ".join(map(str, again.damaged))
        )
    return replace(again.report, repaired=tuple(map(str, found.damaged)))


def _restore(store: Store, objects: Mapping[str, bytes]) -> None:
    """Put small objects back as they were committed, the root's metadata last."""
    for key, value in objects.items():
        if key != ROOT:
            put(store, key, value)
    write_seals(store, objects)
    put(store, ROOT, objects[ROOT])


def _recompute(store: Store, chunks: Sequence[Damage], data: Any, routine: Any, on_error: Any) -> None:
    """Compute the blocks again that wrote these chunks, as a run that goes on without their receipts."""
    where, mark = address(store), inspect(store) or {}
    made, asked = recorded_call(open_dataset(store), where, routine)
    made.initialize(data, **asked)
    ledger = Ledger(store, len(made.plan), read_receipts(store, len(made.plan))[0])
    ledger.forget(_blocks(made.plan, chunks))
    set_status(store, RUNNING)
    ledger.write({})
    first, *others = mark["plan"]["compressors"].values()
    made(
        data,
        store,
        parallel=False,
        on_error=on_error,
        compressors=from_words(first) if all(other == first for other in others) else "auto",
        **asked,
    )


def _blocks(plan: Plan, chunks: Sequence[Damage]) -> list[int]:
    """The numbers of the blocks that write into chunks."""
    if not plan.keeptrials:
        return list(range(len(plan)))
    outputs = {output.name: number for number, output in enumerate(plan.outputs)}
    missing = {damage.name for damage in chunks} - set(outputs)
    if missing:
        raise PlanError(f"the routine gives {sorted(outputs)}, and not the damaged {sorted(missing)}")
    found = []
    for block in plan.blocks():
        written = [(outputs[damage.name], damage.region) for damage in chunks]
        if any(_meet(block.gives[number].writes or (), region) for number, region in written):
            found.append(block.number)
    return found


def _meet(one: Sequence[slice], other: Sequence[slice]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))
