"""The tutorial: its commands work and print what it shows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apex.launch import engine
from apex.runs.directory import RunDirectory
from tests.support.fenced import Block, DocumentError, Reader, blocks
from tests.support.paths import ROOT
from tests.support.processes import suite_processes
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

TUTORIAL = blocks((ROOT / "docs" / "TUTORIAL.md").read_text(), "TUTORIAL.md")
SECTIONS = list(dict.fromkeys(block.section for block in TUTORIAL))


class Walkthrough:
    """A reader who follows the tutorial, section by section."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "afternoon"
        self.folder.mkdir()
        (folder / "apex").symlink_to(ROOT)
        self.reader = Reader(self.folder)
        self.left = list(SECTIONS)
        self.failed = ""

    def follow_to(self, section: str) -> None:
        """Follow the tutorial to the end of a section, from the current one."""
        if self.failed:
            pytest.skip(f"'{self.failed}' failed, which this section needs")
        while section in self.left:
            self.failed = self.left.pop(0)
            for block in TUTORIAL:
                if block.section == self.failed:
                    self.reader.follow(block)
            self.reader.end_section()
            self.failed = ""

    def end(self) -> None:
        """Stop all processes. Kill those that remain, and fail the test."""
        self.reader.close()
        for schema in self.folder.rglob("schema.json"):
            engine.stop(RunDirectory(schema.parent), timeout_s=45.0)
        try:
            wait_until(lambda: not self.processes(), 5.0, "all processes are gone")
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Process ids of all runs and terminals of the directory."""
        return suite_processes(str(self.folder))


@pytest.fixture(scope="module")
def walkthrough(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walkthrough]:
    one = Walkthrough(tmp_path_factory.mktemp("tutorial"))
    try:
        yield one
    finally:
        one.end()


@pytest.mark.parametrize("section", SECTIONS)
def test_tutorial_shows_the_real_output_in_section(section: str, walkthrough: Walkthrough) -> None:
    walkthrough.follow_to(section)


def test_no_process_of_the_tutorial_is_left_after_its_last_line(walkthrough: Walkthrough) -> None:
    walkthrough.follow_to(SECTIONS[-1])
    wait_until(lambda: not walkthrough.processes(), 60.0, "all processes are gone")


@pytest.mark.parametrize(
    ("written", "example"),
    [
        ("my_env.py", "catch.py"),
        ("my_network.py", "own_network.py"),
        ("my_algo.py", "munchausen.py"),
    ],
)
def test_code_in_the_tutorial_equals_the_examples(written: str, example: str) -> None:
    def code(text: str) -> list[str]:
        return [line for line in text.splitlines() if line and example not in line]

    written_lines = [
        line for block in TUTORIAL if block.file == written for line in code(block.text)
    ]
    named = f'    name: str = "{written}:'
    written_lines = [line for line in written_lines if not line.startswith(named)]
    there = code((ROOT / "examples" / example).read_text())
    missing = set(written_lines[1:]) - set(there)
    assert len(written_lines) > 10 and not missing


# The reader itself


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    one = Reader(tmp_path)
    yield one
    one.close()


def fenced(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```", ""])


def follow(reader: Reader, *parts: str) -> list[Block]:
    found = blocks("## Part\n\n" + "\n".join(parts), "small.md")
    for block in found:
        reader.follow(block)
    reader.end_section()
    return found


def test_blocks_share_a_directory_and_run_in_order(reader: Reader) -> None:
    follow(
        reader,
        "<!-- file: deep/one.txt -->",
        fenced("toml", "a = 1"),
        "<!-- append: deep/one.txt -->",
        fenced("toml", "b = 2"),
        fenced("bash", "cp deep/one.txt two.txt", "echo copied >&2"),
        fenced("text", "copied"),
        fenced("python", "print(open('two.txt').read())"),
        fenced("text", "a = 1", "b   = 2"),
    )


@pytest.mark.parametrize(
    ("comment", "shown", "good"),
    [
        ("", "one 7 two", True),
        ("", "one 7 tw", False),
        ("", "one 8 two", False),
        ("", "one ... two", True),
        ("", "... two", True),
        ("", "...\none 7 two\n...", True),
        ("", "one ... three", False),
        ("", "", False),
        ("<!-- test: numbers vary -->", "one 1,234.5 two", True),
        ("<!-- test: numbers vary -->", "one - two", False),
    ],
)
def test_shown_output_must_match_except_for_parts_that_may_vary(
    reader: Reader, comment: str, shown: str, good: bool
) -> None:
    parts = [fenced("bash", "echo one 7 two"), comment, fenced("text", shown)]
    if good:
        follow(reader, *parts)
        return
    with pytest.raises(DocumentError, match=r"small.md:8 shows\n(.*\n)+small.md:3 printed\none 7"):
        follow(reader, *parts)


def test_block_fails_when_its_exit_code_is_not_the_documented_one(reader: Reader) -> None:
    follow(reader, "<!-- test: exit=3 -->", fenced("bash", "exit 3"))
    with pytest.raises(DocumentError, match=r"small.md:3: ended with 3, expected 0"):
        follow(reader, fenced("bash", "exit 3"))
    with pytest.raises(DocumentError, match=r"small.md:3: ended with 1, expected 0"):
        follow(reader, fenced("bash", "false | cat", "echo not reached"))


def test_block_fails_and_is_killed_when_it_does_not_end_in_time(
    reader: Reader, tmp_path: Path
) -> None:
    with pytest.raises(DocumentError, match=r"small.md:4: not within 1 s: it has not ended"):
        follow(reader, "<!-- test: timeout=1 -->", fenced("bash", "echo $$ > pid", "cat"))
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (fenced("yaml", "a: 1"), "small.md:1: expected a block of bash, python, toml, text"),
        (fenced("", "a"), "small.md:1: expected a block of .*, got ''"),
        ("<!-- test: maybe -->", "small.md:1: 'maybe' means nothing"),
        ("<!-- test: timeout=soon -->", "small.md:1: 'timeout' means nothing"),
        ("<!-- test: not run -->", "small.md:1: 'not run' means nothing"),
        (fenced("text", "seen"), "small.md:1: a text block follows the block whose output it is"),
        (fenced("bash", "a") + "## Next\n" + fenced("text", "b"), "small.md:5: a text block"),
    ],
)
def test_invalid_blocks_and_comments_are_refused(document: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        blocks(document, "small.md")


def test_block_is_not_run_when_its_comment_gives_a_reason(reader: Reader, tmp_path: Path) -> None:
    reason = "<!-- test: not run, because it would never end -->"
    follow(reader, reason, fenced("bash", "touch ran"), reason, fenced("yaml", "a: 1"))
    assert not (tmp_path / "ran").exists()


def test_toml_block_without_a_file_is_refused(reader: Reader) -> None:
    with pytest.raises(DocumentError, match=r"small.md:3: toml is written to a file"):
        follow(reader, fenced("toml", "a = 1"))


def test_reader_sends_ctrl_c_after_the_output_before_it(reader: Reader) -> None:
    loop = "trap 'echo; echo interrupted; exit 0' INT; echo ready; while :; do read -r; done"
    follow(reader, fenced("bash", loop), fenced("text", "ready", "^C", "interrupted"))
    with pytest.raises(DocumentError, match="what is shown is not seen"):
        follow(
            reader, "<!-- test: timeout=1 -->", fenced("bash", loop), fenced("text", "never", "^C")
        )


def test_overwritten_terminal_lines_are_not_seen(reader: Reader) -> None:
    paint = r"printf 'first\nsecond'; printf '\r\033[2K\033[1A\033[2Kthird\n'; [ -t 1 ]"
    follow(reader, fenced("bash", paint), fenced("text", "third"))


def test_second_terminal_runs_beside_later_blocks_and_ends_with_its_section(reader: Reader) -> None:
    beside = "<!-- test: second terminal -->"
    waiter = fenced("bash", "mkfifo line", "echo waits", "read -r word < line", "echo got $word")
    follow(reader, beside, waiter, fenced("text", "waits..."), fenced("bash", "echo x > line"))
    with pytest.raises(DocumentError, match=r"small.md:4: ended with 7, expected 0"):
        follow(reader, beside, fenced("bash", "echo here", "exit 7"), fenced("text", "here..."))


def test_repeated_block_runs_until_its_output_is_seen(reader: Reader) -> None:
    follow(
        reader,
        "<!-- test: repeat -->",
        fenced("bash", "echo x >> looks; wc -l < looks"),
        fenced("text", "3"),
    )
    with pytest.raises(DocumentError, match=r"small.md:9 shows\nnever"):
        follow(
            reader,
            "<!-- test: repeat, timeout=1 -->",
            fenced("bash", "echo seen"),
            "",
            fenced("text", "never"),
        )
