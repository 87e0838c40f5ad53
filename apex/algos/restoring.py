"""Load a checkpoint into a learner or a policy; an error says how the two differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from apex.algos.base import Learner
from apex.algos.policy import Policy
from apex.errors import ConfigError
from apex.networks import parameters
from apex.runs.checkpoint import Checkpoint

NOT_FITTING = (RuntimeError, ValueError, KeyError)
"""What torch and learners raise for a state that is not theirs."""


def restore_learner(learner: Learner, source: Checkpoint) -> dict[str, Any]:
    """Load networks, optimizers and buffers of a checkpoint, to resume from it.

    Returns:
        The checkpoint's state, which also has the RNG's.

    Raises:
        CheckpointError: the checkpoint has parameters only, or others may have written it.
        ConfigError: the checkpoint does not fit the learner.
    """
    state = source.learner_state()
    try:
        learner.load_state_dict(state["learner"])
    except NOT_FITTING as error:
        saved = state["learner"].get("modules", {})
        differences = [
            difference(module.state_dict(), saved[name])
            for name, module in learner.modules().items()
            if name in saved
        ]
        reason = next(filter(None, differences), None) or _one_line(error)
        raise ConfigError(
            f"{source.path} does not fit the [algorithm] section: {reason}; revert the change of "
            "its network or optimizer, or start a new run"
        ) from None
    return state


def load_parameters(receiver: Learner | Policy, source: Checkpoint, what: str) -> None:
    """Load the published parameters of a checkpoint.

    Args:
        receiver: what gets them.
        source: the checkpoint.
        what: begins the error message, such as a key of the configuration.

    Raises:
        CheckpointError: the parameters are corrupt.
        ConfigError: they do not fit the network.
    """
    found = parameters.decode(source.parameters())
    try:
        if isinstance(receiver, Learner):
            receiver.load_parameters(found)
        else:
            receiver.load(found)
    except NOT_FITTING as error:
        reason = difference(receiver.network.state_dict(), found) or _one_line(error)
        raise ConfigError(
            f"{what}: {source.path} does not fit the [algorithm] section: {reason}"
        ) from None


def difference(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> str:
    """The first parameter that differs in shape, and how many do; empty if none does."""
    shapes = {n: tuple(t.shape) for n, t in own.items()}
    saved_shapes = {n: tuple(t.shape) for n, t in saved.items()}
    names = [n for n in (shapes | saved_shapes) if shapes.get(n) != saved_shapes.get(n)]
    if not names:
        return ""
    first = names[0]
    text = (
        f"its parameter '{first}' is {saved_shapes.get(first, 'missing')}, but that of the "
        f"configured network is {shapes.get(first, 'missing')}"
    )
    return text if len(names) == 1 else f"{text} (and {len(names) - 1} more differ)"


def _one_line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return " ".join(str(error).split())
