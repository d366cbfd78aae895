"""Every contender computes every workload: on a few trials here, on all of them with ``--benchmark-enable``.

``XROUTINE_BENCHMARK_TRIALS=1600 python -m pytest tests/benchmarks --benchmark-enable --benchmark-group-by=group`` tells
times one after the other; ``compare.py`` has all contenders take turns, which is fairer on a machine that others use.
"""

from __future__ import annotations

import os
import shutil

import pytest

pytest.importorskip("scipy")
from contenders import CONTENDERS, WHOLE_CHUNKS, check
from workloads import WORKLOADS

TRIALS = int(os.environ.get("XROUTINE_BENCHMARK_TRIALS", 5))
OURS_OR_INSTALLED = [name for name in CONTENDERS if name != "cubed"]


@pytest.fixture(scope="module", params=WORKLOADS, ids=lambda work: work.name.replace(" ", "-"))
def stored(request, tmp_path_factory):
    work, folder = request.param.of(TRIALS), tmp_path_factory.mktemp("input")
    work.write(folder, compressed=True)
    return work, folder


@pytest.mark.parametrize("name", OURS_OR_INSTALLED)
def test_contender_gives_what_the_function_gives(stored, name, tmp_path, benchmark, client):
    work, folder = stored
    benchmark.group = work.name
    if work.shortest and name in WHOLE_CHUNKS:
        with pytest.raises(ValueError, match=r"time|unpack|dimension|tuple index|not enough"):
            CONTENDERS[name](work, folder, tmp_path / "out", True)
        return

    def clean():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)

    benchmark.pedantic(CONTENDERS[name], (work, folder, tmp_path / "out", True), setup=clean, rounds=3)
    if name not in ("kernel alone, in memory", "raw bytes"):
        check(work, folder, tmp_path / "out")
