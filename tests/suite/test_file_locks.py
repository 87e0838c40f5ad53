"""File locks between processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from apex.host.files import FileLock, is_locked


def test_lock_excludes_other_processes_until_its_holder_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from apex.host.files import FileLock\n"
            f"assert FileLock(Path({str(path)!r})).acquire(); print('held', flush=True)\n"
            "sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        assert is_locked(path) and not FileLock(path).acquire()
    finally:
        holder.kill()
        holder.communicate()
    assert not is_locked(path)
    assert FileLock(path).acquire()
