"""`--json`: standard output has the JSON alone, whatever the user's code prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from apex.cli.json_output import json_option
from apex.cli.main import main

COMMAND = """
import atexit, ctypes, os, subprocess, sys
import click
from apex.cli.json_output import echo_json, json_option

@click.command()
@json_option
def command(as_json):
    print("from Python")
    os.write(1, b"from the descriptor\\n")
    ctypes.CDLL(None).puts(b"from C, which writes at the end")
    atexit.register(print, "at the end")
    subprocess.run(["echo", "from a child"], check=True)
    if as_json:
        echo_json({"mean_return": 1.5})

command()
"""
PRINTED = {
    "from Python", "from the descriptor", "from C, which writes at the end", "at the end",
    "from a child",
}  # fmt: skip


@pytest.mark.parametrize("as_json", [True, False])
def test_prints_of_all_kinds_go_to_standard_error_with_json(as_json):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *(["--json"] if as_json else [])],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    printed, other = (done.stderr, done.stdout) if as_json else (done.stdout, done.stderr)
    assert set(printed.splitlines()) == PRINTED
    assert other == ('{"mean_return": 1.5}\n' if as_json else "")


def test_every_json_option_is_the_one_that_claims_standard_output():
    found = {}

    def visit(command: click.Command, name: str) -> None:
        for option in command.params:
            if "--json" in option.opts:
                found[name] = option.callback
        for child in getattr(command, "commands", {}).values():
            visit(child, f"{name} {child.name}".strip())

    visit(main, "")

    @click.command()
    @json_option
    def expected(as_json: bool) -> None:
        pass

    assert set(found) >= {"snapshot", "status", "doctor", "eval", "runs list"}
    assert set(found.values()) == {expected.params[0].callback}


NOISY = """
import gymnasium as gym

class Noisy(gym.Wrapper):
    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        print("made")

    def step(self, action):
        print("step")
        return super().step(action)

    def close(self):
        super().close()
        raise RuntimeError("close failed")
"""


def test_evaluation_prints_its_json_alone_although_closing_fails(tmp_path, caplog):
    (tmp_path / "noisy.py").write_text(NOISY)
    setting = f"env.id={tmp_path / 'noisy.py'}:Noisy"
    done = CliRunner().invoke(
        main,
        ["eval", "--pretrained", "cartpole", "--episodes", "2", "--json", "--set", setting,
         "--set", "env.max_episode_steps=3"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    expected = {"mean_return": 3.0, "returns": [3.0, 3.0], "metrics": {}}
    assert json.loads(done.stdout) == expected
    assert "step\n" in done.stderr
    assert "closing the environments raised RuntimeError: close failed" in caplog.text
