"""The doctor's checks against literal numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from apex.algos.registry import make_algorithm
from apex.cli.doctor import lines_of, summary
from apex.config.loading import parse
from apex.data.schema import Column, FramesColumn, Schema
from apex.doctor import (
    cuda_learner,
    environment,
    gpu,
    left_sockets,
    limits,
    memory,
    packages,
    system,
)
from apex.doctor.activations import activation_bytes
from apex.doctor.findings import Finding, guarded
from apex.host import hardware
from apex.launch import open_files
from apex.launch.open_files import Limits
from apex.launch.prepare import preset_config
from tests.support.builders import env_spec, preset
from tests.support.findings import only
from tests.support.paths import ROOT


def test_findings_are_printed_with_the_expected_value_and_the_remedy() -> None:
    good = Finding("cores", "ok", "2 cores", "at most 2")
    bad = Finding("disk", "problem", "1 MB free\n", "2 MB", "make room")
    assert [click.unstyle(line) for line in (*lines_of(good), *lines_of(bad))] == [
        "ok       cores           2 cores (expected: at most 2)",
        "problem  disk            1 MB free",
        "                         expected: 2 MB",
        "                         remedy:   make room",
    ]
    assert summary([good, bad, bad]) == "1 ok, 0 note, 0 warning, 2 problem"


def test_check_that_fails_becomes_a_finding() -> None:
    def check() -> Iterator[Finding]:
        yield Finding("disk", "ok", "first")
        raise ValueError("no such thing")

    first, failed = guarded("disk", check)
    assert first.found == "first"
    assert failed.state == "warning" and "ValueError: no such thing" in failed.found


OWN = ["torch>=2.6", 'tomli>=2; python_version < "3"', 'ale-py>=0.12; extra == "atari"',
       'gymnasium[box2d]>=1.1; extra == "box2d"', 'mkdocs>=1; extra == "docs"']  # fmt: skip

GYMNASIUM = packages.Installed("1.4.0", ['Box2D==2.3.10; extra == "box2d"', "numpy>=1"])


def test_missing_and_old_packages_are_problems_with_a_command() -> None:
    old = {"torch": packages.Installed("2.5.1", [])}
    found = only(packages.check_packages(OWN, old.get))
    assert found.state == "problem" and found.found == "torch>=2.6: 2.5.1"
    assert found.remedy == f"{sys.executable} -m pip install 'torch>=2.6'"
    assert only(packages.check_packages(OWN, {}.get)).found == "torch>=2.6: missing"
    good = {"torch": packages.Installed("2.13.0+cpu", [])}
    assert only(packages.check_packages(OWN, good.get)).state == "ok"


def test_missing_extra_is_a_problem_only_where_the_environment_needs_it() -> None:
    there = {"gymnasium": GYMNASIUM}
    notes = list(packages.check_extras(OWN, ["atari", "box2d", "docs"], there.get, None))
    assert [(one.check, one.state) for one in notes] == [
        ("extra atari", "note"), ("extra box2d", "note"),
    ]  # fmt: skip
    assert notes[1].found == "box2d==2.3.10: missing", "a dependency of an extra of an extra"
    needed = list(packages.check_extras(OWN, ["atari", "box2d"], there.get, "box2d"))
    assert [one.state for one in needed] == ["note", "problem"]
    whole = there | {"Box2D": packages.Installed("2.3.10", [])}
    assert [one.state for one in packages.check_extras(OWN, ["box2d"], whole.get, "box2d")] == [
        "ok"
    ]


def test_old_python_other_apex_and_missing_files_are_problems(tmp_path: Path) -> None:
    assert only(packages.check_python("3.9.1", ">=3.10")).state == "problem"
    assert only(packages.check_python("3.10.0", ">=3.10")).state == "ok"
    nvidia = {"apex": packages.Installed("0.1", [])}
    assert "NVIDIA" in only(packages.check_other_apex(nvidia.get)).found
    missing = only(packages.check_files(tmp_path))
    assert missing.state == "problem" and "deploy/supervisord.conf" in missing.found
    assert only(packages.check_files(ROOT)).state == "ok"


def test_extra_that_an_environment_needs_is_taken_from_gymnasiums_error() -> None:
    assert environment.extra_of("ALE/Pong-v5") == "atari"
    assert environment.extra_of("LunarLander-v3") == "box2d"
    assert environment.extra_of("HalfCheetah-v5") == "mujoco"
    assert environment.extra_of("CartPole-v1") is None
    assert environment.extra_of("NoSuch-v0") is None


def test_missing_ale_py_is_a_problem_for_an_atari_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(environment.check_roms("ALE/Pong-v5")).state == "ok"
    monkeypatch.setitem(sys.modules, "ale_py", None)
    found = only(environment.check_roms("ALE/Pong-v5"))
    assert found.state == "problem" and "pip install" in found.remedy
    assert list(environment.check_roms("CartPole-v1")) == []


NO_GPU = gpu.GpuFacts(0, None, False, False, "2.13.0", None, False)


@pytest.mark.parametrize(
    ("facts", "device", "state", "words"),
    [
        (NO_GPU, "auto", "ok", "no GPU on this machine"),
        (NO_GPU, "cuda", "problem", "no GPU on this machine"),
        (NO_GPU._replace(cards=1), "auto", "warning", "without a driver"),
        (NO_GPU._replace(cards=1, driver=(12, 8), visible=True), "auto", "warning", "CPU build"),
        (
            NO_GPU._replace(cards=1, driver=(12, 8), visible=True, build="13.0"),
            "auto", "warning", "supports CUDA up to 12.8",
        ),
        (
            NO_GPU._replace(cards=1, driver=(13, 0), visible=True, build="12.8"),
            "cuda", "problem", "torch finds no device",
        ),
        (
            NO_GPU._replace(cards=1, driver=(13, 0), hidden=True, build="13.0"),
            "auto", "ok", "CUDA_VISIBLE_DEVICES",
        ),
        (
            NO_GPU._replace(cards=1, driver=(13, 0), visible=True, build="13.0", usable=True),
            "auto", "ok", "can use the GPU",
        ),
    ],
)  # fmt: skip
def test_gpu_that_torch_cannot_use_is_found(
    facts: gpu.GpuFacts, device: str, state: str, words: str
) -> None:
    found = only(gpu.check_gpu(facts, device))
    assert (found.state, words in found.found) == (state, True), found
    assert bool(found.remedy) == (state != "ok")


def test_open_files_that_are_needed_follow_from_the_daemons() -> None:
    config = parse(preset("cartpole", gpu=False) | {"actor": {"count": 2}})
    low = Limits(64, 69)
    found = only(limits.check_open_files(config, low, privileged=False))
    assert found.found.endswith("hard limit 69: too few for replay, learner")
    assert found.expected == "actor_000 64, replay 70, learner 70, supervisord 21"
    assert found.state == "problem" and found.remedy.startswith("`ulimit -n 70` ")
    assert only(limits.check_open_files(config, low, privileged=True)).state == "ok"
    assert only(limits.check_open_files(config, Limits(10, 70), privileged=False)).state == "ok"
    assert only(limits.check_open_files(config, Limits(64, None), privileged=False)).state == "ok"
    launcher = only(limits.check_open_files(config, low, privileged=False, engine="local"))
    assert launcher.expected.endswith("learner 70, launcher 15")  # 5 + 2 x 5 daemons
    actor = {"count": 2, "num_envs": 9, "async_envs": True}  # a pipe to each environment
    config = parse(preset("cartpole", gpu=False) | {"actor": actor})
    assert open_files.files_needed(config, "local")["actor_000"] == 73


def test_threads_are_counted_for_every_daemon_and_compared_with_each_limit() -> None:
    config = parse(preset("cartpole", gpu=False))
    # replay 12, learner 16, evaluator 10, two actors 10 each, engine 2; 3 more a daemon.
    assert limits.threads_needed(config, 0) == 60
    assert limits.threads_needed(config, 3) == 75
    found = only(limits.check_threads(75, {"RLIMIT_NPROC": None, "the cgroup's pids.max": 64}))
    assert found.state == "problem" and found.found == "the cgroup's pids.max leaves 64"
    assert only(limits.check_threads(75, {"RLIMIT_NPROC": 76})).state == "ok"


SCHEMA = Schema(
    (Column("action", "int32", ()), Column("learner_step", "int64", ())),
    FramesColumn((10, 10), max_frames=7),
)


def test_memory_and_disk_of_a_suite_are_the_sums_of_their_parts() -> None:
    config = parse(preset("cartpole", gpu=False))
    needed = memory.memory_needed(config, SCHEMA, parameters=1000, machine=10**12)
    # An item: 100 bytes, 4 + 8 bytes of columns and 27 for a frame's 100 pixels.
    assert needed == {
        "table": 50_000 * 139,
        "replay": 60_000_000,
        "learner": 650_000_000 + 5 * 64 * (139 + 2 * 7 * 100) + 5 * 1000,
        "actors (2)": 800_000_000,
        "engine": 50_000_000,
        "evaluator": 400_000_000,
    }
    small = memory.memory_needed(config, SCHEMA, parameters=1000, machine=1_000_000)
    assert small["table"] == 500_000, "a table gets half of the machine at most"
    disk = memory.disk_needed(config, SCHEMA, parameters=1000)
    assert disk == {
        "checkpoints": 5 * 5 * 1000,
        "logs": 12 * 20_000_000,
        "metrics": 24 * 64_000_000,
        "a film": 10_000_000,
        "insert log": 50_000 * 139 + 128_000_000,
    }


def test_need_above_what_is_free_is_a_problem_with_both_numbers() -> None:
    needed = {"table": 30_000_000_000, "learner": 700_000_000}
    found = only(memory.check_memory(needed, available=8_000_000_000))
    assert found.state == "problem" and found.found == "8.0 GB free"
    assert found.expected == "30.7 GB at most: table 30.0 GB, learner 700 MB"
    assert only(memory.check_memory(needed, 38_000_000_000)).state == "warning"
    assert only(memory.check_memory(needed, 39_000_000_000)).state == "ok"
    full = only(memory.check_disk({"logs": 10}, 9, "/runs"))
    assert full.state == "problem" and full.found == "0 MB free in /runs"


def test_available_memory_of_a_cgroup_includes_its_reclaimable_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < hardware.available_memory_bytes() <= hardware.memory_bytes()
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 200\n")
    (tmp_path / "pids.max").write_text("64\n")
    (tmp_path / "pids.current").write_text("60\n")
    monkeypatch.setattr(hardware, "_cgroup_files", lambda name: [tmp_path / name])
    assert hardware.available_memory_bytes() == 300
    assert hardware.tasks_left() == 4


def test_too_few_cores_and_a_wrong_clock_are_warnings() -> None:
    config = preset_config("cartpole", ["actor.count=8"])
    found = only(system.check_cores(config, 4))
    assert found.state == "warning" and "at most 3 actors" in found.expected
    assert only(system.check_cores(config, 9)).state == "ok"
    assert only(system.check_clock(1000.0, 1060.0)).state == "ok"
    assert only(system.check_clock(1000.0, 1061.0)).state == "warning"


def test_socket_path_above_107_bytes_is_a_problem() -> None:
    endpoints = left_sockets.default_endpoints()
    # The longest name is /learner.params: 15 bytes; /tmp/ has 5, /digest 7.
    fitting = Path("/tmp") / ("a" * (107 - 15 - 5 - 7)) / "digest"
    assert only(left_sockets.check_new_sockets(endpoints, fitting)).state == "ok"
    longer = fitting.parent.with_name(fitting.parent.name + "a") / "digest"
    found = only(left_sockets.check_new_sockets(endpoints, longer))
    assert (found.state, found.found.split()[0]) == ("problem", "108")


H200 = cuda_learner.CudaFacts(
    "H200", (9, 0), ("sm_80", "sm_90"), 130_000_000_000, 150_000_000_000, None, True, "/bin/cc"
)


@pytest.mark.parametrize(
    ("built_for", "capability", "state"),
    [
        (("sm_80", "sm_90"), (9, 0), "ok"),
        (("sm_80",), (8, 6), "ok"),
        (("sm_86",), (8, 0), "problem"),
        (("sm_80", "sm_90"), (12, 0), "problem"),
        (("sm_80", "compute_90"), (12, 0), "ok"),
        (("sm_90a",), (9, 0), "ok"),
        (("gfx942",), (9, 0), "problem"),
    ],
)
def test_card_that_torch_was_not_built_for_is_a_problem(
    built_for: tuple[str, ...], capability: tuple[int, int], state: str
) -> None:
    card = H200._replace(built_for=built_for, capability=capability)
    assert only(cuda_learner.check_card(card)).state == state


def test_memory_of_a_learner_on_a_gpu_is_the_sum_of_its_parts() -> None:
    config = preset_config("cartpole", ["learner.batch_size=10", "learner.prefetch=4"])
    needed = cuda_learner.device_memory_needed(config, SCHEMA, parameters=1000, activations=70)
    assert needed == {
        "parameters": 5000,
        "activations": 3 * 10 * 70,
        "batches": 5 * 10 * (139 + 2 * 7 * 100),
        "CUDA": 2 * 600_000_000,  # of the learner and of the evaluator
        "recorded update": 3 * 10 * 70 + 10 * (139 + 2 * 7 * 100),
    }
    checks = (config, SCHEMA, 1000, 70)
    findings = list(cuda_learner.check_cuda_learner(*checks, H200))
    assert [(one.check, one.state) for one in findings] == [
        ("GPU", "ok"), ("GPU memory", "ok"), ("pinned memory", "ok"), ("compiler", "ok"),
    ]  # fmt: skip
    full = H200._replace(free_bytes=600_000_000)
    short = list(cuda_learner.check_cuda_learner(*checks, full))[1]
    assert short.state == "problem" and short.found == "600 MB free on H200"


def test_low_limit_of_locked_memory_is_a_note() -> None:
    assert only(cuda_learner.check_pinned(8e6, H200._replace(locked_bytes=8_000_000))).state == "ok"
    found = only(cuda_learner.check_pinned(8e6, H200._replace(locked_bytes=7_999_999)))
    assert found.state == "note" and "ulimit -l unlimited" in found.remedy


@pytest.mark.parametrize(
    ("execution", "triton", "compiler", "state"),
    [
        ("compile", True, "/bin/cc", "ok"), ("compile", False, "/bin/cc", "problem"),
        ("compile", True, None, "problem"), ("auto", False, None, "note"),
    ],
)  # fmt: skip
def test_missing_compiler_is_a_problem_only_for_a_learner_that_compiles(
    execution: str, triton: bool, compiler: str | None, state: str
) -> None:
    here = H200._replace(triton=triton, compiler=compiler)
    assert only(cuda_learner.check_compiler(execution, here)).state == state


def test_activations_are_the_observation_and_the_outputs_of_all_layers() -> None:
    config = preset_config("cartpole", ["algorithm.hidden=[7]", "algorithm.stream_hidden=[]"])
    dqn = make_algorithm(config.algorithm, env_spec((4,), "float32", actions=2))
    # 4 inputs, flattened; the layer of 7 and its ReLU; the streams' outputs, 1 and 2.
    assert activation_bytes(dqn) == 4 * (4 + 4 + 7 + 7 + 1 + 2)
    config = preset_config("cartpole-impala", ["algorithm.hidden=[7]"])
    impala = make_algorithm(config.algorithm, env_spec((4,), "float32", actions=2))
    # A sequence has one row more than it has steps.
    rows = impala.config.unroll_length + 1
    # Besides the same layers, its core without memory returns its 7 inputs.
    assert activation_bytes(impala) == 4 * rows * (4 + 4 + 7 + 7 + 7 + 1 + 2)
