"""What is kept of an evaluation: its figures, and the best checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import numpy as np

from apex.daemons.learner.parameter_versions import Publication
from apex.runs import checkpoint
from apex.runs.checkpoint import Manifest
from apex.runs.directory import RunDirectory

log = logging.getLogger("apex.evaluator")


def evaluation_values(
    publication: Publication, returns: Sequence[float], seconds: float, cpu_s: float
) -> dict[str, float]:
    """What is kept of one evaluation; its x-values are those of the parameters that it played."""
    return {
        "mean_return": float(np.mean(returns)),
        "std_return": float(np.std(returns)),
        "min_return": min(returns),
        "max_return": max(returns),
        "episodes": len(returns),
        "env_steps": publication.env_steps,
        "learner_step": publication.learner_step,
        "param_version": publication.param_version,
        "train_s": round(publication.train_s, 1),
        "seconds": round(seconds, 1),
        "cpu_s": round(cpu_s, 1),
    }


def keep_best(run: RunDirectory, publication: Publication, mean_return: float) -> bool:
    """Write the best checkpoint, in place of the one before; False when the disk refuses it."""
    manifest = Manifest(
        learner_step=publication.learner_step,
        param_version=publication.param_version,
        env_steps=publication.env_steps,
        train_s=publication.train_s,
        config=msgspec.to_builtins(run.config()),
        env=run.facts().env,
        mean_return=mean_return,
        best_return=mean_return,
    )
    try:
        checkpoint.save_best(run.checkpoints, manifest, publication.data)
    except OSError as error:
        log.error("the best checkpoint was not kept: %s", error)
        return False
    return True
