"""The command line: ``python -m xroutine demo | info | verify``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr
import zarr

from xroutine.container import read_cfg
from xroutine.errors import TrialsError, XroutineError
from xroutine.ledger import read_receipts
from xroutine.opening import open_dataset
from xroutine.plan import nbytes_text
from xroutine.store import address, as_store_errors, inspect, locate
from xroutine.verify import verify


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; errors that tell what to do end in one line and exit status 1.

    Parameters
    ----------
    argv : sequence of str, optional
        The command line, without the program's name; that of this process if left out.
    """
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        if given.command == "demo":
            # Its libraries take seconds to import, and need not be installed.
            from xroutine.demo import demo

            demo(given.folder)
        elif given.command == "info":
            print(info(given.url))
        else:
            print(verify(given.url))
    except (XroutineError, OSError) as error:
        parser.exit(1, f"xroutine: {' '.join(str(error).split())}\n")


def info(url: str) -> str:
    """Describe a store that xroutine made, finished or not.

    Parameters
    ----------
    url : str
        Path or URL.

    Raises
    ------
    FileNotFoundError
        Where there is nothing.
    StoreError
        Where the store was not made by xroutine.
    """
    store = locate(url)
    dataset = open_dataset(store, unfinished=True)
    mark = inspect(store) or {}
    n_trials = dataset.coords.get("n_trials")
    done = len(read_receipts(store, mark["blocks"])[0])
    rows = [
        ("store", address(store)),
        ("status", f"{mark['status']}, {done:,} of {mark['blocks']:,} blocks done"),
        ("routine", mark.get("plan", {}).get("routine", "")),
        ("average", "" if n_trials is None else f"of {int(n_trials.max()):,} trials"),
    ]
    for name in mark["variables"]:
        with as_store_errors(store, f"has metadata of {name!r} that cannot be understood"):
            array = zarr.open_array(store, path=name, mode="r")
        sizes = ", ".join(f"{dim}: {size:,}" for dim, size in dataset[name].sizes.items())
        rows += [
            ("array", f"{name} ({sizes}) {array.dtype}, {nbytes_text(array.nbytes)}"),
            ("chunks", f"{array.nchunks:,} of {'x'.join(str(size) for size in array.chunks) or '1'}"),
            ("codecs", ", ".join(map(_codec, array.compressors)) or "none"),
        ]
    found = read_cfg(dataset).get("versions")
    found = found if isinstance(found, dict) else {}
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in found.items())))
    lines = [f"{key:<9} {text}" for key, text in rows if text]
    trials = [
        _trials(dataset.drop_vars([other for other in mark["variables"] if other != name]))
        for name in mark["variables"]
    ]
    return "\n".join([*lines, *trials, dataset.trials.log.rstrip()]).rstrip()


def _codec(codec: Any) -> str:
    found = codec.to_dict()
    settings = ", ".join(f"{key}={value}" for key, value in found.get("configuration", {}).items())
    return f"{found['name']}({settings})"


def _trials(dataset: xr.Dataset) -> str:
    try:
        return repr(dataset.trials)
    except TrialsError:  # a single number, or trials of unequal length whose table, written last, is not there yet
        return "<trials>\n  none that can be told apart"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xroutine", description="Runs a function of one trial over all trials.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("demo", help="run the main job on recordings that ship with the package aeon")
    command.add_argument("--folder", type=Path, default=Path("xroutine-demo"), help="where results go (%(default)s)")
    for name, text in (("info", "describe a result, finished or not"), ("verify", "read back every chunk of a result")):
        commands.add_parser(name, help=text).add_argument("url", help="path or URL of a store that xroutine made")
    return parser
