"""Metadata and tables from a coverage-guided fuzzer: ``python tests/fuzz.py -runs=1000000`` (needs `atheris`)."""

from __future__ import annotations

import json
import sys

import atheris
import numpy as np

with atheris.instrument_imports(include=["xroutine"]):
    import xroutine as xrt
    from xroutine.errors import XroutineError
    from xroutine.objects import put
    from xroutine.record import decode, loads
    from xroutine.seal import METADATA, ROOT, read_copies, read_metadata, seals
    from xroutine.store import inspect

import xarray as xr
from zarr.storage import MemoryStore

RECORDING = xr.DataArray(np.zeros((20, 2)), dims=("time", "channel"), attrs={"samplerate": 10.0})
ARRAYS = {"a": np.arange(3.0), "b": np.array(["x"])}
WORDS = ["$array", "$tuple", "$list", "$per_trial", "$slice", "$variable", "$values", "$bytes", "$float", "$complex"]
WORDS += ["$scalar", "$dtype", "$object", "a", "b", "<f8", "<U3", "nan", "xroutine", "attributes", "status", "complete"]
WORDS += ["running", "variables", "blocks", "plan", "format", "digest", "documents", ROOT]


def document(data, depth=0):
    """A JSON document out of bytes."""
    kind = data.ConsumeIntInRange(0, 7 if depth < 5 else 4)
    if kind == 0:
        return data.PickValueInList([None, True, False, 2, 10**15, -1, "", "../x"])
    if kind == 1:
        return data.ConsumeInt(8)
    if kind == 2:
        return data.PickValueInList(WORDS)
    if kind == 3:
        return data.ConsumeUnicodeNoSurrogates(8)
    if kind == 4:
        return data.ConsumeFloat()
    if kind == 5:
        return [document(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 3))]
    return {data.PickValueInList(WORDS): document(data, depth + 1) for _ in range(data.ConsumeIntInRange(1, 4))}


def one_input(raw):
    """Anything is understood, or an error of ours."""
    data = atheris.FuzzedDataProvider(raw)
    what, store = data.ConsumeIntInRange(0, 4), MemoryStore()
    try:
        if what == 0:
            decode(loads(json.dumps(document(data)), "cfg"), ARRAYS, strict=data.ConsumeBool())
        elif what == 1:
            mark = {"format": 2, "status": "running", "variables": ["a"], "blocks": 1, "plan": {}}
            mark[data.PickValueInList(list(mark))] = document(data)
            put(store, ROOT, json.dumps({"attributes": {"xroutine": json.dumps(mark)}}).encode())
            inspect(store)
        elif what == 2:
            put(store, METADATA, json.dumps(document(data)).encode() if data.ConsumeBool() else raw)
            read_metadata(store)
        elif what == 3:
            archive = bytearray(seals({ROOT: b"{}", "a/c/0": b"abc"})["ledger/receipt/copies"])
            for _ in range(data.ConsumeIntInRange(1, 3)):
                archive[data.ConsumeIntInRange(0, len(archive) - 1)] = data.ConsumeIntInRange(0, 255)
            put(store, "ledger/receipt/copies", bytes(archive))
            assert read_copies(store) == {ROOT: b"{}", "a/c/0": b"abc"}
        else:
            for trial in xrt.cut(RECORDING, document(data)).trials:
                assert trial.sizes["time"] <= 20
    except XroutineError:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
