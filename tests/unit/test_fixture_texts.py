"""Help texts and exit codes equal the fixtures; changing one means changing a fixture file.

The keys of a status are checked where a suite runs, in test_suite.py and
test_central_inference.py, and for a stopped run in test_cli.py.
"""

from __future__ import annotations

import pytest

from tests.fixtures import texts


def test_help_of_every_command_and_daemon_is_that_of_the_fixture() -> None:
    found, kept = texts.help_texts(), texts.kept("help")
    assert sorted(found) == sorted(kept)
    for name, lines in kept.items():
        assert found[name] == lines, name


def test_exit_codes_are_those_of_the_fixture() -> None:
    assert texts.exit_codes() == texts.kept("exit_codes")


def test_status_keys_are_paths_with_the_types_of_all_rows() -> None:
    status = {"run": {"up": True}, "actors": [{"slot": 1}, {"slot": None}], "alarms": []}
    assert texts.status_keys(status) == {
        "run.up": {"bool"}, "actors[].slot": {"int", "null"}, "alarms": {"list"},
    }  # fmt: skip


def test_status_with_another_key_or_type_fails_the_check() -> None:
    names = {"str": "x", "int": 1, "float": 1.0, "bool": True, "list": [], "dict": {}, "null": None}
    status: dict = {}
    for path, types in texts.kept("status")["local"].items():
        part, _, key = path.partition(".")
        row = status.setdefault(part.removesuffix("[]"), {})
        row[key] = names[types.split(" | ")[0]]
    status["actors"], status["inference"] = [status["actors"]], None
    texts.check_status_keys(status, "local")
    status["learner"]["learner_step"] = 1.0
    with pytest.raises(AssertionError, match=r"learner\.learner_step"):
        texts.check_status_keys(status, "local")
    del status["learner"]["learner_step"]
    with pytest.raises(AssertionError, match=r"learner\.learner_step"):
        texts.check_status_keys(status, "local")
