"""Engines: they differ only in who calls the work on each block, and where."""

from __future__ import annotations

import logging
import pickle
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol, TypeVar

import cloudpickle
import dask.config
import dask.multiprocessing
import numpy as np
import psutil
from dask.base import compute, get_scheduler, is_dask_collection
from dask.callbacks import Callback
from dask.delayed import delayed
from distributed import CancelledError, Client, Future, as_completed, get_worker, rejoin, secede

from xroutine.errors import PlanError
from xroutine.plan import Block

logger = logging.getLogger("xroutine")

Work = Callable[[Block, Any], Any]
# Regions that travel with a task, because it cannot read them itself.
Attach = Callable[[Block], list[Any] | None]
T = TypeVar("T")
Done = Callable[[Any], None]
# As often as dask, unless told otherwise, runs a task again whose worker died.
_ALLOWED_LOSSES = 3
# Bytes of a function and its arguments that are not sent with every task.
_LARGE = 100_000


class Engine(Protocol):
    """Calls ``work(block, regions)`` for every block and hands each result to `done`, in this process."""

    @property
    def name(self) -> str: ...
    @property
    def remote(self) -> bool:
        """Whether blocks run in other processes."""
        ...

    def memory(self) -> tuple[int, str]:
        """Bytes available to a block, and where."""
        ...

    def run(self, title: str, work: Work, blocks: Iterable[Block], attach: Attach, done: Done, retries: int) -> None:
        """Call `work` for every block, and again, up to `retries` times, where it raises."""
        ...


class Serial:
    """A plain loop: the reference for all others."""

    name = "a plain loop in this thread"
    remote = False

    def memory(self) -> tuple[int, str]:
        return free_memory()

    def run(self, title: str, work: Work, blocks: Iterable[Block], attach: Attach, done: Done, retries: int) -> None:
        work = _Patient(work, retries)
        for block in blocks:
            regions = attach(block)
            done(work(block, None if regions is None else list(compute(*regions, scheduler="synchronous"))))


@dataclass(frozen=True)
class Local:
    """One of dask's local schedulers, as `scheduler=` or `dask.config` name it."""

    scheduler: Any

    @property
    def remote(self) -> bool:
        if isinstance(self.scheduler, Executor):
            return not isinstance(self.scheduler, ThreadPoolExecutor)
        return get_scheduler(scheduler=self.scheduler) is dask.multiprocessing.get

    @property
    def name(self) -> str:
        return f"dask, local scheduler: {self.scheduler if isinstance(self.scheduler, str) else 'given executor'}"

    def memory(self) -> tuple[int, str]:
        return free_memory()

    def run(self, title: str, work: Work, blocks: Iterable[Block], attach: Attach, done: Done, retries: int) -> None:
        work = _Patient(work, retries)
        started = _Started(_sealed(work) if self.remote else work)
        call = started.work if self.remote else started
        token = uuid.uuid4().hex[:8]
        keys: set[str] = set()

        def tasks() -> Iterator[Any]:
            for block in blocks:
                key = f"{title}-{block.number}-{token}"
                keys.add(key)
                yield delayed(partial(call, block), name=f"call-{key}", pure=False)(attach(block), dask_key_name=key)

        def collect(key: Any, result: Any, graph: Any, state: Any, worker: Any) -> None:
            if key in keys:
                done(result)
                # The scheduler would keep every result until the end, and they may be arrays on their way to the store.
                state["cache"][key] = None

        # Given as an argument, not as a context: contexts are the process's, and two threads would take each other's.
        callbacks = [Callback(posttask=collect)._callback]
        try:
            compute(*tasks(), scheduler=self.scheduler, optimize_graph=True, callbacks=callbacks)
        finally:
            started.stop()


@dataclass(frozen=True)
class Cluster:
    """The workers of the active `distributed.Client`."""

    client: Client

    remote = True

    @property
    def name(self) -> str:
        threads = self.client.nthreads()
        return f"dask cluster: {len(threads)} workers, {sum(threads.values())} threads"

    def memory(self) -> tuple[int, str]:
        limits = [worker["memory_limit"] for worker in self.client.scheduler_info()["workers"].values()]
        if not limits:
            raise PlanError(
                "the active distributed.Client has no workers: scale the cluster up, or give parallel=False"
            )
        known = [limit for limit in limits if limit]
        return (min(known), "on a worker") if known else free_memory()

    def run(self, title: str, work: Work, blocks: Iterable[Block], attach: Attach, done: Done, retries: int) -> None:
        call, token = _sealed(work), uuid.uuid4().hex[:8]
        waiting = iter(blocks)
        # A queue a few tasks deep keeps workers busy without holding every task, and its input, at once.
        room = 2 * max(sum(self.client.nthreads().values()), 1) + 2
        shared = self._shared(call)
        sent: dict[str, tuple[Block, Any, int]] = {}
        running = as_completed()

        def submit(block: Block | None, lost: int = 0) -> None:
            if block is None:
                return
            key = f"{title}-{token}-{block.number}" + (f"-{lost}" if lost else "")
            regions = self._place(attach(block))
            sent[key] = block, regions, lost
            running.add(self.client.submit(_do, shared, block, regions, key=key, pure=False, retries=retries))

        with _out_of_the_way():
            for _ in range(room):
                submit(next(waiting, None))
            try:
                for future in running:
                    block, _, lost = sent.pop(future.key)
                    try:
                        receipt = future.result()
                    except CancelledError:
                        # Regions that came with the task died with the worker that held them; here they still are.
                        if lost == _ALLOWED_LOSSES:
                            raise
                        logger.warning("block %d was lost with a worker and is sent again", block.number)
                        shared = self._shared(call)
                        submit(block, lost + 1)
                        continue
                    done(receipt)
                    submit(next(waiting, None))
            except BaseException:
                self.client.cancel(list(running.futures))
                raise

    def _shared(self, call: _Sealed) -> Any:
        """The work to be named in every task: where its arguments are large, sent once."""
        return call if len(call.payload) < _LARGE else self._scatter(call)

    def _place(self, regions: list[Any] | None) -> list[Future[Any]] | None:
        """Make regions that cannot be read on a worker available there, as futures that the task depends on."""
        if regions is None:
            return None
        return [
            self.client.compute(region) if is_dask_collection(region) else self._scatter(region) for region in regions
        ]

    def _scatter(self, value: Any) -> Future[Any]:
        for left in range(_ALLOWED_LOSSES, -1, -1):
            try:
                scattered: Future[Any] = self.client.scatter(value, hash=False)
            except OSError as error:
                # The worker that was to take it is just going down.
                if not left:
                    raise
                logger.warning("input could not be sent to a worker and is sent again: %r", error)
                time.sleep(0.5)
            else:
                return scattered
        raise AssertionError


@contextmanager
def _out_of_the_way() -> Iterator[None]:
    """Where this is itself a task of the cluster, leave its thread to the blocks that are waited for."""
    try:
        get_worker()
    except ValueError:
        inside = False
    else:
        inside = True
    if not inside:
        yield
        return
    secede()
    try:
        yield
    finally:
        rejoin()


@dataclass(frozen=True)
class _Patient:
    """Work that is done again where it fails, so many times; dask's local schedulers do not."""

    work: Work
    retries: int

    def __call__(self, block: Block, regions: Any) -> Any:
        return tried(partial(self.work, block, regions), self.retries, f"block {block.number}")


class _Started:
    """Work of which no more is begun, and none still goes on, once it is stopped."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._running = 0
        self._stopped = False
        self._changed = threading.Condition()

    def __call__(self, block: Block, regions: Any) -> Any:
        with self._changed:
            if self._stopped:
                return None
            self._running += 1
        try:
            return self.work(block, regions)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        # After an error dask returns while other threads still compute, and would write into what comes next.
        with self._changed:
            self._stopped = True
            self._changed.wait_for(lambda: self._running == 0)


def tried(call: Callable[[], T], retries: int, what: str) -> T:
    """What `call` returns, which is tried again where it raises; the last exception, where it always does."""
    for left in range(retries, 0, -1):
        try:
            return call()
        except Exception as error:  # noqa: BLE001  # whatever the function or the store raises
            logger.warning("%s failed and is tried again (%d more): %r", what, left, error)
    return call()


def choose(parallel: bool | None, scheduler: Any = None) -> Engine:
    """The engine for `parallel` and `scheduler`, as dask would choose: no cluster is started.

    Parameters
    ----------
    parallel : bool or None
        False: a plain loop. True or None: the active `distributed.Client`, else dask's local scheduler.
    scheduler : str or executor, optional
        As for `dask.compute`.
    """
    if not isinstance(parallel, (bool, np.bool_, type(None))):
        raise PlanError(f"parallel: expected None, True or False, got {parallel!r}")
    if parallel is not None and not parallel:
        if scheduler is not None:
            raise PlanError(f"parallel=False is a plain loop, it takes no scheduler={scheduler!r}")
        return Serial()
    get = get_scheduler(scheduler=scheduler)
    owner = getattr(get, "__self__", None)
    if isinstance(owner, Client):
        if owner.status != "running":
            raise PlanError(f"the active distributed.Client is {owner.status}: connect it again, or give scheduler=")
        return Cluster(owner)
    configured = scheduler if scheduler is not None else dask.config.get("scheduler", None)
    return Local("threads" if get is None else configured)


@dataclass(frozen=True)
class _Sealed:
    """Work as bytes, for other processes: opened once in each and kept, with the stores it has opened."""

    payload: bytes
    token: str

    def __call__(self, block: Block, regions: Any) -> Any:
        try:
            return _open(self.payload, self.token)(block, regions)
        except Exception as error:  # noqa: BLE001  # whatever the compute function raises
            raise _portable(error) from error.__cause__


def _do(call: Work, block: Block, regions: Any) -> Any:
    return call(block, regions)


@lru_cache(maxsize=4)
def _open(payload: bytes, token: str) -> Work:
    work: Work = cloudpickle.loads(payload)
    return work


def _sealed(work: Work) -> _Sealed:
    # The token keeps runs apart: what an earlier one has opened may not be there any more.
    return _Sealed(cloudpickle.dumps(work), uuid.uuid4().hex)


def _portable(error: Exception) -> Exception:
    """The same exception where it survives the way back to the caller; else one that tells what it was."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301  # our own bytes
            return error
    except Exception:  # noqa: BLE001, S110  # any failure means the same: it does not survive
        pass
    lost = RuntimeError("".join(traceback.format_exception(error)).rstrip())
    for note in getattr(error, "__notes__", []):
        lost.add_note(note)
    return lost


def free_memory() -> tuple[int, str]:
    """Bytes available on this machine."""
    return psutil.virtual_memory().available, "on this machine"
