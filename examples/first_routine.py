"""A routine of one's own, from raw arrays to an average, in memory and on disk."""

import numpy as np

import xroutine as xrt

rng = np.random.default_rng(0)
time = np.arange(-200, 800) / 1000
evoked = np.exp(-(((time - 0.1) / 0.03) ** 2))[:, None] * [1.0, 0.5]
arrays = [evoked + rng.standard_normal((1000, 2)) for _ in range(100)]
ds = xrt.from_arrays(arrays, samplerate=1000.0, channel=["Cz", "Pz"], offset=-200, name="eeg")


@xrt.routine()
def baseline(trial, rows):
    """Subtract the mean of the first rows."""
    return trial - trial[:rows].mean(axis=0)


corrected = baseline(rows=200)(ds, out="corrected.zarr")
print(corrected.trials)

average = corrected.trials.map(np.positive, keeptrials=False)
peak = average.positive.sel(channel="Cz").idxmax("time").item()
print(f"the average of {average.n_trials.item()} trials peaks at {peak * 1000:.0f} ms")
