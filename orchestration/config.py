"""The configuration of every command: sections of the floors, composed from preset, file and `--set`.

Each section is defined beside the component that it configures; this module joins them. Order, later
overrides earlier: defaults in code (the `tiny` preset) -> `--preset NAME` -> `--config FILE` -> `--set
a.b=c`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uniavgen.curation.config import CaptionConfig, CurateConfig, ReportConfig
from uniavgen.ingest.config import IngestConfig
from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.errors import UsageError, UserError
from uniavgen.train.ablation.config import AblateConfig
from uniavgen.train.config import SamplingConfig, TrainConfig

PRESETS = Path(__file__).parent / "presets"


class Config(BaseModel):
    """Every setting, by command."""

    model_config = ConfigDict(extra="forbid")
    ingest: IngestConfig = Field(default_factory=IngestConfig)
    curate: CurateConfig = Field(default_factory=CurateConfig)
    caption: CaptionConfig = Field(default_factory=CaptionConfig)
    shard: ShardConfig = Field(default_factory=ShardConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    sample: SamplingConfig = Field(default_factory=SamplingConfig)
    ablate: AblateConfig = Field(default_factory=AblateConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)


def load_config(preset: str = "tiny", file: Path | None = None, assignments: Sequence[str] = ()) -> Config:
    """Compose the configuration. Raises UserError for a bad file, UsageError for a bad preset or `--set`."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    composed = OmegaConf.merge(
        OmegaConf.create(Config().model_dump(mode="json")), _layer(preset_file(preset))
    )
    if file:
        composed = OmegaConf.merge(composed, _layer(file))
    try:
        Config.model_validate(OmegaConf.to_container(composed, resolve=True))
    except ValidationError as error:
        raise UserError(
            _first_problem(error), where=file or preset_file(preset), hint="correct the file"
        ) from error
    try:
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            if not equals:
                raise UsageError(
                    f"--set takes KEY=VALUE, got {assignment!r}", hint="for example --set train.seed=1"
                )
            OmegaConf.update(composed, key, yaml.safe_load(value), force_add=True)
        return Config.model_validate(OmegaConf.to_container(composed, resolve=True))
    except ValidationError as error:
        raise UsageError(_first_problem(error), where="--set") from error
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
        raise UsageError(f"{assignment}: {' '.join(str(error).split())}", where="--set") from error


def preset_names() -> list[str]:
    """Names of the presets that are installed with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_file(name: str) -> Path:
    """The file of a preset. Raises UsageError, which lists the known ones, for any other name."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"unknown preset {name!r}", hint=f"known: {', '.join(preset_names())}")
    return path


def _layer(path: Path) -> Any:
    import yaml
    from omegaconf import OmegaConf

    try:
        return OmegaConf.create(yaml.safe_load(path.read_text()) or {})
    except OSError as error:
        raise UserError(
            f"the configuration cannot be read: {error.strerror}", where=path, hint="check the path"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(
            f"the configuration is not valid YAML: {' '.join(str(error).split())}",
            where=path,
            hint="correct it",
        ) from error


def _first_problem(error: ValidationError) -> str:
    """The first validation problem in one line, with the most similar key for an unknown one."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg']} (got {problem.get('input')!r})"
    question = nearest_key(key)
    return f"unknown setting {key}" + (f", {question}" if question else "")


def nearest_key(key: str) -> str:
    """`did you mean KEY?` with the most similar setting; "" if none is similar."""
    similar = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.4)
    return f"did you mean {similar[0]}?" if similar else ""


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all sections and settings."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += known_keys(inner, f"{prefix}{name}.")
    return keys
