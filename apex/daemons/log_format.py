"""Log format of the daemons."""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

from apex.host.escaping import printable


class EventFormatter(logging.Formatter):
    """Formats an event as one line: time, level, process, message."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Format an event; a traceback adds lines, and control characters are escaped."""
        lines = [record.getMessage()]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        prefix = f"{moment}.{int(record.msecs):03d}Z {record.levelname} {self._process}"
        return "\n".join(f"{prefix} {printable(line)}" for line in lines)


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is `sys.stderr` at that time: a live view prints such lines above itself."""

    @property
    def stream(self) -> TextIO:
        """The current `sys.stderr`."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Ignored: `logging.StreamHandler` sets it when it is made."""


def log_to_stderr(process: str) -> None:
    """Log to stderr, warnings included."""
    handler = StderrHandler()
    handler.setFormatter(EventFormatter(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
