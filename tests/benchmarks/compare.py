"""Compare the contenders on the workloads, side by side: ``python tests/benchmarks/compare.py --out DIR``.

Every contender is a process of its own that is told to run one round at a time, so that all of them meet the same
machine. The first round warms up and its result is checked. Prints a table in Markdown, and leaves it in DIR with a
picture and the figures as JSON. Figures are seconds and ratios of a round, of which the median is told.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from contenders import CONTENDERS, WHOLE_CHUNKS
from workloads import WORKLOADS, Workload

HERE = Path(__file__).parent
OURS = "xroutine threads"


def contenders_of(work: Workload) -> list[str]:
    """Who can run a workload here."""
    try:
        import cubed  # noqa: F401
    except ImportError:
        absent = {"cubed"}
    else:
        absent = set()
    return [name for name in CONTENDERS if name not in absent and not (work.shortest and name in WHOLE_CHUNKS)]


def measure(work: Workload, compressed: bool, rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """What each contender told of each round."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    work.write(folder, compressed)
    environment = {**os.environ, "XROUTINE_BENCHMARK_TRIALS": str(work.n_trials), "PYTHONWARNINGS": "ignore"}
    running = {}
    for name in contenders_of(work):
        out = folder / name.replace(" ", "-").replace(",", "")
        command = [sys.executable, str(HERE / "contenders.py"), name, work.name, str(folder), str(out)]
        command.append("compressed" if compressed else "plain")
        running[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    told: dict[str, dict[str, list[float]]] = {}
    order, rng = list(running), np.random.default_rng(0)
    for number in range(rounds + 1):
        rng.shuffle(order)
        for name in order:
            process = running[name]
            process.stdin.write("go\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{name} failed on {work.name}")
            if number:
                for key, value in json.loads(line).items():
                    told.setdefault(name, {}).setdefault(key, []).append(value)
            shutil.rmtree(folder / name.replace(" ", "-").replace(",", ""), ignore_errors=True)
    for process in running.values():
        process.stdin.close()
        process.wait()
    shutil.rmtree(folder)
    return told


def table(title: str, work: Workload, told: dict[str, dict[str, list[float]]]) -> str:
    """One workload in Markdown: seconds, ratio to xroutine's threads, peak memory, stored objects."""
    lines = [f"| {title} | seconds | of {OURS} | peak MiB | objects | stored MiB |", "|---|---|---|---|---|---|"]
    for name in sorted(told, key=lambda name: list(CONTENDERS).index(name)):
        found = told[name]
        ratio = np.median(np.divide(found["seconds"], told[OURS]["seconds"]))
        row = [name, f"{np.median(found['seconds']):.2f}", f"{ratio:.2f}", f"{max(found['peak']) / 2**20:,.0f}"]
        shown = name not in ("kernel alone, in memory", "raw bytes")
        row += [f"{found['objects'][0]:,}", f"{found['nbytes'][0] / 2**20:,.0f}"] if shown else ["", ""]
        lines.append(f"| {' | '.join(row)} |")
    kernel, raw = (np.array(told[name]["seconds"]) for name in ("kernel alone, in memory", "raw bytes"))
    limit = kernel / (os.cpu_count() or 1) + raw
    over = [
        f"{name.removeprefix('xroutine ')} {np.median(told[name]['seconds'] / limit):.2f}"
        for name in told
        if name.startswith("xroutine")
    ]
    lines += [
        "",
        f"Limit (kernel / cores + raw bytes): {np.median(limit):.2f} s; times the limit: {', '.join(over)}.",
        "",
    ]
    return "\n".join(lines)


def draw(results: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """Bars of seconds, one panel a workload, with the range of the rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6 * len(results)), layout="constrained")
    for axes, (title, told) in zip(np.atleast_1d(figure.subplots(len(results))), results.items(), strict=True):
        names = [name for name in reversed(CONTENDERS) if name in told]
        medians = [np.median(told[name]["seconds"]) for name in names]
        spread = [
            [m - min(told[n]["seconds"]), max(told[n]["seconds"]) - m] for n, m in zip(names, medians, strict=True)
        ]
        colors = ["tab:blue" if name.startswith("xroutine") else "0.7" for name in names]
        axes.barh(names, medians, color=colors, xerr=np.transpose(spread), ecolor="0.3")
        axes.set(title=title, xlabel="seconds")
        # A loop that takes minutes would leave the others no room.
        axes.set_xlim(0, min(1.05 * max(medians), 3 * sorted(medians)[-2]))
    figure.savefig(path)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="where table and picture go")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=10**9, help="at most so many trials a workload")
    parser.add_argument("--only", nargs="*", help="names of workloads")
    parser.add_argument("--compression", nargs="*", default=["plain", "compressed"])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    results, texts = {}, []
    for compression in given.compression:
        for work in WORKLOADS:
            if given.only and work.name not in given.only:
                continue
            title = f"{work.name}, {'uncompressed' if compression == 'plain' else 'default compression'}"
            folder = Path(tempfile.gettempdir()) / "xroutine-benchmark"
            results[title] = measure(work.of(given.trials), compression == "compressed", given.rounds, folder)
            texts.append(table(title, work, results[title]))
            print(texts[-1], flush=True)
    (given.out / "compare.md").write_text("\n".join(texts))
    (given.out / "compare.json").write_text(json.dumps(results))
    draw(results, given.out / "compare.png")


if __name__ == "__main__":
    main()
