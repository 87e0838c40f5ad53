"""Configuration: validation, overrides, presets, files."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from apex.algos.registry import algorithm_class, make_algorithm
from apex.config import sections as configuration
from apex.config.conversion import convert
from apex.config.loading import dump, load, merge, override, parse, preset_names, read_toml
from apex.config.sections import Config
from apex.envs.spec import ActionBounds
from apex.errors import ConfigError
from apex.launch.prepare import check_script_config
from tests.support.builders import env_spec, preset

SMALLEST = {"env": {"id": "CartPole-v1"}, "algorithm": {"name": "apex_dqn"}}


def with_values(**sections: dict[str, object]) -> dict[str, object]:
    return merge(SMALLEST, sections)


def refusal(raw: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as error:
        parse(raw)
    return str(error.value)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            with_values(learner={"batch_sise": 3}),
            "learner.batch_sise: unknown key; did you mean 'batch_size'?",
        ),
        (
            with_values(replay={"capasity": 3}),
            "replay.capasity: unknown key; did you mean 'capacity'?",
        ),
        (with_values(lerner={}), "lerner: unknown key; did you mean 'learner'?"),
        (with_values(actor={"xyzzy": 3}), "actor.xyzzy: unknown key"),
        (
            with_values(learner={"batch-size": 3}),
            "learner.batch-size: unknown key; did you mean 'batch_size'?",
        ),
    ],
)
def test_unknown_key_is_refused_by_path_with_the_closest_one(raw, expected):
    assert refusal(raw) == expected


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("learner", "batch_size", "32"),
        ("learner", "batch_size", 32.5),
        ("learner", "batch_size", True),
        ("learner", "batch_size", 0),
        ("replay", "priority_exponent", 1.5),
        ("replay", "priority_exponent", -0.1),
        ("replay", "selector", "priority"),
        ("replay", "samples_per_insert", -1.0),
        ("env", "id", 3),
        ("env", "frame_size", [84]),
        ("env", "frame_size", [84, 0]),
        ("env", "obs_type", "color"),
        ("evaluator", "max_share", 0.0),
        ("run", "seed", -1),
        ("run", "seed", 2**64),
        ("actor", "num_envs", [8]),
        ("actor", "count", 10_001),
        ("actor", "nice", 20),
        ("inference", "nice", 10**12),
        ("learner", "nice", -1),
        ("evaluator", "nice", 20),
        ("actor", "torch_threads", 1025),
        ("inference", "torch_threads", 1025),
        ("evaluator", "torch_threads", 0),
        ("learner", "torch_threads", 0),
        ("learner", "decode_threads", 1025),
        ("learner", "batch_size", 65_537),
        ("learner", "prefetch", 65),
        ("evaluator", "max_share", 1.5),
        ("env", "repeat_action_probability", 1.5),
    ],
)
def test_wrong_value_is_refused_by_path(section, key, value):
    assert refusal(with_values(**{section: {key: value}})).startswith(f"{section}.{key}")
    made = parse(SMALLEST)
    part = msgspec.structs.replace(getattr(made, section), **{key: value})
    with pytest.raises(ConfigError, match=rf"^{section}\.{key}"):  # as from a script
        check_script_config(msgspec.structs.replace(made, **{section: part}))


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    "key",
    ["run.until_return", "run.max_hours", "run.log_max_mb", "algorithm.max_gradient_norm",
     "algorithm.own.deep", "env.kwargs.gravity", "env.kwargs.all[1]"],
)  # fmt: skip
def test_number_that_is_not_finite_is_refused_by_path_and_with_a_remedy(key, value):
    """A checkpoint's manifest is JSON, which cannot hold it: the checkpoint would be unreadable."""
    path, listed, _ = key.partition("[")
    raw = override(SMALLEST, [f"{path}=[1.0, {value}]" if listed else f"{path}={value}"])
    message = f"{key}: expected a finite number, got {value}; write a large one, such as 1e30"
    assert refusal(raw) == message


ALGORITHMS = {
    "apex_dqn": {
        "epsilon": (2.5, 1.01, -0.1), "epsilon_alpha": (-1.0,), "rmsprop_decay": (1.0, 1.5, -0.1),
        "importance_sampling_exponent": (5.0, 1.01, -0.1), "discount": (1.01, -0.1),
        "learning_rate": (0.0, -1.0), "final_learning_rate_fraction": (1.5, -0.1),
        "learning_rate_decay_steps": (-1,), "optimizer_epsilon": (0.0,), "n_step": (0,),
        "max_gradient_norm": (0.0,), "target_update_period": (0,), "hidden": ([0],),
        "stream_hidden": ([-1],), "conv": ([[0, 8, 4]], [[32, 0, 4]], [[32, 8, 0]]),
    },
    "apex_dpg": {
        "noise": (0.0,), "smallest_noise": (0.0, 0.31), "actor_learning_rate": (0.0,),
        "action_gradient_clip": (0.0,), "actor_hidden": ([], [0]), "critic_hidden": ([], [0]),
        "importance_sampling_exponent": (5.0,), "rmsprop_decay": (1.0,),
    },
    "r2d2": {
        "epsilon": (2.5,), "importance_sampling_exponent": (5.0,), "priority_eta": (1.1, -0.1),
        "burn_in": (-1,), "unroll_length": (0,), "overlap": (80, -1), "n_step": (0,),
        "lstm": (-1,), "rmsprop_decay": (1.0,), "residual": ([0],),
    },
    "impala": {
        "rmsprop_decay": (1.0,), "unroll_length": (0,), "rho_clip": (0.0, 0.5), "c_clip": (0.0, 2),
        "baseline_cost": (-1.0,), "entropy_cost": (-0.1,), "discount": (1.5,), "lstm": (-1,),
    },
}  # fmt: skip
"""Values out of range, by algorithm and key."""


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [(name, key, one) for name, keys in ALGORITHMS.items() for key in keys for one in keys[key]],
)
def test_setting_of_an_algorithm_that_is_out_of_range_is_refused_by_name(name, key, value):
    spec = env_spec((4,), "float32")
    if name == "apex_dpg":
        bounds = ActionBounds("float32", (2,), (-1.0, -1.0), (1.0, 1.0))
        spec = msgspec.structs.replace(spec, num_actions=0, action_bounds=bounds)
    make_algorithm({"name": name}, spec)
    with pytest.raises(ConfigError, match=rf"algorithm.*\b{key}\b"):
        make_algorithm({"name": name, key: value}, spec)


def test_number_out_of_range_is_named_beside_its_range():
    assert refusal(with_values(learner={"batch_size": 0})) == (
        "learner.batch_size: Expected `int` >= 1, got 0"
    )
    assert refusal(with_values(env={"frame_size": [84, -3]})) == (
        "env.frame_size[1]: Expected `int` >= 1, got -3"
    )
    with pytest.raises(ConfigError) as error:
        make_algorithm({"name": "apex_dqn", "epsilon": 2.5}, env_spec((4,), "float32"))
    assert str(error.value) == (
        "algorithm.epsilon: Expected `float` <= 1.0, got 2.5 (algorithm apex_dqn)"
    )


def test_range_limits_are_accepted():
    spec = env_spec((4,), "float32")
    for epsilon in (0.0, 1.0):
        ends = {"epsilon": epsilon, "rmsprop_decay": 0.0, "importance_sampling_exponent": epsilon}
        assert make_algorithm({"name": "r2d2", **ends}, spec).config.epsilon == epsilon
    largest = {"actor": {"count": 10_000, "nice": 19}, "learner": {"batch_size": 65_536}}
    assert parse(with_values(**largest)).actor.nice == 19


@pytest.mark.parametrize("missing", ["env", "algorithm"])
def test_missing_section_is_refused_by_name(missing):
    assert missing in refusal({k: v for k, v in SMALLEST.items() if k != missing})


def test_missing_env_id_is_refused_by_name():
    message = refusal({**SMALLEST, "env": {}})
    assert "env" in message and "`id`" in message


def test_section_that_is_not_a_table_is_refused():
    assert refusal({**SMALLEST, "learner": 3}).startswith("learner")


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({"env": {"id": "X-v0"}, "algorithm": {}}, ["algorithm.name"]),
        (
            with_values(replay={"capacity": 100, "min_size": 101}),
            ["replay.min_size (101)", "replay.capacity (100)"],
        ),
        (
            with_values(replay={"capacity": 10, "min_size": 5}, actor={"chunk_length": 11}),
            ["actor.chunk_length", "replay.capacity"],
        ),
        (with_values(replay={"selector": "fifo"}), ["replay.max_times_sampled"]),
        (
            with_values(evaluator={"episodes": 10, "num_envs": 4}),
            ["evaluator.episodes (10)", "evaluator.num_envs (4)"],
        ),
        # A queue that cannot hold one batch never serves one.
        (
            with_values(
                replay={"selector": "fifo", "max_times_sampled": 1, "capacity": 20, "min_size": 1},
                actor={"chunk_length": 10},
                learner={"batch_size": 32},
            ),
            ["learner.batch_size", "replay.capacity"],
        ),
        # Two samples for each insert, but items may be sampled once.
        (
            with_values(
                replay={"max_times_sampled": 1, "samples_per_insert": 2.0},
            ),
            ["replay.samples_per_insert", "replay.max_times_sampled"],
        ),
    ],
    ids=["name", "min_size", "chunk", "fifo", "episodes", "queue_below_batch", "ratio_above_times"],
)
def test_inconsistent_values_are_refused_by_name(raw, named):
    message = refusal(raw)
    assert all(name in message for name in named)


def test_tolerance_that_could_deadlock_is_refused_with_the_smallest_safe_one():
    limits = {
        "actor": {"chunk_length": 50},
        "learner": {"batch_size": 32, "prefetch": 4},
    }
    # 32 x 4 + 8 x 50 = 528
    message = refusal(with_values(replay={"samples_per_insert": 8.0, "tolerance": 527.0}, **limits))
    assert "replay.tolerance = 527" in message and "528" in message
    for tolerance in (528.0, 0.0):
        replay = {"samples_per_insert": 8.0, "tolerance": tolerance}
        assert parse(with_values(replay=replay, **limits)).min_tolerance == 528.0
    # Without a ratio there is no deadlock.
    parse(with_values(replay={"tolerance": 1.0}, **limits))


def test_episodes_are_not_checked_when_the_evaluator_is_off():
    config = parse(with_values(evaluator={"enabled": False, "episodes": 10, "num_envs": 4}))
    assert config.evaluator.episodes == 10


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("learner.batch_size=256", 256),
        ("learner.batch_size = 256", 256),
        ("run.max_hours=1.5", 1.5),
        ("evaluator.enabled=false", False),
        ("env.id=ALE/Pong-v5", "ALE/Pong-v5"),
        ('env.id="3"', "3"),
        ("learner.device=cuda:1", "cuda:1"),
        ("env.frame_size=[42, 42]", [42, 42]),
        ("env.kwargs.map=a=b", "a=b"),
    ],
)
def test_override_takes_toml_values_or_plain_strings(setting, expected):
    result = override(SMALLEST, [setting])
    *sections, key = setting.partition("=")[0].strip().split(".")
    for section in sections:
        result = result[section]
    assert result[key] == expected and type(result[key]) is type(expected)


def test_last_override_wins_and_other_keys_keep_their_values():
    raw = override(with_values(learner={"prefetch": 7}), ["learner.batch_size=1"] * 2)
    raw = override(raw, ["learner.batch_size=2", "learner.batch_size=3"])
    assert raw["learner"] == {"prefetch": 7, "batch_size": 3}
    assert SMALLEST == {"env": {"id": "CartPole-v1"}, "algorithm": {"name": "apex_dqn"}}


@pytest.mark.parametrize("setting", ["batch_size=3", "learner.batch_size", "=3", "learner.=3", ""])
def test_override_without_section_or_value_is_refused(setting):
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        override(SMALLEST, [setting])


def test_merge_overrides_keys_and_leaves_both_tables_unchanged():
    base, over = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "b": {"z": 4}}
    assert merge(base, over) == {"a": {"x": 1, "y": 3}, "b": {"z": 4}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1} and over == {"a": {"y": 3}, "b": {"z": 4}}


def test_readme_names_every_preset():
    assert preset_names() == [
        "ant-dpg", "breakout", "cartpole", "cartpole-impala", "cartpole-r2d2", "cartpole-seed",
        "dm-control-dpg", "halfcheetah-dpg", "lunarlander", "minatar", "minigrid", "pendulum-dpg",
        "pong", "pong-fast", "pong-impala", "pong-r2d2", "pong-seed", "vizdoom",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "gpu"), list(itertools.product(preset_names(), [False, True])))
def test_preset_is_valid_on_every_machine(name, gpu):
    config = parse(preset(name, gpu=gpu))
    frames = config.env.id.startswith(("ALE", "MinAtar", "MiniGrid", "Vizdoom"))
    spec = env_spec(config.env.frame_size, stack=4) if frames else env_spec((4,), "float32")
    if name.endswith("dpg"):
        bounds = ActionBounds("float32", (2,), (-1.0, -1.0), (1.0, 1.0))
        spec = msgspec.structs.replace(spec, num_actions=0, action_bounds=bounds)
    algorithm = make_algorithm(config.algorithm, spec)
    assert algorithm.config.name == config.algorithm["name"]


@pytest.mark.parametrize(("name", "gpu"), list(itertools.product(preset_names(), [False, True])))
def test_no_preset_ends_with_a_learning_rate_of_zero(name, gpu):
    """Preset runs have no end: training after the last decay step would learn nothing."""
    config = parse(preset(name, gpu=gpu))
    kind = algorithm_class(config.algorithm["name"])
    section = convert(config.algorithm, kind.Config)
    assert not section.learning_rate_decay_steps or section.final_learning_rate_fraction > 0


def test_breakout_on_a_gpu_has_the_papers_settings():
    gpu = parse(preset("breakout", gpu=True))
    assert (gpu.learner.batch_size, gpu.replay.min_size) == (512, 50_000)
    assert gpu.replay.capacity == 2_000_000 and gpu.learner.prefetch == 16
    paper = make_algorithm(gpu.algorithm, env_spec((84, 84), stack=4)).config
    assert (paper.n_step, paper.optimizer, paper.learning_rate) == (3, "rmsprop", 6.25e-5)
    assert (paper.loss, paper.max_gradient_norm, paper.discount) == ("squared", 40.0, 0.99)
    assert (paper.target_update_period, paper.importance_sampling_exponent) == (2500, 0.4)
    assert not paper.standardize_frames and not paper.learning_rate_decay_steps
    assert (gpu.replay.priority_exponent, gpu.actor.chunk_length) == (0.6, 50)
    assert gpu.actor.parameter_period * gpu.env.frame_skip == 400
    assert gpu.env.clip_rewards and gpu.env.max_episode_frames == 50_000


@pytest.mark.parametrize("gpu", [False, True])
def test_pong_has_the_papers_network_and_frames(gpu):
    config = parse(preset("pong", gpu=gpu))
    assert config.env.frame_size == (84, 84) and not config.env.life_loss_ends
    assert config.algorithm["conv"] == [[32, 8, 4], [64, 4, 2], [64, 3, 1]]
    assert config.algorithm["stream_hidden"] == [512] and "hidden" not in config.algorithm


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no preset 'pnog'.*pong"):
        preset("pnog", gpu=False)


@pytest.mark.parametrize("name", preset_names())
def test_dumped_configuration_reads_back_equal(tmp_path, name):
    config = parse(override(preset(name, gpu=False), ["run.until_return=18", 'run.init_from="a"']))
    path = tmp_path / "config.toml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(path) == config and load(path).run.until_return == 18.0


def test_dumped_configuration_keeps_odd_text_and_kwargs(tmp_path):
    kwargs = {"text": 'a"b\\c\nü', "list": [1, 2.5], "table": {"deep": True}}
    config = parse(with_values(env={"kwargs": kwargs}))
    path = tmp_path / "config.toml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(path) == config and load(path).env.kwargs == kwargs


def test_file_errors_name_the_file(tmp_path):
    path = tmp_path / "config.toml"
    with pytest.raises(ConfigError, match=r"config\.toml: no such file"):
        load(path)
    path.write_text("[learner\n")
    with pytest.raises(ConfigError, match=r"config\.toml: .*line 1"):
        load(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigError, match=r"config\.toml: "):
        load(path)
    path.write_text('[env]\nid = "X"\n[algorithm]\nname = "a"\n[learner]\nbatch_size = "3"\n')
    with pytest.raises(ConfigError, match=r"config\.toml: learner\.batch_size"):
        load(path)


def test_file_with_a_byte_order_mark_is_read_and_another_encoding_is_named(tmp_path):
    path, text = tmp_path / "config.toml", '[env]\r\nid = "Caf\xe9-v1"\r\n'
    path.write_bytes(text.encode("utf-8-sig"))
    assert read_toml(path) == {"env": {"id": "Caf\xe9-v1"}}
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ConfigError, match=r"config\.toml: expected UTF-8, got UTF-16; save"):
        read_toml(path)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"got another encoding \('utf-8' codec can't decode"):
        read_toml(path)


def test_every_field_is_frozen():
    config = parse(SMALLEST)
    with pytest.raises(AttributeError):
        config.learner.batch_size = 3
    assert isinstance(config, Config) and configuration.check(config) is None
