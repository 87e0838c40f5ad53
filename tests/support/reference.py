"""Reference of Ape-X DQN's data path, slow and straight from the papers, as an oracle.

One process, whole episodes, float64. Imports nothing of apex.

Horgan et al., 2018 (arXiv 1803.00933), the algorithm; Schaul et al., 2016, prioritized replay;
van Hasselt et al., 2016, double Q-learning; Wang et al., 2016, the dueling network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
Parameters = dict[str, Tensor]
"""float64, by their names in a state_dict of the real network."""


@dataclass(frozen=True)
class Settings:
    """The hyperparameters, in the papers' notation where they have one."""

    n: int
    gamma: float
    alpha: float
    beta: float
    stack: int
    """Frames in one input of the network."""
    capacity: int
    strides: tuple[int, ...]
    """Of the convolutions."""
    huber: bool
    """Huber's loss (delta = 1), else half the square."""
    learning_rate: float
    adam_epsilon: float
    max_gradient_norm: float
    target_update_period: int
    decay_steps: int = 0
    """Updates in which the learning rate falls linearly to `final_fraction` of itself; 0: never."""
    final_fraction: float = 1.0
    standardize: bool = False
    """Whether each stack of frames gets mean 0 and variance 1, instead of values in [0, 1]."""


@dataclass(frozen=True)
class Stream:
    """Actions and results of E environments in T steps, with NEXT_STEP autoreset.

    Action t is chosen at observation t and leads to observation t + 1. The step after an
    episode's end ignores its action and leads to the next episode's first observation.

    Args:
        observations: `[T + 1, E, H, W] uint8`.
        actions: `[T, E] int64`.
        rewards: `[T, E] float64`, not clipped.
        terminated, truncated: `[T, E] bool`.
        lives: `[T + 1, E] int64`.
    """

    observations: Array
    actions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    lives: Array

    def episodes(self, env: int) -> list[range]:
        """The steps of each episode; the last one may be unfinished."""
        found, begin = [], 0
        for t in range(len(self.actions)):
            if t >= begin and (self.terminated[t, env] or self.truncated[t, env]):
                found.append(range(begin, t + 1))
                begin = t + 2
        return [*found, range(begin, len(self.actions))]

    def life_lost(self, t: int, env: int) -> bool:
        """Whether step t lost a life."""
        return bool(self.lives[t + 1, env] < self.lives[t, env])


@dataclass(frozen=True)
class Transition:
    """One item: `first` and `bootstrap` are stacked observations, `[S, H, W] uint8`."""

    env: int
    start: int
    """Step of its action."""
    end: int
    """Step whose observation is the bootstrap observation."""
    first: Array
    action: int
    n_step_return: float
    discount: float
    bootstrap: Array


def transitions(stream: Stream, settings: Settings) -> list[Transition]:
    """Every n-step transition whose bootstrap observation has an action within the stream."""
    found = []
    for env in range(stream.actions.shape[1]):
        for episode in stream.episodes(env):
            for start in episode:
                item = _transition(stream, env, episode, start, settings)
                if item.end < len(stream.actions):
                    found.append(item)
    return found


def _transition(
    stream: Stream, env: int, episode: range, start: int, settings: Settings
) -> Transition:
    """The transition that begins at step t: ends at the n-th reward, episode end or lost life."""
    last = start
    while last < min(start + settings.n, episode.stop) - 1 and not stream.life_lost(last, env):
        last += 1
    n_step_return = 0.0
    for t in range(start, last + 1):
        clipped = max(-1.0, min(1.0, float(stream.rewards[t, env])))
        n_step_return += settings.gamma ** (t - start) * clipped
    dead = stream.terminated[last, env] or stream.life_lost(last, env)
    return Transition(
        env,
        start,
        last + 1,
        _stacked(stream, env, episode.start, start, settings.stack),
        int(stream.actions[start, env]),
        n_step_return,
        0.0 if dead else settings.gamma ** (last + 1 - start),
        _stacked(stream, env, episode.start, last + 1, settings.stack),
    )


def _stacked(stream: Stream, env: int, begin: int, t: int, depth: int) -> Array:
    """The last `depth` frames up to observation t, zeros before the episode's first at `begin`."""
    blank = np.zeros_like(stream.observations[0, env])
    window = range(t - depth + 1, t + 1)
    return np.stack([stream.observations[i, env] if i >= begin else blank for i in window])


def chunks(
    items: Sequence[Transition], steps: int, num_envs: int, length: int
) -> tuple[list[list[Transition]], list[list[Transition]]]:
    """Order of inserts: after each step, an environment with `length` items sends its oldest.

    Returns:
        The chunks sent in `steps` steps, and the rest, which a flush sends.
    """
    sent: list[list[Transition]] = []
    waiting: list[list[Transition]] = [[] for _ in range(num_envs)]
    for t in range(steps):
        for env in range(num_envs):
            waiting[env] += [item for item in items if item.env == env and item.end == t]
            if len(waiting[env]) >= length:
                sent.append(waiting[env][:length])
                del waiting[env][:length]
    rest = [each[i : i + length] for each in waiting for i in range(0, len(each), length)]
    return sent, rest


def q_values(parameters: Parameters, frames: Array, settings: Settings) -> Tensor:
    """Q(s, .): `[B, S, H, W] uint8` to `[B, A]` (Wang et al., 2016, equation 9)."""
    x = torch.from_numpy(frames).to(torch.float64) / 255.0
    if settings.standardize:
        x = torch.stack([_standardized(stack) for stack in x])
    for layer, stride in enumerate(settings.strides):
        name = f"torso.convolutions.{2 * layer}"
        x = _convolution(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], stride)
        x = x * (x > 0)
    x = x.flatten(1)
    if "shared.0.weight" in parameters:
        x = x @ parameters["shared.0.weight"].T + parameters["shared.0.bias"]
        x = x * (x > 0)
    state_values, advantages = _stream(parameters, "value", x), _stream(parameters, "advantage", x)
    rows = [v + a - sum(a) / len(a) for v, a in zip(state_values, advantages)]
    return torch.stack(rows)


def _standardized(stack: Tensor) -> Tensor:
    """One stack of frames; in units of [0, 255] the variance is kept away from 0 by 1e-5."""
    numbers = 255.0 * stack
    mean = numbers.sum() / numbers.numel()
    variance = ((numbers - mean) ** 2).sum() / numbers.numel()
    return (numbers - mean) / (variance + 1e-5) ** 0.5


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """`[B, C, H, W]` with kernels `[O, C, K, K]`, one output position after the other."""
    size = weight.shape[2]
    rows = range(0, x.shape[2] - size + 1, stride)
    columns = range(0, x.shape[3] - size + 1, stride)
    outputs = [
        [
            (x[:, None, :, i : i + size, j : j + size] * weight).sum(dim=(2, 3, 4)) + bias
            for j in columns
        ]
        for i in rows
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in outputs], dim=-2)


def _stream(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """One hidden layer with a ReLU, then the output layer."""
    hidden = x @ parameters[f"{name}.0.weight"].T + parameters[f"{name}.0.bias"]
    outputs: Tensor = (hidden * (hidden > 0)) @ parameters[f"{name}.2.weight"].T
    return outputs + parameters[f"{name}.2.bias"]


def initial_priority(item: Transition, acted: Sequence[Parameters], settings: Settings) -> float:
    """|G + discount * max_a Q(s_n, a) - Q(s, a)|, each Q with the parameters that acted there.

    Args:
        acted: the parameters that acted at each step.
    """
    q_first = q_values(acted[item.start], item.first[None], settings)[0]
    q_bootstrap = q_values(acted[item.end], item.bootstrap[None], settings)[0]
    target = item.n_step_return + item.discount * float(q_bootstrap.max())
    return abs(target - float(q_first[item.action]))


class Table:
    """p_i^alpha of the `capacity` newest items by id (Schaul et al., 2016, equation 1)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.masses: dict[int, float] = {}
        self.evicted = 0
        self._next_id = 0

    def insert(self, priority: float) -> None:
        """Add an item with the next id; evict the oldest if the table is full."""
        self.masses[self._next_id] = priority**self.settings.alpha
        self._next_id += 1
        if len(self.masses) > self.settings.capacity:
            del self.masses[min(self.masses)]
            self.evicted += 1

    def update(self, ids: Sequence[int], priorities: Sequence[float]) -> None:
        """Set the priorities of the items that are still there."""
        for item_id, priority in zip(ids, priorities):
            if item_id in self.masses:
                self.masses[item_id] = priority**self.settings.alpha

    def probability(self, item_id: int) -> float:
        """P(i) = p_i^alpha / sum_k p_k^alpha."""
        return self.masses[item_id] / sum(self.masses.values())

    def interval(self, item_id: int) -> tuple[float, float]:
        """The part of [0, 1) that draws the item, with the items in the order of their slots."""
        capacity = self.settings.capacity
        before = sum(m for k, m in self.masses.items() if k % capacity < item_id % capacity)
        total = sum(self.masses.values())
        return before / total, (before + self.masses[item_id]) / total


@dataclass(frozen=True)
class Update:
    """Results of one update: `[B]` arrays and scalars."""

    weights: list[float]
    targets: list[float]
    td_errors: list[float]
    losses: list[float]
    loss: float
    gradient_norm: float
    """Before clipping."""
    copied: bool
    """Whether the target network was copied."""


class Learner:
    """Double Q-learning with a target network, on weighted losses, by clipped Adam."""

    def __init__(self, parameters: Parameters, settings: Settings) -> None:
        self.online = {name: tensor.clone() for name, tensor in parameters.items()}
        self.target = {name: tensor.clone() for name, tensor in parameters.items()}
        self.updates = 0
        self.disagreements = 0
        """Number of bootstraps where the two networks select different actions."""
        self._settings = settings
        self._m = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self._v = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}

    def update(
        self, items: Sequence[Transition], probabilities: Sequence[float], table_size: int
    ) -> Update:
        """One update; `probabilities` are those of the items when they were drawn."""
        settings = self._settings
        raw = [(table_size * p) ** -settings.beta for p in probabilities]
        weights = [w / max(raw) for w in raw]
        targets = self._targets(items)
        online = {name: tensor.clone().requires_grad_() for name, tensor in self.online.items()}
        q_first = q_values(online, np.stack([item.first for item in items]), settings)
        deltas = [y - q[item.action] for y, q, item in zip(targets, q_first, items)]
        losses = [self._loss(delta) for delta in deltas]
        loss = torch.stack([w * each for w, each in zip(weights, losses)]).sum() / len(items)
        gradients = dict(zip(online, torch.autograd.grad(loss, list(online.values()))))
        norm = float(sum(g.square().sum() for g in gradients.values())) ** 0.5
        scale = min(1.0, settings.max_gradient_norm / norm)
        self._adam({name: scale * gradient for name, gradient in gradients.items()})
        copied = self.updates % settings.target_update_period == 0
        if copied:
            self.target = {name: tensor.clone() for name, tensor in self.online.items()}
        return Update(
            weights, targets, [d.item() for d in deltas], [each.item() for each in losses],
            loss.item(), norm, copied,
        )  # fmt: skip

    def _targets(self, items: Sequence[Transition]) -> list[float]:
        """y = G + discount * Q_target(s_n, argmax_a Q_online(s_n, a)) (van Hasselt, 2016)."""
        frames = np.stack([item.bootstrap for item in items])
        selector = q_values(self.online, frames, self._settings)
        evaluator = q_values(self.target, frames, self._settings)
        targets = []
        for b, item in enumerate(items):
            best = int(selector[b].argmax())
            targets.append(item.n_step_return + item.discount * float(evaluator[b, best]))
            self.disagreements += item.discount > 0 and best != int(evaluator[b].argmax())
        return targets

    def _loss(self, delta: Tensor) -> Tensor:
        if self._settings.huber and abs(delta.item()) > 1.0:
            return delta.abs() - 0.5
        return 0.5 * delta**2

    def _adam(self, gradients: Parameters) -> None:
        """Kingma and Ba, 2015, algorithm 1, with beta_1 = 0.9 and beta_2 = 0.999."""
        rate = self._settings.learning_rate
        if self._settings.decay_steps:
            done = min(self.updates / self._settings.decay_steps, 1.0)
            rate = (1.0 - done) * rate + done * self._settings.final_fraction * rate
        self.updates += 1
        for name, g in gradients.items():
            self._m[name] = 0.9 * self._m[name] + 0.1 * g
            self._v[name] = 0.999 * self._v[name] + 0.001 * g**2
            m = self._m[name] / (1.0 - 0.9**self.updates)
            v = self._v[name] / (1.0 - 0.999**self.updates)
            step = rate * m / (v.sqrt() + self._settings.adam_epsilon)
            self.online[name] = self.online[name] - step


class Oracle:
    """A run of the reference, fed with the environments' results and the drawn ids.

    Args:
        parameters: of the learner and of the actor at the start.
        chunk_length: see `chunks`.
    """

    def __init__(self, settings: Settings, parameters: Parameters, chunk_length: int) -> None:
        self.settings = settings
        self.learner = Learner(parameters, settings)
        self.table = Table(settings)
        self.items: list[Transition] = []
        """By id."""
        self.acted: list[Parameters] = []
        """At each step, the parameters that acted."""
        self.learner_steps: list[int] = []
        """At each step, how many updates had made them."""
        self.drawn: list[int] = []
        self.updates: list[Update] = []
        self._chunk_length = chunk_length
        self._chunks = 0

    def act(self, steps: int) -> None:
        """Act with the learner's current parameters from the next step on."""
        self.acted += [dict(self.learner.online)] * steps
        self.learner_steps += [self.learner.updates] * steps

    def insert(self, stream: Stream, *, flush: bool) -> list[tuple[list[Transition], list[float]]]:
        """Insert the new items of a stream.

        Returns:
            The items of each new chunk, and their initial priorities.
        """
        items = transitions(stream, self.settings)
        num_steps, num_envs = stream.actions.shape
        sent, rest = chunks(items, num_steps, num_envs, self._chunk_length)
        new = (sent + rest if flush else sent)[self._chunks :]
        self._chunks += len(new)
        return [(chunk, [self._insert(item) for item in chunk]) for chunk in new]

    def _insert(self, item: Transition) -> float:
        """Insert one item; returns its initial priority."""
        priority = initial_priority(item, self.acted, self.settings)
        self.items.append(item)
        self.table.insert(priority)
        return priority

    def learn(self, ids: Sequence[int]) -> tuple[Update, list[float]]:
        """Learn from the drawn items; also returns P(i) of each."""
        probabilities = [self.table.probability(i) for i in ids]
        items = [self.items[i] for i in ids]
        update = self.learner.update(items, probabilities, len(self.table.masses))
        self.drawn += ids
        self.updates.append(update)
        return update, probabilities
