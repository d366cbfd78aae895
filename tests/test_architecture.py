"""Imports only go down the floors, the drawing in the docs shows them, and the pure floors are pure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import xroutine

PACKAGE = Path(xroutine.__file__).parent
FLOORS = [
    ["errors"],
    ["trials", "create", "selection", "dense", "call", "dryrun", "blocks", "layout", "reduce", "record", "blas"],
    ["plan", "planner", "gather", "labels", "details", "failures", "provenance"],
    ["objects", "lease", "ledger", "seal", "intact", "codecs"],
    ["source", "store", "engine"],
    ["stored_labels", "opening", "target", "allocate"],
    ["run", "examine"],
    ["container", "settled", "routine", "function", "save", "accessor", "replay", "verify", "demo", "cli"],
]
OUTSIDE = {"zarr", "dask", "distributed", "fsspec", "numcodecs"}


def imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
            if node.module == "xroutine":
                found |= {f"xroutine.{alias.name}" for alias in node.names}
    return found


def test_every_module_is_on_a_floor():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert modules == {module for floor in FLOORS for module in floor}


def test_imports_only_go_down():
    level = {module: number for number, floor in enumerate(FLOORS) for module in floor}
    for module, here in level.items():
        for name in imports(module):
            if name.startswith("xroutine."):
                there = level[name.removeprefix("xroutine.")]
                assert there <= here, f"{module} (floor {here}) imports {name} (floor {there})"
                assert not (here == there == 4), f"{module} and {name}: edges do not import one another"


def test_no_import_cycle():
    order = [module for floor in FLOORS for module in floor]
    seen: set[str] = set()
    while len(seen) < len(order):
        ready = [
            module
            for module in order
            if module not in seen
            and all(name.removeprefix("xroutine.") in seen for name in imports(module) if name.startswith("xroutine."))
        ]
        assert ready, f"a cycle among {set(order) - seen}"
        seen |= set(ready)


def test_pure_floors_need_no_store_and_no_engine():
    for module in (module for floor in FLOORS[:3] for module in floor):
        outside = {name.partition(".")[0] for name in imports(module)}
        assert not outside & OUTSIDE, f"{module} imports {outside & OUTSIDE}"
    script = (
        "import sys, types\n"
        "package = types.ModuleType('xroutine'); package.__path__ = [sys.argv[1]]; sys.modules['xroutine'] = package\n"
        f"for name in {OUTSIDE!r}: sys.modules[name] = None\n"
        "import numpy as np\n"
        "from xroutine.create import from_arrays\n"
        "from xroutine.call import Call\n"
        "from xroutine.trials import view\n"
        "from xroutine.planner import make_plan\n"
        "ds = from_arrays([np.ones((n, 2)) for n in (3, 4)], 1.0)\n"
        "print(make_plan(view(ds), Call.bind(np.negative, (), {}), name='x'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(PACKAGE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 trials of 3 to 4 rows" in done.stdout


def test_the_drawing_in_the_docs_is_this():
    docs = PACKAGE.parent / "docs" / "architecture.md"
    drawn = re.findall(r"^(\d)  \w+ +((?:\w+\.py *)+)", docs.read_text(), re.MULTILINE)
    assert [sorted(row.replace(".py", "").split()) for _, row in sorted(drawn)] == [sorted(floor) for floor in FLOORS]
