"""What a stage's model makes of clips of val when the stage ends: every task, with guidance on and off, as films and stills.

Goes in: a finished stage, the shards, settings. Comes out: `<stage>/validation/<task>-<clip>-<guidance>.mp4` with sound and a
`.png` of still pictures beside each, also as artifacts of the stage's run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from orchestration import console
from orchestration.movie import write_movie

if TYPE_CHECKING:
    from orchestration.config import Config

GUIDANCES = ("none", "modality-aware")
STILLS = 6
"""Pictures of a film on its sheet."""


def validation_films(stage: str, shards_dir: str, run_dir: Path, settings: Config, seed: int = 0) -> Path | None:
    """The folder with the stage's films; None where none are asked for or the stage makes no pictures.

    Noise is the same for every task, clip and guidance, so that films differ by them alone.
    """
    from shards.stream import SampleStream
    from train.generate import conditions_from, generate
    from train.options import Task

    plan, wanted = settings.train.stage(stage), settings.train.validation.films
    if not wanted or not plan.picture:
        return None
    stream, folder = SampleStream(shards_dir, "val"), run_dir / stage / "validation"
    tasks = [task for task in Task if plan.tasks.get(task)]
    clips = [stream.sample_named(key) for key in stream.keys[:wanted]]
    with console.progress(f"{stage}: films of val", len(tasks) * len(clips) * len(GUIDANCES)) as bar:
        for sample in clips:
            given = conditions_from(sample, settings.train.data, seed)
            for task in tasks:
                for guidance in GUIDANCES:
                    sampler = settings.sample.model_copy(update={"guidance": guidance})
                    made = generate(run_dir, task, given, sampler, seed, stage=stage)
                    path, size = folder / f"{task}-{sample.key}-{guidance}.mp4", made.frames.shape[1:3]
                    write_movie(path, made.frames, size, made.waveform, fps=made.fps, sample_rate=made.sample_rate)
                    write_sheet(path.with_suffix(".png"), made.frames)
                    bar.advance(bar.task_ids[0])
    return folder


def write_sheet(path: Path, frames: np.ndarray) -> None:
    """Evenly spaced pictures of uint8 [F, H, W, 3], first and last among them, side by side."""
    from PIL import Image

    chosen = np.linspace(0, len(frames) - 1, min(STILLS, len(frames))).round().astype(int)
    Image.fromarray(np.concatenate(list(frames[chosen]), axis=1)).save(path)
