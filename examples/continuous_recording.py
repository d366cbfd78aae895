"""Cutting a continuous recording, selecting, and filtering trials of unequal length on a local cluster."""

import numpy as np
import xarray as xr
from distributed import Client
from scipy.signal import butter, filtfilt

import xroutine as xrt


def lowpass(arr, b, a, *, chunkShape=None, noCompute=None):
    if noCompute:
        return arr.shape, arr.dtype
    return filtfilt(b, a, arr, axis=0)


class LowPass(xrt.ComputationalRoutine):
    computeFunction = staticmethod(lowpass)

    def process_metadata(self, data, out):
        out.trialdefinition = data.trialdefinition
        out.samplerate = data.samplerate
        out.channel = data.channel


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    recording = xr.DataArray(
        rng.standard_normal((60_000, 8)).cumsum(axis=0),
        dims=("time", "channel"),
        attrs={"samplerate": 1000.0},
        name="lfp",
    )
    trigger = np.arange(1_000, 58_000, 1_500)
    stop = trigger + rng.integers(500, 1_500, trigger.size)
    ds = xrt.cut(recording, np.stack([trigger - 300, stop, np.full(trigger.size, -300)], axis=1))
    ds.trials.save("session.zarr")

    with Client(n_workers=2, threads_per_worker=1, dashboard_address=":0"):
        session = xrt.open("session.zarr")
        routine = LowPass(*butter(4, 40, fs=1000))
        filtered = routine(session, out="filtered.zarr", block_size=2**20, chan_per_worker=4)
    print(filtered.trials)
    print(filtered.trials.log)
    early = filtered.trials.sel(trials=[3, 1], latency=(-0.1, 0.2))
    print(early.trials[0])
    print(xrt.verify("filtered.zarr"))
