"""Random recordings and functions for the laws, described apart from how xroutine holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from hypothesis import strategies as st

import xroutine as xrt

DTYPES = ("float32", "float64", "int16", "int64", "uint8", "complex64", "complex128")
SOURCES = ("numpy", "zarr", "netcdf", "dask")


def double(trial):
    """Keeps shape and dtype, and changes the trial in place."""
    trial *= trial.dtype.type(2)
    return trial


def ends(trial):
    """One value a channel; element by element, so that a block of channels gives the same bits as all of them."""
    return trial[0] + trial[-1]


def every_other(trial):
    """Another length than the trial's."""
    return trial[::2]


def turned(trial):
    """Channels first."""
    return np.ascontiguousarray(trial.T)


FUNCTIONS = {double: None, ends: ("channel",), every_other: None, turned: ("channel", "time")}


@dataclass(repr=False)
class Geometry:
    """Trials as plain arrays, and the Dataset that holds the same."""

    kind: str
    trials: list[np.ndarray]
    offset: list[int]
    channels: int
    dtype: str
    block_size: int
    chan_per_worker: int | None
    source: str

    def __repr__(self) -> str:
        lengths = [len(trial) for trial in self.trials]
        return (
            f"Geometry({self.kind}, {self.dtype}, lengths={lengths}, offset={self.offset}, channels={self.channels}, "
            f"block_size={self.block_size}, chan_per_worker={self.chan_per_worker}, source={self.source})"
        )

    @property
    def ids(self):
        return [f"t{number}" for number in range(len(self.trials))]

    def dataset(self, folder: Path) -> xr.Dataset:
        if self.kind == "cut":
            made = self._cut()
        else:
            made = xrt.from_arrays(self.trials, 250.0, offset=self.offset, trial=self.ids)
        if self.source == "zarr":
            return made.trials.save(folder / "input.zarr", block_size=max(2000, made.nbytes // 16), overwrite=True)
        if self.source == "netcdf" and not self.dtype.startswith("complex"):
            made.to_netcdf(folder / "input.nc", engine="h5netcdf")
            return xr.open_dataset(folder / "input.nc", engine="h5netcdf")
        if self.source == "dask":
            return made.chunk({dim: 37 for dim in made.data.dims if dim in ("trial", "sample")})
        return made

    def _cut(self) -> xr.Dataset:
        # Trials overlap by half of the first one, and the recording has rows that belong to none.
        rows = max(len(trial) for trial in self.trials) + 3 * len(self.trials)
        rng = np.random.default_rng(len(self.trials))
        signal = _numbers(rng, (rows, self.channels), self.dtype)
        start = [3 * number for number in range(len(self.trials))][::-1]
        table = [[a, a + len(t), o] for a, t, o in zip(start, self.trials, self.offset, strict=True)]
        self.trials = [signal[a:b] for a, b, _ in table]
        recording = xr.DataArray(signal, dims=("time", "channel"), attrs={"samplerate": 250.0})
        return xrt.cut(recording, table, trial=self.ids)


def _numbers(rng, shape, dtype):
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 100, shape).astype(dtype)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else values).astype(dtype)


@st.composite
def geometries(draw, most_trials=200, sources=SOURCES, most_blocks=16) -> Geometry:
    kind = draw(st.sampled_from(["dense", "ragged", "cut"]))
    count = draw(st.integers(1, most_trials))
    channels = draw(st.integers(1, 9))
    longest = draw(st.integers(1, 500))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = np.full(count, longest) if kind == "dense" else rng.integers(1, longest + 1, count)
    offset = [int(rng.integers(-50, 1))] * count if kind == "dense" else rng.integers(-50, 1, count).tolist()
    fewest = int(lengths.sum()) * channels * np.dtype(dtype).itemsize // most_blocks
    return Geometry(
        kind=kind,
        trials=[_numbers(rng, (int(length), channels), dtype) for length in lengths],
        offset=offset,
        channels=channels,
        dtype=dtype,
        block_size=max(draw(st.integers(1, 60_000)), fewest),
        chan_per_worker=draw(st.none() | st.integers(1, 9)),
        source=draw(st.sampled_from(sources)),
    )
