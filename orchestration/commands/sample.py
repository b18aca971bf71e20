"""`uniavgen sample`: generate a video with sound from a trained run and the conditions of a clip."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CorpusOption, RunOption, command
from uniavgen.train.tasks import describe_tasks, task_named

if TYPE_CHECKING:
    import numpy as np

    from uniavgen.ingest.config import FaceConfig
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.sample import Sample
    from uniavgen.train.data.config import DataConfig


@dataclass(frozen=True)
class Overrides:
    """Conditions that replace those of the clip; None keeps the clip's."""

    image: Path | None = None
    text: str | None = None
    caption: str | None = None


NO_OVERRIDES = Overrides()


@command
def sample(
    settings: Config,
    run: RunOption,
    corpus: CorpusOption,
    task: Annotated[str, typer.Option("--task", help=describe_tasks(), metavar="TASK")] = "joint",
    clip: Annotated[
        str | None,
        typer.Option("--clip", help="Clip with the conditions; default: the first of val.", metavar="CLIP"),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Reference image, instead of the clip's.", metavar="FILE")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Words to speak, instead of the clip's.", metavar="WORDS")
    ] = None,
    caption: Annotated[
        str | None, typer.Option("--caption", help="Video caption, instead of the clip's.", metavar="WORDS")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The .mp4 to write; default: in the run folder.", metavar="FILE"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.", metavar="N")] = 0,
) -> dict[str, Any]:
    """Generate a video with sound from a trained model.

    A clip of the corpus gives the conditions: reference image, words, caption and, depending on the task,
    audio or video.

    Example: uniavgen sample --run data/run --corpus data/corpus --task dubbing
    """
    return sample_video(
        run,
        corpus,
        settings,
        task=task,
        clip=clip,
        overrides=Overrides(image, text, caption),
        out=out,
        seed=seed,
    )


def sample_video(
    run_dir: Path,
    root: Path,
    settings: Config,
    *,
    task: str,
    clip: str | None = None,
    overrides: Overrides = NO_OVERRIDES,
    out: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Generate a video, write it, and store it as an artifact. Raises UsageError for an unknown task."""
    task_named(task)  # before the imports, which take seconds
    from rich.markup import escape

    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.output.video_file import write_video
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.train.checkpoint.trained_model import trained_config
    from uniavgen.train.generation import choose_device, conditions_from, generate

    data = trained_config(run_dir)[1].data
    source = find_sample(str(Corpus.open(root).root / "shards"), clip)
    conditions = conditions_from(source, data, seed)
    replaced: dict[str, Any] = {
        "speech": overrides.text,
        "caption": overrides.caption,
        **(own_picture(overrides.image, data, settings.ingest.faces) if overrides.image else {}),
    }
    conditions = dataclasses.replace(
        conditions, **{name: value for name, value in replaced.items() if value is not None}
    )
    with console.progress(f"sample {task}", settings.sample.steps) as bar:
        generated = generate(
            run_dir,
            task,
            conditions,
            settings.sample,
            seed,
            device=choose_device(settings.train.device),
            on_step=bar.update,
        )
    path = write_video(
        out or run_dir / "samples" / f"{task}-{source.key}-seed{seed}.mp4",
        generated.frames,
        generated.frames.shape[1:3],
        generated.waveform,
        fps=generated.fps,
        sample_rate=generated.sample_rate,
    )
    _record_video(path, run_dir, settings)
    count = len(generated.frames)
    console.console.print(
        f"wrote [bold]{escape(str(path))}[/]: task {task}, conditions of clip {source.key}, {count} frames"
    )
    return {"command": "sample", "movie": str(path), "task": task, "clip": source.key, "frames": count}


def own_picture(path: Path, data: DataConfig, faces: FaceConfig) -> dict[str, Any]:
    """The conditions that a picture gives.

    `reference` and the box of its largest face, around which it is cropped; for a run on crops that follow
    the face, `reference` is such a crop and `portrait` the whole picture. Raises UserError if the file is no
    image, or if it has not exactly one face and the run needs one.
    """
    from uniavgen.orchestration.own_face import face_of, largest_face
    from uniavgen.train.generation import portrait_of

    image = read_image(path)
    if not data.follows_face:
        return {"reference": image, "reference_face": largest_face(image, faces)}
    reference, portrait = portrait_of(image, face_of(image, faces, path), data)
    return {"reference": reference, "portrait": portrait}


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 [H, W, 3] in RGB. Raises UserError if it is not an image."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from uniavgen.shards.errors import UserError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError("the image cannot be read", where=path, hint="give a PNG or JPEG file") from error


def find_sample(shards: str, clip: str | None) -> Sample:
    """The clip of that id, from either split; the first of val for None. One of the splits may be empty.

    Raises UserError if there is no such clip.
    """
    from uniavgen.shards.errors import UserError
    from uniavgen.shards.read.stream import SampleStream

    if clip is None:
        val = SampleStream(shards, "val")
        return val.sample_by_key(val.keys[0])
    errors = []
    for split in ("val", "train"):
        try:
            stream = SampleStream(shards, split)
        except UserError as error:
            errors.append(error)
            continue
        if clip in stream.keys:
            return stream.sample_by_key(clip)
    if len(errors) == 2:
        raise errors[0]
    raise UserError(
        f"no sample {clip} in train or val",
        where=shards,
        hint=f"leave --clip out, or name one of these: {', '.join(stream.keys[:3])}",
    )


def _record_video(path: Path, run_dir: Path, settings: Config) -> None:
    """Store the video as an artifact of the training's run; a warning if MLflow does not answer."""
    from uniavgen.orchestration.tracking.mlflow_runs import fail_fast, open_run, warn_on_error

    fail_fast()
    with (
        warn_on_error(f"the video; it is in {path}"),
        open_run(
            settings.tracking,
            run_dir,
            settings.tracking.run_name("training", run_dir),
            f"Videos generated with the model in `{run_dir}`. Its training is not recorded in this store.",
        ) as run,
    ):
        run.artifact(path, "samples")
