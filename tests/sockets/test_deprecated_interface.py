"""Algorithms written for apex 0.1: warnings, and unchanged learning."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex.launch.prepare import prepare_run, preset_config
from apex.launch.single_process import SerialRun
from apex.runs import checkpoint
from tests.support.paths import ROOT

OLDER = ROOT / "tests" / "fixtures" / "e3b00a8" / "examples"
"""The examples of apex 0.1."""
SETTINGS = ("replay.min_size=200", "run.max_env_steps=1200", "evaluator.enabled=false",
            "learner.checkpoint_period_s=3600")  # fmt: skip


@pytest.fixture
def own_modules() -> Iterator[None]:
    """Restore sys.modules and sys.path, to which the test's own files are added."""
    modules, paths = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if "munchausen" in name or "own_network" in name:
            del sys.modules[name]
    sys.path[:] = paths


def trained(reference: str, path: Path) -> bytes:
    """The parameters after a short serial run."""
    run = prepare_run(path, preset_config("cartpole", [*SETTINGS, f"algorithm.name={reference}"]))
    assert "env steps" in SerialRun(run).run()
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None and newest.manifest.learner_step > 20
    return b"".join(
        tensor for _, tensor in sorted(checkpoint_tensors(newest.parameters()), key=len_of)
    )


def checkpoint_tensors(data: bytes) -> list[tuple[str, bytes]]:
    """Names and bytes of the tensors of a publication."""
    from apex.networks import parameters

    return [(name, tensor.numpy().tobytes()) for name, tensor in parameters.decode(data).items()]


def len_of(named: tuple[str, bytes]) -> tuple[int, bytes]:
    """Names differ between the two versions of an example; sizes and values do not."""
    return len(named[1]), named[1]


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("munchausen", "Munchausen", "exploration must take one argument"),
        ("own_network", "WideDQN", "ApexDQNConfig is now apex.api.ApexDQN.Config"),
    ],
)
def test_example_of_0_1_warns_and_learns_the_same_as_the_current_one(
    name: str, kind: str, said: str, tmp_path: Path
) -> None:
    older = tmp_path / f"{name}.py"
    older.write_text((OLDER / f"{name}.py.txt").read_text())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        before = trained(f"{older}:{kind}", tmp_path / "older")
    assert any(said in str(one.message) for one in warned if one.category is FutureWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        now = trained(f"{ROOT}/examples/{name}.py:{kind}", tmp_path / "now")
    assert before == now


@pytest.mark.parametrize(
    ("module", "name", "now"),
    [
        ("apex.types", "Chunk", "apex.data.chunks.Chunk"),
        ("apex.config", "PositiveFloat", "apex.api.PositiveFloat"),
        ("apex.algos.transitions", "TransitionSection", "apex.api.TransitionAlgorithm.Config"),
        ("apex.engine", "stop", "apex.launch.engine.stop"),
    ],
)
def test_moved_name_warns_with_its_new_place(module: str, name: str, now: str) -> None:
    with pytest.warns(FutureWarning, match=rf"^{module}\.{name} is now {now}; the old name will"):
        assert getattr(importlib.import_module(module), name) is not None


def test_unknown_name_is_an_error_and_not_a_warning() -> None:
    with pytest.raises(AttributeError, match=r"'apex\.config' has no attribute 'Nothing'"):
        getattr(importlib.import_module("apex.config"), "Nothing")  # noqa: B009
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("apex.nothing")
