"""The errors xroutine raises, each also the builtin that a caller would catch anyway.

Every error is built from one message, so that it survives the way back from a worker process.
"""


class XroutineError(Exception):
    """Base of every error that xroutine itself raises."""


class TrialsError(XroutineError, ValueError):
    """The input does not describe trials: dims, labels, trial table or sampling rate are off."""


class ArgumentError(XroutineError, TypeError):
    """The arguments do not fit the compute function, or a per-trial argument has the wrong length."""


class DryRunError(XroutineError, ValueError):
    """The dry run did not tell one usable output: no shape and dtype, or trials that do not fit together."""


class OutputError(XroutineError, ValueError):
    """The compute function returned something else than its dry run declared."""


class OutputTypeError(OutputError, TypeError):
    """The compute function returned a dtype that cannot be stored as its dry run declared."""


class PlanError(XroutineError, ValueError):
    """The plan cannot work as asked for."""


class ChunkOverlapError(PlanError):
    """Two blocks would write into the same stored chunk."""


class NotEnoughMemoryError(XroutineError, MemoryError):
    """The plan needs more memory than it is allowed to take."""


class StoreError(XroutineError, OSError):
    """A store is missing, damaged, or was not made by xroutine."""


class BusyError(StoreError):
    """Another run is writing into the target."""


class NotEnoughSpaceError(StoreError):
    """The result does not fit on the disk."""


class UnfinishedError(StoreError):
    """A target holds a run that has not been completed."""


class TargetExistsError(StoreError, FileExistsError):
    """A target exists already and holds something else than this plan's result."""


class DamagedError(StoreError):
    """Stored chunks are missing or cannot be read back."""


class XroutineWarning(UserWarning):
    """What xroutine does, or found, that a person should know of, and that is no error."""
