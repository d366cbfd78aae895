"""`ComputationalRoutine`: a compute function, what is declared about it, and the steps that run it over all trials."""

from __future__ import annotations

import keyword
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr

from xroutine.allocate import allocate
from xroutine.call import RESERVED, Call, name_of
from xroutine.container import Trials
from xroutine.details import collect_details
from xroutine.engine import Engine, Local, Serial, choose, free_memory
from xroutine.errors import ArgumentError, NotEnoughMemoryError, PlanError, XroutineWarning
from xroutine.failures import ERROR, FAILED, collect_failures, failed_trials, reduced_n_trials
from xroutine.labels import result_labels
from xroutine.opening import open_dataset
from xroutine.plan import nbytes_text
from xroutine.planner import BLOCK_SIZE, make_plan
from xroutine.provenance import fingerprint, record_call
from xroutine.record import dumps, history_line, log_entry, now
from xroutine.run import execute
from xroutine.settled import Settled
from xroutine.source import Source, identity, lies_in
from xroutine.store import Location, address, locate
from xroutine.target import MemoryTarget, Target, ZarrTarget
from xroutine.trials import as_dataset, view

logger = logging.getLogger("xroutine")


class ComputationalRoutine(Settled, ABC):
    """A compute function for one trial, with its arguments, to be run over all trials.

    Subclasses bind `computeFunction` as a static method and say in `process_metadata` how the result is labelled.

    Parameters
    ----------
    *argv, **kwargs
        Arguments of `computeFunction` after the trial. A keyword that it does not have is an error. `per_trial` gives
        each trial a value of its own; nothing else is ever distributed over trials.

    Attributes
    ----------
    computeFunction : callable
        ``computeFunction(arr, *argv, chunkShape=None, noCompute=None, **kwargs)``: with ``noCompute=True`` it returns
        ``(shape, dtype)`` and computes nothing; otherwise the array, or ``(array, details)`` with `details` a flat dict
        of small values. `chunkShape` is the largest output shape over all trials. Functions without these two
        keywords are probed with a random stand-in instead.
    out_dims : tuple of str or None
        Dims of one trial's output; those of the input where they are as many.
    coords : mapping or None
        Labels of the output's dims.
    outputs : mapping of str to tuple of str, or None
        For functions that return several arrays, as a tuple or dict: their names, and the dims of each.
    argv, cfg
        Positional and keyword arguments, defaults included.
    defaultCfg : dict
        Keyword defaults of `computeFunction`.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt
    >>> def scale(arr, factor=2.0, chunkShape=None, noCompute=None):
    ...     return (arr.shape, arr.dtype) if noCompute else arr * factor
    >>> class Scale(xrt.ComputationalRoutine):
    ...     computeFunction = staticmethod(scale)
    ...     def process_metadata(self, data, out):
    ...         out.channel = data.channel
    >>> ds = xrt.from_arrays([np.ones((4, 2))] * 3, samplerate=100.0)
    >>> Scale(factor=3.0)(ds).scale.values.max()
    np.float64(3.0)
    """

    computeFunction: ClassVar[Callable[..., Any]]
    out_dims: tuple[str, ...] | None = None
    coords: Mapping[str, Any] | None = None
    outputs: Mapping[str, tuple[str, ...]] | None = None
    # Plain functions have to say how an output with other dims is called; subclasses may do it in process_metadata.
    _number_dims = True

    def __init__(self, *argv: Any, **kwargs: Any) -> None:
        super().__init__()
        if not hasattr(type(self), "computeFunction"):
            raise ArgumentError(f"{type(self).__name__} has no computeFunction: bind it with staticmethod(function)")
        self.call = self._bound(argv, kwargs)
        self.argv: list[Any] = list(argv)
        self.defaultCfg = Call.defaults(type(self).computeFunction)
        by_position = self.call.positional
        self.cfg = {key: value for key, value in self.defaultCfg.items() if key not in by_position} | kwargs
        self.keeptrials: bool | None = None
        self._input: dict[str, Any] | None = None
        self._asked: dict[str, Any] = {}
        self._engine: Engine = Serial()
        self._target: Target | None = None
        self._parallel_store = False
        self._reserved: frozenset[str] = frozenset()
        self._progress: bool | None = None
        self._retries = 0
        self._on_error = "raise"

    def __repr__(self) -> str:
        given = [*map(_short, self.argv), *(f"{key}={_short(value)}" for key, value in self.cfg.items())]
        return f"{type(self).__name__}({', '.join(given)})"

    @property
    def name(self) -> str:
        """Name of the result's variable: that of the compute function."""
        name = self.call.name
        return name if name.isidentifier() and not keyword.iskeyword(name) else "result"

    @property
    def recorded_name(self) -> str:
        """Importable name by which `cfg` refers to this routine."""
        return name_of(type(self))

    def initialize(
        self,
        data: Any,
        out_stackingdim: int | None = None,
        chan_per_worker: int | None = None,
        keeptrials: bool = True,
        *,
        reduction: str = "mean",
        align: str | None = None,
        variable: str | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        """Dry-run the compute function over all distinct trials and settle the plan.

        Parameters
        ----------
        data : xarray.Dataset, xarray.DataArray or Trials
        out_stackingdim : int, optional
            Output dimension along which trials of unequal size are stacked; if left out, the one that differs.
        chan_per_worker : int, optional
            Split channels into blocks of so many, and a rest.
        keeptrials : bool
            Store single trials, or only their average.
        reduction : {"mean", "sum", "var", "std", "sem"}
            What is stored in place of single trials. ``var`` and ``std`` divide by the number of trials, as in NumPy
            and xarray; ``sem`` is the standard error of the mean, with the unbiased variance, as in SciPy.
        align : {"trigger"}, optional
            Average trials of unequal length aligned on their trigger, each sample over the trials that cover it.
        variable : str, optional
            Which data variable is the signal, where there are several.
        block_size : int
            Bytes of input (or of output, where that is more) in a block.

        Raises
        ------
        DryRunError
            Where the dry runs do not agree: dtypes or sizes that differ and may not.
        PlanError
            Where the plan cannot work as asked for.
        """
        # Arguments may have been changed since the routine was made.
        self.call = self._bound(self.argv, self.cfg)
        self.keeptrials = keeptrials
        self._asked = {
            "out_stackingdim": out_stackingdim,
            "chan_per_worker": chan_per_worker,
            "keeptrials": keeptrials,
            "reduction": reduction,
            "align": align,
            "block_size": block_size,
        }
        self._data = data
        self._view = view(data, variable or (data._name if isinstance(data, Trials) else None))
        self._plan = self._input = None
        self._settle(self.out_dims, tight=False)

    def compute(
        self,
        data: Any,
        out: Trials,
        parallel: bool | None = False,
        parallel_store: bool | None = None,
        method: str | None = None,
        mem_thresh: float = 0.5,
        log_dict: Mapping[str, Any] | None = None,
        parallel_debug: bool = False,
        *,
        scheduler: Any = None,
        progress: bool | None = None,
        retries: int = 0,
        on_error: Literal["raise", "record"] = "raise",
    ) -> None:
        """Compute all trials into `out`: allocate, run, label, log, commit.

        Calls `preallocate_output`, `compute_parallel` or `compute_sequential`, `process_metadata` and `write_log`, in
        this order. The result is ``out.dataset``.

        Parameters
        ----------
        data : xarray.Dataset, xarray.DataArray or Trials
            What `initialize` was given.
        out : Trials
            From `Trials.empty`.
        parallel : bool or None
            False: a plain loop. True or None: the active `distributed.Client`, else dask's local scheduler.
        parallel_store : bool, optional
            Whether blocks write their own chunks, concurrently. False: the coordinator writes all of them, one after
            the other. If left out: `parallel`, or False where `out` is memory that workers cannot reach.
        method : str, optional
            Run ``compute_<method>`` instead.
        mem_thresh : float
            Share of the available memory (of a worker's limit, with a cluster) that the largest block may take.
        log_dict : mapping, optional
            Settings to write into the log in place of the keyword arguments.
        parallel_debug : bool
            Use dask's synchronous scheduler in this thread, so that debuggers and profilers work.
        scheduler : str or executor, optional
            dask's local scheduler, as for `dask.compute`.
        progress : bool, optional
            Show a progress bar; if left out, where a person is looking.
        retries : int
            How often a block that fails is tried again, or, with ``on_error="record"``, a trial.
        on_error : {"raise", "record"}
            ``raise``: stop soon, and keep what is finished. ``record``: go on without the trials that fail. They hold
            the fill value, averages are of the others, and variables ``failed`` and ``error`` along ``trial`` tell why.

        Raises
        ------
        NotEnoughMemoryError, NotEnoughSpaceError
            Before anything is allocated.
        BusyError
            Where another run is writing there.
        TargetExistsError
            Where `out` holds something else than this plan's result.
        """
        plan = self.plan
        same = data is self._data or as_dataset(data) is self.view.dataset
        if not same and identity(view(data, self.view.name)) != self._identity:
            raise PlanError(
                f"{type(self).__name__}: compute was given other data than initialize; initialize it with these"
            )
        if not isinstance(out, Trials) or out._dataset is not None:
            raise PlanError(f"out: expected empty Trials, as from xrt.Trials.empty('result.zarr'), got {out!r:.80}")
        parallel = None if parallel is None else bool(parallel)
        run = self._method(method, parallel is not False or parallel_debug)
        if type(retries) is not int or retries < 0:
            raise PlanError(f"retries: expected how often to try again, 0 or more, got {retries!r}")
        if on_error not in ("raise", "record"):
            raise PlanError(f"on_error: expected 'raise' or 'record', got {on_error!r}")
        if not 0 < mem_thresh <= 1:
            raise PlanError(f"mem_thresh: expected a share of the memory between 0 and 1, got {mem_thresh!r}")
        self._engine = Local("synchronous") if parallel_debug else choose(parallel, scheduler)
        self._progress, self._retries, self._on_error = progress, retries, on_error
        available, where = self._engine.memory()
        plan.check_memory(available, mem_thresh, where)
        free, here = free_memory()
        if out._location is None and plan.nbytes > mem_thresh * free:
            raise NotEnoughMemoryError(
                f"the result takes {nbytes_text(plan.nbytes)}, more than mem_thresh={mem_thresh:g} of the "
                f"{nbytes_text(free)} available {here}: give out= a path or a URL to store it in"
            )
        if parallel_store is None:
            parallel_store = parallel is not False and not (self._engine.remote and out._location is None)
        try:
            self._run(run, out, parallel_store, log_dict)
        finally:
            if self._target is not None:
                self._target.release()

    def _run(
        self,
        run: Callable[[Trials, Trials], None],
        out: Trials,
        parallel_store: bool,
        log_dict: Mapping[str, Any] | None,
    ) -> None:
        """Allocate, run, label, log, commit."""
        plan = self.plan
        self.preallocate_output(out, parallel_store=parallel_store)
        target = self._target
        if target is None:
            raise PlanError(f"{type(self).__name__}.preallocate_output has to call the one it overrides")
        if isinstance(target, ZarrTarget) and target.complete:
            logger.info("%s: the result is there already, nothing to compute", plan.name)
            out._dataset = open_dataset(target.store)
            return
        source = Trials(self.view.dataset, self.view.name)
        try:
            run(source, out)
            if len(target.receipts) != len(plan):
                raise PlanError(
                    f"{run.__name__} ran {len(target.receipts)} of {len(plan)} blocks: a method of one's own has to "
                    f"call compute_sequential or compute_parallel"
                )
            self._label(source, out, target, log_dict)
        except BaseException as error:
            if isinstance(target, ZarrTarget):
                done = f"{len(target.receipts):,} of {len(plan):,} blocks are finished"
                error.add_note(f"{done} and kept in {address(target.store)}; the same call again goes on from there")
            raise

    def _label(self, source: Trials, out: Trials, target: Target, log_dict: Mapping[str, Any] | None) -> None:
        """Label what has been computed, log, commit."""
        receipts = target.receipts
        out._dataset = out.dataset.assign(
            {**collect_details(self.plan, receipts), **collect_failures(self.plan, receipts)}
        )
        failed = failed_trials(receipts)
        if failed and not self.plan.keeptrials:
            out._dataset = out.dataset.assign_coords(n_trials=reduced_n_trials(self.plan, receipts))
        if failed:
            first = next(iter(failed.values()))
            warnings.warn(
                f"{self.plan.name}: {len(failed):,} of {self.plan.n_trials:,} trials failed, as the variable 'failed' "
                f"tells; the first: {first.error}",
                XroutineWarning,
                stacklevel=3,
            )
        self.process_metadata(source, out)
        self.write_log(source, out, log_dict)
        self._commit(out, target)

    def preallocate_output(self, out: Trials, parallel_store: bool = False) -> None:
        """Allocate the result's array, as the dry run told, and attach it to `out` with the labels that carry over.

        Parameters
        ----------
        out : Trials
        parallel_store : bool
            Whether blocks will write their own chunks.
        """
        self._parallel_store = parallel_store
        self._settle(out._declared or self.out_dims, tight=out._location is None)
        plan = self.plan
        labels, attrs = result_labels(self.view, plan, self.coords)
        dims_taken = (dim for output in plan.outputs for dim in output.target.dims)
        taken = {*labels.variables, *dims_taken, "ledger", FAILED, ERROR, "finished"}
        for name in attrs:
            if name in taken:
                raise PlanError(
                    f"the result cannot be called {name!r}, as its labels or ledger are: give it another name"
                )
        if out._location is None:
            self._target = MemoryTarget(plan)
        else:
            store = locate(out._location, out._options["storage_options"])
            if lies_in(self.view, store):
                raise PlanError(f"out={address(store)} is where the input is read from: give another out=")
            given = out._options
            self._target = allocate(
                store,
                plan,
                self.fingerprint(),
                given["compressors"],
                labels,
                overwrite=given["overwrite"],
                strict=given["strict"],
            )
        dims = (dim for output in plan.outputs for dim in output.dims)
        self._reserved = frozenset({"offset", "row_start", "row_size", *attrs, *dims, *map(str, taken)})
        arrays = self._target.variables()
        for name, array in arrays.items():
            array.attrs = attrs[name]
        out._name = plan.output.name
        out._dataset = labels.assign(arrays)

    def compute_parallel(self, data: Trials, out: Trials) -> None:
        """Run all blocks on the engine that `compute` chose."""
        self._execute(self._engine)

    def compute_sequential(self, data: Trials, out: Trials) -> None:
        """Run all blocks one after the other, in this thread."""
        self._execute(Serial())

    @abstractmethod
    def process_metadata(self, data: Trials, out: Trials) -> None:
        """Attach labels to the result.

        Labels of dims that keep their name and size are there already, and so is the trial table.

        Parameters
        ----------
        data, out : Trials
            Input and result.
        """

    def write_log(self, data: Trials, out: Trials, log_dict: Mapping[str, Any] | None = None) -> None:
        """Write `cfg`, and extend the input's log by what was computed and CF's history by a line.

        Parameters
        ----------
        data, out : Trials
            Input and result.
        log_dict : mapping, optional
            What to write in place of the keyword arguments.
        """
        settings = self._arguments() if log_dict is None else dict(log_dict)
        for key in RESERVED:
            settings.pop(key, None)
        for output in self.plan.outputs:
            returned = {receipt.get("returned", {}).get(output.name) for receipt in self._receipts().values()} - {None}
            if returned:
                name = f"{output.name} stored" if len(self.plan.outputs) > 1 else "stored"
                settings[name] = f"{output.dtype}, returned as {', '.join(sorted(map(str, returned)))}"
        time = now()
        before = data.dataset.attrs.get("history", "")
        line = history_line(repr(self), time, self.plan.n_trials)
        given = self._given_labels()
        cfg, arrays = record_call(
            self.plan, self.recorded_name, self.call.positional, self.cfg, self._asked, given, self._identity
        )
        out._dataset = out.dataset.assign(arrays).assign_attrs(
            cfg=dumps(cfg), history=f"{before}\n{line}" if before else line
        )
        out.log = data.log + out.log + log_entry(self.name, time, settings)

    def __call__(
        self,
        data: Any,
        out: Location | None = None,
        *,
        parallel: bool | None = None,
        scheduler: Any = None,
        parallel_store: bool | None = None,
        keeptrials: bool = True,
        chan_per_worker: int | None = None,
        out_stackingdim: int | None = None,
        reduction: str = "mean",
        align: str | None = None,
        variable: str | None = None,
        block_size: int = BLOCK_SIZE,
        mem_thresh: float = 0.5,
        overwrite: bool = False,
        compressors: Any = "auto",
        storage_options: Mapping[str, Any] | None = None,
        progress: bool | None = None,
        retries: int = 0,
        on_error: Literal["raise", "record"] = "raise",
        strict: bool = False,
    ) -> xr.Dataset:
        """Initialize and compute in one.

        Parameters
        ----------
        data : xarray.Dataset, xarray.DataArray or Trials
        out : path, URL or zarr store, optional
            Where the result is stored; in memory if left out.

        The others are those of `initialize`, `compute` and `Trials.empty`.

        Returns
        -------
        xarray.Dataset
            The labelled result.
        """
        # A run's state is its own, so that one routine can be called from several threads.
        run = copy(self)
        # Overrides with the published signatures do not know what xroutine adds to them.
        added: dict[str, Any] = {
            "reduction": reduction if reduction != "mean" else None,
            "align": align,
            "variable": variable,
            "block_size": block_size if block_size != BLOCK_SIZE else None,
        }
        run.initialize(data, out_stackingdim, chan_per_worker, keeptrials, **_given(added))
        handle = Trials.empty(
            out, overwrite=overwrite, strict=strict, compressors=compressors, storage_options=storage_options
        )
        added = {
            "scheduler": scheduler,
            "progress": progress,
            "retries": retries or None,
            "on_error": on_error if on_error != "raise" else None,
        }
        run.compute(data, handle, parallel, parallel_store, mem_thresh=mem_thresh, **_given(added))
        return handle.dataset

    def fingerprint(self) -> dict[str, Any]:
        """What has to be equal for a run to go on where another one stopped, in words and digests."""
        code = {"computeFunction": type(self).computeFunction, "process_metadata": type(self).process_metadata}
        return fingerprint(self.plan, self.recorded_name, code, self._arguments(), self._given_labels(), self._identity)

    @property
    def _identity(self) -> dict[str, Any]:
        # A checksum of all values, where they are in memory: once is enough.
        if self._input is None:
            self._input = identity(self.view)
        return self._input

    def _given_labels(self) -> dict[str, xr.Variable]:
        labels, _ = result_labels(self.view, self.plan, self.coords)
        return {str(name): labels.coords[name].variable for name in self.coords or {}}

    def _arguments(self) -> dict[str, Any]:
        return {**self.call.positional, **self.cfg}

    def _bound(self, argv: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        return Call.bind(
            type(self).computeFunction, argv, kwargs, None if self.outputs is None else tuple(self.outputs)
        )

    def _settle(self, dims: tuple[str, ...] | None, tight: bool) -> None:
        if self.outputs is not None and dims is not None:
            raise PlanError(f"out_dims={dims} names the dims of a single output; outputs= names those of each")
        self._plan = make_plan(
            self.view,
            self.call,
            name=self.name,
            out_dims={self.name: dims} if self.outputs is None else self.outputs,
            number_dims=self._number_dims,
            tight=tight,
            answers=None if self._plan is None else tuple(output.answers for output in self._plan.outputs),
            **self._asked,
        )

    def _method(self, method: str | None, parallel: bool) -> Callable[[Trials, Trials], None]:
        name = method if method is not None else "parallel" if parallel else "sequential"
        found: Callable[[Trials, Trials], None] | None = getattr(self, f"compute_{name}", None)
        if found is None:
            have = sorted(key.removeprefix("compute_") for key in dir(self) if key.startswith("compute_"))
            raise PlanError(f"method={method!r}: {type(self).__name__} has no compute_{method}; there are {have}")
        return found

    def _execute(self, engine: Engine) -> None:
        if self._target is None:
            raise PlanError(f"{type(self).__name__}: call compute(data, out), which allocates the target first")
        execute(
            self.plan,
            Source(self.view.variable),
            self._target,
            engine,
            parallel_store=self._parallel_store,
            reserved=self._reserved,
            progress=self._progress,
            retries=self._retries,
            on_error=self._on_error,
        )

    def _receipts(self) -> dict[int, dict[str, Any]]:
        return {} if self._target is None else self._target.receipts

    def _commit(self, out: Trials, target: Target) -> None:
        found = {output.name: out.dataset[output.name] for output in self.plan.outputs}
        signals = {name: (tuple(map(str, array.dims)), dict(array.attrs)) for name, array in found.items()}
        out._dataset = target.commit(out.dataset.drop_vars(list(signals)), signals)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"<array {'x'.join(map(str, value.shape))} {value.dtype}>"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
