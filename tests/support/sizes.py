"""Memory that an object holds."""

from __future__ import annotations

import gc
import sys
from types import FunctionType, ModuleType


def bytes_held(thing: object) -> int:
    """Bytes of an object and of every object that it refers to, each counted once.

    Types, modules and functions are left out; so is the memory that a NumPy view borrows.
    """
    counted: set[int] = set()
    left, total = [thing], 0
    while left:
        one = left.pop()
        if id(one) not in counted and not isinstance(one, type | ModuleType | FunctionType):
            counted.add(id(one))
            total += sys.getsizeof(one)
            left += gc.get_referents(one)
    return total
