"""The documentation builds without warnings and agrees with the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Literal

import click
import msgspec
import pytest

from apex.algos.registry import ALGORITHMS
from apex.cli.main import main
from apex.config.loading import preset_names
from apex.config.sections import Config
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(600)

Row = tuple[str, ...]
REMOTE = re.compile(r"(https?:)?//")


class Reader(HTMLParser):
    """Parser of a built page: its tables by heading, its pictures and the files that it loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[Row]] = {}
        self.pictures: list[str] = []
        self.loaded: list[str] = []
        self._heading, self._cells, self._text = "", [], ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in ("h1", "h2", "td", "th"):
            self._text = ""
        elif tag == "tr":
            self._cells = []
        elif tag == "br":
            self._text += "\n"
        elif tag == "img":
            self.pictures.append(named["src"] or "")
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(named.get("src") or "")
        elif tag == "link":
            self.loaded.append(named["href"] or "")

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2"):
            self._heading = self._text.rstrip("¶").strip()
        elif tag in ("td", "th"):
            self._cells.append(self._text.strip())
        elif tag == "tr":
            self.tables.setdefault(self._heading, []).append(tuple(self._cells))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    target = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return target


def rows_of(page: Reader, heading: str) -> dict[str, Row]:
    """Rows of the table below a heading, by their first cell."""
    return {row[0]: row[1:] for row in page.tables[heading]}


def default_text(value: object) -> str:
    """A default, formatted as in a configuration file."""
    return "none" if value is None else json.dumps(value)


def structs() -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Heading and struct of every section, from the runtime fields of `Config`."""
    for field in msgspec.structs.fields(Config):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield f"[{field.name}]", field.type
    for name, algorithm in ALGORITHMS.items():
        yield f"[algorithm] {name}", algorithm.Config


def test_configuration_page_has_every_field_with_its_default(site: Path):
    page = Reader(site / "CONFIGURATION.html")
    seen = 0
    for heading, struct in structs():
        rows = rows_of(page, heading)
        for field in msgspec.structs.fields(struct):
            default = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            expected = "required" if default is msgspec.NODEFAULT else default_text(default)
            assert rows[field.name][1] == expected, f"{heading} {field.name}"
            seen += 1
    assert seen > 100
    assert rows_of(page, "[learner]")["prefetch"] == (
        "int ≥ 1 and ≤ 64",
        "4",
        "Batches that are requested, or decoded and waiting.",
    )


def test_presets_table_has_every_preset_and_what_it_sets(site: Path):
    rows = rows_of(Reader(site / "CONFIGURATION.html"), "Presets")
    assert set(rows) == {"preset", *preset_names()}
    about, algorithm, environment, sets = rows["cartpole-seed"]
    assert about.startswith("CartPole-v1 with Ape-X DQN and central inference")
    assert (algorithm, environment) == ("apex_dqn", "CartPole-v1")
    assert 'actor.inference = "central"' in sets.splitlines()
    assert "n_step" not in sets, "it sets n_step to the default"
    assert "gpu: learner.prefetch = 16" in rows["pong"][3].splitlines()


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all its subcommands, with their full names."""
    yield name, command
    if isinstance(command, click.Group):
        for child, below in command.commands.items():
            yield from commands(below, f"{name} {child}")


def test_commands_page_has_every_command_and_option(site: Path):
    page = Reader(site / "COMMANDS.html")
    text = (site / "COMMANDS.html").read_text(encoding="utf-8")
    seen = 0
    for name, command in commands(main, "apex"):
        assert f">{name}<" in text
        options = [one for one in command.params if isinstance(one, click.Option)]
        listed = " ".join(rows_of(page, name)) if options else ""
        for option in options:
            assert set(option.opts) <= set(re.findall(r"[\w-]+", listed)), f"{name} {option.opts}"
            seen += 1
    assert seen > 40


def test_commands_page_has_exit_codes_with_their_meaning(site: Path):
    rows = rows_of(Reader(site / "COMMANDS.html"), "Exit codes")
    assert rows["80"] == (
        "HANG",
        "The watchdog ended the process: its work loop made no progress.",
    )


def test_architecture_page_has_its_picture(site: Path):
    assert "architecture.svg" in Reader(site / "ARCHITECTURE.html").pictures
    picture = (site / "architecture.svg").read_text(encoding="utf-8")
    for name in ("replay.insert", "replay.sample", "learner.params", "inference.act"):
        assert f">{name}</text>" in picture


def test_python_api_has_what_a_researcher_uses(site: Path):
    for page, anchor in (
        ("runs", "apex.launch.run"),
        ("runs", "apex.launch.run_handle.Run.wait"),
        ("runs", "apex.launch.run_handle.Run.metrics"),
        ("runs", "apex.evaluation.trained_policy.load_policy"),
        ("algorithms", "apex.algos.policy.Policy.act"),
        ("acting", "apex.acting.decisions.Inputs.last_rewards"),
        ("ops", "apex.ops.vtrace.vtrace"),
        ("networks", "apex.networks.dueling.DuelingQNetwork"),
        ("types", "apex.data.schema.Schema"),
        ("endpoints", "apex.wire.endpoints.load"),
        ("errors", "apex.errors.ExitCode.HANG"),
    ):
        assert f'id="{anchor}"' in (site / "api" / f"{page}.html").read_text(encoding="utf-8")


def test_pages_load_nothing_from_another_host(site: Path):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Reader(page).loaded
        assert any(one.endswith(".css") for one in loaded), f"{page} was not read"
        assert [one for one in loaded if REMOTE.match(one)] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text("utf-8"))


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of the struct below."""

    kept: int = 1
    """From the base."""
    replaced: int = 2
    """From the base, replaced in the subclass."""


class Small(Base, frozen=True, kw_only=True):
    """A section of this test."""

    replaced: float = 3.0
    """From the subclass, with `a | b`."""
    period_s: Annotated[float, msgspec.Meta(gt=0, le=1)]
    """Seconds, in
    two lines."""
    kind: Literal["one", "two"] = "one"
    shape: tuple[int, Annotated[int, msgspec.Meta(ge=1)]] = (4, 5)
    limit: float | None = None


def test_section_table_has_every_field_of_a_struct(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from sitegen.configuration import section

    assert section("[small]", "What it is.", Small) == (
        "## [small]\n\nWhat it is.\n\n"
        "| key | type | default | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `kept` | `int` | `1` | From the base. |\n"
        "| `replaced` | `float` | `3.0` | From the subclass, with `a | b`. |\n"
        "| `period_s` | `float > 0 and ≤ 1` | required | Seconds, in two lines. |\n"
        '| `kind` | `"one" or "two"` | `"one"` |  |\n'
        "| `shape` | `[int, int ≥ 1]` | `[4, 5]` |  |\n"
        "| `limit` | `float` | none |  |\n"
    )


def test_links_between_documents_are_rewritten_for_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from sitegen.repository import documents, relinked

    for path in ("README.md", "docs/GUIDE.md", "docs/a.svg", "bench/README.md", "bench/out/x.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "README.md").write_text("[guide](docs/GUIDE.md#part) ![a](docs/a.svg)")
    guide = "[b](../bench/README.md), [out](../bench/out), [gone](gone.md), [w](https://x.org/y.md)"
    (tmp_path / "docs/GUIDE.md").write_text(guide)
    found = ["README.md", "bench/README.md", "docs/GUIDE.md", "docs/a.svg"]
    assert documents(["README.md"], tmp_path) == found
    readme = (tmp_path / "README.md").read_text()
    assert relinked(readme, "README.md", tmp_path) == "[guide](GUIDE.md#part) ![a](a.svg)"
    assert relinked(guide, "docs/GUIDE.md", tmp_path) == (
        "[b](bench/README.md), out (`bench/out`), [gone](gone.md), [w](https://x.org/y.md)"
    )
