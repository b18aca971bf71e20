"""The commands about the model: plan, train, prove, sample, export, ablate. Nothing heavy is imported here.

Goes in: settings and the options that were typed. Comes out: the command's summary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.command import (
    ConfigOption,
    CorpusOption,
    Fault,
    JsonOption,
    RunOption,
    SetOption,
    run_command,
)

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config


def train(
    settings: Config,
    stage: Annotated[str, typer.Argument(help="audio, joint, multitask, or all.", metavar="STAGE")],
    corpus: CorpusOption,
    run: RunOption,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes", help="Go on although the configuration is not the one it began with."
        ),
    ] = False,
) -> dict[str, Any]:
    """Train a stage, or all three, by DeepSpeed on Ray Train."""
    from uniavgen.orchestration.commands.training_jobs import train_stages

    return train_stages(stage, corpus, run, settings, accept_changes=accept_changes)


def verify_resume(
    settings: Config,
    corpus: CorpusOption,
    run: RunOption,
    stage: Annotated[
        str, typer.Option("--stage", help="Stage of the plan that is tried.", metavar="STAGE")
    ] = "multitask",
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps before the kill, and after it.", metavar="N")
    ] = 5,
) -> dict[str, Any]:
    """Prove that an interrupted run loses nothing.

    2N steps straight against N + kill -9 + N: losses, sample ids and weights must agree bit for bit.
    """
    from uniavgen.orchestration.commands.verify_resume import verify_resume

    summary = verify_resume(corpus, run, settings, stage=stage, steps=steps)
    if not summary["equal"]:
        raise Fault(summary)
    return summary


def sample(
    settings: Config,
    run: RunOption,
    corpus: CorpusOption,
    task: Annotated[
        str,
        typer.Option(
            "--task", help="joint, reference, continuation, dubbing or audio-driven.", metavar="TASK"
        ),
    ] = "joint",
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip", help="Clip that gives the conditions; default: the first of val.", metavar="CLIP"
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Reference picture instead of the clip's.", metavar="FILE")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Words to be spoken instead of the clip's.", metavar="WORDS")
    ] = None,
    caption: Annotated[
        str | None, typer.Option("--caption", help="Video caption instead of the clip's.", metavar="WORDS")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The .mp4 to write; default: in the run folder.", metavar="FILE"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the noise.", metavar="N")] = 0,
) -> dict[str, Any]:
    """Generate a video with sound from a trained run."""
    from uniavgen.orchestration.commands.training_jobs import sample_movie

    given: dict[str, Any] = {
        "task": task,
        "clip": clip,
        "image": image,
        "text": text,
        "caption": caption,
        "out": out,
        "seed": seed,
    }
    return sample_movie(run, corpus, settings, **given)


def plan(
    settings: Config,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Cards; default: train.workers.", metavar="N")
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            help="h100-80g, h200, a100-80g, or memory GiB, bf16 TFLOP/s and GB/s as 24,165,1008.",
            metavar="CARD",
        ),
    ] = "h100-80g",
    mfu: Annotated[
        float | None,
        typer.Option(
            "--mfu",
            help="Share of the peak reached, as a run measured it; default: 0.4, an aim.",
            metavar="SHARE",
        ),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Corpus whose shards tell a clip's size.", metavar="DIR")
    ] = None,
    clips: Annotated[
        int | None,
        typer.Option("--clips", min=1, help="Clips to store; default: the corpus's, or 1.3 M.", metavar="N"),
    ] = None,
) -> dict[str, Any]:
    """Memory, time and cost of training, before a GPU is rented."""
    from uniavgen.orchestration.planning.training_plan import plan_training

    return plan_training(settings, gpus, gpu, mfu, corpus, clips)


def export(
    settings: Config,
    run: RunOption,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.", metavar="DIR")],
) -> dict[str, Any]:
    """Write a trained run's weights as files for others.

    Safetensors in the original Wan layout, a file per branch and one for the interaction, with a model card.
    """
    from uniavgen.orchestration.commands.export import export_run

    return export_run(run, out)


def ablate(
    run: Annotated[
        Path, typer.Option("--run", help="Folder of the trainings, results and page.", metavar="DIR")
    ],
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: Annotated[
        str, typer.Option("--preset", help="quick: the interaction rows; full: every table.", metavar="NAME")
    ] = "quick",
) -> None:
    """The paper's ablations on a small world with a known law."""

    def work(settings: Config) -> dict[str, Any]:
        from uniavgen.orchestration.commands.ablate import run_ablation

        return run_ablation(run, settings)

    run_command(work, f"ablate-{preset}", config, set_, json_)
