"""Where results lie: the store at a path or URL, and what xroutine has noted in its root."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from xroutine.errors import DamagedError, StoreError, TargetExistsError
from xroutine.lease import KEY as LEASE
from xroutine.objects import get
from xroutine.record import loads
from xroutine.seal import METADATA, ROOT, read_metadata

FORMAT = 2
MARK = "xroutine"
# What the root's mark says of a target.
ALLOCATING, RUNNING, COMPLETE, PARTIAL = "allocating", "running", "complete", "partial"

Location = str | os.PathLike[str] | Store


def locate(out: Location, storage_options: Mapping[str, Any] | None = None) -> Store:
    """The store at a path, a URL, or the store itself.

    Raises
    ------
    StoreError
        Where `out` is none of these, or is a file.
    """
    if isinstance(out, Store):
        if storage_options:
            raise StoreError("storage_options= go with a URL; a store was given")
        return out
    if not isinstance(out, (str, os.PathLike)):
        raise StoreError(f"expected a path, a URL or a zarr store, got {type(out).__name__}")
    text = os.fspath(out)
    if "://" in text and not text.startswith("file://"):
        try:
            return FsspecStore.from_url(text, storage_options=dict(storage_options or {}))
        except (ImportError, ValueError) as error:
            raise StoreError(f"{text}: {error}") from error
    if storage_options:
        raise StoreError(f"storage_options= go with a URL; {text!r} is a local path")
    path = Path(text.removeprefix("file://")).expanduser().absolute()
    if path.is_file():
        raise StoreError(f"{path} is a file: expected a folder that holds, or shall hold, a Zarr store")
    return LocalStore(path)


def address(store: Store) -> str:
    """Where a store is, for people."""
    if not isinstance(store, FsspecStore):
        return str(store)
    system = getattr(store.fs, "sync_fs", store.fs)
    protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
    return f"{protocol}://{store.path.lstrip('/')}"


def inspect(store: Store) -> dict[str, Any] | None:
    """What xroutine noted in the root of a store; None where nothing is there.

    Raises
    ------
    StoreError
        Where something else is there.
    """
    root = read_root(store)
    if root is None:
        return None
    attrs = root.get("attributes")
    if not isinstance(attrs, dict) or MARK not in attrs:
        raise TargetExistsError(
            f"{address(store)} holds a Zarr group that was not made by xroutine; as input, open it with "
            f"xarray.open_zarr and use its .trials; as target, give another out="
        )
    mark = loads(attrs[MARK], MARK)
    if mark.get("format") != FORMAT:
        raise StoreError(f"{address(store)}: format {mark.get('format')!r} is not one this xroutine reads ({FORMAT})")
    names, blocks = mark.get("variables"), mark.get("blocks")
    sound = (
        mark.get("status") in (ALLOCATING, RUNNING, COMPLETE, PARTIAL)
        and isinstance(mark.get("plan"), dict)
        and isinstance(names, list)
        and all(isinstance(name, str) and name and "/" not in name and name.strip(".") for name in names)
        and type(blocks) is int
        and blocks > 0
    )
    if not sound or not names:
        raise StoreError(f"{address(store)}: attribute {MARK!r} is damaged: {shortened(mark)}")
    return mark


def read_root(store: Store) -> dict[str, Any] | None:
    """The metadata of a store's root, from their copy where they are missing or torn; None where nothing is there.

    Raises
    ------
    StoreError
        Where something else is there.
    """
    raw = get(store, ROOT)
    try:
        found = json.loads(raw or b"")
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    try:
        copy: dict[str, Any] = json.loads(read_metadata(store)[ROOT])
    except DamagedError:
        pass
    else:
        return copy
    if raw is not None:
        raise StoreError(f"{address(store)}: the root's metadata are damaged: {ROOT} holds no JSON object")
    try:
        zarr.open_group(store, mode="r", use_consolidated=False)
    except FileNotFoundError:
        ours = {Path(LEASE), Path(METADATA)}
        if isinstance(store, LocalStore) and any(
            path.is_file() and path.relative_to(store.root) not in ours for path in store.root.rglob("*")
        ):
            raise TargetExistsError(f"{store.root} is a folder with other things in it, and no Zarr group") from None
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{address(store)}: the root's metadata are damaged: {error}") from error
    return {}


def shortened(value: Any) -> str:
    """A value as JSON, for an error: of a long one the begin and the end."""
    text = json.dumps(value, ensure_ascii=False) if value is not None else "nothing"
    return text if len(text) < 120 else f"{text[:80]}...{text[-30:]}"


@contextmanager
def as_store_errors(store: Store, what: str) -> Iterator[None]:
    """Whatever a store or codec raises, as an error of ours that says what could not be done."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"{address(store)} {what}: {error}") from error
