"""The `.trials` accessor: looking at the trials of a Dataset, and computing over them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from xroutine.container import read_cfg
from xroutine.dense import to_dense
from xroutine.engine import choose
from xroutine.errors import PlanError
from xroutine.function import routine_class
from xroutine.labels import result_labels
from xroutine.plan import Plan, nbytes_text
from xroutine.planner import BLOCK_SIZE
from xroutine.routine import ComputationalRoutine
from xroutine.save import Save
from xroutine.selection import select
from xroutine.store import Location
from xroutine.trials import CHANNEL, TIME, View, as_dataset, view


@xr.register_dataset_accessor("trials")
@xr.register_dataarray_accessor("trials")
class TrialsAccessor:
    """The trials of a Dataset or DataArray.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt
    >>> ds = xrt.from_arrays([np.zeros((4, 2)), np.zeros((6, 2))], samplerate=100.0, channel=["Fz", "Cz"])
    >>> len(ds.trials), ds.trials.lengths, ds.trials[-1].sizes["time"]
    (2, array([4, 6]), 6)
    """

    def __init__(self, obj: xr.Dataset | xr.DataArray) -> None:
        self._obj = obj

    @property
    def _dataset(self) -> xr.Dataset:
        return as_dataset(self._obj)

    @property
    def _view(self) -> View:
        return view(self._dataset)

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[xr.DataArray]:
        return iter(self._view)

    def __getitem__(self, index: int) -> xr.DataArray:
        """One trial by position, lazily: a DataArray with time in seconds."""
        if not isinstance(index, (int, np.integer)):
            raise TypeError("ds.trials[...] takes one position; select several trials with ds.isel(trial=...)")
        return self._view[index]

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Number of samples of each trial."""
        return self._view.size

    @property
    def samplerate(self) -> float | None:
        """Samples per second (Hz)."""
        return self._view.samplerate

    @property
    def channel(self) -> np.ndarray[Any, Any] | None:
        """Channel labels."""
        coord = self._view.labels.get(CHANNEL)
        return None if coord is None else np.asarray(coord.values)

    @property
    def offset(self) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Sample of each trial's first row relative to its trigger."""
        return self._view.offset

    @property
    def info(self) -> pd.DataFrame:
        """Trial info, one row a trial."""
        return self._view.table()

    @property
    def trialdefinition(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """One row a trial: first row, row after the last, offset of the first row from the trigger."""
        return self._view.trialdefinition()

    @property
    def cfg(self) -> dict[str, Any]:
        """What was called to make this; empty for data that xroutine did not compute."""
        return read_cfg(self._dataset)

    @property
    def log(self) -> str:
        """What was done, entry by entry."""
        return str(self._dataset.attrs.get("log", ""))

    def sel(
        self,
        trials: Hashable | Iterable[Hashable] | None = None,
        channel: Hashable | Iterable[Hashable] | None = None,
        latency: tuple[float, float] | None = None,
    ) -> xr.Dataset:
        """Select trials, channels and a latency window by label, lazily.

        Parameters
        ----------
        trials, channel : label or iterable of labels, optional
            In any order, repeated if wanted.
        latency : (float, float), optional
            First and last second relative to the trigger, both included where a sample falls on them.

        Returns
        -------
        xarray.Dataset

        Raises
        ------
        KeyError
            For a label that is not there.
        TrialsError
            Where a trial does not cover the latency window.

        Examples
        --------
        >>> import numpy as np, xroutine as xrt
        >>> ds = xrt.from_arrays([np.zeros((5, 2))] * 3, samplerate=10.0, offset=-2, trial=["a", "b", "c"])
        >>> ds.trials.sel(trials=["c", "a"], latency=(-0.1, 0.1)).trials.trialdefinition.tolist()
        [[0, 3, -1], [3, 6, -1]]
        """
        return select(self._view, trials, channel, latency)

    def to_dense(self, fill_value: Any = np.nan) -> xr.Dataset:
        """The trials as one (trial, time, channel) array, aligned on the trigger and padded with `fill_value`, lazily.

        Examples
        --------
        >>> import numpy as np, xroutine as xrt
        >>> ds = xrt.from_arrays([np.ones((2, 1)), np.ones((3, 1))], samplerate=1.0)
        >>> ds.trials.to_dense().data[:, :, 0].values
        array([[ 1.,  1., nan],
               [ 1.,  1.,  1.]])
        """
        return to_dense(self._view, fill_value)

    def map(
        self,
        function: Callable[..., Any] | type[ComputationalRoutine],
        *argv: Any,
        out: Location | None = None,
        out_dims: Sequence[str] | None = None,
        coords: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Sequence[str]] | None = None,
        parallel: bool | None = None,
        scheduler: Any = None,
        parallel_store: bool | None = None,
        keeptrials: bool = True,
        reduction: str = "mean",
        align: str | None = None,
        chan_per_worker: int | None = None,
        out_stackingdim: int | None = None,
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
        **kwargs: Any,
    ) -> xr.Dataset:
        """Run a function of one trial over all trials.

        Parameters
        ----------
        function : callable or ComputationalRoutine subclass
            Called as ``function(trial, *argv, **kwargs)``, with the trial a NumPy array of its own.
        *argv, **kwargs
            Further arguments; `per_trial` gives each trial a value of its own. A keyword that `map` has itself is its
            own; bind the function's with `functools.partial`.
        out : path, URL or zarr store, optional
            Where the result is stored; in memory if left out. The same call again computes only what is missing.
        out_dims : sequence of str, optional
            Dims of what the function returns; those of the trial where they are as many.
        coords : mapping, optional
            Labels of the output's dims.
        outputs : mapping of str to sequence of str, optional
            For functions that return several arrays, as a tuple or dict: their names, and the dims of each. The result
            has a variable for each.
        parallel : bool, optional
            False: a plain loop. If left out: the active `distributed.Client`, else dask's local scheduler.
        scheduler : str or executor, optional
            dask's local scheduler, as for `dask.compute`.
        parallel_store : bool, optional
            False: blocks are computed in parallel and written by this process, one after the other.
        keeptrials : bool
            False: store only the average over trials, with their number as ``n_trials``.
        reduction : {"mean", "sum", "var", "std", "sem"}
            With ``keeptrials=False``, what is stored: computed in one pass, in double precision at least. ``var`` and
            ``std`` divide by the number of trials, as in NumPy and xarray; ``sem`` is the standard error of the mean,
            with the unbiased variance, as in SciPy.
        align : {"trigger"}, optional
            With ``keeptrials=False``, average trials of unequal length aligned on their trigger: each sample over the
            trials that cover it, their number along ``time`` as ``n_trials``.
        chan_per_worker : int, optional
            Channels in a block; all of them if left out.
        out_stackingdim : int, optional
            Output dimension along which trials of unequal size are stacked; found by the dry run if left out.
        variable : str, optional
            Which data variable is the signal, where there are several.
        block_size : int
            Bytes of input (or of output, where that is more) in a block.
        mem_thresh : float
            Share of the available memory that the largest block, or a result in memory, may take.
        overwrite : bool
            Replace what xroutine has stored at `out` before.
        compressors : zarr codec or sequence of them, or "auto" or None
            How chunks are compressed; a checksum is always added.
        storage_options : mapping, optional
            Options for a URL's file system.
        progress : bool, optional
            Show a progress bar; if left out, where a person is looking.
        retries : int
            How often a block that fails is tried again, or, with ``on_error="record"``, a trial.
        on_error : {"raise", "record"}
            ``raise``: stop soon, and keep what is finished. ``record``: go on without the trials that fail. They hold
            the fill value, averages are of the others, and variables ``failed`` and ``error`` along ``trial`` tell why.
        strict : bool
            Refuse to go on with what another version of the same function has begun, instead of a warning.

        Returns
        -------
        xarray.Dataset
            The labelled result, as a variable of the function's name.

        Raises
        ------
        DryRunError, PlanError, NotEnoughMemoryError, NotEnoughSpaceError, TargetExistsError, BusyError
            Before anything is computed.
        OutputError
            Where the function returns something else than in its dry run.

        Examples
        --------
        >>> import numpy as np, xroutine as xrt
        >>> ds = xrt.from_arrays([np.arange(6.0).reshape(3, 2)] * 4, samplerate=100.0)
        >>> ds.trials.map(np.ptp, axis=0, out_dims=("channel",)).ptp.dims
        ('trial', 'channel')
        """
        return self._routine(function, argv, kwargs, out_dims, coords, outputs)(
            self._dataset,
            out,
            parallel=parallel,
            scheduler=scheduler,
            parallel_store=parallel_store,
            keeptrials=keeptrials,
            reduction=reduction,
            align=align,
            chan_per_worker=chan_per_worker,
            out_stackingdim=out_stackingdim,
            variable=variable,
            block_size=block_size,
            mem_thresh=mem_thresh,
            overwrite=overwrite,
            compressors=compressors,
            storage_options=storage_options,
            progress=progress,
            retries=retries,
            on_error=on_error,
            strict=strict,
        )

    def plan(
        self,
        function: Callable[..., Any] | type[ComputationalRoutine],
        *argv: Any,
        out_dims: Sequence[str] | None = None,
        coords: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Sequence[str]] | None = None,
        parallel: bool | None = None,
        scheduler: Any = None,
        keeptrials: bool = True,
        reduction: str = "mean",
        align: str | None = None,
        chan_per_worker: int | None = None,
        out_stackingdim: int | None = None,
        variable: str | None = None,
        block_size: int = BLOCK_SIZE,
        **kwargs: Any,
    ) -> Plan:
        """What `map` would do with these arguments; only the dry run is carried out.

        Examples
        --------
        >>> import numpy as np, xroutine as xrt
        >>> ds = xrt.from_arrays([np.zeros((500, 4))] * 1000, samplerate=1000.0)
        >>> print(ds.trials.plan(np.negative, parallel=False))
        negative: 1,000 trials of 500 rows x 4 channels in 1 block
          reads   data (time, channel) float64, dense, 15.3 MiB
          writes  (trial: 1,000, time: 500, channel: 4) float64, dense, 15.3 MiB in 1 chunk of 1000x500x4
          memory  about 30.5 MiB for the largest block
          engine  a plain loop in this thread
        """
        made = self._routine(function, argv, kwargs, out_dims, coords, outputs)
        made.initialize(
            self._dataset,
            out_stackingdim,
            chan_per_worker,
            keeptrials,
            reduction=reduction,
            align=align,
            variable=variable,
            block_size=block_size,
        )
        result_labels(made.view, made.plan, made.coords)
        return made.plan.on(choose(parallel, scheduler).name)

    def save(
        self,
        location: Location,
        *,
        overwrite: bool = False,
        compressors: Any = "auto",
        storage_options: Mapping[str, Any] | None = None,
        block_size: int = BLOCK_SIZE,
        variable: str | None = None,
        progress: bool | None = None,
    ) -> xr.Dataset:
        """Write the trials, block by block, with labels, trial table and provenance; open what was written.

        Parameters
        ----------
        location : path, URL or zarr store
        overwrite, compressors, storage_options, block_size, variable, progress
            As for `map`.

        Examples
        --------
        >>> import numpy as np, xroutine as xrt, zarr
        >>> ds = xrt.from_arrays([np.zeros((5, 2)), np.ones((3, 2))], samplerate=1000.0)
        >>> store = zarr.storage.MemoryStore()
        >>> ds.trials.save(store).trials.lengths, xrt.open(store).trials.lengths
        (array([5, 3]), array([5, 3]))
        """
        return Save()(
            self._dataset,
            location,
            overwrite=overwrite,
            compressors=compressors,
            storage_options=storage_options,
            block_size=block_size,
            variable=variable,
            progress=progress,
        )

    def _routine(
        self,
        function: Any,
        argv: tuple[Any, ...],
        kwargs: dict[str, Any],
        out_dims: Sequence[str] | None,
        coords: Mapping[str, Any] | None,
        outputs: Mapping[str, Sequence[str]] | None,
    ) -> ComputationalRoutine:
        if isinstance(function, ComputationalRoutine):
            raise PlanError(
                f"{function!r} has its arguments already: call it on the data, {type(function).__name__}(...)(ds)"
            )
        if isinstance(function, type) and issubclass(function, ComputationalRoutine):
            made = function(*argv, **kwargs)
            made.out_dims = made.out_dims if out_dims is None else tuple(out_dims)
            made.coords = made.coords if coords is None else coords
            made.outputs = made.outputs if outputs is None else {name: tuple(dims) for name, dims in outputs.items()}
            return made
        return routine_class(function, out_dims, coords, outputs)(*argv, **kwargs)

    def _rows(self) -> list[tuple[str, str]]:
        found = self._view
        sizes = f"{found.size.min():,}" if len(found) else "0"
        if len(found) and found.size.max() != found.size.min():
            sizes += f" to {found.size.max():,}"
        array = found.variable
        trials = f"{len(found):,}, {found.layout}" + (f", {sizes} along {found.stack}" if found.stack else "")
        if "n_trials" in self._dataset.coords:
            counts = self._dataset.n_trials.values
            least = "" if counts.min() == counts.max() else f"{counts.min():,} to "
            trials = f"an average of {least}{counts.max():,}"
        signal = f"{found.name} ({', '.join(found.dims)}) {array.dtype}, {nbytes_text(array.nbytes)}"
        if TIME in found.dims:
            signal += ", unknown rate" if found.samplerate is None else f", {found.samplerate:g} Hz"
        rows = [("trials", trials), ("signal", signal)]
        if CHANNEL in found.labels:
            names = [str(label) for label in found.labels[CHANNEL].values[:6]]
            rest = found.labels[CHANNEL].size - len(names)
            rows.append(("channel", f"{', '.join(names)}{f', ... {rest:,} more' if rest else ''}"))
        if found.info:
            rows.append(("info", ", ".join(map(str, found.info))))
        if "history" in self._dataset.attrs:
            rows.append(("made by", str(self._dataset.attrs["history"]).splitlines()[-1]))
        return rows

    def __repr__(self) -> str:
        return "\n".join(["<trials>", *(f"  {key:<8} {text}"[:200] for key, text in self._rows())])

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{escape(key)}</th><td>{escape(text)}</td></tr>" for key, text in self._rows())
        return f"<table>{cells}</table>"
