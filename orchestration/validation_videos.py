"""What a stage's model makes of clips of val when the stage ends: every task, with guidance on and off, as films and stills.

Goes in: a finished stage, the shards, settings. Comes out: `<stage>/validation/<task>-<clip>-<guidance>.mp4` with sound and a
`.png` of still pictures beside each, also as artifacts of the stage's run.
"""

from __future__ import annotations

from contextlib import closing
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uniavgen.orchestration import console
from uniavgen.orchestration.video_file import write_movie

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

GUIDANCES = ("none", "modality-aware")
STILLS = 6
"""Pictures of a film on its sheet."""


def validation_films(
    stage: str, shards_dir: str, run_dir: Path, settings: Config, seed: int = 0, *, anew: bool = True
) -> Path | None:
    """The folder with the stage's films; None where none are asked for, the stage makes no pictures, or nothing was made.

    Without `anew` only those are made that are missing. Noise is the same for every task, clip and guidance, so that films
    differ by them alone.
    """
    from uniavgen.shards.read.stream import SampleStream
    from uniavgen.train.generation import ClipGenerator, conditions_from, device_here
    from uniavgen.train.options import Task

    plan, wanted = settings.train.stage(stage), settings.train.validation.films
    if not wanted or not plan.picture:
        return None
    stream, folder = SampleStream(shards_dir, "val"), run_dir / stage / "validation"
    tasks = [task for task in Task if plan.tasks.get(task)]
    films = [
        (folder / f"{task}-{key}-{guidance}.mp4", key, task, guidance)
        for key, task, guidance in product(stream.keys[:wanted], tasks, GUIDANCES)
    ]
    todo = [film for film in films if anew or not film[0].with_suffix(".png").is_file()]
    if not todo:
        return None
    making = closing(ClipGenerator(run_dir, stage, device_here(settings.train.device)))
    with making as generator, console.progress(f"{stage}: films of val", len(todo)) as bar:
        for key, of_clip in groupby(todo, key=lambda film: film[1]):
            given = conditions_from(stream.sample_by_key(key), settings.train.data, seed)
            for path, _, task, guidance in of_clip:
                sampler = settings.sample.model_copy(update={"guidance": guidance})
                made = generator.generate(task, given, sampler, seed)
                size = made.frames.shape[1:3]
                write_movie(
                    path, made.frames, size, made.waveform, fps=made.fps, sample_rate=made.sample_rate
                )
                write_sheet(
                    path.with_suffix(".png"), made.frames
                )  # last: its presence says that the film is whole
                bar.advance(bar.task_ids[0])
    return folder


def write_sheet(path: Path, frames: np.ndarray) -> None:
    """Evenly spaced pictures of uint8 [F, H, W, 3], first and last among them, side by side."""
    from PIL import Image

    chosen = np.linspace(0, len(frames) - 1, min(STILLS, len(frames))).round().astype(int)
    Image.fromarray(np.concatenate(list(frames[chosen]), axis=1)).save(path)
