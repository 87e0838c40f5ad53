"""Paths of the checkout and of the `apex` command."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

APEX = [sys.executable, "-c", "from apex.cli.main import main; main()"]
