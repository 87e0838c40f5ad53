"""Pickle a script's own environment or algorithm for the daemons' processes."""

from __future__ import annotations

import sys
from dataclasses import replace

import cloudpickle

from apex.errors import EnvError
from apex.plugins import NONE, RAISED, Extensions


def pickle_extensions(extensions: Extensions) -> bytes:
    """Pickle extensions, with the import path on which their modules are found."""
    return bytes(cloudpickle.dumps((sys.path, cloudpickle.dumps(extensions))))


def unpickle_extensions(payload: bytes) -> Extensions:
    """Unpickle the extensions of `pickle_extensions`. Raises `EnvError`."""
    if not payload:
        return NONE
    try:
        paths, pickled = cloudpickle.loads(payload)
        sys.path.extend(path for path in paths if path not in sys.path)
        extensions: Extensions = cloudpickle.loads(pickled)
    except RAISED as error:
        raise EnvError(
            f"a daemon cannot load the script's environment or algorithm: "
            f"{type(error).__name__}: {error}"
        ) from error
    return replace(extensions, pickled=payload)
