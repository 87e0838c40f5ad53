"""The catalog of daemons and the files generated from it."""

from __future__ import annotations

import configparser
import inspect
import shlex
from pathlib import Path
from typing import get_args

import pytest

from apex.config.loading import parse
from apex.config.sections import Config
from apex.daemons.catalog import CATALOG, DaemonSpec, daemon_names, spec_of
from apex.launch import supervisord_config
from apex.wire.endpoints import Endpoints, InferenceEndpoints, LearnerEndpoints, ReplayEndpoints
from apex.wire.messages import Role
from tests.support.builders import preset
from tests.support.paths import ROOT

ENDPOINTS = Endpoints(
    ReplayEndpoints("ipc:///i", "ipc:///s"), LearnerEndpoints("ipc:///p"),
    InferenceEndpoints("ipc:///a"),
)  # fmt: skip


def config(name: str = "cartpole", **sections: dict[str, object]) -> Config:
    raw = preset(name, gpu=False)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    return parse(raw)


def test_names_are_in_the_order_of_start_and_depend_on_the_configuration() -> None:
    assert daemon_names(config(actor={"count": 2})) == [
        "replay", "learner", "evaluator", "actor_000", "actor_001",
    ]  # fmt: skip
    alone = config("cartpole-seed", actor={"count": 1}, evaluator={"enabled": False})
    assert daemon_names(alone) == ["replay", "learner", "inference", "actor_000"]
    orders = [spec.start_order for spec in CATALOG]
    assert orders == sorted(orders)


@pytest.mark.parametrize("spec", CATALOG, ids=lambda spec: spec.kind)
def test_body_of_each_daemon_can_be_imported_and_takes_what_the_catalog_says(
    spec: DaemonSpec,
) -> None:
    parameters = list(inspect.signature(spec.load_body()).parameters)
    assert parameters == ["service", "extensions"] if spec.takes_extensions else ["service"]


def test_daemon_kind_is_found_by_name() -> None:
    assert spec_of("learner").kind == "learner"
    actor = spec_of("actor_1234")
    assert (actor.kind, actor.index("actor_1234"), actor.name(7)) == ("actor", 1234, "actor_007")
    for name in ("learner_000", "attach_17", ""):
        with pytest.raises(
            ValueError, match=r"expected the name of a daemon \(replay, learner, .* actor_000\)"
        ):
            spec_of(name)


def test_each_endpoint_is_bound_by_exactly_one_daemon() -> None:
    bound = [endpoint for spec in CATALOG for endpoint in spec.binds]
    assert sorted(bound) == sorted(ENDPOINTS.addresses())
    for spec in CATALOG:
        for kind in ("cartpole", "cartpole-seed"):
            connects = spec.connects(config(kind))
            assert set(connects) <= set(bound)
            assert bool(connects) == (spec.role is not None)
        assert spec.status_endpoint is None or spec.status_endpoint in spec.binds
        assert (spec.status_endpoint is not None) == bool(spec.binds)
    assert {spec.role for spec in CATALOG} - {None} == set(get_args(Role)) - {"operator"}


def test_each_daemon_has_an_executable_that_is_installed() -> None:
    executables = sorted(f"bin/{spec.kind}" for spec in CATALOG)
    assert sorted(str(path.relative_to(ROOT)) for path in (ROOT / "bin").iterdir()) == executables
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installed = setup["options.data_files"]["share/apex-suite/bin"].split()
    assert sorted(installed) == executables


def test_supervisord_conf_is_what_the_catalog_makes() -> None:
    file = ROOT / "deploy" / "supervisord.conf"
    remedy = f"python -m apex.launch.supervisord_config > {file.relative_to(ROOT)}"
    assert file.read_text() == supervisord_config.text(), remedy


def test_supervisord_conf_has_a_program_with_its_timeouts_for_each_daemon() -> None:
    parsed = configparser.RawConfigParser()
    parsed.read(ROOT / "deploy" / "supervisord.conf")
    programs = {name.partition(":")[2]: parsed[name] for name in parsed if "program:" in name}
    assert list(programs) == ["replay", "learner", "inference", "evaluator", "actor"]
    assert {name: section["stopwaitsecs"] for name, section in programs.items()} == {
        "replay": "10", "learner": "40", "inference": "10", "evaluator": "10", "actor": "10",
    }  # fmt: skip
    assert {section["exitcodes"] for section in programs.values()} == {"2,75,78,79"}
    assert programs["actor"]["process_name"] == "actor_%(process_num)03d"
    assert supervisord_config.variables(config("cartpole-seed", actor={"count": 3})) == {
        "APEX_INFERENCE": "true", "APEX_EVALUATOR": "true", "APEX_ACTORS": "3",
    }  # fmt: skip
    assert supervisord_config.variables(config())["APEX_INFERENCE"] == "false"


def test_paths_in_supervisord_conf_may_have_any_characters() -> None:
    run = Path("/a %(x)s \"b'c;d#e,f\\g")
    found = supervisord_config.path_variables(run, "/my python", Path("/b%d/bin"))
    command = "{APEX_PYTHON_WORD} {APEX_BIN_WORD}/replay --run {APEX_RUN_WORD}".format(**found)
    assert shlex.split(command) == ["/my python", "/b%d/bin/replay", "--run", str(run)]
    assert found["APEX_RUN_TWICE"] % {} == str(run)


def test_table_of_daemons_in_the_documents_is_what_the_catalog_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from sitegen.daemons import daemon_table

    table = daemon_table()
    assert table in (ROOT / "ARCHITECTURE.md").read_text(), f"ARCHITECTURE.md should have\n{table}"
    row = "| `actor_NNN`, central inference |  | `inference.act`, `learner.params` | never |"
    assert row in table
