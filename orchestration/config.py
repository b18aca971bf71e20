"""The configuration of every command: sections of the floors, composed from preset, file and `--set`.

Each section is defined beside the component that it configures; this module joins them. Order, later
overrides earlier: defaults in code (the `tiny` preset) -> `--preset NAME` -> `settings` of a plan file ->
`--config FILE` -> `--set a.b=c`. Sections are merged key by key. Everything else is replaced, mappings such
as `tasks` included.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uniavgen.curation.config import CaptionConfig, CurateConfig, ReportConfig
from uniavgen.ingest.config import IngestConfig
from uniavgen.orchestration.config_yaml import line_of, parse_value, read_mapping
from uniavgen.orchestration.evaluation.config import EvaluateConfig
from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.errors import UsageError, UserError, choice_hint, nearest_name
from uniavgen.train.ablation.config import AblateConfig
from uniavgen.train.config import SamplingConfig, TrainConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

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
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)


@dataclass(frozen=True)
class Layer:
    """Settings of the section `location` of a file."""

    settings: dict[Any, Any]
    path: Path
    location: tuple[str, ...] = ()


def load_config(
    preset: str = "tiny",
    file: Path | None = None,
    assignments: Sequence[str] = (),
    layers: Sequence[Layer] = (),
) -> Config:
    """Compose the configuration: preset, `layers`, file, assignments.

    Raises UserError for a bad file or layer, UsageError for a bad preset or `--set`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    composed: DictConfig = OmegaConf.create(Config().model_dump(mode="json"))
    from_preset = preset_file(preset)
    composed = _with_layer(composed, Layer(read_mapping(from_preset), from_preset))
    for layer in layers:
        composed = _with_layer(composed, layer)
    if file:
        composed = _with_layer(composed, Layer(read_mapping(file), file))
    for assignment in assignments:
        _assign(composed, assignment)
    try:  # all at once: some settings fit only together
        return Config.model_validate(OmegaConf.to_container(composed, resolve=True))
    except ValidationError as error:
        raise UsageError(first_problem(error), where="--set") from error
    except OmegaConfBaseException as error:
        raise UsageError(" ".join(str(error).split()), where="--set") from error


def preset_names() -> list[str]:
    """Names of the presets that are installed with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_file(name: str) -> Path:
    """The file of a preset. Raises UsageError, which lists the known ones, for any other name."""
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"unknown preset {name!r}", hint=choice_hint(name, preset_names()))
    return path


def nearest_key(key: str, model: type[BaseModel] = Config) -> str:
    """`did you mean KEY?` with the most similar setting; "" if none is similar."""
    return nearest_name(key, known_keys(model), cutoff=0.4)


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Dotted names of all sections and settings."""
    keys = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        keys.append(key)
        if section := _section_type(field.annotation):
            keys += known_keys(section, f"{key}.")
    return keys


def _with_layer(composed: DictConfig, layer: Layer) -> DictConfig:
    """The settings with those of a layer over them, validated. Raises UserError naming file and line."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path, settings = layer.path, copy.deepcopy(layer.settings)
    try:
        _prepare_merge(composed, settings, Config)
        merged = OmegaConf.merge(composed, settings)
        Config.model_validate(OmegaConf.to_container(merged, resolve=True))
    except ValidationError as error:
        location = (*layer.location, *error.errors()[0]["loc"])
        raise UserError(
            first_problem(error), where=f"{path}{line_of(path, location)}", hint="correct the file"
        ) from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split()), where=path, hint="correct the file") from error
    return merged  # type: ignore[return-value]


def _assign(composed: DictConfig, assignment: str) -> None:
    """Apply one `--set`, not yet validated. Raises UsageError for one that cannot be read."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, equals, text = assignment.partition("=")
    if not equals:
        raise UsageError(f"--set takes KEY=VALUE, got {assignment!r}", hint="for example --set train.seed=1")
    try:
        value = parse_value(text, f"--set {key}")
        section = _section_at(key)
        if section and isinstance(value, dict):
            _prepare_merge(OmegaConf.select(composed, key), value, section)
        OmegaConf.update(composed, key, value, merge=section is not None, force_add=True)
    except UserError as error:
        raise UsageError(error.what, where=error.where, hint=error.hint) from error
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UsageError(f"{assignment}: {' '.join(str(error).split())}", where="--set") from error


def _prepare_merge(composed: Any, layer: dict[Any, Any], model: type[BaseModel]) -> None:
    """Make OmegaConf's merge replace mappings instead of merging them, and skip sections without content."""
    for name, value in list(layer.items()):
        field = model.model_fields.get(name)
        if field is None:
            continue
        section = _section_type(field.annotation)
        if section and value is None and composed[name] is not None:
            del layer[name]
        elif section and isinstance(value, dict):
            _prepare_merge(composed[name], value, section)
        elif section and value is not None:
            raise ValueError(f"{name} is a section: write its settings as KEY: VALUE below it")
        elif isinstance(value, dict):
            composed[name] = {}


def _section_at(key: str) -> type[BaseModel] | None:
    """The section that a dotted key names, as `train.data` or `train.stages.0`; None for a setting or a wrong
    key.
    """
    kind: Any = Config
    for name in key.split("."):
        if get_origin(kind) is list and name.isdigit():
            kind = get_args(kind)[0]
            continue
        section = _section_type(kind)
        if section is None or name not in section.model_fields:
            return None
        kind = section.model_fields[name].annotation
    return _section_type(kind)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, also of an optional one; None for the type of a setting."""
    for kind in (annotation, *get_args(annotation)):
        if (
            get_origin(annotation) not in (list, dict, tuple)
            and isinstance(kind, type)
            and issubclass(kind, BaseModel)
        ):
            return kind
    return None


def first_problem(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """The first validation problem in one line, with the most similar key of `model` for an unknown one."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        got = problem.get("input")
        of_section = isinstance(got, dict) and problem["type"] == "value_error"
        message = problem["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" + ("" if of_section else f" (got {got!r})")
    question = nearest_key(key, model)
    return f"unknown setting {key}" + (f", {question}" if question else "")
