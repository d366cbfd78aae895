"""Every contender computes every workload: on a few trials here, on all of them with ``--benchmark-enable``.

``XROUTINE_BENCHMARK_TRIALS=1600 python -m pytest tests/benchmarks --benchmark-enable --benchmark-group-by=group`` tells
times one after the other; ``compare.py`` has all contenders take turns, which is fairer on a machine that others use.
"""

from __future__ import annotations

import os
import shutil
from functools import cache

import pytest

pytest.importorskip("scipy")
from contenders import CONTENDERS, WHOLE_CHUNKS, check
from workloads import WORKLOADS

TRIALS = int(os.environ.get("XROUTINE_BENCHMARK_TRIALS", 5))
# What works on whole chunks cannot where trials differ in length; cubed need not be installed.
PAIRS = [
    (work, name)
    for work in WORKLOADS
    for name in CONTENDERS
    if name != "cubed" and not (work.shortest and name in WHOLE_CHUNKS)
]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder with a workload's input, written once."""

    @cache
    def write(work):
        folder = tmp_path_factory.mktemp("input")
        work.write(folder, compressed=True)
        return folder

    return write


@pytest.mark.parametrize(("work", "name"), PAIRS, ids=[f"{work.name}, {name}" for work, name in PAIRS])
def test_contender_gives_what_the_function_gives(work, name, folder_of, tmp_path, benchmark, request):
    if name == "xroutine processes":
        request.getfixturevalue("client")
    work = work.of(TRIALS)
    folder, out = folder_of(work), tmp_path / "out"
    benchmark.group = work.name
    benchmark.pedantic(
        CONTENDERS[name], (work, folder, out, True), setup=lambda: shutil.rmtree(out, ignore_errors=True), rounds=3
    )
    if name not in ("kernel alone, in memory", "raw bytes"):
        check(work, folder, out)
