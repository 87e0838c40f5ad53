"""Custom algorithms: quantiles, noise, several optimizers, several epochs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from apex.acting.exploration import Progress
from apex.algos.batches import map_tensors
from apex.api import ApexDPG as DPG
from apex.api import (
    ApexDQN,
    Column,
    DeterministicNetwork,
    EpsilonGreedy,
    Impala,
    Inputs,
    Learner,
    Loss,
    Optimization,
    QAlgorithm,
    Sequences,
    TargetNetwork,
    Transitions,
    Update,
    mlp,
    nn,
    torso,
)
from apex.envs.spec import ActionBounds, EnvSpec
from apex.errors import ConfigError
from tests.support.batches import batch_of, random_sequences, random_transitions

CPU = torch.device("cpu")
SPEC = EnvSpec("Test-v0", (3,), "float32", 0, 4)
BOUNDS = ActionBounds("float32", (2,), (-2.0, 0.0), (2.0, 10.0))
CONTINUOUS = EnvSpec("Test-v0", (3,), "float32", 0, 0, BOUNDS)
START = Progress(0, 0)


class NoisyLinear(nn.Linear):
    """y = (w + sigma * noise) x + b, the noise drawn by `resample_noise`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.sigma = nn.Parameter(torch.full((outputs, inputs), 0.5))
        self.register_buffer("noise", torch.zeros(outputs, inputs))

    def resample_noise(self, generator: torch.Generator | None) -> None:
        if generator is None:
            self.noise.zero_()
        else:
            self.noise.normal_(generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight + self.sigma * self.noise, self.bias)


class NoisyQuantiles(QAlgorithm):
    """QR-DQN with a noisy last layer: a sum of losses, and custom priorities."""

    class Config(QAlgorithm.Config, frozen=True):
        quantiles: int = 5
        target_update_period: int = 2

    def network(self) -> nn.Module:
        below = torso(self.spec, self.config.conv)
        outputs = self.spec.num_actions * self.config.quantiles
        return nn.Sequential(
            below,
            NoisyLinear(below.out_features, outputs),
            nn.Unflatten(1, (self.spec.num_actions, self.config.quantiles)),
        )

    def q_values(self, network: nn.Module, observation: Any) -> Tensor:
        return network(observation).mean(dim=2)

    def loss(self, batch: Transitions, online: nn.Module, target: nn.Module | None) -> Loss:
        assert target is not None
        rows = torch.arange(len(batch.action))
        chosen = online(batch.observation)[rows, batch.action.long()]
        with torch.no_grad():
            best = self.q_values(online, batch.next_observation).argmax(dim=1)
            after = target(batch.next_observation)[rows, best]
            goal = batch.n_step_return.unsqueeze(1) + batch.discount.unsqueeze(1) * after
        error = goal.unsqueeze(1) - chosen.unsqueeze(2)
        level = (torch.arange(self.config.quantiles) + 0.5) / self.config.quantiles
        weight = (level.view(1, -1, 1) - (error.detach() < 0).float()).abs()
        loss = (weight * nn.functional.huber_loss(error, 0 * error, reduction="none")).mean((1, 2))
        return Loss(loss, error.detach().abs().mean((1, 2)), {"spread": chosen.std(1).mean()})


def learn(learner: Learner, batch: Any, updates: int = 1) -> Update:
    for step in range(updates):
        update = learner.learn(batch, Progress(step, 10 * step))
    return update


def inputs_of(spec: EnvSpec, envs: int) -> Inputs:
    rng = np.random.default_rng(0)
    return Inputs(
        rng.normal(size=(envs, *spec.policy_shape)).astype(np.float32),
        np.zeros((envs, 0), np.float32), spec.no_actions(envs), np.zeros(envs, np.float32),
    )  # fmt: skip


def test_quantile_algorithm_with_noise_learns_with_a_custom_loss() -> None:
    torch.manual_seed(0)
    algorithm = NoisyQuantiles(NoisyQuantiles.Config(optimizer="adam", learning_rate=0.01), SPEC)
    learner = algorithm.learner(CPU)
    batch = batch_of(random_transitions(algorithm, 32))
    losses = [float(learn(learner, batch).metrics["loss"]) for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.9 * np.mean(losses[:5])
    update = learn(learner, batch)
    assert update.priorities.shape == (32,) and "spread" in update.metrics
    noisy = learner.network[1]
    before = noisy.noise.clone()
    learn(learner, batch)
    assert not torch.equal(noisy.noise, before), "each update draws noise"


class Malformed(NoisyQuantiles):
    """Returns a loss of another form than asked for."""

    form: Any

    def loss(self, batch: Transitions, online: nn.Module, target: nn.Module | None) -> Any:
        return self.form(super().loss(batch, online, target))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            lambda loss: loss.per_item,
            r"Malformed\.loss returned a Tensor; expected apex\.api\.Loss",
        ),
        (
            lambda loss: loss._replace(per_item=loss.per_item[:, None]),
            r"Malformed\.loss: per_item: expected a tensor of shape \(8,\), got shape \(8, 1\)",
        ),
        (
            lambda loss: loss._replace(per_item=loss.per_item.mean()),
            r"per_item: expected a tensor of shape \(8,\), got shape \(\)",
        ),
        (
            lambda loss: loss._replace(priority=loss.priority[:4]),
            r"priority: expected a tensor of shape \(8,\), got shape \(4,\)",
        ),
        (
            lambda loss: loss._replace(metrics={"mine": 3.5}),
            r"metric 'mine': expected a 0-dimensional tensor, got 3\.5",
        ),
    ],
)
def test_loss_of_a_wrong_form_is_refused_by_name(form: Any, message: str) -> None:
    algorithm = Malformed(Malformed.Config(), SPEC)
    algorithm.form = form
    with pytest.raises(ConfigError, match=message):
        learn(algorithm.learner(CPU), batch_of(random_transitions(algorithm, 8)))


class Wide(ApexDQN):
    """Forgets to squeeze its errors."""

    def td_error(self, batch: Transitions, online: nn.Module, target: nn.Module) -> Any:
        return super().td_error(batch, online, target)[0][:, None]


def test_td_error_of_a_wrong_shape_is_refused_by_name() -> None:
    algorithm = Wide(Wide.Config(), SPEC)
    message = r"Wide\.td_error: expected a tensor of shape \(8,\), got shape \(8, 1\)"
    with pytest.raises(ConfigError, match=message):
        learn(algorithm.learner(CPU), batch_of(random_transitions(algorithm, 8)))


def test_noisy_policy_adds_noise_only_while_it_explores() -> None:
    torch.manual_seed(0)
    policy = NoisyQuantiles(NoisyQuantiles.Config(), SPEC).policy()
    nothing = EpsilonGreedy(np.zeros(6), 4, [(env,) for env in range(6)])
    inputs = inputs_of(SPEC, 6)
    explored = [policy.act(inputs, nothing).extras["max_q"] for _ in range(2)]
    greedy = [policy.act(inputs, None).extras["max_q"] for _ in range(2)]
    assert (explored[0] != explored[1]).all() and (greedy[0] == greedy[1]).all()


class SoftActorCritic(DPG):
    """Twin critics, a learned temperature and Polyak averages: three optimizers."""

    def learner(self, device: torch.device) -> Learner:
        return SoftLearner(self, device)


class SoftLearner(Learner):
    def __init__(self, algorithm: SoftActorCritic, device: torch.device) -> None:
        self.device = device
        self.network = algorithm.network()
        self.second = algorithm.network()
        self.followers = [TargetNetwork(one, algorithm.network(), rate=0.1)
                          for one in (self.network, self.second)]  # fmt: skip
        self.log_temperature = torch.zeros((), requires_grad=True)
        config = algorithm.config
        self.steps = {
            "critics": Optimization(
                [*self.network.critic.parameters(), *self.second.critic.parameters()], config
            ),
            "actor": Optimization(self.network.actor, config),
            "temperature": Optimization([nn.Parameter(self.log_temperature)], config),
        }
        (self.log_temperature,) = self.steps["temperature"].parameters

    def modules(self) -> dict[str, nn.Module]:
        first, second = (follower.network for follower in self.followers)
        return {"online": self.network, "second": self.second, "slow": first, "slow2": second}

    def optimizations(self) -> dict[str, Optimization]:
        return self.steps

    def buffers(self) -> dict[str, Tensor]:
        return {"log_temperature": self.log_temperature.data}

    def targets(self) -> list[TargetNetwork]:
        return self.followers

    def update(self, batch: Transitions) -> Update:
        network: DeterministicNetwork = self.network
        taken = network.from_environment(batch.action)
        with torch.no_grad():
            best = network.actor(batch.next_observation)
            after = [f.network.critic(batch.next_observation, best) for f in self.followers]
            goal = batch.n_step_return + batch.discount * torch.minimum(*after)
        errors = [goal - one.critic(batch.observation, taken) for one in (network, self.second)]
        metrics = self.steps["critics"].step(sum(error.square().mean() for error in errors))
        actions = network.actor(batch.observation)
        self.steps["actor"].step(-network.critic(batch.observation, actions).mean())
        self.steps["temperature"].step((self.log_temperature.exp() - 0.5).square())
        return Update(errors[0].abs(), {**metrics, "temperature": self.log_temperature.exp()})


def test_several_networks_and_optimizers_learn_and_resume_bit_equal() -> None:
    torch.manual_seed(0)
    config = SoftActorCritic.Config(actor_hidden=(8,), critic_hidden=(8,), learning_rate=0.01)
    algorithm = SoftActorCritic(config, CONTINUOUS)
    first, second = algorithm.learner(CPU), algorithm.learner(CPU)
    batch = batch_of(random_transitions(algorithm, 16))
    learn(first, batch, 5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.updates == 5
    one, other = learn(first, batch), learn(second, batch)
    assert torch.equal(one.priorities, other.priorities)
    assert one.metrics["temperature"] == other.metrics["temperature"] < 1
    for left, right in zip(first.modules().values(), second.modules().values()):
        assert all(map(torch.equal, left.state_dict().values(), right.state_dict().values()))


def test_averaging_target_moves_by_its_rate_at_each_update() -> None:
    online, target = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    follower = TargetNetwork(online, target, rate=0.25)
    with torch.no_grad():
        online.weight.fill_(8.0)
        target.weight.fill_(0.0)
    moved = []
    for updates in (1, 2):
        follower.follow(updates)
        moved.append(float(target.weight.detach()))
    assert moved == [2.0, 3.5]  # 0 + 8/4, 2 + 6/4


class CriticTargetLearner(Learner):
    """Publishes an actor and a critic, as TD3 does; only the critic has a target network."""

    def __init__(self, algorithm: DPG) -> None:
        self.device, self.network = CPU, algorithm.network()
        self.target = TargetNetwork(self.network.critic, algorithm.network().critic, period=100)

    def targets(self) -> list[TargetNetwork]:
        return [self.target]

    def update(self, batch: Transitions) -> Update:
        raise NotImplementedError


def test_published_parameters_are_loaded_where_a_target_follows_a_part_of_the_network() -> None:
    algorithm = DPG(DPG.Config(actor_hidden=(8,), critic_hidden=(8,)), CONTINUOUS)
    published = algorithm.network().state_dict()
    learner = CriticTargetLearner(algorithm)
    learner.load_parameters(published)
    for name, tensor in learner.network.state_dict().items():
        assert torch.equal(tensor, published[name])
    for name, tensor in learner.target.network.state_dict().items():
        assert torch.equal(tensor, published[f"critic.{name}"])


class Epochs(Impala):
    """Four steps of the optimizer on each batch, with a clipped ratio: one update of PPO."""

    def learner(self, device: torch.device) -> Learner:
        return EpochsLearner(self, device)


class EpochsLearner(Learner):
    def __init__(self, algorithm: Epochs, device: torch.device) -> None:
        self.device, self.algorithm = device, algorithm
        self.network = algorithm.network()
        self.step = Optimization(self.network, algorithm.config)

    def optimizations(self) -> dict[str, Optimization]:
        return {"online": self.step}

    def update(self, batch: Sequences) -> Update:
        for _ in range(4):
            loss = self.algorithm.loss(batch, self.network, None)
            metrics = self.step.step(loss.per_item.mean())
        return Update(loss.priority, metrics)


def test_update_of_several_epochs_is_one_learner_step() -> None:
    torch.manual_seed(0)
    config = Epochs.Config(unroll_length=4, learning_rate=0.01, learning_rate_decay_steps=2)
    algorithm = Epochs(config, SPEC)
    learner = algorithm.learner(CPU)
    batch = batch_of(random_sequences(algorithm, 3))
    rates = [float(learn(learner, batch).metrics["learning_rate"]) for _ in range(3)]
    assert learner.updates == 3
    assert rates == pytest.approx([0.01, 0.005, 0.0])


class Cooling(ApexDQN):
    """Soft Q-learning whose temperature falls from 1 to 0.1 over 100 learner steps."""

    def td_error(self, batch: Transitions, online: nn.Module, target: nn.Module) -> Any:
        temperature = (1.0 - self.progress.learner_step / 100).clamp(min=0.1)
        taken = batch.action.long().unsqueeze(1)
        q = self.q_values(online, batch.observation).gather(1, taken).squeeze(1)
        with torch.no_grad():
            next_q = self.q_values(target, batch.next_observation) / temperature
        after = temperature * next_q.logsumexp(dim=1)
        metrics = {"temperature": temperature, "env_steps": self.progress.env_steps}
        return batch.n_step_return + batch.discount * after - q, metrics


def test_temperature_falls_with_the_learner_step() -> None:
    algorithm = Cooling(Cooling.Config(learning_rate=1e-12), SPEC)
    learner, batch = algorithm.learner(CPU), batch_of(random_transitions(algorithm, 4))
    updates = [learner.learn(batch, Progress(step, 0)) for step in (0, 25, 200)]
    temperatures = [float(update.metrics["temperature"]) for update in updates]
    assert temperatures == pytest.approx([1.0, 0.75, 0.1])
    first, second, _ = (update.priorities for update in updates)
    assert not torch.allclose(first, second)


def test_progress_is_exact_beyond_the_integers_of_float32() -> None:
    algorithm = Cooling(Cooling.Config(), SPEC)
    learner, batch = algorithm.learner(CPU), batch_of(random_transitions(algorithm, 4))
    env_steps = 10**9 + 1
    update = learner.learn(batch, Progress(0, env_steps))
    assert update.metrics["env_steps"].item() == learner.progress.env_steps.item() == env_steps


class Logged(ApexDQN):
    """Items hold the value that the actor computed."""

    extra_columns = (Column("q_value", "float32"),)


def test_policy_extras_of_transitions_are_in_the_batchs_extras() -> None:
    algorithm = Logged(Logged.Config(), SPEC)
    assert ("q_value", "float32", ()) in [
        (column.name, column.dtype, column.shape) for column in algorithm.schema().columns
    ]
    batch = batch_of({**random_transitions(algorithm, 4), "q_value": np.arange(4.0)})
    moved = map_tensors(batch, lambda tensor: tensor + 1)
    assert moved.extras["q_value"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert batch.extras["q_value"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_torso_is_made_for_vectors_and_images() -> None:
    assert torso(SPEC, ()).out_features == 3
    images = EnvSpec("Test-v0", (12, 12), "uint8", 2, 4)
    assert torso(images, ((4, 3, 2),)).out_features == 4 * 5 * 5
    assert mlp(3, (8, 7))[1] == 7


@pytest.mark.parametrize(("shape", "stack"), [((16, 16), 1), ((256,), 0)])
def test_torso_scales_each_byte_as_numpy_does(shape: tuple[int, ...], stack: int) -> None:
    values = np.arange(256, dtype=np.uint8)
    spec = EnvSpec("Test-v0", shape, "uint8", stack, 4)
    features = torso(spec, ())(torch.from_numpy(values.reshape(1, *spec.policy_shape)))
    wanted = values.astype(np.float32) * np.float32(1 / 255)
    assert features.dtype == torch.float32
    np.testing.assert_array_equal(features[0].numpy(), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_torso_does_not_scale_other_vectors(dtype: str) -> None:
    numbers = torch.tensor([[-1, 0, 300]], dtype=getattr(torch, dtype))
    features = torso(EnvSpec("Test-v0", (3,), dtype, 0, 4), ())(numbers)
    assert features.dtype == torch.float32 and features.tolist() == [[-1.0, 0.0, 300.0]]
