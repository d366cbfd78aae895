"""The ways of running a workload that are compared: each reads the stored input and leaves its result in a store."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import dask.array
import numpy as np
import psutil
import xarray as xr
import zarr
from workloads import WORKLOADS, Workload

import xroutine as xrt

Contender = Callable[[Workload, Path, Path, bool], float | None]


def _compressors(compressed: bool):
    return "auto" if compressed else None


def kernel(work: Workload, folder: Path, out: Path, compressed: bool) -> float:
    """The function alone, on trials in memory, one thread: its own seconds, reading not counted."""
    ds, seconds = work.open(folder), 0.0
    for first in range(0, work.n_trials, work.trials_per_chunk):
        part = ds.isel(trial=slice(first, first + work.trials_per_chunk))
        # A DataArray for each of many small trials would take longer than all the others.
        block = part.lfp.values if work.shortest is None else [trial.values for trial in part.trials]
        began = time.perf_counter()
        for trial in block:
            work.function(trial)
        seconds += time.perf_counter() - began
    return seconds


def raw(work: Workload, folder: Path, out: Path, compressed: bool) -> None:
    """Reading and writing the same bytes with nothing in between, one thread."""
    shape = (2, work.rows // 2 + 1, work.channels) if work.average else None
    out.mkdir()
    written = 0
    most = int(work.sizes.sum()) * work.channels * 8 if shape is None else int(np.prod(shape)) * 8
    for path in sorted((folder / "blocks.zarr" / "lfp" / "c").rglob("*")):
        if path.is_file():
            block = np.fromfile(path, np.uint8)
            if written < most:
                block.tofile(out / str(written))
                written += block.nbytes


def zarr_loop(work: Workload, folder: Path, out: Path, compressed: bool) -> float:
    """``out[k] = function(source[k])``, with a chunk for each trial (or, of unequal length, of the usual size)."""
    source = zarr.open_array(folder / "trials.zarr", path="lfp", mode="r")
    begun, n = time.perf_counter(), min(work.n_trials, 4000)
    if work.average:
        total = sum(work.function(source[k]) for k in range(n))
        zarr.save_array(out, total / n)
    else:
        target = zarr.create_array(
            out, shape=source.shape, chunks=source.chunks, dtype="f8", compressors=_compressors(compressed)
        )
        stop = np.cumsum(work.sizes[:n])
        for k, (a, b) in enumerate(zip(stop - work.sizes[:n], stop, strict=True)):
            where = k if work.shortest is None else slice(a, b)
            target[where] = work.function(source[where])
    # Where a file for every trial would take hours, the time of 4,000 trials stands for all.
    return (time.perf_counter() - begun) * work.n_trials / n


def apply_ufunc(work: Workload, folder: Path, out: Path, compressed: bool) -> None:
    """`xarray.apply_ufunc` on whole chunks, then `to_zarr`."""
    result = xr.apply_ufunc(
        work.function,
        xr.open_zarr(folder / "blocks.zarr", consolidated=False).lfp,
        input_core_dims=[["time", "channel"]],
        output_core_dims=[["row", "channel"]],
        dask="parallelized",
        output_dtypes=["f8"],
        dask_gufunc_kwargs={"output_sizes": {"row": work.out_rows}},
    )
    result = result.mean("trial") if work.average else result
    encoding = {} if compressed else {"result": {"compressors": None}}
    result.to_dataset(name="result").to_zarr(out, encoding=encoding, consolidated=False)


def map_blocks(work: Workload, folder: Path, out: Path, compressed: bool) -> None:
    """`dask.array.map_blocks` on whole chunks, then `store` without a lock."""
    source = dask.array.from_zarr(str(folder / "blocks.zarr"), component="lfp")
    chunks = (source.chunks[0], (work.out_rows,), source.chunks[2])
    result = dask.array.map_blocks(work.function, source, dtype="f8", chunks=chunks)
    result = result.mean(axis=0) if work.average else result
    target = zarr.create_array(
        out, shape=result.shape, chunks=result.chunksize, dtype="f8", compressors=_compressors(compressed)
    )
    dask.array.store(result, target, lock=False)


def cubed(work: Workload, folder: Path, out: Path, compressed: bool) -> None:
    """`cubed.map_blocks` on whole chunks, on threads."""
    import cubed
    import cubed.array_api
    from cubed.runtime.executors.local import ThreadsExecutor

    spec = cubed.Spec(work_dir=str(out.parent), allowed_mem="4GB", executor=ThreadsExecutor())
    source = cubed.from_zarr(str(folder / "blocks.zarr"), path="lfp", spec=spec)
    chunks = (source.chunks[0], (work.out_rows,), source.chunks[2])
    result = cubed.map_blocks(work.function, source, dtype=np.dtype("f8"), chunks=chunks)
    result = cubed.array_api.mean(result, axis=0) if work.average else result
    cubed.to_zarr(result, str(out))


def _ours(work: Workload, folder: Path, out: Path, compressed: bool, **engine) -> None:
    work.open(folder).trials.map(
        work.function,
        out=out,
        out_dims=work.out_dims,
        keeptrials=not work.average,
        compressors=_compressors(compressed),
        progress=False,
        **engine,
    )


def serial(work: Workload, folder: Path, out: Path, compressed: bool) -> None:
    """xroutine, a plain loop over blocks."""
    _ours(work, folder, out, compressed, parallel=False)


def threads(work: Workload, folder: Path, out: Path, compressed: bool) -> None:
    """xroutine, on dask's local threads."""
    _ours(work, folder, out, compressed, scheduler="threads")


def processes(work: Workload, folder: Path, out: Path, compressed: bool) -> None:
    """xroutine, on the two processes of the active `LocalCluster`."""
    _ours(work, folder, out, compressed)


CONTENDERS: dict[str, Contender] = {
    "kernel alone, in memory": kernel,
    "raw bytes": raw,
    "Zarr loop": zarr_loop,
    "xarray apply_ufunc": apply_ufunc,
    "dask map_blocks": map_blocks,
    "cubed": cubed,
    "xroutine serial": serial,
    "xroutine threads": threads,
    "xroutine processes": processes,
}
# These compute all trials of a chunk in one call, which they cannot where trials differ in length.
WHOLE_CHUNKS = ("xarray apply_ufunc", "dask map_blocks", "cubed")


def check(work: Workload, folder: Path, out: Path) -> None:
    """Raise where a result is not what the function gives."""
    found = zarr.open(out, mode="r")
    ours = isinstance(found, zarr.Group) and "xroutine" in found.attrs
    if isinstance(found, zarr.Group):
        found = found[work.function.__name__ if ours else "result"]
    if work.average:
        signal, step = work.open(folder).lfp, work.trials_per_chunk
        parts = (signal[first : first + step].values for first in range(0, len(signal), step))
        wanted = sum(work.function(trial) for part in parts for trial in part) / len(signal)
        np.testing.assert_allclose(found[...], wanted, rtol=1e-9)
        return
    stop = np.cumsum(work.sizes)
    for k in (0, 1, min(work.n_trials, 4000) - 1):
        if ours:
            got = xrt.open(out).trials[k].values
        else:
            got = found[k] if work.shortest is None else found[stop[k] - work.sizes[k] : stop[k]]
        np.testing.assert_array_equal(got, work.function(work.open(folder).trials[k].values))


def _peak() -> int:
    """Peak memory of this process and of its children, in bytes."""
    found = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            found += int(status.partition("VmHWM:")[2].split()[0]) * 1024
        except (OSError, IndexError):
            pass
    return found or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _serve(name: str, workload: str, folder: Path, out: Path, compressed: bool) -> None:
    """Run a round for every line on standard input, and answer with a line of JSON."""
    work = next(work for work in WORKLOADS if work.name == workload)
    if "XROUTINE_BENCHMARK_TRIALS" in os.environ:
        work = work.of(int(os.environ["XROUTINE_BENCHMARK_TRIALS"]))
    with ExitStack() as stack:
        if name == "xroutine processes":
            import dask
            from distributed import Client, LocalCluster

            # dask has its workers give every freed page back to the system; see docs/performance.md.
            keep = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
            dask.config.set({"distributed.nanny.pre-spawn-environ": keep})
            cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
            stack.enter_context(Client(stack.enter_context(cluster)))
        for number, _ in enumerate(sys.stdin):
            shutil.rmtree(out, ignore_errors=True)
            began = time.perf_counter()
            seconds = CONTENDERS[name](work, folder, out, compressed)
            seconds = time.perf_counter() - began if seconds is None else seconds
            peak = _peak()
            if number == 0 and name not in ("kernel alone, in memory", "raw bytes"):
                check(work, folder, out)
            files = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
            nbytes = sum(path.stat().st_size for path in files)
            print(json.dumps({"seconds": seconds, "peak": peak, "objects": len(files), "nbytes": nbytes}), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5] == "compressed")
