"""Run supervisord with deploy/supervisord.conf: `python -m apex.launch.supervisord --run DIR`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from supervisor import supervisord
from supervisor.options import ServerOptions
from supervisor.poller import Poller

from apex.errors import ApexError
from apex.host.orphans import Orphans
from apex.host.paths import install_root
from apex.launch import engine
from apex.runs.directory import find_run

POLL_S = 0.1


class PromptPoller(Poller):  # type: ignore[misc]
    """Polls for ended children ten times a second, not once, to restart them a second sooner.

    It also ends what daemons that have ended leave behind.

    Args:
        options: supervisord's; its `pidhistory` has the process ids of its children.
    """

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(options)
        self._children = options.pidhistory
        self._before: set[int] = set()
        self.orphans = Orphans(lambda: self._children)

    def poll(self, timeout: float) -> tuple[list[int], list[int]]:
        """Readable and writable file descriptors."""
        if not self._before <= self._children.keys():
            self.orphans.daemon_ended()
        self._before = set(self._children)
        self.orphans.end_lost()
        found: tuple[list[int], list[int]] = super().poll(min(timeout, POLL_S))
        return found


@click.command()
@click.option("--run", type=click.Path(path_type=Path), required=True, help="The run's directory.")
def main(run: Path) -> None:
    """Run supervisord for a run until it is asked to stop."""
    try:
        directory = find_run(run)
        environment = engine.supervisord_environment(directory, directory.config())
        os.environ.update(environment)
        engine.register(
            directory,
            "supervisor",
            supervisor_socket=environment["APEX_SUPERVISOR_SOCKET"],
            supervisor_password=environment["APEX_SUPERVISOR_PASSWORD"],
        )
    except ApexError as error:
        click.echo(str(error), err=True)
        sys.exit(int(error.exit_code))
    options = ServerOptions()
    poller = options.poller = PromptPoller(options)
    options.realize(["-c", str(install_root() / "deploy" / "supervisord.conf")])
    options.first = True
    options.test = False
    try:
        supervisord.go(options)
    finally:
        poller.orphans.end_all()


if __name__ == "__main__":
    main()
