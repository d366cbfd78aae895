"""Calling the compute function: which arguments go to which trial, and what comes back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from xroutine.errors import ArgumentError, OutputError, OutputTypeError

Array = np.ndarray[Any, Any]
# Given by xroutine itself, never by the user.
RESERVED = ("chunkShape", "noCompute")


@dataclass(frozen=True, eq=False)
class PerTrial:
    """Values of an argument that differ from trial to trial; see `per_trial`."""

    values: Sequence[Any] | np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        return self.values[index]


def per_trial(values: Sequence[Any] | np.ndarray[Any, Any]) -> PerTrial:
    """Give each trial its own value of an argument.

    Parameters
    ----------
    values : sequence or numpy.ndarray
        One value a trial, in the order of the trials.

    Returns
    -------
    PerTrial
        To be given in place of a positional or keyword argument.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt
    >>> ds = xrt.from_arrays([np.ones((2, 1))] * 3, samplerate=1.0)
    >>> ds.trials.map(np.multiply, xrt.per_trial([1.0, 2.0, 3.0])).multiply[:, 0, 0].values
    array([1., 2., 3.])
    """
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise ArgumentError(f"per_trial: expected a sequence with one value a trial, got {type(values).__name__}")
    # Series and DataArrays find items by label; trials are counted.
    return PerTrial(values if isinstance(values, (list, tuple, range)) else np.asarray(values))


def seeds(entropy: int | Sequence[int], n: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Seeds for functions that draw random numbers, one a trial, for `per_trial`.

    What a trial draws then depends on its position alone: not on blocks, engines or which trial was computed before.
    (With ``chan_per_worker`` each block of a trial's channels starts the same stream.)

    Parameters
    ----------
    entropy : int or sequence of int
        What makes this set of seeds another than the next; not negative.
    n : int
        Number of trials.

    Returns
    -------
    numpy.ndarray of uint32
        (n, 4): a row is entropy for `numpy.random.default_rng`, as `numpy.random.SeedSequence` mixes it.

    Examples
    --------
    >>> import numpy as np, xroutine as xrt
    >>> def jitter(trial, seed):
    ...     return trial + np.random.default_rng(seed).standard_normal(trial.shape)
    >>> ds = xrt.from_arrays([np.zeros((2, 1))] * 3, samplerate=1.0)
    >>> first = ds.trials.map(jitter, xrt.per_trial(xrt.seeds(7, 3)))
    >>> first.jitter.equals(ds.trials.map(jitter, xrt.per_trial(xrt.seeds(7, 3)), parallel=False, block_size=1).jitter)
    True
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ArgumentError(f"seeds: expected a positive number of trials, got {n!r}")
    if entropy is None:
        raise ArgumentError("seeds: give entropy, an int of your choice, so that the run can be repeated")
    return np.asarray(np.random.SeedSequence(entropy).generate_state(4 * int(n)), np.uint32).reshape(int(n), 4)


@dataclass(frozen=True, eq=False)
class Call:
    """A compute function with its arguments.

    Attributes
    ----------
    function : callable
        Called as ``function(trial, *argv, **kwargs)``.
    argv, kwargs
        Arguments; a `PerTrial` stands for one value a trial.
    contract : bool
        Whether the function takes `chunkShape` and `noCompute`.
    outputs : tuple of str or None
        Names of what it returns, where these are several arrays.
    """

    function: Callable[..., Any]
    argv: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    contract: bool = False
    outputs: tuple[str, ...] | None = None

    @classmethod
    def bind(
        cls,
        function: Callable[..., Any],
        argv: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: tuple[str, ...] | None = None,
    ) -> Call:
        """Check the arguments against the function's signature."""
        if not callable(function):
            raise ArgumentError(f"expected a compute function, got {type(function).__name__}: {function!r}")
        reserved = [key for key in RESERVED if key in kwargs]
        if reserved:
            raise ArgumentError(f"{' and '.join(reserved)}: given by xroutine itself, leave it out")
        try:
            signature = inspect.signature(function)
        except (ValueError, TypeError):  # functions written in C need not have one
            return cls(function, tuple(argv), dict(kwargs), outputs=outputs)
        parameters = signature.parameters
        contract = all(key in parameters for key in RESERVED)
        try:
            signature.bind(None, *argv, **kwargs)
        except TypeError as error:
            raise ArgumentError(
                f"{name_of(function)}{signature} cannot be called with the trial and the arguments given: {error}"
            ) from None
        # Some functions (NumPy's ufuncs) cannot be given all of their own defaults.
        defaults = cls.defaults(function)
        given = {key: value for key, value in kwargs.items() if key not in defaults or value is not defaults[key]}
        return cls(function, tuple(argv), given, contract, outputs)

    @staticmethod
    def defaults(function: Callable[..., Any]) -> dict[str, Any]:
        """Keyword defaults of a compute function; those of a ufunc are NumPy's own business."""
        if isinstance(function, np.ufunc):
            return {}
        try:
            parameters = inspect.signature(function).parameters
        except (ValueError, TypeError):
            return {}
        return {
            key: parameter.default
            for key, parameter in parameters.items()
            if parameter.default is not parameter.empty
            and parameter.kind is not parameter.POSITIONAL_ONLY
            and key not in RESERVED
        }

    @property
    def name(self) -> str:
        return name_of(self.function).rpartition(":")[2].rpartition(".")[2]

    @property
    def positional(self) -> dict[str, Any]:
        """Positional arguments by the names that the function gives them."""
        try:
            parameters = list(inspect.signature(self.function).parameters.values())
        except (ValueError, TypeError):
            parameters = []
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [parameter.name for parameter in parameters if parameter.kind in by_position][1:]
        rest = next((found.name for found in parameters if found.kind is inspect.Parameter.VAR_POSITIONAL), "argument")
        names += [f"{rest}_{position}" for position in range(len(self.argv) - len(names))]
        return dict(zip(names, self.argv, strict=False))

    @cached_property
    def varies(self) -> bool:
        """Whether any argument has to be made anew for each trial."""
        return any(isinstance(value, (PerTrial, dict, list, set)) for value in (*self.argv, *self.kwargs.values()))

    def check_length(self, n_trials: int) -> None:
        """Raise `ArgumentError` where a per-trial argument does not have one value a trial."""
        for key, value in (*enumerate(self.argv), *self.kwargs.items()):
            if isinstance(value, PerTrial) and len(value) != n_trials:
                where = f"positional argument {key}" if isinstance(key, int) else f"argument {key!r}"
                raise ArgumentError(f"{where}: per_trial has {len(value)} values, the data have {n_trials} trials")

    def values(self, start: int, stop: int) -> dict[int | str, PerTrial]:
        """The per-trial arguments of some trials, by position or keyword."""
        arguments: tuple[tuple[int | str, Any], ...] = (*enumerate(self.argv), *self.kwargs.items())
        return {key: PerTrial(value[start:stop]) for key, value in arguments if isinstance(value, PerTrial)}

    def with_values(self, values: Mapping[int | str, Any]) -> Call:
        """The same call with other arguments in these places."""
        if not values:
            return self
        argv = tuple(values.get(position, value) for position, value in enumerate(self.argv))
        kwargs = {key: values.get(key, value) for key, value in self.kwargs.items()}
        return replace(self, argv=argv, kwargs=kwargs)

    def arguments(self, index: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of one trial."""

        def one(value: Any) -> Any:
            value = value[index] if isinstance(value, PerTrial) else value
            # What a function does to a dict that it is given must not reach the next trial.
            return copy.deepcopy(value) if isinstance(value, (dict, list, set)) else value

        if not self.varies:
            return self.argv, self.kwargs
        return tuple(one(value) for value in self.argv), {key: one(value) for key, value in self.kwargs.items()}


def name_of(function: Any) -> str:
    """Importable name, ``module:qualified.name``, of a function or class."""
    inner = getattr(function, "func", function)  # functools.partial
    module = getattr(inner, "__module__", None) or type(inner).__module__
    name = getattr(inner, "__qualname__", None) or getattr(inner, "__name__", None) or type(inner).__qualname__
    return f"{module}:{name}"


def split_result(result: Any, names: tuple[str, ...] | None) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """The arrays, one an output, and the details that a compute function returned.

    Parameters
    ----------
    result : object
        An array, or with `names` a tuple or dict of arrays; or a pair of these and a dict of details.
    names : tuple of str or None
        Names of the outputs, where there are several.

    Raises
    ------
    OutputTypeError
        For anything else.
    """
    details: dict[str, Any] = {}
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], (dict, type(None))):
        result, details = result[0], result[1] or {}
    return tuple(map(_array, split_outputs(result, names))), details


def split_outputs(result: Any, names: tuple[str, ...] | None) -> tuple[Any, ...]:
    """What was returned for each output, in their order."""
    if names is None:
        if isinstance(result, (tuple, dict)):
            raise OutputTypeError(
                f"the compute function returned a {type(result).__name__} of {len(result)}: name its outputs and their "
                f"dims with outputs=" + "{'name': ('dim', ...), ...}"
            )
        return (result,)
    if isinstance(result, dict) and set(result) == set(names):
        return tuple(result[name] for name in names)
    if isinstance(result, tuple) and len(result) == len(names):
        return result
    if len(names) == 1 and not isinstance(result, (dict, tuple)):
        return (result,)
    found = f"a dict with {list(result)}" if isinstance(result, dict) else f"a {type(result).__name__}"
    found += f" of {len(result)}" if isinstance(result, tuple) else ""
    raise OutputTypeError(f"expected a tuple or dict with the outputs {list(names)}, got {found}")


def _array(value: Any) -> Array:
    if isinstance(value, (int, float, complex, np.generic)):
        return np.asarray(value)
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise OutputTypeError(
            f"expected a numpy.ndarray, or (numpy.ndarray, details), from the compute function; "
            f"got {type(value).__name__}"
        )
    return value


def fit(result: Array, shape: tuple[int, ...], dtype: np.dtype[Any], name: str | None = None) -> Array:
    """The result in its declared shape, or an error that tells expected and found.

    Dimensions of size one may be missing or extra; a dtype has to be castable as NumPy's ``same_kind``.
    """
    what = f"as its output {name!r} " if name else ""
    if result.shape != shape:
        if tuple(n for n in result.shape if n != 1) != tuple(n for n in shape if n != 1):
            raise OutputError(f"the compute function returned {what}shape {result.shape}, its dry run declared {shape}")
        result = result.reshape(shape)
    if result.dtype != dtype and not np.can_cast(result.dtype, dtype, "same_kind"):
        raise OutputTypeError(
            f"the compute function returned {what}{result.dtype}, which cannot be stored as the {dtype} that its "
            f"dry run declared: declare {result.dtype}, or cast in the function"
        )
    return result
