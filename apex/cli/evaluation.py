"""`apex eval`: plays greedy episodes with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import click

from apex.cli.options import json_option, run_option
from apex.errors import UsageError
from apex.run_directory import find_run


@click.command(name="eval")
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@run_option
@click.option("--pretrained", metavar="NAME", help="A checkpoint that ships with apex.")
@click.option("--episodes", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@json_option
def evaluate(
    checkpoint: Path | None,
    run_path: Path | None,
    pretrained: str | None,
    episodes: int,
    seed: int,
    as_json: bool,
) -> None:
    """Play greedy whole episodes with CHECKPOINT (default: the best one of the run)."""
    if pretrained is not None:
        if checkpoint is not None:
            raise UsageError("expected CHECKPOINT or --pretrained NAME, got both")
        checkpoint = _pretrained(pretrained)
    elif checkpoint is None:
        checkpoint = find_run(run_path).path
    import torch

    from apex.inference import load_policy

    torch.set_num_threads(1)
    policy = load_policy(checkpoint)
    returns = policy.play(episodes, seed)
    mean = sum(returns) / len(returns)
    if as_json:
        click.echo(json.dumps({"mean_return": mean, "returns": returns}))
        return
    env_id, step = policy.manifest.env.env_id, policy.manifest.learner_step
    click.echo(
        f"{env_id}, learner step {step}: mean return {mean:.2f} of {len(returns)} episodes "
        f"({min(returns):g} to {max(returns):g})"
    )


def _pretrained(name: str) -> Path:
    folder = Path(__file__).resolve().parent.parent / "pretrained"
    there = sorted(path.name for path in folder.glob("*") if path.is_dir())
    if name not in there:
        raise UsageError(f"no pretrained '{name}'; there are: {', '.join(there) or 'none yet'}")
    return folder / name
