"""What a trial costs, from ten thousand to a million of them: ``python tests/benchmarks/scale.py --out DIR``.

Trials of 50 to 150 samples x 4 channels, float32, cut from a recording in memory, doubled in a plain loop over blocks.
Prints a table in Markdown, and leaves it in DIR with a picture.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections import deque
from pathlib import Path

import numpy as np
import xarray as xr

import xroutine as xrt

CASES = {
    "kept": {},
    "per-trial argument": {"gain": "per trial"},
    "channel blocks": {"chan_per_worker": 2},
    "aligned mean": {"keeptrials": False, "align": "trigger"},
}


def double(arr, gain=2, chunkShape=None, noCompute=None):
    """Next to nothing."""
    return (arr.shape, arr.dtype) if noCompute else arr * gain


def trials(n: int) -> tuple[xr.Dataset, list[np.ndarray]]:
    """The trials as a Dataset, and as views on the same recording."""
    rng = np.random.default_rng(0)
    size = rng.integers(50, 151, n)
    start = np.cumsum(size) - size
    signal = rng.standard_normal((int(size.sum()), 4), dtype="f4")
    whole = xr.DataArray(signal, dims=("time", "channel"), attrs={"samplerate": 1000.0})
    ds = xrt.cut(whole, np.stack([start, start + size, np.zeros(n, int)], axis=1))
    return ds, [signal[a : a + m] for a, m in zip(start.tolist(), size.tolist(), strict=True)]


def timed(call) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(n: int, rounds: int) -> dict[str, float]:
    """Microseconds a trial, the kernel's own and what is added to it, and the plan's seconds and peak memory."""
    ds, arrays = trials(n)
    gains = xrt.per_trial(np.random.default_rng(1).standard_normal(n, dtype="f4"))
    options = {
        name: {key: gains if value == "per trial" else value for key, value in given.items()}
        for name, given in CASES.items()
    }
    tracemalloc.start()
    ds.trials.plan(double, gains, chan_per_worker=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    found: dict[str, list[float]] = {"plan, s": [], "kernel": [], **{name: [] for name in CASES}}
    for number in range(rounds + 1):
        row = {"plan, s": timed(lambda: ds.trials.plan(double, gains, chan_per_worker=2))}
        # Results are let go one by one: a million small pieces, freed at once, slow down whatever runs next.
        row["kernel"] = timed(lambda: deque(map(double, arrays), maxlen=0)) / n * 1e6
        for name, given in options.items():
            # A virtual machine gives memory that was free for two seconds back to its host, and getting it anew costs
            # 8 microseconds a page, whoever comes first: a result of 1.6 GB takes 3 s longer.
            np.ones((int(ds.row_size.sum()), 4), "f4")
            run = timed(lambda given=given: ds.trials.map(double, parallel=False, progress=False, **given))
            # Two blocks of channels are two calls.
            row[name] = run / n * 1e6 - row["kernel"] * (1 + (name == "channel blocks"))
        if number:
            for key, value in row.items():
                found[key].append(value)
    return {"trials": n, "plan, MB": peak / 1e6, **{key: float(np.median(values)) for key, values in found.items()}}


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where table and picture go")
    parser.add_argument("--most", type=int, default=1_000_000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    counts = [n for n in (10_000, 31_623, 100_000, 316_228, 1_000_000) if n <= given.most]
    rows = [measure(n, rounds=max(3, 200_000 // n)) for n in counts]
    columns = ["plan, s", "plan, MB", "kernel", *CASES]
    lines = [f"| trials | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row['trials']:,} | {' | '.join(f'{row[name]:.2f}' for name in columns)} |" for row in rows]
    lines += ["", "Kernel: microseconds a trial; the columns behind it: microseconds a trial above the kernel.", ""]
    print("\n".join(lines))
    (given.out / "scale.md").write_text("\n".join(lines))

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in CASES:
        axes.plot(counts, [row[name] for row in rows], "o-", label=name)
    axes.plot(counts, [row["kernel"] for row in rows], "k--", label="kernel alone")
    axes.axhline(10, color="0.7", lw=1)
    axes.set(xscale="log", ylim=(0, None), xlabel="trials", ylabel="microseconds a trial above the kernel")
    axes.legend()
    figure.savefig(given.out / "scale.png")


if __name__ == "__main__":
    main()
