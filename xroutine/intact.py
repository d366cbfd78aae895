"""Reading a committed result: every chunk was written, so that one that is missing is damage and no fill value."""

from __future__ import annotations

import re
from collections.abc import Mapping

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import WrapperStore

from xroutine.errors import DamagedError

_CHUNK = re.compile(r"(?:^|/)c(?:/\d+)*$")


class IntactStore(WrapperStore[Store]):
    """A store in which a missing chunk is an error; Zarr would read it as the fill value, without a word.

    Parameters
    ----------
    store : zarr store
    objects : mapping, optional
        Objects, by key, to be read in place of those that are stored.
    """

    def __init__(self, store: Store, objects: Mapping[str, bytes] | None = None) -> None:
        super().__init__(store)
        self._objects = objects or {}

    def __str__(self) -> str:
        return str(self._store)

    def _with_store(self, store: Store) -> IntactStore:
        # How WrapperStore makes the read-only store that is read.
        return type(self)(store, self._objects)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key in self._objects and byte_range is None:
            return prototype.buffer.from_bytes(self._objects[key])
        return self._there(key, await self._store.get(key, prototype, byte_range))

    # zarr 3.1 has no synchronous path.
    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if key in self._objects and byte_range is None:
            return (prototype or default_buffer_prototype()).buffer.from_bytes(self._objects[key])
        return self._there(key, super().get_sync(key, prototype=prototype, byte_range=byte_range))

    def _there(self, key: str, found: Buffer | None) -> Buffer | None:
        if found is None and _CHUNK.search(key):
            raise DamagedError(
                f"{self._store}: the chunk {key} was written, and is not there any more; xrt.verify(...) tells which "
                f"trials are affected, and with repair=True computes them again"
            )
        return found


def unwrapped(store: Store) -> Store:
    """The store itself."""
    return store._store if isinstance(store, IntactStore) else store
