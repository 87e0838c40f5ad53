"""Where apex is installed, and where a run's sockets are."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from apex.errors import EndpointError


def install_root() -> Path:
    """Holds `bin/` and `deploy/`: the checkout, or `share/apex-suite` of the environment."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "deploy").is_dir():
        return checkout
    return Path(sys.prefix) / "share" / "apex-suite"


def socket_directory(run_directory: Path) -> Path:
    """Make the run's private (0700) directory of sockets and return it."""
    path = socket_directory_path(run_directory)
    for folder in (path.parent, path):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                raise FileExistsError("it is not a directory of your own")
            folder.chmod(0o700)
        except OSError as error:
            raise EndpointError(
                f"{folder}: cannot be the directory of sockets ({error}); remove what is there"
            ) from None
    return path


def socket_directory_path(run_directory: Path) -> Path:
    """Where the run's directory of sockets lies, or would lie.

    It lies under `$XDG_RUNTIME_DIR` or the temporary directory, since a run's own path may be
    longer than a socket's may be; its name is a digest of the run's path.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    digest = hashlib.sha256(os.fsencode(run_directory.resolve())).hexdigest()[:12]
    return base / f"apex-{os.getuid()}" / digest
