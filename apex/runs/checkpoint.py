"""Checkpoints: written atomically, verified when read.

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
    """An actor's step count, saved so that a restarted learner does not count steps twice."""

    epoch: int
    incarnation: int
    """Number of this start of the actor, unique within its slot."""
    slot: int
    env_steps: int
    """Environment steps of this epoch that are counted so far."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Description of a checkpoint, sufficient to act with it and to resume from it."""

    learner_step: int
    param_version: int
    env_steps: int
    train_s: float
    config: dict[str, Any]
    """The run's configuration as plain values."""
    env: EnvSpec
    mean_return: float | None = None
    """Mean return of the evaluation; set only in a `best` checkpoint."""
    best_return: float | None = None
    """Largest mean return of the run's evaluations so far."""
    actors: dict[str, ActorRecord] = {}
    """Each member's record and part of `env_steps`, by `Hello.member`: an actor's id, or
    `evaluator:evaluator` and `inference:inference`."""
    sha256: dict[str, str] = {}


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    manifest: Manifest

    def parameters(self) -> bytes:
        """The published network's parameters, for `apex.networks.parameters.decode`."""
        return (self.path / PARAMETERS).read_bytes()

    def learner_state(self) -> dict[str, Any]:
        """The result of `Learner.state_dict`, and the RNG state.

        Raises:
            CheckpointError: the checkpoint has only parameters, or another user may have written
                it.
        """
        path = self.path / LEARNER
        if LEARNER not in self.manifest.sha256:
            raise CheckpointError(f"{self.path} has parameters only; it cannot be resumed from")
        problem = writer_problem(path)
        if problem is not None:
            raise CheckpointError(
                f"{self.path}: refusing to resume from it, since {problem}. Check where it comes "
                "from; if you trust it, copy it (cp -r) and restart"
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
        OSError: it cannot be written, for example because the disk is full; nothing remains.
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
    """Write the checkpoint of the best evaluation and remove the previous one.

    Raises:
        OSError: it cannot be written, for example because the disk is full; the previous one
            stays.
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
                f"{path}: not a valid checkpoint ({MANIFEST} must have the SHA-256 of "
                f"{PARAMETERS}, and of no other file than {LEARNER})"
            )
        for name, digest in manifest.sha256.items():
            if hashlib.sha256((path / name).read_bytes()).hexdigest() != digest:
                raise CheckpointError(f"{path}: {name} is corrupt (its SHA-256 does not match)")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not a checkpoint ({error.filename} is missing)") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path}: not a valid checkpoint ({error})") from None
    return Checkpoint(path, manifest)


def all_paths(folder: Path, prefix: str) -> list[Path]:
    """Paths of the checkpoints with a prefix, latest step first."""
    return sorted(folder.glob(f"{prefix}_*"), reverse=True)


def newest(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint; invalid ones are logged and skipped."""
    return next(_valid(folder, "step"), None)


def best(folder: Path) -> Checkpoint | None:
    """The checkpoint of the best evaluation. If a kill has left two, the better one."""
    return max(
        _valid(folder, "best"), key=lambda found: found.manifest.mean_return or 0.0, default=None
    )


def _valid(folder: Path, prefix: str) -> Iterator[Checkpoint]:
    for path in all_paths(folder, prefix):
        try:
            yield load(path)
        except CheckpointError as error:
            log.error("skipped a checkpoint: %s", error)


def _step(path: Path, prefix: str) -> int:
    return int(path.name.removeprefix(f"{prefix}_"))


def remove_from(folder: Path, prefix: str, learner_step: int) -> None:
    """Remove the checkpoints of step `learner_step` and later."""
    for path in all_paths(folder, prefix):
        if _step(path, prefix) >= learner_step:
            log.error("removed %s: its parameters diverged", path.name)
            remove(path)


def prune(folder: Path, prefix: str, keep: int, newest_step: int) -> None:
    """Remove all but the newest `keep` checkpoints, and the remains of interrupted writes.

    Checkpoints above `newest_step` are invalid, else training would have resumed from them. They
    are not counted and stay until training has reached their step.
    """
    counted = [path for path in all_paths(folder, prefix) if _step(path, prefix) <= newest_step]
    for path in counted[keep:]:
        remove(path)
    _remove_interrupted(folder, prefix)


def _remove_interrupted(folder: Path, prefix: str) -> None:
    for path in folder.glob(f".{prefix}_*.tmp"):
        if f".{os.getpid()}." not in path.name:
            remove(path)


def find(path: Path) -> Checkpoint:
    """The checkpoint at `path`, or the best (else the newest) one of the run at `path`.

    Raises:
        CheckpointError: there is no valid checkpoint.
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
