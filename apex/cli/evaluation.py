"""`apex eval` and `apex enjoy`: score a checkpoint, or watch it play."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apex.cli.json_output import echo_json, json_option
from apex.cli.options import run_option, set_option
from apex.errors import UsageError
from apex.host.escaping import printable
from apex.runs.directory import find_run

if TYPE_CHECKING:
    from apex.evaluation.trained_policy import TrainedPolicy


def checkpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a checkpoint (CHECKPOINT, --run, --pretrained) and the seed."""
    for option in (
        click.option("--seed", type=click.IntRange(0), default=1, show_default=True,
                     help="Seed of the environments."),
        click.option("--pretrained", metavar="NAME", help="A checkpoint that ships with apex."),
        click.option("--training-env", is_flag=True,
                     help="Play in the environment of training, without [evaluator.env]."),
        run_option,
        set_option,
        click.argument("checkpoint", required=False, type=click.Path(path_type=Path)),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command(name="eval")
@checkpoint_options
@click.option("--episodes", type=click.IntRange(1), default=20, show_default=True,
              help="Episodes to play.")  # fmt: skip
@json_option
def evaluate(
    checkpoint: Path | None,
    run_path: Path | None,
    pretrained: str | None,
    settings: tuple[str, ...],
    episodes: int,
    seed: int,
    training_env: bool,
    as_json: bool,
) -> None:
    """Score CHECKPOINT over whole greedy episodes.

    CHECKPOINT is the directory of a checkpoint or of a run; default: the newest run.
    """
    from apex.acting.episodes import metric_means
    from apex.host.orphans import ending_children

    policy = _policy(checkpoint, run_path, pretrained, settings)
    with ending_children(Path.cwd()):
        played = policy.play_episodes(episodes, seed, training_env=training_env)
    returns = [episode.episode_return for episode in played]
    mean = sum(returns) / len(returns)
    means = metric_means(episode.metrics for episode in played)
    if as_json:
        metrics = {
            name: {"mean": value, "values": [episode.metrics.get(name) for episode in played]}
            for name, value in means.items()
        }
        echo_json({"mean_return": mean, "returns": returns, "metrics": metrics})
        return
    env_id, step = policy.manifest.env.env_id, policy.manifest.learner_step
    click.echo(
        f"{env_id}, learner step {step}: mean return {mean:.2f} of {len(returns)} episodes "
        f"({min(returns):g} to {max(returns):g})"
    )
    for name, value in means.items():
        counted = sum(name in episode.metrics for episode in played)
        click.echo(f"  {printable(name)}: mean {value:.4g} of {counted} episodes")


@click.command(name="enjoy")
@checkpoint_options
@click.option("--episodes", type=click.IntRange(1), default=1, show_default=True,
              help="Episodes to play.")  # fmt: skip
@click.option(
    "--video", type=click.Path(path_type=Path), help="Write an .mp4 or .gif file instead."
)
def enjoy(
    checkpoint: Path | None,
    run_path: Path | None,
    pretrained: str | None,
    settings: tuple[str, ...],
    episodes: int,
    seed: int,
    training_env: bool,
    video: Path | None,
) -> None:
    """Watch CHECKPOINT play in this terminal.

    CHECKPOINT is the directory of a checkpoint or of a run; default: the newest run.
    """
    from apex.evaluation import film
    from apex.host.orphans import ending_children

    if video is not None:
        film.check_video(video)
    elif not sys.stdout.isatty():
        raise UsageError(
            "expected a terminal to play in; use --video FILE.mp4 to write a video instead"
        )
    policy = _policy(checkpoint, run_path, pretrained, settings)
    with ending_children(Path.cwd()):
        scenes = film.play(policy, episodes, seed, training_env=training_env)
        returns = film.show(scenes) if video is None else film.write_video(video, scenes)
    what = "" if video is None else f"wrote {video}: "
    click.echo(
        f"{what}{policy.manifest.env.env_id}, returns {', '.join(f'{r:g}' for r in returns)}"
    )


def _policy(
    checkpoint: Path | None,
    run_path: Path | None,
    pretrained: str | None,
    settings: Sequence[str],
) -> TrainedPolicy:
    if sum(given is not None for given in (checkpoint, run_path, pretrained)) > 1:
        raise UsageError("expected one of CHECKPOINT, --run and --pretrained")
    from apex.evaluation.trained_policy import load_policy
    from apex.host import process_tuning

    process_tuning.set_up(threads=1)
    if pretrained is not None:
        return load_policy(_pretrained(pretrained), settings)
    return load_policy(checkpoint or find_run(run_path).path, settings)


def _pretrained(name: str) -> Path:
    folder = Path(__file__).resolve().parent.parent / "pretrained"
    names = sorted(path.name for path in folder.glob("*") if path.is_dir())
    if name not in names:
        raise UsageError(
            f"no pretrained checkpoint '{name}'; there are: {', '.join(names) or 'none'}"
        )
    return folder / name
