"""Import layers, and the ban on code-executing decoders."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
HEAVY = (
    "torch", "gymnasium", "zmq", "tensorboardX", "safetensors", "ale_py", "supervisor", "psutil",
)  # fmt: skip
PICKLES = ("pickle", "cloudpickle", "dill", "multiprocess")


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_loaded_modules_are_seen():
    """Guards the tests below: an imported module is in the result."""
    assert {"json", "colorsys"} <= loaded_by("import colorsys")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("apex.daemons.replay.daemon", {"torch", "gymnasium", "safetensors", "ale_py", "psutil"}),
        ("apex.daemons.replay.client", {"torch", "gymnasium", "safetensors"}),
        ("apex.wire.server", {"torch", "gymnasium", "safetensors"}),
        ("apex.daemons.actor.daemon", {"torch", "safetensors", "psutil"}),
        ("apex.daemons.actor.central_inference", {"torch", "safetensors", "gymnasium"}),
        ("apex.daemons.inference.endpoint", {"gymnasium"}),
        ("apex.acting.sequence_accumulator", {"torch", "zmq", "gymnasium"}),
        ("apex.acting.loop", {"torch", "zmq", "gymnasium"}),
        ("apex.acting.agent", {"torch", "zmq", "gymnasium"}),
        ("apex.acting.transition_accumulator", {"torch", "zmq", "gymnasium"}),
        ("apex.envs.registry", {"torch", "zmq"}),
        ("apex.runs.provenance", {"torch", "zmq", "gymnasium"}),
        ("apex.replay.table.table", {"torch", "zmq", "gymnasium"}),
        ("apex.algos.registry", {"zmq", "gymnasium"}),
        ("apex.config.sections", {"torch", "zmq", "gymnasium", "numpy"}),
    ],
)
def test_module_loads_without_what_its_layer_must_not_know(module, absent):
    loaded = loaded_by(f"import {module}")
    assert "apex" in loaded and not loaded & absent


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["status", "--help"]])
def test_command_help_loads_no_heavy_module(arguments):
    code = (
        "from apex.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as error: assert not error.code"
    )
    loaded = loaded_by(code)
    assert "click" in loaded and not loaded & set(HEAVY)


def test_import_linter_finds_no_broken_contract():
    done = subprocess.run(
        [TOOLS / "lint-imports", "--config", "setup.cfg", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


def ruff(path: str, code: str) -> list[str]:
    """The lint rules that `code` breaks as the file `path`."""
    done = subprocess.run(
        [TOOLS / "ruff", "check", "--no-cache", "--output-format", "json", "--stdin-filename",
         path, "-"],
        cwd=ROOT, input=code, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return sorted({found["code"] for found in json.loads(done.stdout)})


@pytest.mark.parametrize("module", [*PICKLES, "zmq"])
@pytest.mark.parametrize("style", ["import {}\n\n{}.x()\n", "from {} import loads\n\nloads()\n"])
def test_banned_import_is_found_in_the_replay_server(module, style):
    assert "TID251" in ruff("apex/daemons/replay/daemon.py", style.format(module, module))


def test_torch_load_is_found_outside_of_checkpoint():
    code = "import torch\n\ntorch.load('x')\n"
    assert "TID251" in ruff("apex/daemons/learner/daemon.py", code)
    assert ruff("apex/runs/checkpoint.py", code) == []


@pytest.mark.parametrize("module", PICKLES)
@pytest.mark.parametrize("path", ["apex/wire/codec.py", "apex/wire/sockets.py"])
def test_banned_import_is_found_in_the_wire(path, module):
    """The one package with sockets imports zmq by a noqa on that line, and no pickle."""
    assert ruff(path, f"import {module}\n\n{module}.x()\n") != []
    assert ruff(path, "import zmq  # noqa: TID251\n\nzmq.Context()\n") == []


def test_unpickling_is_found_in_the_wire():
    assert "S301" in ruff("apex/wire/codec.py", "import pickle\n\npickle.loads(b'')\n")


def test_lint_exemptions_name_only_the_expected_files():
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    exempt = {
        path
        for path, rules in configured["per-file-ignores"].items()
        if {"TID251", "S301", "S302"} & set(rules)
    }
    assert exempt == {
        "apex/runs/checkpoint.py",
        "apex/launch/pickled_extensions.py",
        "apex/launch/local.py",
        "tests/*",
    }
    assert {"TID251", "S301", "S302"} <= set(configured["select"])
    banned = set(configured["flake8-tidy-imports"]["banned-api"])
    assert {*PICKLES, "zmq", "torch.load"} <= banned


def test_no_source_file_disables_the_rules():
    marks = re.compile(r"noqa(?!: ?(E|F|W|I|B|UP|SIM|RUF|C4|PT)\d)")
    zmq = re.compile(r"(import zmq|from zmq[.\w]* import \w+)  # noqa: TID251")
    files = [*ROOT.glob("apex/**/*.py"), *ROOT.glob("bin/*")]
    lines = [line for path in files for line in path.read_text().splitlines()]
    assert len(files) > 40 and len(lines) > 5000
    assert [line for line in lines if marks.search(line) and not zmq.fullmatch(line)] == []


def test_wire_and_replay_sources_do_not_mention_pickle():
    """Reads the sources, so it does not depend on the linter's configuration."""
    files = [
        *ROOT.glob("apex/wire/*.py"),
        *ROOT.glob("apex/replay/**/*.py"),
        *ROOT.glob("apex/daemons/replay/*.py"),
    ]
    names = re.compile(r"\b(pickle|cloudpickle|dill|marshal|shelve|recv_pyobj|send_pyobj)\b")
    assert len(files) > 10
    assert [path.name for path in files if names.search(path.read_text())] == []


def imported(path: Path) -> set[str]:
    """A module's imports as `module.name`, those in functions and in embedded scripts too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


TEST_MODULE = re.compile(r"(from|import) tests\.(unit|sockets|suite)\b")


def test_no_test_file_imports_a_test_file():
    """Searches the text, so that scripts for child processes count too."""
    files = sorted(ROOT.glob("tests/**/*.py"))
    assert len(files) > 80 and TEST_MODULE.search("from " + "tests.unit.test_codec import X")
    found = [path.name for path in files if TEST_MODULE.search(path.read_text())]
    assert found == []


PROCESSES_AND_SOCKETS = re.compile(
    r"(zmq|socket|subprocess|multiprocess|multiprocessing)(\.|$)|apex\.launch\.prepare\.prepare_run|"
    r"apex\.wire\.(server|client|sockets)\b|tests\.support\.(suite|services|processes)\b"
)


def test_unit_tests_start_no_process_and_open_no_socket():
    """Only this file starts interpreters, to see what they import."""
    files = sorted(ROOT.glob("tests/unit/test_*.py"))
    found = {
        path.name: names
        for path in files
        if (names := sorted(filter(PROCESSES_AND_SOCKETS.match, imported(path))))
    }
    assert len(files) > 30 and found == {"test_layers.py": ["subprocess"]}


def test_layers_in_architecture_md_match_the_import_contract(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from sitegen.layers import layer_list

    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert layer_list().count("\n") == 11
    assert f"\n\n{layer_list()}\n" in text, "cd docs && python -m sitegen.layers prints it"
