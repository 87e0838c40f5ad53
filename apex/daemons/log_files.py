"""Log lines of a daemon."""

from __future__ import annotations

import logging
import sys
import time

from apex.host.escaping import printable


class EventFormatter(logging.Formatter):
    """One event a line: time, level, process, text. Each line of a traceback is a line too."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One line, and one for each of a traceback; what a peer says stays within its line."""
        lines = [record.getMessage()]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        prefix = f"{moment}.{int(record.msecs):03d}Z {record.levelname} {self._process}"
        return "\n".join(f"{prefix} {printable(line)}" for line in lines)


def log_to_stderr(process: str) -> None:
    """Send the log of this process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EventFormatter(process))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
