"""The small objects of a committed result, kept twice: JSON has no checksum, and a changed digit reads as a number.

Under `METADATA`, read whenever the result is opened, lie the metadata documents as JSON; under `COPIES`, for repair, a
zip archive of them and of the chunks of labels and ledger. Both lie below an array, where nothing looks for arrays.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

from zarr.abc.store import Store

from xroutine.errors import DamagedError
from xroutine.objects import get, put

METADATA = "ledger/receipt/metadata"
COPIES = "ledger/receipt/copies"
ROOT = "zarr.json"


def seals(objects: Mapping[str, bytes]) -> dict[str, bytes]:
    """The two objects that hold copies of others, by key; equal for equal objects."""
    documents = {key: value.decode() for key, value in sorted(objects.items()) if key.endswith(ROOT)}
    metadata = json.dumps({"digest": _digest(documents), "documents": documents}).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for key, value in sorted(objects.items()):
            file.writestr(zipfile.ZipInfo(key), value)
    return {METADATA: metadata, COPIES: archive.getvalue()}


def write_seals(store: Store, objects: Mapping[str, bytes]) -> None:
    """Keep copies of objects, by key."""
    for key, value in seals(objects).items():
        put(store, key, value)


def read_metadata(store: Store) -> dict[str, str]:
    """The metadata documents that were committed, by key.

    Raises
    ------
    DamagedError
        Where they are missing, or not what was kept.
    """
    raw = get(store, METADATA)
    try:
        found = json.loads(raw or b"{}")
        documents = {str(key): str(text) for key, text in found["documents"].items()}
        if found["digest"] != _digest(documents) or not isinstance(json.loads(documents[ROOT]), dict):
            raise ValueError("they do not match their digest")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{METADATA}: the copy of the metadata is missing or damaged ({error!r})") from None
    return documents


def read_copies(store: Store) -> dict[str, bytes]:
    """All objects that were kept, by key.

    Raises
    ------
    DamagedError
        Where they are missing, or not what was kept.
    """
    raw = get(store, COPIES)
    try:
        with zipfile.ZipFile(io.BytesIO(raw or b"")) as file:
            found = {name: file.read(name) for name in file.namelist()}
    except Exception as error:  # noqa: BLE001  # zipfile raises whatever it likes on damaged bytes
        raise DamagedError(f"{COPIES}: the copies are missing or damaged ({error!r})") from None
    if seals(found)[COPIES] != raw or ROOT not in found:
        raise DamagedError(f"{COPIES}: the copies are damaged")
    return found


def check_root(store: Store, root: str, where: str) -> None:
    """Raise where the root's metadata are not those that were committed; what was added since is nobody's harm.

    Raises
    ------
    DamagedError
    """
    repair = "xrt.verify(..., repair=True) restores them; to look at them as they are, use xarray.open_zarr"
    try:
        changed = sorted(_changed(json.loads(read_metadata(store)[ROOT]), json.loads(root), ""))
    except DamagedError as error:
        raise DamagedError(f"{where}: {error}; {repair}") from None
    except ValueError as error:
        raise DamagedError(f"{where}: the metadata in {ROOT} are missing or damaged ({error}); {repair}") from None
    if changed:
        listed = ", ".join(changed[:10])
        raise DamagedError(f"{where}: the metadata are not those that were committed, what differs: {listed}; {repair}")


def _changed(then: Any, now: Any, path: str) -> list[str]:
    """The paths of what is no more, or not the same."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return [] if then == now and type(then) is type(now) else [path]
    return [
        name
        for key, value in then.items()
        for name in ([f"{path}/{key}"] if key not in now else _changed(value, now[key], f"{path}/{key}"))
    ]


def _digest(documents: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
