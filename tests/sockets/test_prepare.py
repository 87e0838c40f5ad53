"""Preparing a run: what the machine allows, what a resumed run may change."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import msgspec
import pytest
import torch
from click.testing import CliRunner

import apex
from apex.cli.main import main
from apex.cli.options import default_preset
from apex.config.loading import load, read_table
from apex.envs.registry import make_environments
from apex.errors import CheckpointError, ConfigError, EndpointError, EnvError, RunError, UsageError
from apex.host import hardware
from apex.launch import prepare
from apex.launch.preflight import try_config
from apex.plugins import Extensions
from apex.runs.directory import RunDirectory
from tests.support.calls import Call, calls_of, files_of, upward_calls


def cartpole() -> gym.Env:
    return gym.make("CartPole-v1")


def test_atari_settings_that_another_environment_ignores_are_logged(caplog):
    settings = ["env.frame_size=[42, 42]", "env.noop_max=0", "env.life_loss_ends=true"]
    try_config(prepare.preset_config("cartpole", settings))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(
        "env.frame_size, env.noop_max: ignored, as these keys apply to Atari games (ALE/...) only"
    )
    caplog.clear()
    try_config(prepare.preset_config("cartpole", []))
    try_config(prepare.preset_config("pong-fast", settings))
    assert caplog.records == []


def on_machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cores: int = 2,
    total: float = 640e9,
    available: float = 640e9,
    driver: bool = False,
    usable: bool = False,
) -> None:
    """Let preparation see another machine."""
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    monkeypatch.setattr(hardware, "memory_bytes", lambda: int(total))
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: int(available))
    monkeypatch.setattr(hardware, "has_gpu", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)


def actors(*settings: str, preset: str = "pong") -> int:
    """The number of actors that `actor.count = 0` becomes."""
    return prepare.preset_config(preset, ["actor.count=0", *settings]).actor.count


@pytest.mark.parametrize(("cores", "count"), [(1, 2), (2, 2), (3, 2), (4, 3), (5, 4), (8, 6)])
@pytest.mark.parametrize("usable", [False, True])
def test_small_machine_has_an_actor_on_most_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, count: int, usable: bool
) -> None:
    on_machine(monkeypatch, cores=cores, driver=usable, usable=usable)
    assert actors("learner.decode_threads=4", "learner.torch_threads=2") == count


def test_large_machine_leaves_cores_to_each_part_that_needs_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_machine(monkeypatch, cores=16, driver=True, usable=True)
    # The training thread, replay, four decode threads as two, the evaluator.
    assert actors("learner.decode_threads=4") == 16 - 5
    assert actors("learner.decode_threads=1", "evaluator.enabled=false") == 16 - 3
    on_machine(monkeypatch, cores=64, driver=True, usable=True)
    one = "learner.decode_threads=1"
    assert actors(one, "learner.torch_threads=8") == 64 - 4
    assert actors(one, "learner.torch_threads=8", "learner.device=cpu") == 64 - 11
    central = "actor.inference=central"
    assert actors(one, central, "inference.torch_threads=6") == 64 - 5
    on_machine(monkeypatch, cores=64)
    assert actors(one, central, "learner.torch_threads=8", "inference.torch_threads=6") == 64 - 17


@pytest.mark.parametrize(
    ("preset", "count"),
    [("pong", 11), ("breakout", 11), ("pong-impala", 12), ("pong-r2d2", 11), ("pong-seed", 11)],
)
def test_presets_use_the_cores_of_a_gpu_machine(
    monkeypatch: pytest.MonkeyPatch, preset: str, count: int
) -> None:
    on_machine(monkeypatch, cores=16, driver=True, usable=True)
    gpu = prepare.preset_config(preset, [])
    assert gpu.actor.count == count
    on_machine(monkeypatch, cores=16)
    cpu = prepare.preset_config(preset, [])
    assert cpu.actor.count <= 2 and cpu.learner.prefetch < gpu.learner.prefetch


def test_r2d2_makes_as_many_updates_for_a_step_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule of its learning rate counts updates."""
    ratios = set()
    for usable in (False, True):
        on_machine(monkeypatch, driver=usable, usable=usable)
        config = prepare.preset_config("pong-r2d2", [])
        ratios.add(config.replay.samples_per_insert / config.learner.batch_size)
    assert ratios == {0.125}


@pytest.mark.parametrize(
    ("total", "available", "words"),
    [
        (8e9, 8e9, "25 % of this machine's memory"),
        (64e9, 8e9, "25 % of the memory that is available now (8.0 of 64.0 GB)"),
    ],
)
def test_actors_take_a_quarter_of_the_memory_that_is_available(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    total: float,
    available: float,
    words: str,
) -> None:
    on_machine(monkeypatch, cores=64, total=total, available=available)
    assert actors("learner.torch_threads=1") == 5
    assert [one.getMessage() for one in caplog.records] == [
        f"5 actors instead of 60: together they may take {words}"
    ]


@pytest.mark.parametrize(("total", "available"), [(400e6, 900e6), (64e9, 400e6)])
def test_replay_capacity_is_lowered_to_half_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, total: float, available: float
) -> None:
    on_machine(monkeypatch, total=total, available=available)
    config = prepare.preset_config("pong", [])
    run = prepare.prepare_run(tmp_path / "run", config)
    # An item: 100 bytes, 20 bytes of columns, and 27 % of 84 x 84 pixels.
    assert run.config().replay.capacity == int(200e6 / (100 + 20 + 0.27 * 7056))


def test_capacity_of_a_run_does_not_follow_what_is_available_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def among_others(available: float) -> None:
        on_machine(monkeypatch, cores=64, available=available, driver=True, usable=True)

    among_others(400e6)
    run = prepare.prepare_run(tmp_path / "run", prepare.preset_config("pong", []))
    lowered = run.config()
    assert (lowered.replay.capacity, lowered.actor.count) == (98_759, 2)
    for available in (64e9, 1e6):
        among_others(available)
        prepare.check_preset(run, "pong")
        assert prepare.resume_run(run, []) == lowered
    with pytest.raises(UsageError, match="was made from another configuration"):
        prepare.check_preset(run, "pong-fast")


def test_preset_part_is_chosen_by_gpu_and_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_machine(monkeypatch, driver=True, usable=True)
    assert prepare.preset_config("breakout", []).learner.batch_size == 512
    assert prepare.preset_config("breakout", ["learner.device=cpu"]).learner.batch_size == 64
    assert prepare.preset_config("breakout", ["learner.batch_size=7"]).learner.batch_size == 7
    own = tmp_path / "own.toml"
    own.write_text(
        '[env]\nid = "CartPole-v1"\n[algorithm]\nname = "apex_dqn"\n'
        "[gpu.learner]\nbatch_size = 99\n[cpu.learner]\nbatch_size = 11\n"
    )
    assert prepare.configure(read_table(file=own)).learner.batch_size == 99
    on_machine(monkeypatch)
    assert prepare.configure(read_table(file=own)).learner.batch_size == 11


def test_gpu_that_torch_cannot_use_is_reported_and_does_not_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_machine(monkeypatch, driver=True, usable=False)
    assert prepare.preset_config("breakout", []).learner.batch_size == 64
    (warning,) = [one.getMessage() for one in caplog.records]
    assert "cannot use the GPU of this machine" in warning and "`apex doctor` says why" in warning
    assert default_preset() == "pong-fast"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_preset() == "pong"
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)
    assert default_preset() == "pong-fast", "torch is not asked without a driver"


def test_table_too_small_for_the_other_settings_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_machine(monkeypatch, total=100_000)
    config = prepare.preset_config("cartpole", ["replay.min_size=400"])
    # 100 bytes, two observations of 16 and four numbers of 20 an item: 328 fit half of it.
    message = r"50 % of this machine's memory holds 328 items.* at least 400; lower replay\.min"
    with pytest.raises(ConfigError, match=message):
        prepare.prepare_run(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learner = 3\n", "learner: Expected `object`, got `int`"),
        ("cpu = 3\n", "cpu: expected a table of sections, got 3"),
        ("algorithm = 3\n", "algorithm: Expected `object`, got `int`"),
    ],
)
def test_config_file_section_that_is_not_a_table_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str
) -> None:
    on_machine(monkeypatch)
    own = tmp_path / "own.toml"
    own.write_text(text + '[env]\nid = "CartPole-v1"\n')
    with pytest.raises(ConfigError) as error:
        prepare.configure(read_table(file=own))
    assert message in str(error.value)


def is_one_step(call: Call) -> bool:
    """Leave out calls inside the trial, which belong to the environment and the algorithm."""
    return call[0].startswith(("launch/preflight.py", "envs/", "algos/"))


def test_new_run_reads_its_configuration_in_one_pass_and_checks_it_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("APEX_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    words = ["run", "--preset", "cartpole", "--engine", "none"]
    calls = calls_of(lambda: CliRunner().invoke(main, words), is_one_step)
    (made,) = (tmp_path / "runs").iterdir()
    begin = calls.index(("cli/runs.py", "_new"))  # the options are settings now
    end = max(number for number, (_, name) in enumerate(calls) if name == "replace_file")
    files = files_of(calls[begin : end + 1])
    assert files[-1] == "host/files.py" and "launch/preflight.py" in files
    assert len(files) < 40 and upward_calls(files) < 12
    assert calls[: end + 1].count(("config/sections.py", "check")) == 1

    resumed = calls_of(lambda: prepare.resume_run(RunDirectory(made), []), is_one_step)
    assert resumed.count(("config/sections.py", "check")) == 1


def test_config_object_from_a_script_is_checked() -> None:
    config = prepare.preset_config("cartpole", [])
    replay = msgspec.structs.replace(config.replay, capacity=10)
    with pytest.raises(ConfigError, match=r"replay\.min_size"):
        prepare.check_script_config(msgspec.structs.replace(config, replay=replay))
    actor = msgspec.structs.replace(config.actor, count=0)
    fitted = prepare.check_script_config(msgspec.structs.replace(config, actor=actor))
    assert fitted.actor.count >= 2
    env = msgspec.structs.replace(config.env, kwargs={"map": object()})
    with pytest.raises(ConfigError, match=r"type object is unsupported; expected .*TOML can hold"):
        prepare.check_script_config(msgspec.structs.replace(config, env=env))


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("algorithm.lerning_rate=1", ConfigError, "algorithm.lerning_rate: unknown key"),
        ("algorithm.discount=2.0", ConfigError, "algorithm.discount"),
        ("learner.batch_sice=3", ConfigError, "learner.batch_sice"),
    ],
)
def test_resume_refuses_incompatible_settings_and_leaves_the_run_unchanged(
    tmp_path: Path, setting: str, error: type[Exception], message: str
) -> None:
    run = prepare.prepare_run(tmp_path / "run", prepare.preset_config("cartpole", []))
    before = run.config_file.read_text()
    with pytest.raises(error, match=message):
        prepare.resume_run(run, [setting])
    assert run.config_file.read_text() == before


def test_resume_refuses_another_capacity_while_there_is_a_log_and_writes_nothing(
    tmp_path: Path,
) -> None:
    run = prepare.prepare_run(
        tmp_path / "run", prepare.preset_config("cartpole", ["replay.capacity=5000"])
    )
    assert prepare.resume_run(run, ["replay.capacity=4000"]).replay.capacity == 4000
    run.replay.mkdir()
    (run.replay / "segment_0000000000_0011223344556677.log").touch()
    with pytest.raises(ConfigError, match="holds a table of 4000 items, not of 3000"):
        prepare.resume_run(run, ["replay.capacity=3000"])
    assert run.config().replay.capacity == 4000
    prepare.resume_run(run, ["replay.capacity=3000", "replay.durability=off"])


def test_run_from_before_action_masks_has_none_when_its_environment_is_changed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "offers.py"
    file.write_text(
        "import gymnasium as gym\n"
        "class Offers(gym.Wrapper):\n"
        "    def __init__(self, render_mode=None):\n"
        "        super().__init__(gym.make('CartPole-v1'))\n"
        "    def reset(self, **kwargs):\n"
        "        return self.env.reset(**kwargs)[0], {'action_mask': [1, 1]}\n"
        "    def step(self, action):\n"
        "        return *self.env.step(action)[:4], {'action_mask': [1, 1]}\n"
    )
    settings = [f"env.id={file}:Offers", "env.action_masks=false"]
    run = prepare.prepare_run(tmp_path / "run", prepare.preset_config("cartpole", settings))
    lines = run.config_file.read_text().splitlines(keepends=True)
    assert "action_masks = false\n" in lines
    run.config_file.write_text("".join(each for each in lines if "action_masks" not in each))
    assert run.config().env.action_masks is None
    changed = ["env.max_episode_steps=50", "evaluator.env.max_episode_steps=60"]
    resumed = prepare.resume_run(run, changed)
    assert resumed.env.max_episode_steps == 50
    with pytest.raises(ConfigError, match="action_mask"):
        prepare.resume_run(run, ["env.action_masks=true"])


def test_missing_keys_are_reported_when_the_run_is_prepared(tmp_path: Path) -> None:
    endpoints = tmp_path / "endpoints.toml"
    endpoints.write_text(
        'keys = "nothere"\n[replay]\ninsert = "tcp://127.0.0.1:*"\n'
        'sample = "tcp://127.0.0.1:*"\n[learner]\nparams = "tcp://127.0.0.1:*"\n'
    )
    with pytest.raises(EndpointError, match=r"nothere.*`apex keys new"):
        prepare.prepare_run(tmp_path / "run", prepare.preset_config("cartpole", []), endpoints)
    assert not (tmp_path / "run").exists()


def test_resume_refuses_items_of_another_shape(tmp_path: Path) -> None:
    run = prepare.prepare_run(tmp_path / "run", prepare.preset_config("pong", []))
    with pytest.raises(RunError, match=r"schema\.json"):
        prepare.resume_run(run, ["algorithm.n_step=2"])


def test_environment_from_a_script_is_not_looked_up_in_the_registry(tmp_path: Path) -> None:
    config = prepare.preset_config("cartpole", ["env.id=factory:cartpole"])
    run = prepare.prepare_run(tmp_path / "run", config, extensions=Extensions(make_env=cartpole))
    assert load(run.config_file).env.id == "factory:cartpole"
    with pytest.raises(RunError, match="uses cartpole from a script"):
        prepare.resume_run(run, [])
    with pytest.raises(EnvError, match="a script passed this environment"):
        make_environments(config.env, 1)


def test_init_from_is_checked_when_the_run_is_prepared(tmp_path: Path) -> None:
    config = prepare.preset_config("cartpole", [f"run.init_from={tmp_path / 'nothing'}"])
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        prepare.prepare_run(tmp_path / "one", config)
    pretrained = Path(apex.__file__).parent / "pretrained" / "cartpole"
    other = msgspec.structs.replace(
        prepare.preset_config("cartpole", ["env.id=Acrobot-v1"]),
        run=msgspec.structs.replace(config.run, init_from=str(pretrained)),
    )
    with pytest.raises(ConfigError, match=r"init_from: CartPole-v1 has observations \(4,\)"):
        prepare.prepare_run(tmp_path / "two", other)
    assert not (tmp_path / "one").exists() and not (tmp_path / "two").exists()
