"""The main job from end to end, on two real recordings: trials, a filter, spectra, averages, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

import xroutine as xrt
from xroutine.errors import XroutineError

try:
    from aeon.datasets import load_basic_motions, load_japanese_vowels
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from scipy.signal import butter, filtfilt, periodogram
except ImportError as _error:
    raise XroutineError(f'the demo needs the extra: pip install "xroutine[demo]" ({_error})') from _error

Array = npt.NDArray[np.float64]

CUTOFF = 2.0  # Hz
MOTION_RATE = 10.0  # Hz
VOWEL_RATE = 1 / 6.4e-3  # Hz: one frame every 6.4 ms
ACTIVITIES = ("standing", "walking", "running", "badminton")
ACCELEROMETER = ["acc x", "acc y", "acc z"]
GYROSCOPE = ["gyr x", "gyr y", "gyr z"]
# The recordings would fit into one block of the usual size, which would leave nothing to run side by side.
BLOCK_SIZE = 2**16


def lowpass(arr: Array, b: Array, a: Array, *, chunkShape: Any = None, noCompute: bool | None = None) -> Any:
    """Filter one trial along time, forwards and backwards, so that nothing is delayed."""
    if noCompute:
        return arr.shape, np.dtype(np.float64)
    return filtfilt(b, a, arr, axis=0)


class LowPass(xrt.ComputationalRoutine):
    """A low-pass filter that keeps every label of its input."""

    computeFunction = staticmethod(lowpass)

    def process_metadata(self, data: xrt.Trials, out: xrt.Trials) -> None:
        """Label the result as the input is labelled."""
        out.trialdefinition = data.trialdefinition
        out.samplerate = data.samplerate
        out.channel = data.channel


def power(trial: Array, samplerate: float) -> Array:
    """Power spectral density of one trial with a Hann window: (time, channel) -> (freq, channel)."""
    density: Array = periodogram(trial, samplerate, window="hann", axis=0)[1]
    return density


def delta(trial: Array, samplerate: float) -> Array:
    """How fast each channel of one trial changes, per second: (time, channel) -> (time, channel)."""
    change: Array = np.gradient(trial, 1 / samplerate, axis=0)
    return change


def demo(folder: Path) -> None:
    """Run the main job on two real recordings, tell what is done at every step, and draw the results.

    The recordings ship with the package ``aeon``: BasicMotions, a smart watch worn during four activities (80 trials of
    one length, in units that its authors do not state), and JapaneseVowels, cepstra of an utterance by nine speakers
    (640 trials of unequal length).

    Parameters
    ----------
    folder : pathlib.Path
        Where the Zarr stores and the picture go; made if it is not there, and what an earlier demo left is replaced.

    Raises
    ------
    XroutineError
        On import of this module, where the extra ``demo`` is not installed.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)

    _say("1. Two recordings as labelled trials, saved as Zarr: one dense, one of unequal lengths")
    motions = _motions().trials.save(folder / "motions.zarr", overwrite=True)
    vowels = _vowels().trials.save(folder / "vowels.zarr", overwrite=True)
    print(f"{motions.trials!r}\n{vowels.trials!r}")

    _say(f"2. A {CUTOFF:g} Hz low-pass filter, written as a routine class, over all motions; first its plan")
    b, a = butter(4, CUTOFF, fs=MOTION_RATE)
    print(motions.trials.plan(LowPass, b, a, block_size=BLOCK_SIZE))
    filtered = LowPass(b, a)(motions, out=folder / "lowpass.zarr", block_size=BLOCK_SIZE, overwrite=True)
    _say("   Its result is an xarray.Dataset:")
    print(filtered)
    _say("   Its log:")
    print(filtered.trials.log.rstrip())

    _say("3. The power spectrum of every motion, by a plain function")
    freq = ("freq", np.fft.rfftfreq(motions.sizes["time"], 1 / MOTION_RATE), {"units": "Hz"})
    spectrum: dict[str, Any] = {
        "samplerate": MOTION_RATE,
        "out_dims": ("freq", "channel"),
        "coords": {"freq": freq},
        "block_size": BLOCK_SIZE,
    }
    spectra = motions.trials.map(power, out=folder / "power.zarr", overwrite=True, **spectrum)
    print(f"{spectra.trials!r}")

    _say("4. Average spectra of each activity, in memory, without storing single trials")
    averages = {}
    for activity in ACTIVITIES:
        chosen = motions.isel(trial=np.flatnonzero(motions.activity == activity))
        averages[activity] = chosen.trials.map(power, keeptrials=False, progress=False, **spectrum)
        total = averages[activity].power.sel(channel=ACCELEROMETER).sum("channel")
        print(f"{activity:<9} {len(chosen.trials)} trials, strongest at {float(total.idxmax()):.1f} Hz")

    _say("5. The same call over trials of unequal length: how fast the vowels change")
    changes = vowels.trials.map(
        delta, samplerate=VOWEL_RATE, out=folder / "delta.zarr", block_size=BLOCK_SIZE, overwrite=True
    )
    print(f"{changes.trials!r}")

    _say("6. Every chunk of a result read back and compared with its ledger")
    print(xrt.verify(folder / "delta.zarr"))

    picture = folder / "demo.png"
    _draw(motions, filtered, averages, changes).savefig(picture)
    _say(f"7. A picture: {picture}\n   Everything else lies beside it; for more about one result:")
    print(f"   python -m xroutine info {folder / 'power.zarr'}")


def _say(text: str) -> None:
    print(f"\n{text}")


def _motions() -> xr.Dataset:
    values, activity = load_basic_motions()
    return xrt.from_arrays(
        [case.T for case in values],
        MOTION_RATE,
        channel=[*ACCELEROMETER, *GYROSCOPE],
        trial=[f"{name}-{number:02d}" for number, name in enumerate(activity)],
        trialinfo={"activity": activity},
        name="motion",
    )


def _vowels() -> xr.Dataset:
    values, speaker = load_japanese_vowels()
    return xrt.from_arrays(
        [case.T for case in values],
        VOWEL_RATE,
        channel=[f"c{number}" for number in range(1, 13)],
        trialinfo={"speaker": speaker.astype(np.int64)},
        name="cepstrum",
    )


def _draw(motions: xr.Dataset, filtered: xr.Dataset, averages: dict[str, xr.Dataset], changes: xr.Dataset) -> Figure:
    figure = Figure(figsize=(13, 8), dpi=120, layout="constrained")
    top, bottom = figure.subfigures(2, squeeze=False, height_ratios=[2, 3])[:, 0]
    panels = top.subplots(ncols=len(ACTIVITIES))
    for axes, activity in zip(panels, ACTIVITIES, strict=True):
        position = int(np.flatnonzero(motions.activity == activity)[0])
        _draw_trial(axes, motions.trials[position], filtered.trials[position])
    panels[0].set_ylabel("acceleration along x\n(units as recorded)")
    panels[-1].legend(loc="upper right", frameon=False, ncols=2)
    left, right = bottom.subplots(ncols=2)
    _draw_spectra(left, averages)
    _draw_changes(right, changes)
    return figure


def _draw_trial(axes: Axes, raw: xr.DataArray, smooth: xr.DataArray) -> None:
    axes.plot(raw.time, raw.sel(channel="acc x"), color="0.7", label="raw")
    axes.plot(smooth.time, smooth.sel(channel="acc x"), color="C3", label=f"below {CUTOFF:g} Hz")
    axes.set(title=f"trial {raw.trial.item()}", xlabel="time (s)", xlim=(0, 10))
    axes.margins(y=0.2)


def _draw_spectra(axes: Axes, averages: dict[str, xr.Dataset]) -> None:
    for activity, average in averages.items():
        total = average.power.sel(channel=ACCELEROMETER).sum("channel")
        # The mean of each trial was taken off, so that the first bin holds nothing.
        axes.semilogy(total.freq[1:], total[1:], label=f"{activity} ({int(average.n_trials)} trials)")
    axes.set(
        title="average power spectra, axes of the accelerometer summed",
        xlim=(0, MOTION_RATE / 2),
        xlabel="frequency (Hz)",
        ylabel="power (recorded units$^2$ / Hz)",
    )
    axes.legend(frameon=False)


def _draw_changes(axes: Axes, changes: xr.Dataset) -> None:
    order = np.lexsort((changes.trials.lengths, changes.speaker))
    padded = changes.isel(trial=order).trials.sel(channel=["c1"]).trials.to_dense().delta[:, :, 0]
    limit = float(np.nanpercentile(np.abs(padded), 98))
    frame = 1e3 / VOWEL_RATE
    image = axes.imshow(
        padded,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        extent=(-frame / 2, (padded.sizes["time"] - 0.5) * frame, len(padded), 0),
    )
    speakers, first, count = np.unique(padded.speaker, return_index=True, return_counts=True)
    axes.set_yticks(first + count / 2, [str(speaker) for speaker in speakers])
    axes.tick_params(axis="y", length=0)
    axes.hlines(first[1:], *axes.get_xlim(), color="black", linewidth=0.8)
    axes.set(
        title=f"change of the first cepstral coefficient, {len(padded)} utterances by length",
        xlabel="time (ms)",
        ylabel="speaker",
        facecolor="0.85",
    )
    axes.figure.colorbar(image, ax=axes, label="change (1 / s)")
