"""A run's directory: its layout, how it is created, and how to find the newest run."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from apex.config import loading
from apex.config.sections import Config
from apex.data.schema import Schema
from apex.envs.spec import EnvSpec
from apex.errors import RunError
from apex.host.files import is_locked, replace_file, write_problem
from apex.plugins import FACTORY
from apex.wire import endpoints as addresses
from apex.wire.endpoints import Endpoints

OTHER_ROOT = "name another directory with --run DIR, or set APEX_RUNS"


class RunFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fixed properties of a run: its id, its environment and its table's schema."""

    run_id: str
    env: EnvSpec
    schema: Schema


class RunDirectory:
    """Paths in one run's directory, and the files that every daemon reads from it.

    Args:
        path: the directory.
        config: the configuration file; None: `config.toml` in the directory.
        endpoints: the endpoints file; None: `endpoints.toml` in the directory.
    """

    def __init__(
        self, path: Path, config: Path | None = None, endpoints: Path | None = None
    ) -> None:
        self.path = path.resolve()
        self.config_file = config or self.path / "config.toml"
        self.endpoints_file = endpoints or self.path / "endpoints.toml"
        self.schema_file = self.path / "schema.json"
        self.origin_file = self.path / "run.json"
        self.engine_file = self.path / "engine.json"
        self.outcome_file = self.path / "outcome.json"
        self.logs = self.path / "logs"
        self.metrics = self.path / "metrics"
        self.checkpoints = self.path / "checkpoints"
        self.daemons = self.path / "daemons"
        self.replay = self.path / "replay"

    def config(self) -> Config:
        """The resolved configuration. Raises `ConfigError`."""
        return loading.load(self.config_file)

    def endpoints(self) -> Endpoints:
        """The resolved addresses. Raises `EndpointError`."""
        return addresses.load(self.endpoints_file)

    def facts(self) -> RunFacts:
        """Run id, environment and schema. Raises `RunError`."""
        try:
            return msgspec.json.decode(self.schema_file.read_bytes(), type=RunFacts)
        except FileNotFoundError:
            raise RunError(
                f"{self.schema_file}: no such file; create the run's directory with `apex run` "
                "(or with `apex run --engine none`, which starts no daemons)"
            ) from None
        except msgspec.MsgspecError as error:
            raise RunError(f"{self.schema_file} is not valid: {error}; start a new run") from None

    def check_kept(self, config: Config) -> RunFacts:
        """The facts of a run, after checking that its configuration is enough to start it.

        Args:
            config: the run's configuration.

        Raises:
            RunError: the environment or the algorithm came from a script.
        """
        facts = self.facts()
        for part in (facts.env.env_id, str(config.algorithm["name"])):
            if part.startswith(FACTORY):
                raise RunError(
                    f"{self.path} uses {part.removeprefix(FACTORY)} from a script, which the run "
                    "does not store; only the script can start this run"
                )
        return facts

    @property
    def exists(self) -> bool:
        """Whether this is a run's directory."""
        return self.schema_file.is_file() and self.config_file.is_file()

    def lock_file(self, daemon: str) -> Path:
        """The file that a running daemon locks; its text is the daemon's process id."""
        return self.daemons / f"{daemon}.lock"

    def crash_file(self, daemon: str) -> Path:
        """The record of a daemon's last start (`apex/daemons/restart_backoff.py`)."""
        return self.daemons / f"{daemon}.json"

    def pid(self, daemon: str) -> int | None:
        """Process id of a daemon; None if it is not running."""
        path = self.lock_file(daemon)
        if not is_locked(path):
            return None
        text = path.read_text()
        return int(text) if text.isdigit() else None

    def living(self) -> dict[str, int]:
        """Process ids of all running daemons by name, including attached actors."""
        found = {}
        for path in sorted(self.daemons.glob("*.lock")):
            pid = self.pid(path.stem)
            if pid is not None:
                found[path.stem] = pid
        return found

    def outcome(self) -> str | None:
        """Why the run ended by itself; None if it did not."""
        try:
            return str(json.loads(self.outcome_file.read_bytes())["reason"])
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write_outcome(self, reason: str) -> None:
        """Record why the run ended by itself. Raises `OSError`."""
        replace_file(self.outcome_file, json.dumps({"reason": reason}).encode())

    def check_unused(self) -> None:
        """Raise `RunError` unless the directory is writable and empty, or can be made."""
        problem = write_problem(self.path)
        if problem is not None:
            raise RunError(f"{problem}; choose another --run DIR")
        if self.exists:
            raise RunError(
                f"{self.path} holds a run; continue it with --resume or choose another --run DIR"
            )
        if self.path.exists() and any(self.path.iterdir()):
            raise RunError(f"{self.path} is not empty; choose another --run DIR")

    def create(
        self,
        config: Config,
        endpoints: Endpoints,
        env: EnvSpec,
        schema: Schema,
        more: Mapping[str, bytes],
    ) -> RunFacts:
        """Create the directory of a new run.

        Args:
            config: the run's configuration.
            endpoints: the run's endpoints, not resolved yet.
            env: specification of its environment.
            schema: schema of its items.
            more: contents of additional files by name.

        Raises:
            EndpointError: the endpoints cannot be resolved.
            RunError: the directory is already in use, or cannot be written.
        """
        self.check_unused()
        resolved = addresses.resolve(endpoints, self.path)
        try:
            return self._create(config, resolved, RunFacts(secrets.token_hex(8), env, schema), more)
        except FileExistsError:  # another command has just made it
            raise RunError(f"{self.path} is in use; choose another --run DIR") from None
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot make a run here: {error.strerror}; choose another --run DIR"
            ) from None

    def _create(
        self, config: Config, endpoints: Endpoints, facts: RunFacts, more: Mapping[str, bytes]
    ) -> RunFacts:
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        for folder in (self.logs, self.metrics, self.checkpoints, self.daemons):
            folder.mkdir(mode=0o700)
        files = {
            self.endpoints_file: addresses.dump(endpoints).encode(),
            self.config_file: loading.dump(config).encode(),
            **{self.path / name: content for name, content in more.items()},
            self.schema_file: msgspec.json.format(msgspec.json.encode(facts)),
        }
        for file, content in files.items():
            replace_file(file, content)
        return facts

    def write_config(self, config: Config) -> None:
        """Replace the resolved configuration."""
        replace_file(self.config_file, loading.dump(config).encode())


def runs_root() -> Path:
    """The directory of all runs: `$APEX_RUNS`, or `runs/` in the current directory."""
    return Path(os.environ.get("APEX_RUNS", "runs"))


def check_runs_root() -> None:
    """Raise `RunError` unless a run's directory can be made under `runs_root()`."""
    problem = write_problem(runs_root())
    if problem is not None:
        raise RunError(f"{problem}, but new runs are made in {runs_root()}/; {OTHER_ROOT}")


def claim_run_path(name: str) -> Path:
    """Make an empty directory under `runs_root()`, with the name and the current time.

    Commands that start at the same time get different ones.

    Raises:
        RunError: it cannot be made.
    """
    check_runs_root()
    base = runs_root() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, suffix = base, 1
    while not _make_new(path):
        suffix += 1
        path = base.with_name(f"{base.name}-{suffix}")
    return path


def _make_new(path: Path) -> bool:
    """Make a directory; returns False if the path exists. Raises `RunError`."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise RunError(f"{path} cannot be made: {error.strerror}; {OTHER_ROOT}") from None
    return True


def all_runs() -> list[RunDirectory]:
    """The runs under `runs_root()`, newest first."""
    return sorted(_find_runs(), key=lambda run: run.schema_file.stat().st_mtime, reverse=True)


def _find_runs() -> Iterator[RunDirectory]:
    root = runs_root()
    if root.is_dir():
        for path in root.iterdir():
            run = RunDirectory(path)
            if run.exists:
                yield run


def find_run(path: Path | None) -> RunDirectory:
    """The run at `path`; None: the newest run.

    Raises:
        RunError: there is no such run.
    """
    if path is not None:
        run = RunDirectory(path)
        if not run.exists:
            raise RunError(
                f"{path} is not a run's directory: it has no config.toml or no schema.json"
            )
        return run
    runs = all_runs()
    if not runs:
        raise RunError(f"no run in {runs_root()}/; start one with `apex run --preset pong-fast`")
    return runs[0]
