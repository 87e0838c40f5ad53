"""Run the fenced blocks of a Markdown document, in order, in one directory, as a reader would.

A `bash` block runs in its own terminal, a `python` block in Python. The `text` block after it is
the expected output: any run of blanks matches any other, and so for rules (`───`); `...` matches
anything, a line `...` also no line; at a line `^C` the reader presses Ctrl-C. Comments before a
block, which are not rendered, give options:

    <!-- file: NAME -->                   write the block to that file, do not run it
    <!-- append: NAME -->                 append the block to that file
    <!-- test: exit=78, timeout=90 -->    exit code (default 0), and seconds at most (120)
    <!-- test: second terminal -->        the next blocks run once it has printed the expected
                                          output; it ends by itself before the section does
    <!-- test: repeat -->                 run it again until it prints the expected output
    <!-- test: numbers vary -->           before a `text` block: any number matches any other
    <!-- test: not run, because … -->     neither run nor compared
"""

from __future__ import annotations

import doctest
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.processes import CPU_TICKS_A_SECOND, cpu_ticks, suite_processes
from tests.support.waiting import wait_until

TIMEOUT_S = 120.0
AGAIN_PAUSE_S = 0.5
"""Seconds between two checks of a reader who waits."""
END_S = 30.0
"""Seconds that a second terminal may still take after the end of its section."""
LANGUAGES = ("bash", "python", "toml", "text")
WORDS = ("second terminal", "repeat", "numbers vary")

_COMMENT = re.compile(r"<!-- (file|append|test): (.*) -->")
_CONTROL = re.compile(r"(\x1b\[[0-9;?]*[A-Za-z]|[\r\n])")
_NUMBER = re.compile(r"-?\d+([.,:]\d+)*(e[-+]?\d+)?")
_ANY_LINES = re.compile(r"\s*^\.\.\.$\s*", re.MULTILINE)
_LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class DocumentError(AssertionError):
    """An instruction of the document failed, or the output differs from what it shows."""


@dataclass(frozen=True)
class Block:
    """A fenced block with the options of the comments before it.

    Args:
        where: `document:line` of the fence.
        section: the heading above it.
        language: after the fence.
        text: between the fences.
        file: the file to which it is written.
        appended: whether to append to the file, after two empty lines.
        options: the words of `<!-- test: … -->` with their values, which may be empty.
        unrun: the reason why it is not run.
        shown: the expected output, from the `text` block after it.
    """

    where: str
    section: str
    language: str
    text: str
    file: str = ""
    appended: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    unrun: str = ""
    shown: Block | None = None


def blocks(document: str, name: str) -> list[Block]:
    """The blocks of a document; a `text` block is the expected output of the block before it.

    Raises:
        DocumentError: an unknown block language or comment.
    """
    found: list[Block] = []
    for block in _fenced(document, name):
        if block.language != "text" or block.unrun:
            found.append(block)
        elif not found or found[-1].shown or found[-1].section != block.section:
            raise DocumentError(f"{block.where}: a text block follows the block whose output it is")
        else:
            found[-1] = replace(found[-1], shown=block)
    return found


def _fenced(document: str, name: str) -> Iterator[Block]:
    lines = iter(enumerate(document.splitlines(), start=1))
    section, said = "", {}
    for number, line in lines:
        comment, where = _COMMENT.fullmatch(line), f"{name}:{number}"
        if comment:
            said = {**said, **_options(*comment.groups(), where)}
        elif line.startswith("```"):
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            block = Block(where, section, line[3:], "\n".join(body) + "\n", **said)
            if block.language not in LANGUAGES and not block.unrun:
                raise DocumentError(
                    f"{where}: expected a block of {', '.join(LANGUAGES)}, got "
                    f"'{block.language}'; or say before it: <!-- test: not run, because … -->"
                )
            yield block
            said = {}
        elif line.startswith("## "):
            section = line[3:]


def _options(kind: str, text: str, where: str) -> dict[str, object]:
    """The options of a comment, as arguments of `Block`."""
    if kind != "test":
        return {"file": text, "appended": kind == "append"}
    if text.startswith("not run, because "):
        return {"unrun": text}
    options = dict(word.partition("=")[::2] for word in text.split(", "))
    for word, value in options.items():
        if not (word in WORDS or (word in ("exit", "timeout") and value.isdigit())):
            raise DocumentError(f"{where}: '{word}' means nothing; see tests/support/fenced.py")
    return {"options": options}


class Terminal:
    """A command in its own terminal.

    Args:
        command: with its arguments.
        folder: its working directory.
        environment: its variables.
    """

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._keyboard, inside = pty.openpty()
        setsid = shutil.which("setsid")
        assert setsid, "needs the command setsid (util-linux)"
        self.process = subprocess.Popen(
            [setsid, "--ctty", *command],
            cwd=folder, env=environment, stdin=inside, stdout=inside, stderr=inside,
            # A shell starts background commands with Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(inside)
        self._written = b""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        try:
            while chunk := os.read(self._keyboard, 65536):
                self._written += chunk
        except OSError:  # no process has this terminal open
            pass

    @property
    def ended(self) -> bool:
        """Whether the command has ended and all its output was read."""
        if self.process.poll() is None:
            return False
        self._reading.join(1.0)
        return True

    @property
    def exit_code(self) -> int:
        """Exit code of an ended command, as a shell gives it: 128 + n after signal n."""
        code = self.process.wait()
        return code if code >= 0 else 128 - code

    @property
    def screen(self) -> str:
        """The visible text: without what was overwritten."""
        lines = [""]
        for piece in _CONTROL.split(self._written.decode(errors="replace")):
            if piece == "\n":
                lines.append("")
            elif piece == "\x1b[1A":
                lines = lines[:-1] or [""]
            elif piece == "\x1b[2K":
                lines[-1] = ""
            elif not _CONTROL.fullmatch(piece):
                lines[-1] += piece
        return "\n".join(lines).replace("^C", "")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._keyboard, b"\x03")

    def close(self) -> None:
        """End the command, if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._reading.join(1.0)
        os.close(self._keyboard)


def is_shown(shown: Block | None, screen: str, text: str | None = None) -> bool:
    """Whether a screen matches a block of text, or the beginning of one."""
    if shown is None:
        return True
    expected = shown.text.replace("^C\n", "") if text is None else text
    if "numbers vary" in shown.options:
        expected, screen = _NUMBER.sub("0", expected), _NUMBER.sub("0", screen)
    expected = _ANY_LINES.sub("...", expected)
    plain = [re.sub("─+", "─", one).strip() + "\n" for one in (expected, screen)]
    return doctest.OutputChecker().check_output(*plain, _LOOSELY)


class Reader:
    """Runs blocks in one directory.

    Args:
        folder: the directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._beside: list[tuple[Block, Terminal]] = []
        """Commands that run in second terminals."""
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {name: v for name, v in os.environ.items() if not name.startswith("APEX_")}
        self._environment = {
            **kept, "PATH": programs, "PWD": str(folder), "TERM": "xterm", "COLUMNS": "100",
        }  # fmt: skip

    def follow(self, block: Block) -> None:
        """Run or write one block. Raises `DocumentError`."""
        if block.unrun:
            return
        if block.file:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                path.read_text() + "\n\n" + block.text if block.appended else block.text
            )
        elif block.language == "toml":
            raise DocumentError(f"{block.where}: toml is written to a file: <!-- file: NAME -->")
        elif "second terminal" in block.options:
            self._begin_in_background(block)
        elif "repeat" in block.options:
            self._repeat(block)
        else:
            self._check(block, self._run(block))

    def end_section(self) -> None:
        """Wait until the commands in second terminals have ended. Raises `DocumentError`."""
        for block, terminal in self._beside:
            self._wait(block, terminal, lambda: terminal.ended, "it still runs", END_S)  # noqa: B023
            self._check(block, terminal)
        self._beside = []

    def close(self) -> None:
        """Kill the commands that still run in terminals."""
        for _, terminal in self._beside:
            terminal.close()

    def _open(self, block: Block) -> Terminal:
        shell = ["bash", "-eu", "-o", "pipefail", "-c", block.text]
        command = shell if block.language == "bash" else [sys.executable, "-c", block.text]
        return Terminal(command, self.folder, self._environment)

    def _run(self, block: Block) -> Terminal:
        """Run a block to its end."""
        terminal = self._open(block)
        try:
            if block.shown and "^C\n" in block.shown.text:
                before = block.shown.text.partition("^C\n")[0] + "..."
                self._wait_shown(block, terminal, before)
                terminal.interrupt()
            self._wait(block, terminal, lambda: terminal.ended, "it has not ended")
        finally:
            terminal.close()
        return terminal

    def _begin_in_background(self, block: Block) -> None:
        terminal = self._open(block)
        self._beside.append((block, terminal))
        assert block.shown, f"{block.where}: what runs in a second terminal shows something"
        self._wait_shown(block, terminal, block.shown.text)

    def _repeat(self, block: Block) -> None:
        problems: list[str] = []

        def seen() -> bool:
            problems.append(self._problem(block, self._run(block)))
            return not problems[-1]

        try:
            wait_until(
                seen, self._timeout_s(block), "what is shown", pause_s=AGAIN_PAUSE_S,
                progress=self._progress,
            )  # fmt: skip
        except DocumentError:
            raise
        except AssertionError:
            raise DocumentError(problems[-1]) from None

    def _progress(self) -> int:
        """Seconds of CPU time of all processes of the directory, daemons too."""
        return cpu_ticks(suite_processes(str(self.folder))) // CPU_TICKS_A_SECOND

    def _check(self, block: Block, terminal: Terminal) -> None:
        problem = self._problem(block, terminal)
        if problem:
            raise DocumentError(problem)

    def _problem(self, block: Block, terminal: Terminal) -> str:
        """How exit code or output differ from the document; empty if they do not."""
        expected, code = int(block.options.get("exit", "0")), terminal.exit_code
        if code != expected:
            return (
                f"{block.where}: ended with {code}, expected {expected}:\n"
                f"{block.text}\n{terminal.screen}"
            )
        return "" if is_shown(block.shown, terminal.screen) else self._difference(block, terminal)

    def _wait_shown(self, block: Block, terminal: Terminal, text: str) -> None:
        self._wait(
            block, terminal, lambda: is_shown(block.shown, terminal.screen, text) or terminal.ended,
            "what is shown is not seen",
        )  # fmt: skip
        if not is_shown(block.shown, terminal.screen, text):
            raise DocumentError(self._difference(block, terminal))

    def _wait(
        self,
        block: Block,
        terminal: Terminal,
        condition: Callable[[], bool],
        what: str,
        timeout_s: float | None = None,
    ) -> None:
        try:
            wait_until(
                condition, timeout_s or self._timeout_s(block), what, progress=self._progress
            )
        except AssertionError as error:
            raise DocumentError(
                f"{block.where}: {error}:\n{block.text}\n{terminal.screen}"
            ) from None

    @staticmethod
    def _timeout_s(block: Block) -> float:
        return float(block.options.get("timeout", TIMEOUT_S))

    @staticmethod
    def _difference(block: Block, terminal: Terminal) -> str:
        assert block.shown
        return (
            f"{block.shown.where} shows\n{block.shown.text}\n"
            f"{block.where} printed\n{terminal.screen}"
        )
