"""Allocating a target from a plan: made anew, or gone on with where an earlier run of the same plan has stopped."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr
import zarr
from zarr.abc.store import Store
from zarr.storage import LocalStore, MemoryStore

from xroutine.codecs import with_checksum
from xroutine.errors import (
    NotEnoughSpaceError,
    TargetExistsError,
    XroutineWarning,
)
from xroutine.failures import FAILED
from xroutine.lease import KEY as LEASE
from xroutine.lease import Lease
from xroutine.ledger import GROUP, PARTIALS, RECEIPTS, Ledger, read_receipts
from xroutine.objects import clear, delete, get, keys, names, put
from xroutine.plan import Plan, nbytes_text
from xroutine.provenance import SOURCE
from xroutine.record import dumps, loads
from xroutine.seal import COPIES, METADATA, ROOT, seals
from xroutine.store import (
    ALLOCATING,
    COMPLETE,
    FORMAT,
    MARK,
    RUNNING,
    address,
    as_store_errors,
    inspect,
    read_root,
    shortened,
)
from xroutine.stored_labels import check_storable, write_labels
from xroutine.target import ZarrTarget


def allocate(
    store: Store,
    plan: Plan,
    identity: Mapping[str, Any],
    compressors: Any,
    labels: xr.Dataset,
    *,
    overwrite: bool,
    strict: bool,
) -> ZarrTarget:
    """The target of a plan: made anew, or as an earlier run of the same plan left it.

    Raises
    ------
    TargetExistsError
        Where the store holds something else; the message lists what differs.
    BusyError
        Where another run is writing there.
    NotEnoughSpaceError
        Where the result does not fit on the disk.
    """
    check_storable(labels)
    codecs = {output.name: with_checksum(compressors, output.target.dtype) for output in plan.outputs}
    words = {name: [codec.to_dict() for codec in found] for name, found in codecs.items()}
    identity, names = {**identity, "compressors": words}, tuple(codecs)
    # A result that is there needs no lease, and nothing that would be refused should take one.
    present = _same(store, identity, overwrite, strict)
    if present is not None and present["status"] == COMPLETE:
        return ZarrTarget(store, names)
    with as_store_errors(store, "cannot be written"):
        lease = Lease(store, address(store))
    try:
        # Made in memory first: whatever cannot be allocated is known before anything that is stored is touched.
        mark = {"format": FORMAT, "status": RUNNING, "variables": list(names), "blocks": len(plan), "plan": identity}
        made = MemoryStore()
        _make(made, plan, codecs, labels, mark)
        present = _same(store, identity, overwrite, strict=False)
        if present is not None:
            receipts, damaged = read_receipts(store, len(plan))
            if damaged:
                warnings.warn(
                    f"{address(store)}: parts of the ledger are damaged, their blocks are computed again: {damaged}",
                    XroutineWarning,
                    stacklevel=2,
                )
            ledger = Ledger(store, len(plan), receipts)
            failed = [number for number, receipt in receipts.items() if receipt.get(FAILED)]
            if failed:
                # In an average, the trials that failed cannot be told from the others any more.
                ledger.forget(failed if plan.keeptrials else list(receipts))
            check_space(store, plan, codecs, 1 - len(ledger.receipts) / len(plan))
            set_status(store, RUNNING)
            _mend(store, made)
            return ZarrTarget(store, names, ledger, lease, labels)
        check_space(store, plan, codecs)
        with as_store_errors(store, "cannot be written"):
            _replace(store, made, mark)
        return ZarrTarget(store, names, Ledger(store, len(plan)), lease, labels)
    except BaseException:
        lease.release()
        raise


def _same(store: Store, identity: Mapping[str, Any], overwrite: bool, strict: bool) -> dict[str, Any] | None:
    """The mark of an earlier run of the same plan that can be gone on with; None where the target is made anew."""
    present = inspect(store)
    if present is None or overwrite or present["status"] == ALLOCATING:
        return None
    old = present["plan"]
    differing = [key for key in sorted({*old, *identity}) if old.get(key) != identity.get(key)]
    if present["status"] == COMPLETE:
        # They matter where a result would be made by two of them.
        differing = [key for key in differing if key != "versions"]
    listed = "\n".join(
        f"  {key}: {shortened(old.get(key))} there, {shortened(identity.get(key))} now" for key in differing
    )
    if strict or not all(key.startswith(SOURCE) for key in differing):
        if differing:
            raise TargetExistsError(
                f"{address(store)} holds another result ({present['status']}); what differs:\n{listed}\n"
                f"Give another out=, or overwrite=True to start afresh"
            )
    elif differing:
        warnings.warn(
            f"{address(store)} was computed with another version of the same function; what is there is kept:\n"
            f"{listed}\nGive overwrite=True to start afresh, or strict=True to have this as an error",
            XroutineWarning,
            stacklevel=2,
        )
    return present


def _make(
    store: Store, plan: Plan, codecs: Mapping[str, list[Any]], labels: xr.Dataset, mark: Mapping[str, Any]
) -> None:
    root = zarr.create_group(store, zarr_format=3, attributes={MARK: dumps(mark)})
    for output in plan.outputs:
        layout = output.target
        root.create_array(
            output.name,
            shape=layout.shape,
            chunks=layout.chunks or "auto",
            dtype=layout.dtype,
            fill_value=layout.fill_value,
            dimension_names=layout.dims,
            compressors=codecs[output.name],
        )
    Ledger.create(store, plan.trial_bounds, plan.n_channel_blocks)
    write_labels(store, labels, dumps(mark))


def _replace(store: Store, made: Store, mark: Mapping[str, Any]) -> None:
    """Put what was made into a store, in place of all that is there; the root's metadata tell how far that got."""
    root = json.loads(get(made, ROOT) or b"{}")
    begun = {**root, "attributes": {MARK: dumps({**mark, "status": ALLOCATING})}}
    text = json.dumps(begun).encode()
    if get(store, ROOT) is None:
        # Should the root be torn as it is written, its copy tells that this is ours.
        put(store, METADATA, seals({ROOT: text})[METADATA])
    put(store, ROOT, text)
    for name in names(store):
        if name not in (ROOT, GROUP):
            clear(store, name)
            delete(store, name)
    clear(store, PARTIALS)
    for key in keys(store, f"{GROUP}/"):
        if key != LEASE:
            delete(store, key)
    for key in keys(made):
        if key != ROOT:
            put(store, key, get(made, key) or b"")
    text = json.dumps(root, indent=2).encode()
    put(store, METADATA, seals({ROOT: text})[METADATA])
    put(store, ROOT, text)


def _mend(store: Store, made: Store) -> None:
    """Restore what was allocated, where a run was killed as it wrote."""
    for key in keys(made):
        value = get(made, key)
        if key != ROOT and not key.startswith(f"{RECEIPTS}/c/") and value is not None and get(store, key) != value:
            put(store, key, value)
    if isinstance(store, LocalStore):
        # Files that a killed process was about to rename to chunks.
        for path in store.root.rglob("*.partial"):
            path.unlink(missing_ok=True)


def check_space(store: Store, plan: Plan, codecs: Mapping[str, Sequence[Any]], share: float = 1.0) -> None:
    """Refuse what does not fit on the local disk, and warn where it might not, as it gets smaller when compressed.

    Raises
    ------
    NotEnoughSpaceError
    """
    if not isinstance(store, LocalStore):
        return
    there = next(path for path in (store.root, *store.root.parents) if path.exists())
    free = shutil.disk_usage(there).free
    needed = share * plan.stored_nbytes
    if needed <= free:
        return
    message = f"the result takes {nbytes_text(needed)}, {nbytes_text(free)} are free where {address(store)} lies"
    if all(len(found) == 1 for found in codecs.values()):
        raise NotEnoughSpaceError(f"{message}: make room, give another out=, or compressors= that make it smaller")
    warnings.warn(
        f"{message}: it fits only if compression makes it smaller; where space runs out, what is finished is kept",
        XroutineWarning,
        stacklevel=2,
    )


def set_status(store: Store, status: str) -> None:
    """Begin to change a committed result: its root tells so, and the copies of what is going to change go."""
    root = read_root(store) or {}
    root.pop("consolidated_metadata", None)
    root["attributes"][MARK] = dumps({**loads(root["attributes"][MARK], MARK), "status": status})
    text = json.dumps(root, indent=2).encode()
    delete(store, COPIES)
    put(store, METADATA, seals({ROOT: text})[METADATA])
    put(store, ROOT, text)
