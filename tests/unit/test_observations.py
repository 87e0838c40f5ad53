"""Observations of named parts, action masks, factored actions and open action bounds."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apex.acting.exploration import EpsilonGreedy, Sampled
from apex.algos.apex_dqn import ApexDQN
from apex.algos.impala import Impala
from apex.algos.registry import make_algorithm
from apex.config.sections import EnvConfig
from apex.data.schema import Column
from apex.envs.base import Environments
from apex.envs.registry import make_environments
from apex.envs.spaces import channels_last, env_spec
from apex.envs.spec import EnvSpec, ObservationPart
from apex.errors import ConfigError, EnvError, EnvFaultError
from apex.launch.preflight import try_config
from apex.launch.prepare import preset_config
from apex.networks.torsos import ChoicesTorso, torso
from apex.ops.action_masks import FORBIDDEN_LOGIT, masked_values
from apex.ops.policy_gradient import entropy
from apex.ops.vtrace import importance_ratios, log_probability
from apex.plugins import Extensions
from tests.support.walks import PartsWalk, SeveralChoicesWalk, Walk, walks

BOX = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


def test_nested_spaces_become_named_parts():
    spec = walks(PartsWalk, 2).spec
    assert spec.parts == (
        ObservationPart("action_mask", "mask", (3,), "uint8"),
        ObservationPart("arm.joints", "vector", (2,), "float32"),
        ObservationPart("camera", "image", (5, 5), "uint8"),
        ObservationPart("cards.0", "choices", (), "int32", (4,)),
        ObservationPart("cards.1", "choices", (2,), "int32", (3, 5)),
        ObservationPart("map", "image", (4, 6, 3), "uint8", channels_last=True),
        ObservationPart("switches", "choices", (3,), "uint8", (2, 2, 2)),
    )
    assert (spec.frame_stack, spec.num_actions, spec.has_action_mask) == (2, 3, True)


def test_items_of_parts_have_a_column_for_each_and_frames_of_all_images():
    config = ApexDQN.Config(n_step=3, conv=((4, 2, 1),))
    schema = ApexDQN(config, walks(PartsWalk, 2).spec).schema()
    assert schema.frames is not None
    assert schema.frames.images == (
        Column("camera", "uint8", (5, 5)),
        Column("map", "uint8", (4, 6, 3)),
    )
    assert (schema.frames.frame_bytes, schema.frames.max_frames) == (25 + 72, 2 + 3)
    columns = {column.name: (column.dtype, column.shape) for column in schema.columns}
    assert columns["observation.cards.1"] == ("int32", (2,))
    assert columns["next_observation.action_mask"] == ("uint8", (3,))
    assert not {"observation.camera", "observation.map"} & columns.keys()


def test_environments_return_what_each_environment_saw():
    vector, alone = walks(PartsWalk), [PartsWalk(), PartsWalk()]
    seen = vector.reset(seed=5)
    expected = [env.reset(seed=5 + k)[0] for k, env in enumerate(alone)]
    for _ in range(3):
        for k, one in enumerate(expected):
            assert (seen["camera"][k] == one["camera"]).all()
            assert (seen["map"][k] == one["map"]).all()
            assert (seen["arm.joints"][k] == one["arm"]["joints"]).all()
            assert seen["cards.0"][k] == one["cards"][0] - 2
            assert (seen["cards.1"][k] == one["cards"][1]).all()
            assert (seen["switches"][k] == one["switches"]).all()
            assert (seen["action_mask"][k] == one["action_mask"]).all()
        actions = seen["action_mask"].argmax(axis=1)
        seen = vector.step(actions).observations
        expected = [env.step(int(a))[0] for env, a in zip(alone, actions)]


class Masked(Walk):
    """Gives its mask in `info`, as some environments of gymnasium do; truncated ends allow none."""

    action_space = gym.spaces.Discrete(4)
    masks: Any = None

    def reset(self, *, seed=None, options=None):
        seen, _ = super().reset(seed=seed)
        return seen, self._info(False)

    def step(self, action):
        assert self.mask[action], f"action {action} is forbidden by {self.mask}"
        seen, reward, ended, cut, _ = super().step(0)
        return seen, reward, ended, cut, self._info(ended or cut)

    def _info(self, end):
        self.mask = np.zeros(4, np.int8)
        if not end:
            self.mask[self.np_random.permutation(4)[: self.np_random.integers(1, 5)]] = 1
        return {"action_mask": self.mask}


def masked(count: int, env: type[gym.Env] = Masked) -> Environments:
    vector = SyncVectorEnv([env] * count, autoreset_mode=AutoresetMode.NEXT_STEP)
    return Environments(vector, "Masked-v0", 0, life_loss_ends=False, masked=True)


def test_mask_of_info_becomes_a_part_beside_the_observation():
    environments = masked(3)
    names = [(part.name, part.kind) for part in environments.spec.parts]
    assert names == [("observation", "vector"), ("action_mask", "mask")]
    assert environments.reset(seed=1)["action_mask"].shape == (3, 4)


def test_a_start_finds_out_whether_info_has_masks():
    def tried(env: type[gym.Env], *settings: str) -> Any:
        config = preset_config("cartpole", settings)
        return try_config(config, Extensions(make_env=env)).config.env.action_masks

    assert tried(Masked) is True
    assert tried(Walk) is False
    assert tried(PartsWalk, "algorithm.conv=[[4, 2, 1]]") is False, "it is in the observation"
    with pytest.raises(EnvError, match="returned no info"):
        tried(Walk, "env.action_masks=true")


def test_mask_that_forbids_all_names_step_and_environment():
    class Nothing(Masked):
        def _info(self, end):
            super()._info(end)
            if self._left == 3:
                self.mask[:] = 0
            return {"action_mask": self.mask}

    def play(environments: Environments) -> None:
        seen = environments.reset(seed=3)
        for _ in range(30):
            seen = environments.step(seen["action_mask"].argmax(axis=1)).observations

    with pytest.raises(EnvFaultError, match=r"step \d+ environment \d: .* forbids all 4 actions"):
        play(masked(2, Nothing))


def test_forbidden_action_is_the_algorithms_mistake():
    environments = masked(2)
    mask = environments.reset(seed=1)["action_mask"]
    while mask.all(axis=1).any():
        mask = environments.step(mask.argmax(axis=1)).observations["action_mask"]
    with pytest.raises(ConfigError, match=r"chose the action \d in environment 0 .* allows only"):
        environments.step(mask.argmin(axis=1))


@pytest.mark.parametrize("mask", [[1, 0, 1], "all", None], ids=["short", "text", "none"])
def test_mask_of_another_form_is_an_environment_fault(mask):
    class Wrong(Masked):
        def _info(self, end):
            super()._info(end)
            return {"action_mask": mask} if mask is not None else {}

    with pytest.raises(EnvFaultError, match="action_mask"):
        masked(1, Wrong).reset(seed=0)


@pytest.mark.parametrize("name", ["apex_dqn", "r2d2", "impala"])
@pytest.mark.parametrize("greedy", [False, True], ids=["exploring", "greedy"])
def test_no_masked_action_is_chosen_in_a_million_decisions(name, greedy):
    """A sixth of 10^6 decisions for each algorithm, exploring and greedy, with random masks."""
    count, turns = 2_000, 84
    spec = env_spec(BOX, gym.spaces.Discrete(7), "Test-v0", 0, masked=True)
    small = {"lstm": 4, "hidden": [8]} if name != "apex_dqn" else {"hidden": [8]}
    algorithm = make_algorithm({"name": name, **small}, spec)
    policy, rng = algorithm.policy(), np.random.default_rng(1)
    seeds = [(k,) for k in range(count)]
    explore: Any = Sampled(seeds) if name == "impala" else EpsilonGreedy(
        np.full(count, 0.5), 7, seeds
    )  # fmt: skip
    chosen = 0
    for _ in range(turns):
        mask = rng.integers(0, 2, (count, 7)).astype(np.uint8)
        mask[np.arange(count), rng.integers(7, size=count)] = 1
        seen = {"observation": rng.normal(size=(count, 3)).astype(np.float32) * 100}
        inputs = policy_inputs(policy, {**seen, "action_mask": mask}, count)
        actions = policy.act(inputs, None if greedy else explore).actions
        assert mask[np.arange(count), actions].all()
        chosen += count
    assert 6 * chosen >= 1_000_000


def policy_inputs(policy: Any, observations: dict[str, np.ndarray], count: int) -> Any:
    from apex.acting.decisions import Inputs

    state = np.zeros((count, policy.core_size), np.float32)
    return Inputs(observations, state, np.zeros(count, np.int64), np.zeros(count, np.float32))


def test_random_action_is_uniform_over_the_allowed_ones():
    explore = EpsilonGreedy(np.array([1.0]), 4, [(3,)])
    values = np.array([[-np.inf, 5.0, -np.inf, 1.0]])
    counts = np.bincount([int(explore(values)[0]) for _ in range(4000)], minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0] and abs(counts[1] - 2000) < 150


def test_probability_and_entropy_of_forbidden_actions_are_zero():
    logits = masked_values(
        torch.tensor([[0.0, 50.0, 0.0]]), torch.tensor([[1, 0, 1]]), FORBIDDEN_LOGIT
    )
    assert torch.softmax(logits, dim=-1).tolist() == [[0.5, 0.0, 0.5]]
    assert float(entropy(logits)) == pytest.approx(np.log(2))
    logits.requires_grad_()
    entropy(logits).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_factored_policy_is_the_product_of_its_heads():
    """Against the softmax over all combinations of the joint policy."""
    sizes = (2, 3, 2)
    rng = np.random.default_rng(4)
    logits = torch.from_numpy(rng.normal(size=(1, 7)))
    other = torch.from_numpy(rng.normal(size=(1, 7)))
    joint, behaviour = {}, {}
    for a, b, c in itertools.product(*map(range, sizes)):
        for found, source in ((joint, logits), (behaviour, other)):
            heads = [torch.softmax(h, dim=-1)[0] for h in torch.split(source, sizes, dim=-1)]
            found[a, b, c] = float(heads[0][a] * heads[1][b] * heads[2][c])
    assert sum(joint.values()) == pytest.approx(1.0)
    for action, probability in joint.items():
        actions = torch.tensor([action])
        assert float(log_probability(logits, actions, sizes)) == pytest.approx(np.log(probability))
        ratio = float(importance_ratios(other, logits, actions, sizes))
        assert ratio == pytest.approx(probability / behaviour[action])
    expected = -sum(p * np.log(p) for p in joint.values())
    assert float(entropy(logits, sizes)) == pytest.approx(expected)


def test_heads_are_sampled_by_their_own_probabilities():
    explore = Sampled([(1,), (2,)], (2, 3))
    logits = np.log([[0.25, 0.75, 0.5, 0.3, 0.2]] * 2)
    drawn = np.stack([explore(logits) for _ in range(3000)])
    assert drawn.shape == (3000, 2, 2)
    first, second = drawn[..., 0].ravel(), drawn[..., 1].ravel()
    assert np.bincount(first) / 6000 == pytest.approx([0.25, 0.75], abs=0.02)
    assert np.bincount(second) / 6000 == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_impala_chooses_multi_discrete_actions_within_their_bounds():
    environments = walks(SeveralChoicesWalk, 1)
    algorithm = Impala(Impala.Config(conv=((4, 2, 1),), lstm=4), environments.spec)
    policy = algorithm.policy()
    seen = environments.reset(seed=1)
    stacked = {n: a[:, None] if n in ("camera", "map") else a for n, a in seen.items()}
    inputs = policy_inputs(policy, stacked, 2)._replace(
        last_actions=environments.spec.no_actions(2)
    )
    taken = policy.act(inputs, Sampled([(1,), (2,)], environments.spec.head_sizes)).actions
    assert taken.shape == (2, 1, 3) and taken.dtype == np.int64
    environments.step(taken)
    environments.step(policy.act(inputs, None).actions)


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((84, 84), False),
        ((210, 160, 3), True),
        ((3, 96, 96), False),
        ((7, 7, 20), True),
        ((20, 7, 7), False),
        ((10, 10, 4), True),
        ((4, 80, 105), False),
        ((7, 20, 7), True),
    ],
)
def test_axis_of_the_channels(shape, last):
    assert channels_last(shape, "Test-v0") is last


def test_unsure_axis_of_the_channels_is_logged_and_may_be_set(caplog):
    space = gym.spaces.Box(0, 255, (7, 7, 20), np.uint8)
    spec = env_spec(space, gym.spaces.Discrete(2), "Test-v0", 0)
    assert "20 channels on the last axis; if that is wrong, set env.image_channels to 'first'" in (
        caplog.text
    )
    assert torso(spec, ((4, 3, 1),)).convolutions[0].in_channels == 20
    caplog.clear()
    first = env_spec(space, gym.spaces.Discrete(2), "Test-v0", 0, channels="first")
    assert torso(first, ((4, 3, 1),)).convolutions[0].in_channels == 7
    env_spec(gym.spaces.Box(0, 255, (210, 160, 3), np.uint8), gym.spaces.Discrete(2), "T", 0)
    assert not caplog.text


def test_runs_of_apex_0_1_do_not_say_which_axis_has_the_channels():
    space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)
    spec = env_spec(space, gym.spaces.Discrete(2), "Test-v0", 4)
    old = EnvSpec("Old-v0", (210, 160, 3), "uint8", 4, 2)
    assert (spec.channels_last, old.channels_last) == (True, None)
    assert spec.differences(old) == old.differences(spec) == []
    first = env_spec(space, gym.spaces.Discrete(2), "Test-v0", 4, channels="first")
    assert first.differences(old) == ["channels_last False instead of True"]
    assert EnvSpec("Old-v0", (210, 160, 3), "uint8", 4, 3).differences(old) == [
        "num_actions 3 instead of 2"
    ]


@pytest.mark.parametrize(
    ("actions", "mask"), [(gym.spaces.MultiDiscrete([2, 3]), 5), (gym.spaces.Discrete(4), 5)]
)
def test_mask_that_is_not_one_of_discrete_actions_is_not_used_silently(actions, mask, caplog):
    seen = gym.spaces.Dict({"action_mask": gym.spaces.MultiBinary(mask), "seen": BOX})
    spec = env_spec(seen, actions, "Test-v0", 0)
    assert not spec.has_action_mask
    assert "'action_mask' of shape (5,) is seen by the network but forbids nothing" in caplog.text


def test_text_is_refused_with_a_wrapper_that_helps():
    class Mission(Walk):
        observation_space = gym.spaces.Dict({"seen": BOX, "mission": gym.spaces.Text(8)})

        def _seen(self):
            return {"seen": np.zeros(3, np.float32), "mission": "go"}

    config = EnvConfig(id="Mission")
    with pytest.raises(EnvError, match=r"FilterObservation\(env, KEYS\), with all keys but 'mis"):
        make_environments(config, 1, Mission)
    helped = make_environments(
        config, 1, lambda: gym.wrappers.FilterObservation(Mission(), ["seen"])
    )
    assert helped.reset(seed=0)["seen"].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("space", "limit", "expected"),
    [
        (gym.spaces.Box(0, np.inf, (1,)), 2.0, (0.0, 2.0)),
        (gym.spaces.Box(-np.inf, 1, (1,)), 3.0, (-3.0, 1.0)),
        (gym.spaces.Box(-np.inf, np.inf, (1,)), 5.0, (-5.0, 5.0)),
        (gym.spaces.Box(-7, 8, (1,)), 2.0, (-7.0, 8.0)),
    ],
)
def test_open_sides_of_actions_are_closed_by_the_limit(space, limit, expected):
    bounds = env_spec(BOX, space, "Test-v0", 0, action_limit=limit).action_bounds
    assert bounds is not None and (bounds.low[0], bounds.high[0]) == expected


@pytest.mark.parametrize(
    ("space", "limit"), [(gym.spaces.Box(0, np.inf, (1,)), 0.0), (gym.spaces.Box(5, np.inf), 2.0)]
)
def test_open_sides_without_a_limit_that_fits_are_refused(space, limit):
    with pytest.raises(EnvError, match=r"set env\.action_limit"):
        env_spec(BOX, space, "Test-v0", 0, action_limit=limit)


def test_choices_are_embedded_and_switches_are_numbers():
    cards = ChoicesTorso((3, 40))
    assert cards.out_features == 2 * 32
    features = cards(torch.tensor([[2, 0], [2, 39]]))
    assert (features[0, :32] == features[1, :32]).all(), "the first choice is the same"
    assert (features[0, 32:] == cards.embedding.weight[3]).all(), "the second has rows of its own"
    assert ChoicesTorso((2, 2))(torch.tensor([[1, 0]], dtype=torch.uint8)).tolist() == [[1.0, 0.0]]


def test_an_algorithm_may_replace_the_encoder_of_a_part():
    class Mean(torch.nn.Module):
        out_features = 1

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return frames.float().mean(dim=(1, 2, 3)).unsqueeze(1)

    class Own(ApexDQN):
        def part_encoder(self, part):
            return Mean() if part.name == "camera" else None

    spec = walks(PartsWalk, 2).spec
    algorithm = Own(ApexDQN.Config(conv=((4, 2, 1),), conv_by_part={"map": ((3, 1, 1),)}), spec)
    parts = algorithm.network().torso.parts
    camera, world = parts[1], parts[4]
    assert isinstance(camera, Mean)
    assert world.convolutions[0].in_channels == 2 * 3
    assert world.convolutions[0].out_channels == 3
    with pytest.raises(
        ConfigError, match=r"conv_by_part: expected names of images, got cam; .*map"
    ):
        ApexDQN(ApexDQN.Config(conv_by_part={"cam": ((3, 1, 1),)}), spec).network()


def test_image_too_small_for_the_convolutions_names_the_key():
    spec = walks(PartsWalk, 1).spec
    with pytest.raises(ConfigError, match=r"algorithm\.conv_by_part\.'camera' = \[\[32, 3, 1\]\]"):
        ApexDQN(ApexDQN.Config(), spec).network()
