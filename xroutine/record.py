"""What was done, as strict JSON (`cfg`), as text for people (`log`), and as CF's `history`."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib.metadata import version
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType
from typing import Any

import cloudpickle
import numpy as np
import xarray as xr

from xroutine.call import PerTrial, name_of
from xroutine.errors import StoreError, XroutineError

# Marks data variables that are neither signal nor labels.
ROLE = "xroutine_role"
# Attribute that tells one run's result from another's at the same address.
MADE = "xroutine_made"
_CORE = ("numpy", "xarray", "zarr", "dask", "distributed", "numcodecs")


@lru_cache(maxsize=1)
def versions() -> Mapping[str, str]:
    """Versions of xroutine, Python and the core dependencies."""
    # Reading them takes as long as computing a thousand small trials.
    found = {name: version(name) for name in ("xroutine", *_CORE)}
    return MappingProxyType({"python": platform.python_version(), **found})


def encode(value: Any, name: str, arrays: dict[str, np.ndarray[Any, Any]] | None) -> Any:
    """A value as strict JSON; arrays go to `arrays` under a name of their own and are referred to.

    Without `arrays`, they are spelled out.

    What JSON has no word for becomes an object with a single key that starts with ``$``.

    Examples
    --------
    >>> arrays = {}
    >>> encode({"b": np.ones(3), "edges": (1, None), "fill": float("nan")}, "cfg", arrays)
    {'b': {'$array': 'cfg_b'}, 'edges': {'$tuple': [1, None]}, 'fill': {'$float': 'nan'}}
    >>> arrays
    {'cfg_b': array([1., 1., 1.])}
    """
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return value
    if type(value) is float:
        return value if np.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if type(value) is complex:
        return {"$complex": repr(value)}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {"$scalar": [value.dtype.str, repr(value.item())]}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSUT":
        if arrays is None or value.dtype.kind == "S":
            listed = value.astype("U") if value.dtype.kind == "S" else value
            return {"$values": [value.dtype.str, encode(listed.tolist(), name, None)]}
        while name in arrays:
            name += "_"
        arrays[name] = value
        return {"$array": name}
    if isinstance(value, (list, tuple)):
        items = [encode(item, f"{name}_{number}", arrays) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: encode(item, f"{name}_{key}", arrays) for key, item in value.items()}
    if isinstance(value, PerTrial):
        # Attributes are no place for a list as long as the trials are many.
        kinds = set() if isinstance(value.values, np.ndarray) else set(map(type, value.values))
        column = np.asarray(value.values) if kinds in ({bool}, {int}, {float}, {str}) else None
        if column is not None and column.dtype != object:
            return {"$per_trial": {"$list": encode(column, name, arrays)}}
        return {"$per_trial": encode(value.values, name, arrays)}
    if isinstance(value, slice):
        return {"$slice": [encode(edge, name, arrays) for edge in (value.start, value.stop, value.step)]}
    if isinstance(value, np.dtype):
        return {"$dtype": value.str}
    if isinstance(value, (xr.DataArray, xr.Variable)):
        return {"$variable": [list(map(str, value.dims)), encode(value.values, name, arrays)]}
    if callable(value):
        return {"$object": name_of(value)}
    return {"$repr": repr(value)}


def decode(
    value: Any, arrays: Mapping[Any, Any], strict: bool = True, objects: Callable[[str], Any] | None = None
) -> Any:
    """What `encode` was given, from its JSON and the arrays beside it.

    Objects that were recorded by name only are asked of `objects`; without it they stay as they are unless `strict`.

    Raises
    ------
    StoreError
        For what cannot be made again from JSON: objects that were recorded by name only.
    """
    try:
        return _decode(value, arrays, strict, objects)
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, XroutineError):
            raise
        raise StoreError(f"cfg holds {value!r:.300}, which is not what xroutine writes: {error}") from None


def _decode(value: Any, arrays: Mapping[Any, Any], strict: bool, objects: Callable[[str], Any] | None) -> Any:
    if isinstance(value, list):
        return [_decode(item, arrays, strict, objects) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not next(iter(value)).startswith("$"):
        return {key: _decode(item, arrays, strict, objects) for key, item in value.items()}
    ((kind, content),) = value.items()
    if kind == "$array":
        if content not in arrays:
            raise StoreError(f"cfg refers to the array {content!r}, which is not stored beside it")
        return np.asarray(arrays[content])
    if kind == "$object" and objects is not None:
        return objects(content)
    if kind == "$tuple":
        return tuple(_decode(item, arrays, strict, objects) for item in content)
    if kind == "$list":
        return _decode(content, arrays, strict, objects).tolist()
    if kind == "$per_trial":
        return PerTrial(_decode(content, arrays, strict, objects))
    if kind == "$slice":
        return slice(*(_decode(edge, arrays, strict, objects) for edge in content))
    if kind == "$variable":
        return xr.Variable(content[0], _decode(content[1], arrays, strict, objects))
    if kind == "$values":
        return np.array(_decode(content[1], arrays, strict, objects), dtype=_dtype(content[0]))
    if kind == "$bytes":
        return bytes.fromhex(content)
    if kind == "$float":
        return float(content)
    if kind == "$complex":
        return complex(content)
    if kind == "$scalar":
        dtype = _dtype(content[0])
        text = content[1]
        return dtype.type(
            text == "True"
            if dtype.kind == "b"
            else complex(text)
            if dtype.kind == "c"
            else float(text)
            if dtype.kind == "f"
            else int(text)
        )
    if kind == "$dtype":
        return _dtype(content)
    if strict:
        raise StoreError(f"cfg records {content!r} by name only: give it again to run with it")
    return value


def _dtype(text: str) -> np.dtype[Any]:
    # NumPy reads much more than the names that it gives, Python literals among them.
    if not re.fullmatch(r"[<>|=]?[?biufcSUTVMm]\d{0,6}(\[\w+\])?", text):
        raise ValueError(f"{text!r} is no dtype")
    return np.dtype(text)


def plain_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON has them: NumPy's numbers and arrays as Python's."""
    return {str(key): value.tolist() if hasattr(value, "tolist") else value for key, value in attrs.items()}


def dumps(cfg: Mapping[str, Any]) -> str:
    """Strict JSON: no NaN, no Infinity, no NumPy scalars."""
    return json.dumps(cfg, allow_nan=False, ensure_ascii=False)


def loads(text: Any, what: str) -> dict[str, Any]:
    """The JSON object in an attribute, or a `StoreError` that says what is there instead."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError) as error:
        raise StoreError(f"attribute {what!r} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise StoreError(f"attribute {what!r} should hold a JSON object, found {type(value).__name__}")
    return value


def digest(*arrays: Any) -> str:
    """A short fingerprint of arrays: of their shapes, dtypes and values."""
    total = hashlib.sha256()
    for array in arrays:
        values = np.asarray(array)
        total.update(f"{values.shape} {values.dtype.str}".encode())
        if values.dtype.hasobject or values.dtype.kind == "T":
            total.update(repr(values.tolist()).encode())
        else:
            total.update(np.ascontiguousarray(values).data if values.dtype.kind not in "mM" else values.tobytes())
    return total.hexdigest()[:16]


def code_digest(value: Any) -> str:
    """A short fingerprint of what a function does, or of the state of another object.

    Of functions it covers the source (of lambdas, and where there is no source, the bytecode), the defaults, and what
    they enclose; not the globals that they use.
    """
    return hashlib.sha256(repr(_words(value, set())).encode()).hexdigest()[:16]


def is_importable(value: Any) -> bool:
    """Whether a function or class is what its recorded name stands for, so that the name tells which one it is."""
    module, _, qualified = name_of(value).partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    return found is value


def _words(value: Any, seen: set[int]) -> Any:
    """Nested tuples that tell one object from another."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type(...))):
        return repr(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return digest(value)
    if id(value) in seen:
        return "again"
    seen = seen | {id(value)}
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, _words(value.co_consts, seen)
    if isinstance(value, Mapping):
        return tuple((repr(key), _words(item, seen)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_words(item, seen) for item in value)
    if isinstance(value, partial):
        return "partial", _words((value.func, value.args, value.keywords), seen)
    if isinstance(value, FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return _source(value) or _words(value.__code__, seen), _words(
            (value.__defaults__, value.__kwdefaults__, enclosed), seen
        )
    if isinstance(value, MethodType):
        return _words((value.__func__, value.__self__), seen)
    if isinstance(value, (type, BuiltinFunctionType, np.ufunc)):
        return name_of(value), _source(value)
    try:
        return name_of(type(value)), cloudpickle.dumps(value)
    except Exception:  # noqa: BLE001  # what cannot be pickled is told by its text
        return name_of(type(value)), repr(value)


def _source(value: Any) -> str:
    try:
        return "" if getattr(value, "__name__", "") == "<lambda>" else inspect.getsource(value)
    except (OSError, TypeError):
        return ""


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def log_entry(name: str, time: str, settings: Mapping[str, Any]) -> str:
    """One entry of the log: when, what, and with which settings."""
    lines = [f"|=== {time}: {name} ===|", f"\tcomputed {name} with settings"]
    for key, value in settings.items():
        text = " ".join(str(value).split())
        lines.append(f"\t{key} = {text if len(text) < 80 else f'{text[:30]}, ..., {text[-30:]}'}")
    return "\n".join(lines) + "\n"


def history_line(name: str, time: str, n_trials: int) -> str:
    """CF's line for one step."""
    return f"{time}: xroutine {versions()['xroutine']}: {name} on {n_trials} trial{'s' * (n_trials != 1)}"
