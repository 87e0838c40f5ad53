"""Paths of apex's installation and of a run's socket directory."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from apex.errors import EndpointError


def install_root() -> Path:
    """The directory with `bin/` and `deploy/`: checkout, or the environment's share/apex-suite."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "deploy").is_dir():
        return checkout
    return Path(sys.prefix) / "share" / "apex-suite"


def socket_directory(run_directory: Path) -> Path:
    """Create the run's private (mode 0700) socket directory and return its path."""
    path = socket_directory_path(run_directory)
    for folder in (path.parent, path):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                raise FileExistsError("it is not a directory that you own")
            folder.chmod(0o700)
        except OSError as error:
            raise EndpointError(
                f"{folder}: cannot be used as the socket directory ({error}); remove or rename it"
            ) from None
    return path


def socket_directory_path(run_directory: Path) -> Path:
    """Path of the run's socket directory, which may not exist yet.

    It is under `$XDG_RUNTIME_DIR` or the temporary directory, because a run's own path can exceed
    the length limit of socket paths. Its name is a digest of the run's path.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    digest = hashlib.sha256(os.fsencode(run_directory.resolve())).hexdigest()[:12]
    return base / f"apex-{os.getuid()}" / digest
