"""A wall clock that a test moves, for processes that have this folder in PYTHONPATH.

The seconds in the file that APEX_TEST_CLOCK names are added to `time.time` and `time.time_ns`.
"""

import os
import time

if "APEX_TEST_CLOCK" in os.environ:
    _file = os.open(os.environ["APEX_TEST_CLOCK"], os.O_RDONLY)
    _time, _time_ns = time.time, time.time_ns

    def _offset_s() -> int:
        return int(os.pread(_file, 32, 0))

    time.time = lambda: _time() + _offset_s()
    time.time_ns = lambda: _time_ns() + _offset_s() * 1_000_000_000
