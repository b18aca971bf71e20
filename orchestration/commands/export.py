"""`uniavgen export`: write a run's weights as safetensors, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import RunOption, command

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

CARD = """# {name}

A joint audio-video generator of UniAVGen's architecture (arXiv 2511.03334), {parameters} parameters,
exported from stage `{stage}` of a training run by uniavgen {version}.

## Files

| file | content |
|---|---|
| `video.safetensors` | video branch, names and shapes of the original Wan repository |
| `audio.safetensors` | audio branch, likewise; it generates log-mel frames |
| `interaction.safetensors` | cross-modal interaction, face masks and speech text encoder |
| `config.json` | the configuration, and a SHA-256 of each file |

All weights are fp32{averaged}.
To sample: `uniavgen sample --run <this folder> --corpus <corpus> --task joint`.

## Model

| part | parameters |
|---|---|
{parts}

Video: {frames} frames of {width} x {height} px at 16 fps through the codec `{video_codec}`.
Audio: 24 kHz mono, log-mel.

## Training

| stage | steps | batch | learning rate | loss before | loss after | corpus version |
|---|---|---|---|---|---|---|
{stages}

Losses are means over the same fixed draws before and after the stage, per modality.

## Licence and limits

The code is under Apache-2.0. That licence does not cover these weights: the licences of the weights that
training started from, and of the videos in the corpus, apply. The model generates voices and faces of people:
use it with the consent of every recognisable person, and label its output as generated.
"""


@command
def export(
    settings: Config,
    run: RunOption,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", metavar="DIR")],
) -> dict[str, Any]:
    """Write a trained model as safetensors with a model card.

    One file per branch in the layout of the original Wan repository, and one for the interaction.

    Example: uniavgen export --run data/run --out data/model
    """
    return export_run(run, out)


def export_run(run_dir: Path, out: Path) -> dict[str, Any]:
    """Write weights and card of the last finished two-branch stage. Raises UserError if there is none."""
    from uniavgen.orchestration.output import console
    from uniavgen.train.checkpoint.trained_model import export_weights

    described = export_weights(run_dir, out)
    (out / "README.md").write_text(model_card(run_dir, described))
    counts = described["parameters"]
    console.table(f"exported to {out}", ("part", "parameters"), list(counts.items()))
    return {"command": "export", "out": str(out), "stage": described["stage"], "parameters": counts}


def model_card(run_dir: Path, described: dict[str, Any]) -> str:
    """The model card, in Markdown. `described` is what `export_weights` returned."""
    from uniavgen.orchestration.tracking.environment import code_version
    from uniavgen.train.checkpoint.run_folder import RunFolder
    from uniavgen.train.config import TrainConfig

    config = TrainConfig.model_validate(described["config"])
    counts = {part: f"{count:,}" for part, count in described["parameters"].items()}
    rows = []
    for configured in config.stages:
        state = RunFolder(run_dir, configured.name).read()
        if not state.get("done"):
            continue
        stage = TrainConfig.model_validate(state["config"]).stage(configured.name)
        outcome = state["outcome"]
        cells = [
            stage.name,
            outcome["steps"],
            stage.batch,
            stage.lr,
            _format_losses(outcome["fixed_start"]),
            _format_losses(outcome["fixed_end"]),
            state.get("corpus_version", "not recorded"),
        ]
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return CARD.format(
        name=run_dir.resolve().name,
        stage=described["stage"],
        version=code_version(),
        parameters=counts["total"],
        averaged=", an exponential moving average of the trained ones" if config.ema else "",
        parts="\n".join(f"| {part} | {count} |" for part, count in counts.items()),
        frames=config.data.frames,
        width=config.data.width,
        height=config.data.height,
        video_codec=config.data.codecs.video,
        stages="\n".join(rows),
    )


def _format_losses(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in losses.items()) or "-"
