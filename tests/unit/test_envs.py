"""Environments: one interface to Atari and gymnasium, checked at every step."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apex import plugins
from apex.acting.agent import Agent, LocalDecider, greedy
from apex.acting.decisions import Decision
from apex.acting.loop import ActingLoop, play_episodes
from apex.config.sections import EnvConfig
from apex.data.schema import Column
from apex.envs.base import Environments
from apex.envs.registry import make_environments
from apex.envs.spec import ActionBounds
from apex.errors import ConfigError, EnvError, EnvFaultError
from apex.launch import prepare
from apex.launch.preflight import try_config
from apex.plugins import Extensions

pytest.importorskip("ale_py")
ALWAYS_ZERO = np.zeros(2, dtype=np.int64)


class Countdown(gym.Env):
    """Observes the episode's number of steps; ends after `length`; rewards each with 5."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 3, *, truncate: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self._length, self._truncate = length, truncate

    def observe(self) -> np.ndarray:
        return np.array([self.steps], dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        end = self.steps == self._length
        return self.observe(), 5.0, end and not self._truncate, end and self._truncate, {}


def own(kind: type[gym.Env], num_envs: int = 2, **fields: object) -> Environments:
    return make_environments(EnvConfig(id="own", **fields), num_envs, kind)


def atari(game: str, num_envs: int = 2, **fields: object) -> Environments:
    return make_environments(EnvConfig(id=f"ALE/{game}-v5", **fields), num_envs)


@pytest.fixture
def closing() -> Iterator[list[Environments]]:
    """Environments in this list are closed when the test ends."""
    environments: list[Environments] = []
    yield environments
    for each in environments:
        each.close()


def test_step_after_an_end_ignores_its_action_and_resets(closing):
    environments = own(Countdown)
    closing.append(environments)
    assert environments.reset(0).tolist() == [[0.0], [0.0]]
    seen = []
    for _ in range(5):
        result = environments.step(ALWAYS_ZERO)
        seen.append((result.observations[0, 0], result.rewards[0], bool(result.terminated[0])))
        assert not result.truncated.any() and result.observations.dtype == np.float32
    assert seen == [(1, 5, False), (2, 5, False), (3, 5, True), (0, 0, False), (1, 5, False)]


def test_truncation_is_not_termination(closing):
    environments = own(lambda: Countdown(1, truncate=True))
    closing.append(environments)
    environments.reset(0)
    result = environments.step(ALWAYS_ZERO)
    assert result.truncated.all() and not result.terminated.any()


def test_same_seed_gives_the_same_start_and_environments_differ(closing):
    environments = make_environments(EnvConfig(id="CartPole-v1"), 3)
    closing.append(environments)
    one, same, other = (environments.reset(seed).copy() for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any() and (one[0] != one[1]).any()


def test_gymnasium_id_gives_its_spec(closing):
    environments = make_environments(EnvConfig(id="CartPole-v1"), 2)
    closing.append(environments)
    spec = environments.spec
    assert (spec.observation_shape, spec.observation_dtype) == ((4,), "float32")
    assert (spec.frame_stack, spec.num_actions, spec.policy_shape) == (0, 2, (4,))


def test_module_and_id_import_the_module_that_registers_it(closing, tmp_path, monkeypatch):
    (tmp_path / "own_module_of_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('OwnPole-v0', 'gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        environments = make_environments(EnvConfig(id="own_module_of_envs:OwnPole-v0"), 1)
        closing.append(environments)
        assert environments.reset(0).shape == (1, 4)
    finally:
        gym.registry.pop("OwnPole-v0", None)


class WithSpaces(Countdown):
    def __init__(self, observation: gym.Space, action: gym.Space) -> None:
        super().__init__()
        self.observation_space, self.action_space = observation, action


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (
            gym.spaces.Dict({"a": gym.spaces.Discrete(3), "word": gym.spaces.Text(3)}),
            gym.spaces.Discrete(2),
            "with all keys but 'word'",
        ),
        (gym.spaces.Text(3), gym.spaces.Discrete(2), "TransformObservation"),
        (
            gym.spaces.Dict({"": gym.spaces.Box(0, 1, (3,)), "a": gym.spaces.Discrete(3)}),
            gym.spaces.Discrete(2),
            "arrays with different names",
        ),
        (gym.spaces.Box(0, 1, (3,)), gym.spaces.Box(0, 9, (1,), int), "or Box of floats"),
        (gym.spaces.Box(0, 1, (3,)), gym.spaces.Box(0, np.inf, (1,)), "env.action_limit"),
        (gym.spaces.Box(0, 1, (3,)), gym.spaces.Box(1, 1, (2,)), "a finite lower and upper bound"),
        (
            gym.spaces.Box(0, 1, (3,)),
            gym.spaces.Box(-1e300, 1e300, (2,), np.float64),
            "a finite lower and upper bound",
        ),
        (gym.spaces.Box(0, 1, ()), gym.spaces.Discrete(2), "ReshapeObservation"),
        (gym.spaces.Box(0, 1, (3,)), gym.spaces.Text(3), "expected an action space Discrete"),
        (
            gym.spaces.Box(0, 255, (2, 3, 4, 5), np.uint8),
            gym.spaces.Discrete(2),
            "2 or 3 axes",
        ),
    ],
    ids=[
        "text_in_dict",
        "text_observation",
        "key_without_a_name",
        "integers",
        "unbounded",
        "no_room",
        "huge",
        "number",
        "text",
        "rank_4",
    ],
)
def test_space_that_apex_cannot_use_is_named(observation, action, message):
    with pytest.raises(EnvError, match=message):
        own(lambda: WithSpaces(observation, action))


@pytest.mark.parametrize(
    ("space", "stack", "expected"),
    [
        (gym.spaces.Box(0, 255, (8, 9), np.uint8), 0, ((8, 9), "uint8", 1)),
        (gym.spaces.Box(0, 255, (8, 9, 3), np.uint8), 4, ((8, 9, 3), "uint8", 4)),
        (gym.spaces.Box(0, 255, (7,), np.uint8), 1, ((7,), "uint8", 0)),
        (gym.spaces.Box(-1, 1, (2, 3), np.float64), 0, ((2, 3), "float32", 0)),
        (gym.spaces.Box(0, 1, (8, 9, 3), np.bool_), 0, ((8, 9, 3), "uint8", 1)),
        (gym.spaces.Box(-9, 9, (2,), np.int64), 0, ((2,), "float32", 0)),
        (gym.spaces.Discrete(3), 0, ((3,), "float32", 0)),
        (gym.spaces.MultiDiscrete([2, 3]), 0, ((5,), "float32", 0)),
        (gym.spaces.MultiBinary(4), 0, ((4,), "float32", 0)),
    ],
)
def test_spec_distinguishes_images_from_vectors(closing, space, stack, expected):
    environments = own(lambda: WithSpaces(space, gym.spaces.Discrete(2)), frame_stack=stack)
    closing.append(environments)
    spec = environments.spec
    assert (spec.observation_shape, spec.observation_dtype, spec.frame_stack) == expected


@pytest.mark.parametrize(
    ("space", "found"),
    [
        (gym.spaces.Box(0, 255, (7,), np.uint8), r"uint8 \(7,\)"),
        (gym.spaces.Box(-1, 1, (2, 3), np.float64), r"float32 \(2, 3\)"),
        (gym.spaces.Box(0, 1, (8, 9, 3), np.float32), r"float32 \(8, 9, 3\)"),
        (gym.spaces.Discrete(3), r"float32 \(3,\)"),
    ],
)
def test_frame_stack_of_non_images_is_refused_by_name(space, found):
    with pytest.raises(EnvError, match=rf"env\.frame_stack = 4: .*{found}.*FrameStackObservation"):
        own(lambda: WithSpaces(space, gym.spaces.Discrete(2)), frame_stack=4)


def test_frame_stack_of_atari_ram_is_refused_by_name():
    with pytest.raises(EnvError, match=r"env\.frame_stack = 4: .*uint8 \(128,\)"):
        atari("Breakout", obs_type="ram", frame_stack=4)


def test_frame_stack_of_vectors_names_the_wrapper_to_use():
    config = prepare.preset_config("cartpole", ["env.frame_stack=4"])
    with pytest.raises(EnvError, match=r"FrameStackObservation\(env, 4\)"):
        try_config(config)

    def stacked() -> gym.Env:
        return gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 4)

    config = prepare.preset_config("cartpole", [])
    spec = try_config(config, Extensions(stacked)).spec
    assert spec.policy_shape == (4, 4)


def test_other_autoreset_mode_is_refused(closing):
    vector = SyncVectorEnv([Countdown] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvError, match="NEXT_STEP"):
        Environments(vector, "own", 0, False)
    vector.close()


@pytest.mark.parametrize(
    "config",
    [
        EnvConfig(id="NoSuch-v0"),
        EnvConfig(id="no_such_module:X-v0"),
        EnvConfig(id="CartPole-v1", kwargs={"no_such": 1}),
        EnvConfig(id=""),
        EnvConfig(id="ALE/NoSuchGame-v5"),
        EnvConfig(id="ALE/NoSuchGame-v5", obs_type="ram"),
    ],
    ids=lambda config: f"{config.id}_{config.obs_type}",
)
def test_environment_that_cannot_be_made_is_an_error_with_its_id(config):
    with pytest.raises(EnvError) as error:
        make_environments(config, 1)
    assert config.id in str(error.value)


def test_kwargs_for_atari_are_refused():
    with pytest.raises(EnvError, match=r"env\.kwargs"):
        atari("Pong", kwargs={"difficulty": 1})


class NanReward(Countdown):
    def step(self, action):
        return self.observe(), float("nan"), False, False, {}


class NanObservation(Countdown):
    def observe(self):
        return np.array([np.nan])


class RaisesInStep(Countdown):
    def step(self, action):
        raise RuntimeError("the simulator broke")


class RaisesInReset(Countdown):
    def reset(self, *, seed=None, options=None):
        raise RuntimeError("the simulator broke")


class GrowingObservation(Countdown):
    def observe(self):
        return np.zeros(1 + self.steps)


class OldStep(Countdown):
    def step(self, action):
        return self.observe(), 1.0, False, {}


class OldReset(Countdown):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe()


class NoReward(Countdown):
    def step(self, action):
        return self.observe(), None, False, False, {}


class ArrayReward(Countdown):
    def step(self, action):
        return self.observe(), np.zeros(1), False, False, {}


class NoFlag(Countdown):
    def step(self, action):
        return self.observe(), 1.0, None, False, {}


class BrightImage(Countdown):
    """A float image in [0, 1] in a uint8 space: every pixel would be rounded to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 255, (4, 4), np.uint8)

    def observe(self):
        return np.full((4, 4), 0.5)


class TooBright(BrightImage):
    def observe(self):
        return np.full((4, 4), 256)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (OldStep, "own: step 1 returned a tuple of 4, as old gym did; step must return"),
        (OldReset, "own: reset returned an array of shape (1,); reset must return (observation"),
        (NoReward, "own: step 1 returned a reward that is None; return one number"),
        (ArrayReward, "own: step 1 returned a reward that is an array of shape (1,); return one"),
        (NoFlag, "own: step 1 returned a `terminated` that is None; return True or False"),
        (BrightImage, "own: reset returned an observation of float64, which its observation_space"),
        (TooBright, "own: reset returned an observation of int64, which its observation_space"),
        (NanReward, "own: step 1 returned rewards that are not within"),
        (NanObservation, "own: step 0 returned an observation that is not finite"),
        (
            RaisesInStep,
            "own: step 1 raised RuntimeError: the simulator broke (test_envs.py, line ",
        ),
        (RaisesInReset, "own: reset raised RuntimeError: the simulator broke"),
        (
            GrowingObservation,
            "own: step 1 returned an observation of shape (2,), but its observation_space has",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fault_of_an_environment_is_named_with_its_step(closing, kind, message):
    environments = own(kind)
    closing.append(environments)

    def play() -> None:
        environments.reset(0)
        environments.step(ALWAYS_ZERO)

    with pytest.raises(EnvFaultError) as error:
        play()
    assert str(error.value).startswith(message)


class Whole(Countdown):
    """Observes integers in a uint8 space."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 255, (2, 2), np.uint8)

    def observe(self):
        return np.full((2, 2), 200 + self.steps)


def test_integers_that_fit_their_space_are_taken(closing):
    environments = own(Whole)
    closing.append(environments)
    assert environments.reset(0).dtype == np.uint8
    assert environments.step(ALWAYS_ZERO).observations[1].tolist() == [[201, 201], [201, 201]]


class Switches(Countdown):
    """Observes a bool image and takes actions 3 and 4."""

    action_space = gym.spaces.Discrete(2, start=3)

    def __init__(self) -> None:
        super().__init__(9)
        self.observation_space = gym.spaces.Box(0, 1, (2, 2), np.bool_)
        self._last = 3

    def observe(self):
        return np.array([[True, False], [self._last == 4, False]])

    def step(self, action):
        assert action in (3, 4)
        self._last = action
        return super().step(action)


def test_bool_images_become_0_and_255_and_actions_count_from_0(closing):
    environments = own(Switches)
    closing.append(environments)
    assert environments.spec.num_actions == 2
    assert environments.reset(0)[0].tolist() == [[255, 0], [0, 0]]
    result = environments.step(np.array([0, 1]))
    assert result.observations.tolist() == [[[255, 0], [0, 0]], [[255, 0], [255, 0]]]
    assert result.observations.dtype == np.uint8


class Wide(Countdown):
    """Returns an observation outside its space at the second step."""

    def __init__(self) -> None:
        super().__init__(9)
        self.observation_space = gym.spaces.Box(-1, 1, (1,))

    def observe(self):
        return np.array([self.steps], dtype=np.float32)


def test_observation_outside_its_space_is_logged_once_and_accepted(closing, caplog):
    environments = own(Wide)
    closing.append(environments)
    environments.reset(0)
    seen = [environments.step(ALWAYS_ZERO).observations[0, 0] for _ in range(3)]
    assert seen == [1.0, 2.0, 3.0]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "own: step 2: element [0] of an observation is 2, outside" in said
    assert "widen the space or clip the observation" in said


def test_continuous_and_multi_discrete_actions_are_bounded(closing):
    box = gym.spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)
    continuous = own(lambda: WithSpaces(gym.spaces.Box(0, 1, (3,)), box)).spec
    several = own(
        lambda: WithSpaces(gym.spaces.Box(0, 1, (3,)), gym.spaces.MultiDiscrete([3, 2]))
    ).spec
    assert (continuous.num_actions, several.num_actions) == (0, 0)
    assert (continuous.action_kind, several.action_kind) == ("continuous", "multi-discrete")
    assert continuous.action_bounds == ActionBounds("float32", (2,), (-2.0, 0.0), (2.0, 1.0))
    assert several.action_bounds == ActionBounds("int64", (2,), (0.0, 0.0), (2.0, 1.0))
    assert continuous.action_column == Column("action", "float32", (2,))
    assert several.action_column == Column("action", "int32", (2,))
    actions = np.array([[2.0, 0.0], [2.1, 0.5], [0.0, np.nan]], np.float32)
    assert continuous.bad_actions(actions).tolist() == [False, True, True]
    assert several.bad_actions(np.array([[2, 1], [3, 0], [0, -1]])).tolist() == [False, True, True]


OWN_FILE = """
import gymnasium as gym
import numpy as np
from beside import LENGTH

class Corridor(gym.Env):
    observation_space = gym.spaces.Box(0, LENGTH, (1,))
    action_space = gym.spaces.Discrete(2)
    def __init__(self, length=LENGTH):
        self.length = length
    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        return np.full(1, self.length, np.float32), 1.0, False, False, {}

gym.register("OwnCorridor-v0", Corridor, kwargs={"length": 3})
"""


@pytest.mark.parametrize(("name", "length"), [("Corridor", 7), ("OwnCorridor-v0", 3)])
def test_file_reference_loads_what_the_file_registers_or_defines(
    closing, tmp_path, monkeypatch, name, length
):
    (tmp_path / "file_of_envs.py").write_text(OWN_FILE)
    (tmp_path / "beside.py").write_text("LENGTH = 7")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    reference = plugins.absolute(f"file_of_envs:{name}")
    assert reference == f"{tmp_path}/file_of_envs.py:{name}"
    monkeypatch.chdir("/")
    try:
        environments = make_environments(EnvConfig(id=reference), 2)
        closing.append(environments)
        assert environments.spec.env_id == f"file_of_envs.py:{name}"
        environments.reset(0)
        assert environments.step(ALWAYS_ZERO).observations.tolist() == [[length], [length]]
        with pytest.raises(EnvError, match="neither defines 'Nothing' nor registers it"):
            make_environments(EnvConfig(id=f"{tmp_path}/file_of_envs.py:Nothing"), 1)
    finally:
        gym.registry.pop("OwnCorridor-v0", None)
        sys.modules.pop("beside", None)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("broken_file.py", "x = 1\n1 / 0", r"raised ZeroDivisionError.*broken_file.py, line 2"),
        (
            "missing_file.py",
            None,
            "no such file; if the file has moved, give its new path: --set env.id=",
        ),
    ],
)
def test_unusable_file_is_refused_by_name(tmp_path, monkeypatch, file, text, message):
    monkeypatch.setattr(sys, "path", list(sys.path))
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(EnvError, match=message):
        make_environments(EnvConfig(id=f"{tmp_path / file}:Any"), 1)


def test_environment_without_render_mode_raises_what_a_film_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "blind_env.py").write_text(OWN_FILE.replace("length=LENGTH", ""))
    (tmp_path / "beside.py").write_text("LENGTH = 7")
    with pytest.raises(EnvError, match=r"argument 'render_mode'; let the environment take render_"):
        make_environments(EnvConfig(id=f"{tmp_path}/blind_env.py:Corridor"), 1, render=True)
    gym.registry.pop("OwnCorridor-v0", None)
    sys.modules.pop("beside", None)


def test_files_with_equal_names_are_two_modules_and_import_their_neighbours(tmp_path, monkeypatch):
    """Even a file named like a standard library module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "json.py").write_text(f"from beside_{folder} import WHO")
        (tmp_path / folder / f"beside_{folder}.py").write_text(f"WHO = '{folder}'")
    found = [plugins.load(f"{tmp_path}/{f}/json.py:WHO", "env.id")[0].WHO for f in ("one", "two")]
    assert found == ["one", "two"]
    import json

    assert json.loads("[1]") == [1]


class Greedy(Countdown):
    """Changes its action argument in place."""

    action_space = gym.spaces.Box(-0.1, 0.1, (1,), np.float64)

    def step(self, action):
        assert self.action_space.contains(action)
        action *= 100.0
        return super().step(action)


def test_environments_get_copied_actions_within_bounds_that_float32_cannot_hold(closing):
    environments = own(Greedy)
    closing.append(environments)
    environments.reset(0)
    low, high = environments.spec.action_bounds.arrays()
    assert float(high[0]) > 0.1 and not environments.spec.bad_actions(np.stack([low, high])).any()
    actions = np.stack([low, high])
    environments.step(actions)
    assert actions.tolist() == np.stack([low, high]).tolist()


@pytest.mark.parametrize("actions", [[0, 2], [-1, 0]])
def test_invalid_action_is_reported_as_the_algorithms_fault(closing, actions):
    environments = own(Countdown)
    closing.append(environments)
    environments.reset(0)
    with pytest.raises(ConfigError, match=r"the algorithm chose the action (2|-1), but own takes"):
        environments.step(np.array(actions))


class WrongChoice(Countdown):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.MultiDiscrete([3, 2])

    def observe(self):
        return np.array([self.steps + 2, 0])


def test_multi_discrete_observation_outside_its_space_is_reported(closing):
    environments = own(WrongChoice)
    closing.append(environments)
    assert environments.reset(0)[0].tolist() == [0, 0, 1, 1, 0]
    with pytest.raises(EnvFaultError, match=r"step 1 returned the observation \[3 0\], but its"):
        environments.step(ALWAYS_ZERO)


class Far(Countdown):
    """Observes integers outside its space."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(0, 9, (1,), np.int64)

    def observe(self):
        return np.array([77])


def test_integers_outside_their_space_are_reported(closing, caplog):
    environments = own(Far)
    closing.append(environments)
    assert environments.reset(0).tolist() == [[77.0], [77.0]]
    assert "step 0: element [0] of an observation is 77, outside" in caplog.text


def test_environment_with_the_old_gym_step_api_is_refused_with_the_expected_return(closing):
    gym.register("OldStep-v0", OldStep)
    try:
        environments = make_environments(EnvConfig(id="OldStep-v0"), 2)
        closing.append(environments)
        environments.reset(0)
        with pytest.raises(EnvFaultError, match=r"step\(action\) must return \(observation, rew"):
            environments.step(ALWAYS_ZERO)
    finally:
        gym.registry.pop("OldStep-v0", None)


def test_largest_floats_as_bounds_log_no_warning(closing, caplog):
    huge = np.finfo(np.float32).max
    environments = own(
        lambda: WithSpaces(gym.spaces.Box(-huge, huge, (1,)), gym.spaces.Discrete(2))
    )
    closing.append(environments)
    environments.reset(0)
    assert not caplog.records


class Lives(Countdown):
    """Three lives; every second step loses one, and losing the last one ends the episode."""

    def info(self):
        return {"lives": 3 - self.steps // 2}

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], self.info()

    def step(self, action):
        self.steps += 1
        return self.observe(), 1.0, self.steps == 6, False, self.info()


@pytest.mark.parametrize("life_loss_ends", [True, False])
def test_lost_life_is_reported_when_it_ends_and_the_last_is_a_termination(closing, life_loss_ends):
    environments = own(Lives, life_loss_ends=life_loss_ends)
    closing.append(environments)
    environments.reset(0)
    results = [environments.step(ALWAYS_ZERO) for _ in range(9)]
    lost = [step for step, result in enumerate(results, 1) if result.life_lost.all()]
    # Step 6 terminates, 7 resets to three lives, 9 is the second step of the new episode.
    assert lost == ([2, 4, 9] if life_loss_ends else [])
    assert [step for step, r in enumerate(results, 1) if r.terminated.all()] == [6]


@pytest.mark.parametrize("obs_type", ["grayscale", "rgb", "ram"])
def test_atari_resets_on_the_step_after_an_end(closing, obs_type):
    shape = {"grayscale": (36, 40), "rgb": (36, 40, 3), "ram": (128,)}[obs_type]
    environments = atari(
        "Breakout", obs_type=obs_type, frame_size=(36, 40), noop_max=0, max_episode_frames=60
    )
    closing.append(environments)
    spec = environments.spec
    assert (spec.observation_shape, spec.observation_dtype) == (shape, "uint8")
    assert (spec.frame_stack, spec.num_actions) == (0 if obs_type == "ram" else 4, 4)
    first = environments.reset(0).copy()
    assert first.shape == (2, *shape) and first.dtype == np.uint8 and first.any()
    for _ in range(40):
        result = environments.step(ALWAYS_ZERO)
        if result.truncated.all():
            break
    assert result.truncated.all() and not result.terminated.any()
    assert (result.observations != first).any()
    result = environments.step(ALWAYS_ZERO)
    assert not (result.truncated | result.terminated | result.life_lost).any()
    assert (result.rewards == 0).all()
    np.testing.assert_array_equal(result.observations, first)


@pytest.mark.parametrize("obs_type", ["grayscale", "ram"])
def test_atari_rewards_are_not_clipped(closing, obs_type):
    environments = atari("MsPacman", obs_type=obs_type, frame_size=(20, 20))
    closing.append(environments)
    environments.reset(0)
    rng = np.random.default_rng(0)
    rewards = [environments.step(rng.integers(0, 9, 2)).rewards for _ in range(150)]
    assert np.max(rewards) >= 10.0


@pytest.mark.parametrize("obs_type", ["grayscale", "ram"])
@pytest.mark.parametrize("life_loss_ends", [True, False])
def test_atari_reports_lost_lives_when_they_end(closing, obs_type, life_loss_ends):
    environments = atari(
        "Breakout", obs_type=obs_type, frame_size=(20, 20), life_loss_ends=life_loss_ends
    )
    closing.append(environments)
    environments.reset(0)
    lost, terminated = 0, 0
    for _ in range(300):
        result = environments.step(np.ones(2, dtype=np.int64))  # FIRE serves each ball
        lost += int(result.life_lost[0])
        terminated += int(result.terminated[0])
        if terminated:
            break
    assert terminated == 1 and lost == (4 if life_loss_ends else 0)


def test_atari_full_action_space_has_eighteen_actions(closing):
    environments = atari("Pong", full_action_space=True, frame_size=(20, 20))
    closing.append(environments)
    assert environments.spec.num_actions == 18


@pytest.mark.parametrize("kind", ["atari", "own"])
def test_results_of_a_step_are_not_changed_by_later_steps(closing, kind):
    """Accumulators store the frames of a step after the next step."""
    if kind == "atari":
        environments = atari("Breakout", frame_size=(20, 20))
    else:  # float32 is not converted, so it could be a view
        spaces = gym.spaces.Box(-99, 99, (1,)), gym.spaces.Discrete(2)
        environments = own(lambda: WithSpaces(*spaces))
    closing.append(environments)
    given = [environments.reset(0)]
    copies = [given[0].copy()]
    for _ in range(9):
        result = environments.step(np.ones(2, dtype=np.int64))
        given += [result.observations, result.rewards, result.terminated, result.truncated]
        copies += [array.copy() for array in given[-4:]]
    assert all(np.array_equal(*pair) for pair in zip(given, copies))
    assert not np.array_equal(given[0], given[-4])


class ZeroPolicy:
    """Always takes action 0; records its inputs."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    core_size = 0

    def act(self, inputs, exploration):
        self.seen.append(inputs.observations[:, 0].tolist())
        actions = np.zeros(len(inputs.observations), dtype=np.int64)
        return Decision(actions, inputs.core_state, {})


class Recorder:
    """An accumulator that records its steps."""

    def __init__(self) -> None:
        self.steps = []

    def add(self, step):
        self.steps.append(step)
        return []


def test_loop_clips_rewards_for_learning_and_reports_unclipped_returns(closing):
    environments = own(Countdown)
    closing.append(environments)
    recorder, policy = Recorder(), ZeroPolicy()
    agent = Agent(environments.spec, 2, 0, accumulator=recorder, clip_rewards=True)
    loop = ActingLoop(environments, LocalDecider(policy, agent), seed=0)
    finished = [loop.step() for _ in range(8)]
    both = [(0, 15.0, {}), (1, 15.0, {})]
    assert finished == [[], [], both, [], [], [], both, []]
    assert [step.rewards[0] for step in recorder.steps] == [1, 1, 1, 0, 1, 1, 1, 0]
    ignored = [bool(step.ignored[0]) for step in recorder.steps]
    assert ignored == [False, False, False, True, False, False, False, True]
    assert [seen[0] for seen in policy.seen] == [0, 1, 2, 3, 0, 1, 2, 3]
    # The two ignored steps of each environment do not count.
    assert loop.env_steps == 12 and loop.episodes == 4
    assert list(loop.recent_returns) == [15.0] * 4


def evaluation_of(environments: Environments) -> ActingLoop:
    decider = greedy(ZeroPolicy(), environments.spec, EnvConfig(id="Countdown"), 2)
    return ActingLoop(environments, decider, seed=0)


def test_evaluation_takes_the_same_number_of_episodes_from_each_environment(closing):
    """The first to finish would all come from the environment with short episodes."""
    lengths = iter([1, 4])
    environments = own(lambda: Countdown(next(lengths)))
    closing.append(environments)
    loop = evaluation_of(environments)
    played = play_episodes(loop, 2, 6, lambda: True)
    assert [episode.episode_return for episode in played] == [5.0] * 3 + [20.0] * 3


class BothEnds(Countdown):
    def step(self, action):
        observation, reward, end, _, info = super().step(action)
        return observation, reward, end, end, info


def test_episode_that_is_terminated_and_truncated_at_once_is_one_episode(closing):
    environments = own(BothEnds)
    closing.append(environments)
    loop = evaluation_of(environments)
    played = play_episodes(loop, 2, 4, lambda: True)
    assert [episode.episode_return for episode in played] == [15.0] * 4
    assert loop.episodes == 4 and loop.env_steps == 12


def test_evaluation_ends_early_when_proceed_returns_false(closing):
    environments = own(Countdown)
    closing.append(environments)
    loop = evaluation_of(environments)
    answers = iter([True, True, False])
    assert play_episodes(loop, 2, 2, lambda: next(answers)) is None
    assert loop.env_steps == 4
