"""`uniavgen export`: a run's weights as plain files, with a model card that says what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniavgen.orchestration import console
from uniavgen.orchestration.tracking.mlflow_runs import code_version

CARD = """# {name}

A joint audio-video generator of UniAVGen's architecture (arXiv 2511.03334), {parameters} parameters, exported from stage
`{stage}` of a training run by uniavgen {version}.

## Files

| file | what |
|---|---|
| `video.safetensors` | video branch, names and shapes of the original Wan repository |
| `audio.safetensors` | audio branch, likewise; it makes log-mel frames |
| `interaction.safetensors` | the cross-modal interaction, the face masks and the speech text encoder |
| `config.json` | the configuration, and a SHA-256 of each file |

All weights are fp32{averaged}. To sample: `uniavgen sample --run <this folder> --corpus <corpus> --task joint`.

## Model

| part | parameters |
|---|---|
{parts}

Video: {frames} frames of {width} x {height} px at 16 fps through the codec `{video_codec}`. Sound: 24 kHz mono, log-mel.

## Training

| stage | steps | batch | learning rate | loss before | loss after | corpus version |
|---|---|---|---|---|---|---|
{stages}

Losses are means over the same draws before and after the stage, per modality.

## Licence and limits

The code is under Apache-2.0. These weights are not covered by it of themselves: the licences of the weights that training
started from, and of the videos in the corpus, apply. The model makes voices and faces of people: use it with the consent of
whoever can be recognised, and mark what it makes as made.
"""


def export_run(run_dir: Path, out: Path) -> dict[str, Any]:
    """Write the weights and the card of a run's last finished two-branch stage. Raises UserError where there is none."""
    from uniavgen.train.checkpoint.trained_model import export_weights

    described = export_weights(run_dir, out)
    (out / "README.md").write_text(card(run_dir, described))
    counts = described["parameters"]
    console.table(f"exported to {out}", ("part", "parameters"), list(counts.items()))
    return {"command": "export", "out": str(out), "stage": described["stage"], "parameters": counts}


def card(run_dir: Path, described: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    from uniavgen.train.checkpoint.run_folder import RunFolder
    from uniavgen.train.config import TrainConfig

    config = TrainConfig.model_validate(described["config"])
    counts = {part: f"{count:,}" for part, count in described["parameters"].items()}
    rows = []
    for plan in config.stages:
        known = RunFolder(run_dir, plan.name).read()
        if not known.get("done"):
            continue
        stage, outcome = TrainConfig.model_validate(known["config"]).stage(plan.name), known["outcome"]
        losses = (_losses(outcome[moment]) for moment in ("fixed_start", "fixed_end"))
        cells = [
            plan.name,
            outcome["steps"],
            stage.batch,
            stage.lr,
            *losses,
            known.get("corpus_version", "not recorded"),
        ]
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return CARD.format(
        name=run_dir.resolve().name,
        stage=described["stage"],
        version=code_version(),
        parameters=counts["total"],
        averaged=", the moving average of those in training" if config.ema else "",
        parts="\n".join(f"| {part} | {count} |" for part, count in counts.items()),
        frames=config.data.frames,
        width=config.data.width,
        height=config.data.height,
        video_codec=config.data.codecs.video,
        stages="\n".join(rows),
    )


def _losses(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items()) or "-"
