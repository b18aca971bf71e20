"""Where the weights of a stage come from at its start: another stage, a checkpoint, an export, or noise.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uniavgen.shards.errors import UserError
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.model.family import family_of

RANDOM = "random weights"


def part_sources(config: TrainConfig, stage: StageConfig) -> dict[str, str]:
    """Part of the model -> a few words that say what it starts from."""
    family = family_of(config.model)
    earlier = family.parts(stage.takes_from) if stage.takes_from else ()
    sources = {}
    for part in family.parts(stage.name):
        if path := stage.pretrained.checkpoints.get(part):
            sources[part] = f"checkpoint {path}"
        elif stage.pretrained.export:
            sources[part] = f"export {stage.pretrained.export}"
        elif part in earlier:
            sources[part] = f"stage {stage.takes_from}"
        else:
            sources[part] = RANDOM
    return sources


def describe_sources(sources: Mapping[str, str]) -> str:
    """The sources in one line, parts with the same source together."""
    parts_of: dict[str, list[str]] = {}
    for part, source in sources.items():
        parts_of.setdefault(source, []).append(part)
    return "; ".join(f"{', '.join(parts)} from {source}" for source, parts in parts_of.items())


def require_starting_weights(config: TrainConfig, stage: StageConfig) -> None:
    """Raise UserError if what the stage names does not exist, or if its video branch would begin as noise
    without `from_scratch`."""
    number = config.stages.index(stage)
    named = {**stage.pretrained.checkpoints, "export": stage.pretrained.export}
    for name, path in named.items():
        if path and not Path(path).exists():
            raise UserError(
                f"pretrained.{name} of stage {stage.name} does not exist",
                where=path,
                hint="give the path of a safetensors file or of its folder",
                kind="missing-weights",
            )
    random = [part for part, source in part_sources(config, stage).items() if source == RANDOM]
    if "video" in random and not stage.from_scratch:
        raise UserError(
            f"the video branch of stage {stage.name} would start from random weights",
            where=f"train.stages.{number}.pretrained.video",
            hint="name a checkpoint: "
            f"--set train.stages.{number}.pretrained.video=/weights/Wan2.2-TI2V-5B; "
            f"or train it from noise: --set train.stages.{number}.from_scratch=true",
            kind="random-weights",
        )
