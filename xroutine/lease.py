"""One run at a time on a target: a lease in its store, which a run renews for as long as it lives."""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
from zarr.abc.store import Store

from xroutine.errors import BusyError
from xroutine.objects import delete, get, put

logger = logging.getLogger("xroutine")

# Below an array, where nothing looks for groups and arrays.
KEY = "ledger/receipt/lease"
# A run that has not renewed its lease for so long is taken for dead.
SECONDS = 60.0
_PAUSE = 0.2
_ATTEMPTS = 3


class Lease:
    """The right to write into a target, held until it is released or its process is gone.

    It expires `SECONDS` after its last renewal; where its holder ran on this machine and is dead, at once.

    Parameters
    ----------
    store : zarr store
    where : str
        The store's address, for errors.

    Raises
    ------
    BusyError
        Where another run holds it.
    """

    def __init__(self, store: Store, where: str) -> None:
        self._store, self._where, self._owner = store, where, uuid.uuid4().hex
        self._lost = False
        self._released = threading.Event()
        self._take()
        self._thread = threading.Thread(target=self._renew, name="xroutine-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise where another run has taken over."""
        if self._lost:
            raise BusyError(
                f"{self._where}: this run could not renew its lease for {SECONDS:g} s, and may write no more. What "
                f"is finished is kept; run the same call again to go on"
            )

    def release(self) -> None:
        """Give the target free."""
        self._released.set()
        self._thread.join()
        for left in range(_ATTEMPTS - 1, -1, -1):
            try:
                if not self._lost and _owner(_read(self._store)) == self._owner:
                    delete(self._store, KEY)
                return
            except Exception as error:  # noqa: BLE001  # stores raise whatever they like
                if not left:
                    logger.warning("%s: the lease cannot be released, it ends in %g s: %r", self._where, SECONDS, error)

    def _take(self) -> None:
        held = _read(self._store)
        if held is not None:
            if _alive(held):
                raise BusyError(
                    f"{self._where} is being written by another run (process {held.get('pid')} on {held.get('node')}): "
                    f"wait until it is done, or give another out=. If it is dead, its lease ends within {SECONDS:g} s"
                )
            delete(self._store, KEY)
        put(self._store, KEY, self._text(), new=True)
        if held is not None:
            # Who took over at the same time may have removed what was just written: the last one stays.
            time.sleep(_PAUSE)
        try:
            taken = _owner(_read(self._store)) == self._owner
        except BaseException:
            delete(self._store, KEY)
            raise
        if not taken:
            raise BusyError(f"{self._where} was taken by another run at this moment: wait until it is done")

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._released.wait(SECONDS / 6):
            try:
                if _owner(_read(self._store)) != self._owner:
                    self._lost = True
                    return
                put(self._store, KEY, self._text())
                renewed = time.monotonic()
            except Exception:  # noqa: BLE001  # stores raise whatever they like; the next attempt may succeed
                self._lost = time.monotonic() - renewed > SECONDS
                if self._lost:
                    return

    def _text(self) -> bytes:
        me = psutil.Process()
        holder = {"owner": self._owner, "pid": me.pid, "started": me.create_time(), "expires": time.time() + SECONDS}
        return json.dumps({**holder, **_here()}).encode()


def _here() -> dict[str, str]:
    """Tell this machine from others; containers have processes of their own and often the same name."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"node": platform.node(), "processes": processes, "boot": boot.read_text().strip() if boot.exists() else ""}


def _read(store: Store) -> dict[str, Any] | None:
    for _ in range(_ATTEMPTS):
        raw = get(store, KEY)
        if raw is None:
            return None
        try:
            found = json.loads(raw)
        except ValueError:
            # It may be just being written, where a store does not replace objects at once.
            continue
        if isinstance(found, dict):
            return found
    return {}


def _owner(held: dict[str, Any] | None) -> Any:
    return None if held is None else held.get("owner")


def _alive(held: dict[str, Any]) -> bool:
    expires = held.get("expires")
    if not isinstance(expires, (int, float)) or expires < time.time():
        return False
    if {key: held.get(key) for key in _here()} != _here():
        return True
    try:
        return bool(abs(psutil.Process(held.get("pid")).create_time() - float(held.get("started", 0))) < 1)
    except (psutil.Error, TypeError, ValueError):
        return False
