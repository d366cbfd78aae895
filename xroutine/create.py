"""Making trials: from a list of arrays, or by cutting a continuous recording."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from xroutine.errors import TrialsError
from xroutine.trials import CHANNEL, SAMPLE, TIME, TRIAL, IntArray, check_samplerate, in_table, row_start_coord, seconds

TrialInfo = Mapping[str, Sequence[Any] | npt.NDArray[Any]] | pd.DataFrame


def from_arrays(
    arrays: Iterable[npt.NDArray[Any]],
    samplerate: float,
    channel: Sequence[Hashable] | None = None,
    offset: int | Sequence[int] | npt.NDArray[np.integer[Any]] = 0,
    trial: Sequence[Hashable] | None = None,
    trialinfo: TrialInfo | None = None,
    name: str = "data",
) -> xr.Dataset:
    """Make trials from arrays, one for each trial.

    Parameters
    ----------
    arrays : iterable of numpy.ndarray
        One (time, channel) array a trial, all of one dtype and with the same channels.
    samplerate : float
        Samples per second (Hz).
    channel : sequence, optional
        Channel labels; ``channel1``, ``channel2``, ... if left out.
    offset : int or sequence of int
        Sample of each trial's first row relative to its trigger (negative: the trial starts before it).
    trial : sequence, optional
        Unique label of each trial; 0, 1, ... if left out.
    trialinfo : mapping or pandas.DataFrame, optional
        Anything else known of each trial, one column a key.
    name : str
        Name of the signal variable.

    Returns
    -------
    xarray.Dataset
        Dense, (trial, time, channel), where all trials have one length and one offset; otherwise ragged,
        (sample, channel), the trials end to end.

    Raises
    ------
    TrialsError
        Where arrays, labels and columns do not fit together.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt
    >>> ds = xrt.from_arrays([np.zeros((5, 2)), np.ones((3, 2))], samplerate=1000.0, channel=["Fz", "Cz"])
    >>> [trial.shape for trial in ds.trials]
    [(5, 2), (3, 2)]
    """
    arrays = list(arrays)
    trials = [np.asarray(array) for array in arrays]
    if any(isinstance(array, np.ma.MaskedArray) for array in arrays):
        raise TrialsError("arrays: masked arrays would lose their mask: fill them first, with .filled(np.nan)")
    if not trials:
        raise TrialsError("expected at least one array, got none")
    first = trials[0]
    for position, array in enumerate(trials):
        if array.ndim != 2 or 0 in array.shape:
            raise TrialsError(f"array {position}: expected a non-empty (time, channel) array, got shape {array.shape}")
        if array.shape[1] != first.shape[1]:
            raise TrialsError(f"array {position} has {array.shape[1]} channels, array 0 has {first.shape[1]}")
        if array.dtype != first.dtype:
            raise TrialsError(
                f"array {position} has dtype {array.dtype}, array 0 has {first.dtype}: cast them to one with .astype"
            )
    if first.dtype.kind not in "biufc":
        raise TrialsError(f"arrays have dtype {first.dtype}: expected numbers")
    samplerate = check_samplerate(samplerate, "samplerate")
    n_trials, n_channels = len(trials), first.shape[1]
    offsets = _integers(np.broadcast_to(offset, n_trials) if np.ndim(offset) == 0 else offset, "offset", n_trials)
    size = np.array([len(array) for array in trials], np.int64)
    coords = _trial_coords(n_trials, offsets, trial, trialinfo) | _channel_coord(channel, n_channels)

    if (size == size[0]).all() and (offsets == offsets[0]).all():
        coords[TIME] = (TIME, seconds(int(offsets[0]), int(size[0]), samplerate), {"units": "s"})
        signal = xr.Variable((TRIAL, TIME, CHANNEL), np.stack(trials), {"samplerate": samplerate})
    else:
        coords["row_start"] = row_start_coord(np.cumsum(size) - size, int(size.sum()))
        coords["row_size"] = (TRIAL, size)
        signal = xr.Variable((SAMPLE, CHANNEL), np.concatenate(trials), {"samplerate": samplerate})
    if name in coords or name in signal.dims:
        raise TrialsError(f"name={name!r} is the name of a label: choose another")
    return xr.Dataset({name: signal}, coords=coords)


def cut(
    recording: xr.DataArray,
    trialdefinition: npt.ArrayLike,
    trial: Sequence[Hashable] | None = None,
    trialinfo: TrialInfo | None = None,
) -> xr.Dataset:
    """Make trials of a continuous recording, without copying it.

    Parameters
    ----------
    recording : xarray.DataArray
        With dims ``time`` and ``channel`` and the attribute ``samplerate`` (Hz); NumPy, lazily opened or dask.
    trialdefinition : array of int, (n, 3) or wider
        First row, row after the last, and offset of the first row from the trigger, for each trial. Rows of
        different trials may overlap or leave gaps. Further columns become trial info ``trialinfo_0``, ...
    trial, trialinfo
        As in `from_arrays`.

    Returns
    -------
    xarray.Dataset
        Ragged: the recording along ``sample``, with `row_start` and `row_size` on ``trial``.

    Raises
    ------
    TrialsError
        Where the recording lacks a dim or the sampling rate, or a trial lies outside of it.

    Examples
    --------
    >>> import numpy as np, xarray as xr, xroutine as xrt
    >>> recording = xr.DataArray(np.arange(20.0).reshape(10, 2), dims=("time", "channel"), attrs={"samplerate": 100.0})
    >>> ds = xrt.cut(recording, [[0, 4, -1], [2, 8, -1]])
    >>> ds.trials[1].time.values
    array([-0.01,  0.  ,  0.01,  0.02,  0.03,  0.04])
    """
    if not isinstance(recording, xr.DataArray) or set(recording.dims) != {TIME, CHANNEL}:
        found = recording.dims if isinstance(recording, xr.DataArray) else type(recording).__name__
        raise TrialsError(f"recording: expected a DataArray with dims ('time', 'channel'), got {found}")
    if "samplerate" not in recording.attrs:
        raise TrialsError("recording has no attribute `samplerate` (Hz): set recording.attrs['samplerate']")
    samplerate = check_samplerate(recording.attrs["samplerate"], "attribute `samplerate` of the recording")
    start, stop, offset, columns = read_trialdefinition(trialdefinition)
    rows = recording.sizes[TIME]
    bad = np.flatnonzero((start < 0) | (stop <= start) | (stop > rows))
    if bad.size:
        first = int(bad[0])
        raise TrialsError(
            f"trialdefinition, trial {first}: rows {start[first]} to {stop[first]} are not a stretch of the recording, "
            f"which has rows 0 to {rows} ({bad.size} such trials)"
        )
    coords = _trial_coords(len(start), offset, trial, trialinfo)
    coords |= {key: (TRIAL, column) for key, column in columns.items()}
    coords |= {"row_start": row_start_coord(start, rows), "row_size": (TRIAL, stop - start)}
    if CHANNEL not in recording.coords:
        coords |= _channel_coord(None, recording.sizes[CHANNEL])
    along_time = [name for name, coord in recording.coords.items() if TIME in coord.dims]
    signal = recording.drop_vars(along_time).rename({TIME: SAMPLE})
    signal.attrs["samplerate"] = samplerate
    return signal.to_dataset(name=recording.name or "data").assign_coords(coords)


def read_trialdefinition(
    trialdefinition: npt.ArrayLike,
) -> tuple[IntArray, IntArray, IntArray, dict[str, npt.NDArray[Any]]]:
    """First rows, rows after the last, offsets, and further columns as trial info ``trialinfo_0``, ..."""
    try:
        table = np.asarray(trialdefinition)
    except ValueError as error:
        raise TrialsError(f"trialdefinition: expected integers of shape (n, 3) or wider: {error}") from None
    if table.ndim != 2 or table.shape[1] < 3 or not len(table) or table.dtype.kind not in "iuf":
        raise TrialsError(
            f"trialdefinition: expected integers of shape (n, 3) or wider, got {table.dtype} {table.shape}"
        )
    start, stop, offset = (_integers(table[:, column], "trialdefinition", len(table)) for column in range(3))
    return start, stop, offset, {f"trialinfo_{k - 3}": table[:, k] for k in range(3, table.shape[1])}


def _integers(values: Any, what: str, count: int) -> IntArray:
    """Whole numbers of samples, one a trial; floats may be off by a millionth, as ``0.29 * 100`` is."""
    column = np.asarray(values)
    if column.shape != (count,):
        raise TrialsError(f"{what}: expected {count} values, one a trial, got shape {column.shape}")
    # Beyond 2**53 a float is no certain number of samples, and an unsigned one need not fit.
    usable = column.dtype.kind in "iuf" and np.isfinite(column).all() and (np.abs(column.astype(float)) < 2**53).all()
    whole = np.rint(column).astype(np.int64) if usable else None
    if whole is None or not np.allclose(whole, column, rtol=0, atol=1e-6):
        raise TrialsError(f"{what}: expected whole numbers of samples, got {column.dtype} {column[:3]!r}")
    found: IntArray = whole
    return found


def labels(values: Sequence[Hashable] | npt.NDArray[Any], what: str, count: int) -> npt.NDArray[Any]:
    """Labels as an array of numbers, strings or objects, checked to be `count` and unique."""
    array = np.asarray(values)
    if array.ndim != 1:
        array = np.empty(len(values), object)
        array[:] = list(values)
    if len(array) != count:
        raise TrialsError(f"{what}: expected {count} labels, got {len(array)}")
    twice = pd.Index(array)[pd.Index(array).duplicated()]
    if len(twice):
        raise TrialsError(f"{what}: labels should be unique, {twice[0]!r} occurs more than once")
    return array


def _channel_coord(channel: Sequence[Hashable] | None, count: int) -> dict[str, Any]:
    names = [f"channel{number + 1}" for number in range(count)] if channel is None else channel
    return {CHANNEL: (CHANNEL, labels(names, "channel", count))}


def _trial_coords(
    count: int,
    offset: IntArray,
    trial: Sequence[Hashable] | None,
    trialinfo: TrialInfo | None,
) -> dict[str, Any]:
    coords: dict[str, Any] = {TRIAL: (TRIAL, labels(range(count) if trial is None else trial, "trial", count))}
    coords["offset"] = (TRIAL, offset)
    for key, column in ({} if trialinfo is None else trialinfo).items():
        if key in (TRIAL, SAMPLE, TIME, CHANNEL) or in_table(key):
            raise TrialsError(f"trialinfo: {key!r} is a name of the trial table itself: choose another")
        values = np.asarray(column)
        if values.shape != (count,):
            raise TrialsError(f"trialinfo[{key!r}]: expected {count} values, one a trial, got shape {values.shape}")
        coords[str(key)] = (TRIAL, values)
    return coords
