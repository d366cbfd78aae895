"""Single objects of a store, by key, as bytes."""

from __future__ import annotations

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync


def get(store: Store, key: str) -> bytes | None:
    """The bytes of an object; None where it is not there."""
    found = sync(store.get(key, default_buffer_prototype()))
    return None if found is None else found.to_bytes()


def put(store: Store, key: str, value: bytes, *, new: bool = False) -> None:
    """Write an object whole; with `new`, only where none is there, as far as the store can tell."""
    buffer = default_buffer_prototype().buffer.from_bytes(value)
    sync(store.set_if_not_exists(key, buffer) if new else store.set(key, buffer))


def delete(store: Store, key: str) -> None:
    """Remove an object, if it is there."""
    sync(store.delete(key))


def clear(store: Store, prefix: str) -> None:
    """Remove all objects below a prefix."""
    sync(store.delete_dir(prefix))


def names(store: Store, prefix: str = "") -> list[str]:
    """What lies directly below a prefix."""

    async def listed() -> list[str]:
        return [name async for name in store.list_dir(prefix)]

    return sorted(sync(listed()))


def keys(store: Store, prefix: str = "") -> list[str]:
    """The keys of all objects that begin with `prefix`."""

    async def listed() -> list[str]:
        return [key async for key in store.list_prefix(prefix)]

    return sorted(sync(listed()))
