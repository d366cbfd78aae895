"""You write the algorithm for one trial. xroutine runs it over all of them."""

from importlib.metadata import version as _version

import xroutine.accessor  # noqa: F401  # registers `.trials`
from xroutine.call import per_trial, seeds
from xroutine.container import Trials
from xroutine.create import cut, from_arrays
from xroutine.function import routine
from xroutine.opening import open_dataset as open  # noqa: A004  # a module's own `open`, as in xarray and zarr
from xroutine.plan import Plan
from xroutine.replay import replay
from xroutine.routine import ComputationalRoutine
from xroutine.verify import verify

__version__ = _version("xroutine")
__all__ = [
    "ComputationalRoutine",
    "Plan",
    "Trials",
    "cut",
    "from_arrays",
    "open",
    "per_trial",
    "replay",
    "routine",
    "seeds",
    "verify",
]
