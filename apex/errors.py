"""Every exception of the project and every exit code of its executables."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of apex's executables; engines restart after all but those in `NOT_RESTARTED`."""

    CLEAN = 0
    USAGE = 2
    DEGRADED = 3
    """`apex status`: only part of the suite runs; `apex doctor`: it found a problem."""
    DOWN = 4
    """`apex status`: neither the learner nor the replay server runs."""
    CRASH = 70
    """An unexpected exception; the traceback is in the log."""
    PEERS_GONE = 75
    """The peers of an attached process did not come back in time."""
    CONFIGURATION = 78
    """The configuration, the endpoints or the environment cannot be used as they are."""
    GAVE_UP = 79
    """Crashed too often in a row; or training diverged twice, or before any checkpoint."""
    HANG = 80
    """The watchdog ended the process: its work loop made no progress."""
    OUT_OF_MEMORY = 81
    """The device ran out of memory; the learner restarts twice from its newest checkpoint."""


NOT_RESTARTED = (
    ExitCode.USAGE,
    ExitCode.PEERS_GONE,
    ExitCode.CONFIGURATION,
    ExitCode.GAVE_UP,
)
"""Exit codes after which an engine leaves a process down."""


class ApexError(Exception):
    """Base of all errors that apex raises on purpose; the message is written for the user."""

    exit_code: ExitCode = ExitCode.CRASH


class UsageError(ApexError):
    """The command line asks for something that cannot be done."""

    exit_code = ExitCode.USAGE


class ConfigError(ApexError):
    """A configuration has an unknown key, a wrong type or values that contradict each other."""

    exit_code = ExitCode.CONFIGURATION


class EndpointError(ApexError):
    """An endpoints file or an address in it cannot be used."""

    exit_code = ExitCode.CONFIGURATION


class RunError(ApexError):
    """A run directory is missing, in use, or not what the command expects."""

    exit_code = ExitCode.CONFIGURATION


class SchemaError(ApexError):
    """Data does not have the columns, dtypes or shapes that the schema declares."""

    exit_code = ExitCode.CONFIGURATION


class CorruptItemsError(SchemaError):
    """Some sampled items contain invalid frames or actions."""

    def __init__(self, message: str, item_ids: list[int]) -> None:
        super().__init__(message)
        self.item_ids = item_ids


class EnvError(ApexError):
    """An environment cannot be made, or has spaces that apex cannot use."""

    exit_code = ExitCode.CONFIGURATION


class EnvFaultError(ApexError):
    """An environment raised an exception, or returned an invalid observation or reward."""

    exit_code = ExitCode.CRASH


class CheckpointError(ApexError):
    """A checkpoint is missing, incomplete or corrupt."""

    exit_code = ExitCode.CONFIGURATION


class DecodeError(ApexError):
    """A message on the wire is malformed; `code` is sent back to the sender."""

    def __init__(self, message: str, code: str = "malformed") -> None:
        super().__init__(message)
        self.code = code


class RefusedError(ApexError):
    """A peer answered with an error; `code` is the error code that it sent."""

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class GaveUpError(ApexError):
    """A daemon crashed too often in a row."""

    exit_code = ExitCode.GAVE_UP


class DivergedError(ApexError):
    """Training diverged again after a rollback, or before there was a checkpoint."""

    exit_code = ExitCode.GAVE_UP


class DeviceMemoryError(ApexError):
    """The device has no memory left for training."""

    exit_code = ExitCode.OUT_OF_MEMORY


class DeviceError(ApexError):
    """The device or its driver failed, and not for lack of memory."""

    exit_code = ExitCode.CRASH


class PeerTimeoutError(ApexError):
    """A peer did not answer before the deadline."""

    exit_code = ExitCode.PEERS_GONE


class StopAskedError(ApexError):
    """Work was interrupted because the daemon was asked to stop; this is not a failure."""

    exit_code = ExitCode.CLEAN


class EmptyTableError(ApexError):
    """Samples were requested from a table whose selectable priority mass is zero."""
