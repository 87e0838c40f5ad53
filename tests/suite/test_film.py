"""Videos, decoded by ffmpeg."""

from __future__ import annotations

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from apex.evaluation import film
from apex.evaluation.film import Scene


def scenes(count: int, fps: float = 20.0) -> list[Scene]:
    return [
        Scene(np.full((20, 10, 3), 40 * k, np.uint8), fps, 7.0 if k == count - 1 else None)
        for k in range(count)
    ]


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_video_has_every_frame_when_decoded(tmp_path, ending):
    path = tmp_path / f"film.{ending}"
    assert film.write_video(path, scenes(6)) == [7.0]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path)]
    done = subprocess.run(
        [*ffmpeg, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    )
    height, width = (400, 200) if ending == "mp4" else (20, 10)
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    levels = pictures.astype(float).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, [0, 40, 80, 120, 160, 200], atol=6)
