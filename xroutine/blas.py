"""Keeping linear algebra to one thread while blocks compute."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from threadpoolctl import ThreadpoolController

_blas_lock = threading.Lock()
_blas_users = 0
_blas_limit: Any = None
# Looking for libraries takes milliseconds, more than many a block; there are new ones only where modules were imported.
_found: tuple[int, ThreadpoolController] | None = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep linear algebra to one thread while any block computes: blocks are what runs side by side.

    The limit belongs to the process, so the first block to enter sets it and the last to leave lifts it.
    """
    global _blas_users, _blas_limit, _found
    with _blas_lock:
        if _blas_users == 0:
            if _found is None or _found[0] != len(sys.modules):
                _found = len(sys.modules), ThreadpoolController()
            _blas_limit = _found[1].limit(limits=1, user_api="blas")
            _blas_limit.__enter__()
        _blas_users += 1
    try:
        yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0:
                _blas_limit.__exit__(None, None, None)
