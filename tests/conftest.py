"""Fixtures: a two-process cluster, started once, and a fresh folder."""

from __future__ import annotations

import os

import pytest
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, settings

# Needs a fuzzer that is no dependency.
collect_ignore = ["fuzz.py"]

settings.register_profile(
    "default",
    deadline=None,
    # A red run should be the change's own: elsewhere new examples are drawn every time.
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
settings.load_profile("default")


@pytest.fixture(scope="session")
def cluster():
    """Two worker processes; use `client` to make them the active ones."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", processes=True) as found:
        yield found


@pytest.fixture
def client(cluster):
    """The cluster's client, active for one test."""
    with Client(cluster) as found:
        yield found
