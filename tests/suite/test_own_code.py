"""User-defined algorithms and environments: loaded by name and run by the whole suite."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import gymnasium as gym
import msgspec
import numpy as np
import pytest
import torch

import apex
from apex import plugins
from apex.acting.decisions import Inputs
from apex.algos.apex_dqn import ApexDQN
from apex.algos.base import Update
from apex.algos.registry import algorithm_class
from apex.config.loading import read_table
from apex.data import frame_compression
from apex.data.schema import Column
from apex.errors import ConfigError, EnvError, RunError, UsageError
from apex.evaluation.trained_policy import TrainedPolicy
from apex.launch.prepare import configure, prepare_run, preset_config, resume_run, run_name
from apex.launch.single_process import SerialRun
from apex.plugins import Extensions
from apex.runs import checkpoint
from tests.support.paths import ROOT
from tests.support.suite import CALM, Suite

EXAMPLES = ROOT / "examples"
MUNCHAUSEN = f"{EXAMPLES}/munchausen.py:Munchausen"


@pytest.fixture
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Forget the modules that a test imported from its own files, and their paths."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith((f"{tmp_path}/", f"{EXAMPLES}/")):
            del sys.modules[name]


def test_algorithm_in_a_file_is_found_from_any_directory(own_modules, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("from apex.algos.apex_dqn import ApexDQN")
    (tmp_path / "own_algo.py").write_text("from beside import ApexDQN\nclass Mine(ApexDQN): pass")
    monkeypatch.chdir(tmp_path)
    names = {plugins.absolute(name) for name in ("own_algo.py:Mine", "own_algo:Mine")}
    assert names == {f"{tmp_path}/own_algo.py:Mine"}
    assert plugins.absolute("apex_dqn") == "apex_dqn"
    assert plugins.absolute("apex.algos.impala:Impala") == "apex.algos.impala:Impala"
    monkeypatch.chdir("/")
    kind = algorithm_class(f"{tmp_path}/own_algo.py:Mine")
    assert kind.__name__ == "Mine" and issubclass(kind, ApexDQN)
    assert algorithm_class("apex.algos.impala:Impala").__name__ == "Impala"


def test_algorithm_of_an_installed_package_is_found_by_its_entry_point(
    own_modules, tmp_path, monkeypatch
):
    (tmp_path / "package_of_mine.py").write_text(
        "from apex.algos.apex_dqn import ApexDQN\nclass Packaged(ApexDQN): pass"
    )
    facts = tmp_path / "package_of_mine-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: package-of-mine\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[apex.algorithms]\npackaged = package_of_mine:Packaged\nbroken = package_of_mine:Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert algorithm_class("packaged").__name__ == "Packaged"
    with pytest.raises(ConfigError, match="loading package_of_mine:Nothing raised AttributeError"):
        algorithm_class("broken")
    with pytest.raises(ConfigError, match=r"expected one of apex_dqn, apex_dpg, .*packaged"):
        algorithm_class("unknown")


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1", "Missing", "it defines no class 'Missing'"),
        ("Number = 3", "Number", r"expected a subclass of apex\.api\.Algorithm, got 3"),
        ("import torch\nclass Net(torch.nn.Module): pass", "Net", "expected a subclass"),
        (
            "from apex.algos.transition_batches import TransitionAlgorithm\n"
            "class Half(TransitionAlgorithm): pass",
            "Half",
            r"Half must define exploration, policy; see apex\.api\.Algorithm",
        ),
        (
            "from apex.api import QAlgorithm\nclass Half(QAlgorithm): pass",
            "Half",
            r"Half must define network, td_error or loss; see apex\.api\.Algorithm",
        ),
        ("from nowhere import something", "Any", "No module named 'nowhere'"),
        ("def broken(:", "Any", "raised SyntaxError"),
    ],
)
def test_invalid_algorithm_class_is_reported(own_modules, tmp_path, text, name, message):
    (tmp_path / "wrong_algo.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        algorithm_class(f"{tmp_path}/wrong_algo.py:{name}")


def test_run_without_a_preset_is_named_after_its_environment():
    config = configure(read_table(settings=["env.id=examples/catch.py:Catch", "actor.count=1"]))
    assert (config.algorithm, config.replay.min_size) == ({"name": "apex_dqn"}, 1000)
    assert run_name(config) == "catch"
    with pytest.raises(UsageError, match="--preset NAME, --config FILE or --env ID"):
        read_table(settings=["actor.count=1"])


WRONG = """
import torch
from apex.algos.apex_dqn import ApexDQN
class Raises(ApexDQN):
    def network(self):
        raise ValueError("no such layer")
class Narrow(ApexDQN):
    def network(self):
        return torch.nn.Linear(3, 2)
class NoLearner(ApexDQN):
    def learner(self, device):
        return None
class WrongActions(ApexDQN):
    def policy(self):
        policy = super().policy()
        act = policy.act
        policy.act = lambda i, e: act(i, e)._replace(actions=torch.zeros(1))
        return policy
class Explores(ApexDQN):
    def exploration(self, place):
        return lambda values: values.argmax()
class Seven(ApexDQN):
    def network(self):
        net = torch.nn.Linear(4, 7)
        torch.nn.init.constant_(net.bias, 0.0)
        with torch.no_grad():
            net.bias[6] = 100.0
        return net
class NoSection(ApexDQN):
    Config = dict
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Raises",
            r"CartPole-v1, .*raised ValueError: no such layer \(wrong_parts.py, line 6, in ne",
        ),
        ("Narrow", r"observations \(4,\) float32: it raised RuntimeError: mat1 and mat2 shapes"),
        ("NoLearner", r"expected learner\(\) to return an apex.api.Learner, got a NoneType"),
        (
            "WrongActions",
            r"to return a NumPy array int64 \(2,\): .*; got torch.float32 ",
        ),
        (
            "Explores",
            r"has no len\(\); check what its policy and exploration return",
        ),
        ("Seven", r"its policy, greedy, to return .*; got int64 \(2,\) \[6 6\]"),
        ("NoSection", "NoSection must define Config"),
    ],
)
def test_broken_algorithm_is_reported_before_the_run_is_prepared(
    own_modules, tmp_path, name, message
):
    (tmp_path / "wrong_parts.py").write_text(WRONG)
    settings = [f"algorithm.name={tmp_path}/wrong_parts.py:{name}"]
    with pytest.raises(ConfigError, match=message):
        prepare_run(tmp_path / "run", preset_config("cartpole", settings))
    assert not (tmp_path / "run").exists()


class Answers(ApexDQN):
    """Algorithm whose learner returns its updates in another form."""

    @staticmethod
    def form(learner, priorities, metrics):
        raise NotImplementedError

    def learner(self, device):
        learner = super().learner(device)
        update = learner.update
        learner.update = lambda batch: self.form(learner, *update(batch))
        return learner


class Means(Answers):
    """One priority for the whole batch."""

    @staticmethod
    def form(learner, priorities, metrics):
        return Update(priorities.mean(), metrics)


class Tensors(Answers):
    """float32 tensors, and a metric with a gradient."""

    @staticmethod
    def form(learner, priorities, metrics):
        weight = next(learner.network.parameters()).sum()
        return Update(priorities.float(), {**metrics, "weight": weight})


class Pairs(Answers):
    """The form of apex 0.1: NumPy priorities, and metrics as Python numbers."""

    @staticmethod
    def form(learner, priorities, metrics):
        return priorities.double().numpy(), {"loss": float(metrics["loss"].detach())}


def test_priorities_may_have_any_type_but_must_be_one_per_item(tmp_path):
    settings = ["replay.min_size=100", "run.max_env_steps=400", "evaluator.enabled=false"]
    config = preset_config("cartpole", settings)
    for kind in (Tensors, Pairs):
        good = Extensions(algorithm=kind)
        run = SerialRun(prepare_run(tmp_path / kind.__name__, config, extensions=good), good)
        with (
            nullcontext()
            if kind is Tensors
            else pytest.warns(FutureWarning, match="apex.api.Update")
        ):
            assert "env steps" in run.run() and run.trainer.learner_step > 10
    bad = Extensions(algorithm=Means)
    with pytest.raises(
        ConfigError, match=r"LossLearner.update returned priorities of shape \(\); .*64"
    ):
        SerialRun(prepare_run(tmp_path / "bad", config, extensions=bad), bad).run()


def test_preset_keys_that_the_algorithm_does_not_have_are_ignored(own_modules, caplog):
    caplog.set_level("INFO")
    config = preset_config("cartpole", [f"algorithm.name={MUNCHAUSEN}", "algorithm.n_step=2"])
    assert (config.algorithm["n_step"], config.algorithm["hidden"]) == (2, [128])
    assert "stream_hidden" not in config.algorithm
    missing = "preset keys ignored because Munchausen does not have them: stream_hidden"
    assert missing in caplog.text
    own = f"algorithm.name={MUNCHAUSEN}"
    config = preset_config("cartpole", [own, "algorithm.stream_hidden=[1]"])
    with pytest.raises(ConfigError, match=r"algorithm\.stream_hidden: unknown key"):
        prepare_run(EXAMPLES / "none", config)


def test_run_with_an_algorithm_from_a_script_is_neither_resumed_nor_played(tmp_path):
    class Scripted(ApexDQN):
        """An algorithm that is not in a file of its own."""

    settings = ["replay.min_size=100", "run.max_env_steps=300", "evaluator.enabled=false"]
    extensions = Extensions(algorithm=Scripted)
    config = plugins.with_extensions(preset_config("cartpole", settings), extensions)
    run = prepare_run(tmp_path / "run", config, extensions=extensions)
    assert run.config().algorithm["name"] == "factory:Scripted"
    SerialRun(run, extensions).run()
    with pytest.raises(RunError, match="uses Scripted from a script, which the run does not store"):
        resume_run(run, [])
    with pytest.raises(ConfigError, match=r"Scripted came from a script .*--algorithm file.py:Cl"):
        apex.load_policy(run.path)
    policy = TrainedPolicy(checkpoint.find(run.path), extensions)
    assert policy.act([0.0, 0.0, 0.15, 0.8]) in (0, 1)


def test_setting_gives_the_new_path_of_an_algorithm_that_was_moved(
    own_modules, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLES / "own_network.py", tmp_path / "first.py")
    settings = ["replay.min_size=100", "run.max_env_steps=300", "evaluator.enabled=false",
                "algorithm.name=first.py:WideDQN"]  # fmt: skip
    run = prepare_run(tmp_path / "run", preset_config("cartpole", settings))
    SerialRun(run).run()
    (tmp_path / "first.py").rename(tmp_path / "second.py")
    with pytest.raises(
        ConfigError, match=r"no such file.*new path: --set algorithm.name=path/to/f"
    ):
        apex.load_policy(run.path)
    policy = apex.load_policy(run.path, ["algorithm.name=second.py:WideDQN"])
    assert policy.act([0.0, 0.0, 0.15, 0.8]) in (0, 1)

    resume_run(run, ["algorithm.name=second.py:WideDQN"])
    assert run.config().algorithm["name"] == f"{tmp_path}/second.py:WideDQN"
    with pytest.raises(ConfigError, match=r"env\.id: Acrobot-v1 has observations \(6,\)"):
        resume_run(run, ["env.id=Acrobot-v1"])


class Falls(gym.Env):
    """Environment that raises at its second step."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        if self.steps == 2:
            raise ValueError("fell over")
        return self.observation_space.sample(), 0.0, False, False, {}


def test_environment_that_fails_at_once_is_reported_before_the_run_is_prepared(tmp_path):
    config = preset_config("cartpole", [])
    message = r"step 2 raised ValueError: fell over \(test_own_code.py, line \d+, in step\)"
    with pytest.raises(EnvError, match=message):
        prepare_run(tmp_path / "run", config, extensions=Extensions(Falls))
    assert not (tmp_path / "run").exists()


def test_munchausen_example_trains_as_a_whole_suite_and_is_resumed(suite: Suite) -> None:
    """Train, evaluate, load and resume an algorithm of one file outside the package."""
    suite.start(
        "--algorithm", MUNCHAUSEN, *CALM, "--seed", "1", "--actors", "2",
        "--set", "replay.samples_per_insert=4", "--set", "learner.batch_size=64",
        "--set", "learner.metrics_period_s=1", "--set", "evaluator.period_s=1",
        "--set", "evaluator.num_envs=2", "--set", "evaluator.episodes=2",
        "--set", "actor.inference=central",
    )  # fmt: skip
    suite.wait_for(
        lambda s: s["evaluator"]["best_mean_return"] and s["learner"]["learner_step"] > 100,
        120.0,
        "it trains and is evaluated",
    )
    assert suite.apex("stop").returncode == 0
    done = suite.apex("eval", "--episodes", "2", "--json")
    assert json.loads(done.stdout)["mean_return"] >= 8, done.stderr
    assert apex.load_policy(suite.path).act([0.0, 0.0, 0.15, 0.8]) in (0, 1)
    rows = (suite.run.metrics / "learner.jsonl").read_text().splitlines()
    assert -0.9 <= json.loads(rows[-1])["bonus"] <= 0.0, "its own metric is logged"

    (newest, *_) = sorted(suite.run.checkpoints.glob("step_*"), reverse=True)
    step = checkpoint.find(newest).manifest.learner_step
    suite.start("--resume")
    suite.wait_for(
        lambda s: (s["learner"].get("learner_step") or 0) > step + 100, 60.0, "it goes on"
    )
    log = (suite.run.logs / "learner.log").read_text()
    assert f"learner step {step}" in log


def test_user_defined_network_trains_on_a_user_defined_environment(suite: Suite) -> None:
    suite.start(
        "--algorithm", f"{EXAMPLES}/own_network.py:WideDQN", "--env", f"{EXAMPLES}/catch.py:Catch",
        "--set", "algorithm.width=32", "--actors", "2",
        "--set", "replay.min_size=200", "--set", "evaluator.period_s=2", "--engine", "local",
    )  # fmt: skip
    status = suite.wait_for(
        lambda s: (
            s["run"]["health"] == "healthy" and s["evaluator"]["best_mean_return"] is not None
        ),
        90.0,
        "healthy, and evaluated",
    )
    assert status["learner"]["learner_step"] > 0 and len(status["actors"]) == 2
    assert -1.0 <= status["evaluator"]["best_mean_return"] <= 1.0
    assert suite.run.facts().env.env_id == "catch.py:Catch"
    suite.apex("stop")
    policy = apex.load_policy(suite.path)
    assert policy.policy.network[1].out_features == 32
    assert policy.act([0.0, 0.5, 0.5]) in (0, 1, 2)


class Pair(gym.Env):
    """Environment with two choices per step; each that equals its observation earns 1."""

    observation_space = gym.spaces.MultiDiscrete([3, 2])
    action_space = gym.spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._wanted = self.np_random.integers(0, [3, 2])
        return self._wanted, {}

    def step(self, action):
        reward = float((action == self._wanted).sum())
        self._wanted = self.np_random.integers(0, [3, 2])
        return self._wanted, reward, self.np_random.random() < 0.1, False, {}


class Joint(ApexDQN):
    """Ape-X DQN that treats each pair of choices as one of six actions."""

    action_kinds = frozenset({"multi-discrete"})

    def network(self):
        spec = msgspec.structs.replace(self.spec, num_actions=6, action_bounds=None)
        return ApexDQN(self.config, spec).network()

    def exploration(self, place):
        spec = msgspec.structs.replace(self.spec, num_actions=6, action_bounds=None)
        return ApexDQN(self.config, spec).exploration(place)

    def policy(self):
        policy = super().policy()
        act = policy.act

        def act_in_pairs(inputs, exploration):
            decision = act(inputs, exploration)
            pairs = np.stack(np.divmod(decision.actions, 2), axis=1)
            return decision._replace(actions=pairs)

        policy.act = act_in_pairs
        return policy

    def collate(self, items):
        batch = super().collate(items)
        return batch._replace(action=batch.action @ torch.tensor([2, 1], dtype=torch.int32))


def test_multi_discrete_actions_are_learned_by_an_algorithm_that_supports_them(tmp_path):
    config = preset_config(
        "cartpole",
        ["replay.min_size=200", "run.max_env_steps=8000", "evaluator.enabled=false",
         "algorithm.discount=0.0", "algorithm.n_step=1", "algorithm.learning_rate=3e-3"],
    )  # fmt: skip
    extensions = Extensions(Pair, Joint)
    directory = prepare_run(tmp_path / "run", config, extensions=extensions)
    spec = directory.facts().env
    assert (spec.action_kind, spec.policy_shape) == ("multi-discrete", (5,))
    assert spec.action_column == Column("action", "int32", (2,))
    run = SerialRun(directory, extensions)
    run.run()
    policy = run.policy
    seen = np.eye(5, dtype=np.float32)[[[0, 3], [1, 4], [2, 3]]].sum(axis=1)
    inputs = Inputs(seen, np.zeros((3, 0), np.float32), spec.no_actions(3), np.zeros(3, np.float32))
    assert policy.act(inputs, None).actions.tolist() == [[0, 0], [1, 1], [2, 0]]


def test_minatar_trains_on_boolean_observations_as_images(own_modules, tmp_path, monkeypatch):
    pytest.importorskip("minatar")
    monkeypatch.chdir(ROOT)
    settings = ["replay.min_size=300", "run.max_env_steps=1500", "evaluator.enabled=false"]
    config = configure(read_table(file=EXAMPLES / "minatar-breakout.toml", settings=settings))
    directory = prepare_run(tmp_path / "run", config)
    run = SerialRun(directory)
    assert "env steps (max_env_steps = 1500)" in run.run() and run.trainer.learner_step > 20
    spec, schema = directory.facts().env, directory.facts().schema
    assert (spec.observation_shape, spec.frame_stack) == ((10, 10, 4), 1)
    assert spec.observation_dtype == "uint8" and spec.num_actions == 3
    items = frame_compression.decompress(run.table.sample(64), schema)
    assert set(np.unique(items.frames).tolist()) == {0, 255}


def test_examples_are_at_most_as_long_as_documented():
    text = (EXAMPLES / "munchausen.py").read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 50
    body = Path(EXAMPLES / "catch.py").read_text().partition("class Catch")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
