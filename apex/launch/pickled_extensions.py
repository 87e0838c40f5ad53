"""Carry a script's own environment or algorithm to the processes of its daemons."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import cloudpickle

from apex.errors import EnvError
from apex.plugins import NONE, Extensions

if TYPE_CHECKING:  # every child imports this module: the replay server must not import torch
    pass


def packed(extensions: Extensions) -> bytes:
    """Extensions for the children, with the paths on which their modules are found."""
    return bytes(cloudpickle.dumps((sys.path, cloudpickle.dumps(extensions))))


def unpacked(payload: bytes) -> Extensions:
    """The extensions that `packed` made bytes of. Raises `EnvError`."""
    if not payload:
        return NONE
    try:
        paths, packed = cloudpickle.loads(payload)
        sys.path.extend(path for path in paths if path not in sys.path)
        extensions: Extensions = cloudpickle.loads(packed)
    except Exception as error:
        raise EnvError(
            f"the environment or algorithm of the script cannot be loaded in a daemon: "
            f"{type(error).__name__}: {error}"
        ) from error
    return extensions
