"""Pickle a script's own environment or algorithm for the daemons' processes."""

from __future__ import annotations

import sys

import cloudpickle

from apex.errors import EnvError
from apex.plugins import NONE, Extensions


def packed(extensions: Extensions) -> bytes:
    """Pickle extensions, with the import path on which their modules are found."""
    return bytes(cloudpickle.dumps((sys.path, cloudpickle.dumps(extensions))))


def unpacked(payload: bytes) -> Extensions:
    """Unpickle the extensions of `packed`. Raises `EnvError`."""
    if not payload:
        return NONE
    try:
        paths, packed = cloudpickle.loads(payload)
        sys.path.extend(path for path in paths if path not in sys.path)
        extensions: Extensions = cloudpickle.loads(packed)
    except Exception as error:
        raise EnvError(
            f"a daemon cannot load the script's environment or algorithm: "
            f"{type(error).__name__}: {error}"
        ) from error
    return extensions
