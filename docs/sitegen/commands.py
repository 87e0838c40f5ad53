"""Generate the page of commands and exit codes from click's commands and the `ExitCode` enum."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from apex.cli.main import main
from apex.daemons.actor import daemon as actor
from apex.errors import NOT_RESTARTED, ExitCode
from apex.launch import local
from sitegen.documentation import attribute_docs
from sitegen.markdown import table

INTRODUCTION = """# Commands

`apex` is in `.venv/bin`. Run the daemons in `bin` with `.venv/bin/python`. `--help` prints the same
for the version that is installed.
"""
DAEMONS = """## bin/learner, bin/replay, bin/evaluator, bin/inference

A suite has one of each. They have the options of [`bin/actor`](#binactor) except `--index`.
"""


def page() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        *sections(main, "apex"),
        *sections(local.main, "python -m apex.launch"),
    ]
    parts += [*sections(actor.main, "bin/actor"), DAEMONS, "## Exit codes\n", exit_codes()]
    return "\n".join(parts)


def sections(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[str]:
    """Heading, usage and options of a command, then those of its subcommands."""
    context = click.Context(command, parent, info_name=name, **command.context_settings)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    help_text = inspect.cleandoc(command.help or "")
    yield f"## {context.command_path}\n\n{help_text}\n\n```text\n{usage}\n```\n"
    options = [option for option in command.params if isinstance(option, click.Option)]
    records = filter(None, (option.get_help_record(context) for option in options))
    rows = [(f"`{written}`", text) for written, text in records]
    if rows:
        yield table(("option", "meaning"), rows)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            yield from sections(command.commands[child], child, context)


def exit_codes() -> str:
    """The exit codes of all executables."""
    docs = attribute_docs(ExitCode)
    rows = [(f"{code:d}", f"`{code.name}`", docs.get(code.name, "")) for code in ExitCode]
    kept_down = ", ".join(f"{code:d}" for code in NOT_RESTARTED)
    return (
        f"{table(('code', 'name', 'when'), rows)}\n"
        f"An engine does not restart a daemon after {kept_down}; it does after every other code.\n"
    )
