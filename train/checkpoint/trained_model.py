"""Open the trained model of a run folder or an export, and write exports: plain files for other programs.

    OUT/video.safetensors          the video branch under the original Wan names and shapes
    OUT/audio.safetensors          the audio branch, likewise
    OUT/interaction.safetensors    the parts that UniAVGen adds: interaction layers and speech text encoder
    OUT/video-codec.safetensors    the video codec, if it was fitted to the corpus
    OUT/config.json                configuration of the training, the stage, and the SHA-256 of each file

The weights are the moving average if the stage kept one, in fp32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import (
    RunFolder,
    differing,
    digest,
    finished,
    load_weights,
    write_tensors,
    write_text,
)
from uniavgen.train.config import TrainConfig
from uniavgen.train.model.family import family_of
from uniavgen.train.model.parts import count_parameters

if TYPE_CHECKING:
    from torch import nn

EXPORT_VERSION = 1
DESCRIPTION = "config.json"


def trained_config(run_dir: str | Path, stage: str | None = None) -> tuple[str, TrainConfig]:
    """A finished stage and the configuration it was trained with; weights are not read.

    `run_dir` may be an export.

    `stage` None takes the last finished stage that has both branches. Raises UserError if there is none.
    """
    if is_export(run_dir):
        return exported_config(run_dir)
    if stage is None:
        done = [name for name in ("multitask", "joint") if RunFolder(run_dir, name).done]
        if not done:
            raise UserError(
                "no finished joint or multitask stage in this run",
                where=run_dir,
                hint="run: uniavgen train all",
                kind="missing-stage",
            )
        stage = done[0]
    return stage, TrainConfig.model_validate(finished(run_dir, stage).read()["config"])


def load_trained(run_dir: str | Path, stage: str | None = None) -> tuple[nn.Module, TrainConfig]:
    """Model of a finished stage, on the CPU in eval mode, and its configuration.

    The weights are their moving average where the stage kept one. `run_dir` may be an export.
    """
    if is_export(run_dir):
        return load_export(run_dir)
    stage, config = trained_config(run_dir, stage)
    tensors = load_weights(run_dir, stage, ema=True)
    family = family_of(config.model)
    model = family.build(family.parts(stage))
    model.load_state_dict(tensors)
    return model.eval(), config


def export_weights(run_dir: str | Path, out: Path, stage: str | None = None) -> dict[str, Any]:
    """Write an export of a stage; returns the content of config.json.

    Raises UserError as `trained_config` does.
    """
    from uniavgen.train.data.codec_fitting import copy_codec

    model, config = load_trained(run_dir, stage)
    stage = trained_config(run_dir, stage)[0]
    out.mkdir(parents=True, exist_ok=True)
    files = family_of(config.model).export_tensors(model)
    for name, tensors in files.items():
        write_tensors(out / name, tensors, {"format": "pt"})
    codec = copy_codec(run_dir, out)
    description = {
        "export_version": EXPORT_VERSION,
        "stage": stage,
        "parameters": count_parameters(model),
        "sha256": {name: digest(out / name) for name in [*files, *([codec.name] if codec else [])]},
        "config": config.model_dump(mode="json"),
    }
    # written last: a folder without it is no export
    write_text(out / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return description


def is_export(folder: str | Path) -> bool:
    """Whether a folder is an export, not a run folder."""
    return (Path(folder) / DESCRIPTION).is_file()


def exported_config(folder: str | Path) -> tuple[str, TrainConfig]:
    """Stage and configuration of an export. Raises UserError if it is damaged or of another version."""
    path = Path(folder) / DESCRIPTION
    try:
        description = json.loads(path.read_text())
        version, stage, config = (description[name] for name in ("export_version", "stage", "config"))
        if version == EXPORT_VERSION and description["sha256"]:
            return stage, TrainConfig.model_validate(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            "config.json of the export is damaged", where=path, hint="export the run again"
        ) from error
    raise UserError(
        f"the export has version {version}, this program reads {EXPORT_VERSION}",
        where=path,
        hint="use the matching release of uniavgen",
        kind="wrong-version",
    )


def load_export(folder: str | Path) -> tuple[nn.Module, TrainConfig]:
    """The exported model on the CPU in eval mode, and its configuration.

    Raises UserError if a file is damaged.
    """
    config = exported_config(folder)[1]
    root = Path(folder)
    damaged = differing(root, json.loads((root / DESCRIPTION).read_text())["sha256"])
    if damaged:
        raise UserError(
            f"the export is damaged: {damaged[0]}",
            where=root,
            hint="export the run again",
            kind="damaged-export",
        )
    model, missing = family_of(config.model).load_export(root)
    if missing:
        raise UserError(
            f"the export lacks {missing[0]}", where=root, hint="export the run again", kind="damaged-export"
        )
    return model.eval(), config
