"""Show a trained policy playing, in a video file or in the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from apex.acting.agent import greedy
from apex.acting.exploration import evaluation_seed
from apex.acting.loop import ActingLoop
from apex.envs.activity import Activity, announced
from apex.envs.recreation import close
from apex.envs.registry import make_environments
from apex.errors import UsageError
from apex.evaluation.trained_policy import TrainedPolicy, as_in_training
from apex.host.files import check_output

Picture = npt.NDArray[np.uint8]
"""`[H, W, 3]`."""

VIDEO_ENDINGS = (".mp4", ".gif")
SMALLEST_VIDEO = 400
"""Height of a video in pixels; smaller pictures are enlarged by an integer factor towards it."""
MAX_GIF_FPS = 50.0


class Scene(NamedTuple):
    """The picture of one step of an episode."""

    picture: Picture
    fps: float
    finished: float | None
    """Unclipped return of the episode, with its last picture; None before."""


def play(
    policy: TrainedPolicy, episodes: int, seed: int, *, training_env: bool = False
) -> Iterator[Scene]:
    """Play whole greedy episodes, one after the other; `training_env` as in `play_episodes`.

    Raises:
        EnvError: the environment cannot be made.
        EnvFaultError: the environment raised, or returns no pictures.
    """
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # gymnasium's own drawing needs no window
    env = (as_in_training(policy.config) if training_env else policy.config).evaluation_env
    activity = Activity()
    with announced(activity):
        environments = make_environments(env, 1, render=True, activity=activity)
        try:
            policy.check_fits(environments.spec)
            decider = greedy(policy.policy, environments.spec, env, 1)
            loop = ActingLoop(environments, decider, seed=evaluation_seed(seed))
            fps = environments.frames_per_second
            yield Scene(environments.render()[0], fps, None)
            while loop.episodes < episodes:
                finished = loop.step()
                result = finished[0].episode_return if finished else None
                yield Scene(environments.render()[0], fps, result)
        finally:
            close(environments)


def check_video(path: Path) -> None:
    """Raise `UsageError` unless `write_video` can write `path`."""
    check_output(path, VIDEO_ENDINGS)
    try:
        import imageio.v2  # noqa: F401
    except ImportError:
        raise UsageError("videos need imageio: pip install 'apex-suite[video]'") from None


def write_video(path: Path, scenes: Iterable[Scene]) -> list[float]:
    """Write an MP4 or a GIF file; return the returns of its episodes."""
    import imageio.v2 as imageio

    scenes = iter(scenes)
    first = next(scenes)
    scale = max(1, round(SMALLEST_VIDEO / len(first.picture)))
    if path.suffix == ".gif":
        scale, fps = 1, min(first.fps, MAX_GIF_FPS)
        writer = imageio.get_writer(path, mode="I", duration=1000.0 / fps, loop=0)
    else:
        writer = imageio.get_writer(path, fps=first.fps, macro_block_size=2, quality=7)
    returns = []
    with writer:
        for scene in chain([first], scenes):
            writer.append_data(scene.picture.repeat(scale, axis=0).repeat(scale, axis=1))
            if scene.finished is not None:
                returns.append(scene.finished)
    return returns


def show(scenes: Iterable[Scene], out: TextIO = sys.stdout) -> list[float]:
    """Play in a terminal with 24-bit colours at the game's speed; return the returns."""
    returns = []
    out.write("\x1b[2J\x1b[?25l")
    try:
        for scene in scenes:
            started = time.monotonic()
            columns, rows = shutil.get_terminal_size()
            out.write("\x1b[H" + half_blocks(scene.picture, columns, rows - 2))
            if scene.finished is not None:
                returns.append(scene.finished)
            out.write(
                f"\x1b[0m\nreturns so far: {', '.join(f'{r:g}' for r in returns) or '-'}\x1b[K"
            )
            out.flush()
            time.sleep(max(0.0, 1.0 / scene.fps - (time.monotonic() - started)))
    finally:
        out.write("\x1b[0m\x1b[?25h\n")
    return returns


def half_blocks(picture: Picture, columns: int, rows: int) -> str:
    """Convert a picture to text in which each character shows two pixels, one above the other.

    Args:
        picture: `[H, W, 3] uint8`.
        columns: largest number of characters per line.
        rows: largest number of lines.
    """
    height, width = picture.shape[:2]
    scale = min(columns / width, 2 * rows / height, 1.0)
    lines, across = max(1, int(height * scale) // 2), max(1, int(width * scale))
    vertical = np.linspace(0, height - 1, 2 * lines).round().astype(int)
    horizontal = np.linspace(0, width - 1, across).round().astype(int)
    pixels = picture[vertical][:, horizontal].tolist()
    text = []
    for upper, lower in zip(islice(pixels, 0, None, 2), islice(pixels, 1, None, 2)):
        cells, last = [], None
        for pair in zip(upper, lower):
            if pair != last:
                (r, g, b), (r2, g2, b2) = pair
                cells.append(f"\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m")
                last = pair
            cells.append("▀")
        text.append("".join(cells) + "\x1b[0m\x1b[K")
    return "\n".join(text)
