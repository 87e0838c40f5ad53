"""Results of an evaluation: its metrics and the best checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import numpy as np

from apex.acting.episodes import Episode, metric_columns, metric_means
from apex.daemons.learner.parameter_versions import Publication
from apex.runs import checkpoint
from apex.runs.checkpoint import Manifest
from apex.runs.directory import RunDirectory

log = logging.getLogger("apex.evaluator")


def evaluation_values(
    publication: Publication, episodes: Sequence[Episode], seconds: float, cpu_s: float
) -> dict[str, float]:
    """Return the metrics of one evaluation, with the counters of the parameters that it played.

    Args:
        publication: the evaluated parameters.
        episodes: its complete episodes.
        seconds: duration of the evaluation.
        cpu_s: its CPU time in seconds.
    """
    returns = [episode.episode_return for episode in episodes]
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
        **metric_columns(metric_means(episode.metrics for episode in episodes)),
    }


def keep_best(run: RunDirectory, publication: Publication, mean_return: float) -> bool:
    """Replace the best checkpoint; returns False when it cannot be written."""
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
        log.error("cannot write the best checkpoint: %s", error)
        return False
    return True
