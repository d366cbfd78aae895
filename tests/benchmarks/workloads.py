"""The five workloads: what is computed over which trials, for one trial and for a stack of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from scipy.signal import butter, filtfilt
from scipy.signal.windows import hann

B, A = butter(4, 0.2)
RATE = 1000.0


def lowpass(trial, chunkShape=None, noCompute=None):
    """A Butterworth filter of order 4, there and back."""
    return (trial.shape, trial.dtype) if noCompute else filtfilt(B, A, trial, axis=-2)


def scale(trial, chunkShape=None, noCompute=None):
    """Next to nothing."""
    return (trial.shape, trial.dtype) if noCompute else trial * 2


def power(trial, chunkShape=None, noCompute=None):
    """Hann-windowed power spectrum."""
    if noCompute:
        return (trial.shape[0] // 2 + 1, trial.shape[1]), trial.dtype
    return np.abs(np.fft.rfft(trial * hann(trial.shape[-2])[:, None], axis=-2)) ** 2


@dataclass(frozen=True)
class Workload:
    """A function over so many trials of (rows, channels); of unequal lengths where `shortest` is given."""

    name: str
    function: Callable
    n_trials: int
    rows: int
    channels: int
    average: bool = False
    shortest: int | None = None

    @property
    def sizes(self) -> np.ndarray:
        if self.shortest is None:
            return np.full(self.n_trials, self.rows)
        return np.random.default_rng(0).integers(self.shortest, self.rows + 1, self.n_trials)

    def of(self, n_trials: int) -> Workload:
        """The same, with at most so many trials."""
        return replace(self, n_trials=min(self.n_trials, n_trials))

    @property
    def out_rows(self) -> int:
        return self.rows // 2 + 1 if self.function is power else self.rows

    @property
    def out_dims(self) -> tuple[str, str] | None:
        return ("freq", "channel") if self.function is power else None

    @property
    def trials_per_chunk(self) -> int:
        """Trials in 16 MiB, the chunk that serves everybody best."""
        return max(1, 2**24 // (self.rows * self.channels * 8))

    def write(self, folder: Path, compressed: bool) -> None:
        """The input, in chunks of 16 MiB (`blocks.zarr`) and of one trial (`trials.zarr`, at most 4,000 of them)."""
        compressors = "auto" if compressed else None
        rows = int(self.sizes.mean())
        for name, per_chunk, most in (("blocks", self.trials_per_chunk, self.n_trials), ("trials", 1, 4000)):
            rng, sizes = np.random.default_rng(0), self.sizes[:most]
            group = zarr.create_group(folder / f"{name}.zarr", overwrite=True)
            if self.shortest is None:
                shape, chunks = (len(sizes), self.rows, self.channels), (per_chunk, self.rows, self.channels)
            else:
                shape, chunks = (int(sizes.sum()), self.channels), (per_chunk * rows, self.channels)
            dims = ("trial", "time", "channel") if self.shortest is None else ("sample", "channel")
            array = group.create_array(
                "lfp",
                shape=shape,
                chunks=chunks,
                dtype="f8",
                compressors=compressors,
                dimension_names=dims,
                attributes={"samplerate": RATE},
            )
            for first in range(0, shape[0], chunks[0]):
                part = (min(chunks[0], shape[0] - first), *shape[1:])
                # Rounded to 2**-16, as what comes from an amplifier is; else nothing could be compressed.
                array[first : first + part[0]] = np.rint(rng.standard_normal(part) * 2**12) / 2**16

    def open(self, folder: Path) -> xr.Dataset:
        """The input as a Dataset of trials, lazily."""
        found = xr.open_zarr(folder / "blocks.zarr", chunks=None, consolidated=False)
        if self.shortest is None:
            return found
        start = np.cumsum(self.sizes) - self.sizes
        return found.assign_coords(row_start=("trial", start), row_size=("trial", self.sizes))


WORKLOADS = [
    Workload("low-pass", lowpass, 1600, 2000, 64),
    Workload("scale", scale, 1600, 2000, 64),
    Workload("power average", power, 1600, 2000, 64, average=True),
    Workload("small", scale, 200_000, 100, 8),
    Workload("ragged", lowpass, 1600, 3500, 64, shortest=500),
]
