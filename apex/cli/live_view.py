"""Live figures of a run: a panel on a terminal, otherwise one line every 10 seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

from apex.cli.status_text import attention, duration
from apex.config.sections import RunConfig
from apex.daemons.catalog import daemon_names
from apex.daemons.status.gathering import gather
from apex.daemons.status.reports import LearnerReport
from apex.daemons.status.run_status import RunStatus
from apex.errors import ExitCode
from apex.runs.directory import RunDirectory

PANEL_PERIOD_S = 1.0
LINE_PERIOD_S = 10.0
SHOWN_EVALUATIONS = 5


class ViewFigures:
    """Figures that need more than one status: the rate of steps, and the last evaluations.

    Args:
        run: the run.
        clock: seconds, monotonic.
    """

    def __init__(self, run: RunDirectory, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        config = run.config()
        self._limits: RunConfig = config.run
        self._configured = daemon_names(config)
        self._episodes = 0
        self._rate = 0.0
        self._last: tuple[float, int] | None = None
        self.evaluations: list[float] = []

    def update(self, status: RunStatus) -> None:
        """Add a new status."""
        now, env_steps = self._clock(), status.run.env_steps
        if self._last is not None and now > self._last[0]:
            current = (env_steps - self._last[1]) / (now - self._last[0])
            self._rate = current if self._rate == 0 else 0.8 * self._rate + 0.2 * current
        self._last = (now, env_steps)
        evaluator = status.evaluator
        if evaluator.episodes != self._episodes and evaluator.mean_return is not None:
            self._episodes = evaluator.episodes
            self.evaluations = [*self.evaluations, evaluator.mean_return][-SHOWN_EVALUATIONS:]

    def frames_per_s(self, status: RunStatus) -> float:
        """Emulator frames per second."""
        steps = status.run.env_steps
        return self._rate * (status.run.frames / steps if steps else 1.0)

    def eta(self, status: RunStatus) -> str:
        """Time until the run ends, or the condition that ends it."""
        limits = self._limits
        left = []
        if limits.max_env_steps and self._rate > 0:
            left.append((limits.max_env_steps - status.run.env_steps) / self._rate)
        if limits.max_hours:
            learner = status.learner
            train_s = learner.train_s if isinstance(learner, LearnerReport) else 0.0
            left.append(limits.max_hours * 3600 - train_s)
        if left:
            return duration(max(0.0, min(left)))
        if limits.until_return is not None:
            return f"at return {limits.until_return:g}"
        return "none: runs until `apex stop`"

    def rows(self, status: RunStatus) -> list[tuple[str, str]]:
        """Label and value of each row of the panel; what needs a person's attention is first."""
        learner, replay, run = status.learner, status.replay, status.run
        actors = status.actors
        stepping = sum(row.state in ("stepping", "waiting_for_credit") for row in actors)
        returns = [row.mean_return for row in actors if row.mean_return is not None]
        best = status.evaluator.best_mean_return
        current = ["one under way"] if status.evaluator.phase == "evaluating" else []
        fill = 100 * replay.items / max(1, replay.capacity)
        return [
            *((f"[bold red]{label}", text) for label, text in self._attention(status)),
            ("frames", f"{run.frames:,}"),
            ("frames/s", f"{self.frames_per_s(status):,.0f}"),
            ("learner step", f"{learner.learner_step:,}"),
            ("updates/s", f"{learner.updates_per_s:.1f}"),
            ("replay fill", f"{fill:.1f} % ({replay.items:,} items, "
                            f"{replay.bytes / 1e6:.0f} MB)"),
            ("actors", f"{stepping} of {len(actors)} at work"),
            ("actors' returns", ", ".join(f"{value:.1f}" for value in returns) or "none yet"),
            ("evaluations", ", ".join([*(f"{v:.1f}" for v in self.evaluations), *current])
                            or "none yet"),
            ("best evaluation", "none yet" if best is None else f"{best:.1f}"),
            ("ETA", self.eta(status)),
            ("bottleneck", run.bottleneck),
        ]  # fmt: skip

    def line(self, status: RunStatus) -> str:
        """What needs a person's attention, and the most important figures, in one line."""
        learner, evaluator = status.learner, status.evaluator
        returns = [row.mean_return for row in status.actors if row.mean_return is not None]
        parts = [
            duration(status.run.uptime_s),
            *(f"{label}: {text}" for label, text in self._attention(status)),
            f"{status.run.frames:,} frames ({self.frames_per_s(status):,.0f}/s)",
            f"step {learner.learner_step:,} ({learner.updates_per_s:.0f}/s)",
        ]
        if returns:
            parts.append(f"return {sum(returns) / len(returns):.1f}")
        if evaluator.best_mean_return is not None:
            parts.append(f"best {evaluator.best_mean_return:.1f}")
        return "  ".join(parts)

    def _attention(self, status: RunStatus) -> list[tuple[str, str]]:
        return attention(status, self._configured)


def watch_run(run: RunDirectory) -> int:
    """Show a run until it ends or Ctrl-C is pressed; Ctrl-C does not stop the run.

    Returns:
        0, or `ExitCode.DOWN` if the daemons are gone although the run did not reach its end.
    """
    try:
        figures = ViewFigures(run)
        show = _panel if sys.stdout.isatty() else _lines
        last = show(run, figures)
    except KeyboardInterrupt:
        click.echo(f"\n{run.path} keeps running. `apex watch` shows it again, `apex stop` ends it.")
        return int(ExitCode.CLEAN)
    outcome = last.run.outcome
    click.echo(f"the run has ended: {outcome or 'it was stopped, or its engine was killed'}")
    return int(ExitCode.DOWN if outcome is None else ExitCode.CLEAN)


def _over(run: RunDirectory) -> bool:
    from apex.runs import engine_record

    return engine_record.living_engine(run) is None and not run.living()


def _panel(run: RunDirectory, figures: ViewFigures) -> RunStatus:
    from rich.console import Console
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            status = gather(run)
            figures.update(status)
            grid = Table.grid(padding=(0, 2))
            for label, value in figures.rows(status):
                grid.add_row(f"[dim]{label}", Text(value))
            facts = status.run
            title = Text(f"{facts.algorithm} · {facts.env_id} · {facts.health}")
            footer = "Ctrl-C leaves it running · apex stop ends it"
            live.update(Panel(grid, title=title, subtitle=footer, expand=False), refresh=True)
            if _over(run):
                return status
            time.sleep(PANEL_PERIOD_S)


def _lines(run: RunDirectory, figures: ViewFigures) -> RunStatus:
    while True:
        status = gather(run)
        figures.update(status)
        if _over(run):
            return status
        click.echo(figures.line(status))
        sys.stdout.flush()
        time.sleep(LINE_PERIOD_S)
