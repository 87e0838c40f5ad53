"""Checkpoints: written whole or not at all, verified when read, the newest good one found.

A checkpoint is a directory `step_NNNNNNNNNN` (or `best_NNNNNNNNNN`) with

- `parameters.safetensors`: the published network;
- `learner.pt`: optimizer, target network, counters, RNG; loaded with `weights_only=True`;
- `manifest.json`: a `Manifest`, with the SHA-256 of the other files.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from apex.envs.spec import EnvSpec
from apex.errors import CheckpointError
from apex.host.files import fsync_path, remove, replace_directory, write_synced, writer_problem

log = logging.getLogger("apex.runs.checkpoint")

PARAMETERS, LEARNER, MANIFEST = "parameters.safetensors", "learner.pt", "manifest.json"


class ActorRecord(msgspec.Struct, frozen=True):
    """What of an actor must outlive the learner, lest its steps be counted twice."""

    epoch: int
    incarnation: int
    """No other start in that slot has it."""
    slot: int
    env_steps: int
    """Counted so far, of this epoch."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is of, enough to act with it and to go on from it."""

    learner_step: int
    param_version: int
    env_steps: int
    train_s: float
    config: dict[str, Any]
    """The run's configuration as plain values."""
    env: EnvSpec
    mean_return: float | None = None
    """Of the evaluation that made it the best one."""
    best_return: float | None = None
    """The best evaluation of the run so far."""
    actors: dict[str, ActorRecord] = {}
    """What each actor has in `env_steps`."""
    sha256: dict[str, str] = {}


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    manifest: Manifest

    def parameters(self) -> bytes:
        """The published network, as `apex.networks.parameters.decode` reads it."""
        return (self.path / PARAMETERS).read_bytes()

    def learner_state(self) -> dict[str, Any]:
        """What `Learner.state_dict` gave, and the RNG.

        Raises:
            CheckpointError: the checkpoint has parameters only, or others may have written it.
        """
        path = self.path / LEARNER
        if LEARNER not in self.manifest.sha256:
            raise CheckpointError(f"{self.path} holds parameters only; it cannot be resumed from")
        problem = writer_problem(path)
        if problem is not None:
            raise CheckpointError(
                f"{self.path} is not resumed from, since {problem}: look at where it comes from, "
                "then copy it (cp -r) and restart"
            )
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state


def save(
    folder: Path,
    prefix: str,
    manifest: Manifest,
    parameters: bytes | memoryview,
    learner_state: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint to a temporary directory, sync it, and rename it into place.

    Raises:
        OSError: the disk is full or the like; nothing is left behind then.
    """
    final = folder / f"{prefix}_{manifest.learner_step:010d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    contents: dict[str, bytes | memoryview] = {PARAMETERS: parameters}
    if learner_state is not None:
        buffer = io.BytesIO()
        torch.save(dict(learner_state), buffer)
        contents[LEARNER] = buffer.getvalue()
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    contents[MANIFEST] = msgspec.json.format(
        msgspec.json.encode(msgspec.structs.replace(manifest, sha256=digests))
    )
    remove(temporary)
    try:
        temporary.mkdir()
        for name, data in contents.items():
            write_synced(temporary / name, data)
        fsync_path(temporary)
        replace_directory(temporary, final)
        fsync_path(folder)
    finally:
        remove(temporary)
    return final


def save_best(folder: Path, manifest: Manifest, parameters: bytes | memoryview) -> Path:
    """Write the checkpoint of the best evaluation; it replaces the one before.

    Raises:
        OSError: the disk is full or the like; the one before stays then.
    """
    kept = save(folder, "best", manifest, parameters)
    for path in all_paths(folder, "best"):
        if path != kept:
            remove(path)
    _remove_interrupted(folder, "best")
    return kept


def load(path: Path) -> Checkpoint:
    """Open a checkpoint and verify it.

    Raises:
        CheckpointError: it is missing, incomplete or corrupt.
    """
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
        if not {PARAMETERS} <= manifest.sha256.keys() <= {PARAMETERS, LEARNER}:
            raise CheckpointError(
                f"{path}: no checkpoint ({MANIFEST} has no SHA-256 of {PARAMETERS}, or of more "
                f"than that and {LEARNER})"
            )
        for name, digest in manifest.sha256.items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
                raise CheckpointError(f"{path}: {name} is corrupt (its SHA-256 does not match)")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no checkpoint ({error.filename} is missing)") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: no checkpoint ({error})") from None
    return Checkpoint(path, manifest)


def all_paths(folder: Path, prefix: str) -> list[Path]:
    """Paths of checkpoints with a prefix, newest step first."""
    return sorted(folder.glob(f"{prefix}_*"), reverse=True)


def newest(folder: Path) -> Checkpoint | None:
    """The newest good checkpoint; bad ones are named in the log and passed over."""
    return next(_good(folder, "step"), None)


def best(folder: Path) -> Checkpoint | None:
    """The checkpoint of the best evaluation: of two, one of which a kill left, the better."""
    return max(
        _good(folder, "best"), key=lambda found: found.manifest.mean_return or 0.0, default=None
    )


def _good(folder: Path, prefix: str) -> Iterator[Checkpoint]:
    for path in all_paths(folder, prefix):
        try:
            yield load(path)
        except CheckpointError as error:
            log.error("passed over: %s", error)


def _step(path: Path, prefix: str) -> int:
    return int(path.name.removeprefix(f"{prefix}_"))


def remove_from(folder: Path, prefix: str, learner_step: int) -> None:
    """Remove the checkpoints of `learner_step` and later ones."""
    for path in all_paths(folder, prefix):
        if _step(path, prefix) >= learner_step:
            log.error("removed %s: its parameters diverged", path.name)
            remove(path)


def prune(folder: Path, prefix: str, keep: int, newest_step: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted writes left.

    Those of steps above `newest_step` are no good, or training would have gone on from them; they
    stay until it has passed them.
    """
    passed = [path for path in all_paths(folder, prefix) if _step(path, prefix) <= newest_step]
    for path in passed[keep:]:
        remove(path)
    _remove_interrupted(folder, prefix)


def _remove_interrupted(folder: Path, prefix: str) -> None:
    for path in folder.glob(f".{prefix}_*.tmp"):
        if f".{os.getpid()}." not in path.name:
            remove(path)


def find(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the best (else the newest) one of the run at `path`.

    Raises:
        CheckpointError: there is none.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    folder = path / "checkpoints"
    if not folder.is_dir():
        return load(path)
    found = best(folder) or newest(folder)
    if found is None:
        raise CheckpointError(f"{path}: the run has no checkpoint yet")
    return found
