"""A plan file: which corpus and run are made from which sources, by which steps, with which settings.

Relative paths, those of the settings included, are relative to the folder of the plan file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uniavgen.orchestration.config import Layer, first_problem, load_config
from uniavgen.orchestration.config_yaml import line_of, read_mapping
from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import local_folder, protocol_of

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

STATE_FOLDER = "plan"


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NoOptions(_Options):
    """A step whose settings are all in the configuration."""


class IngestOptions(_Options):
    """Options of step `ingest`."""

    retry: bool = Field(False, description="also try sources that failed before")


class CurateOptions(_Options):
    """Options of step `curate`."""

    policy: str = Field("", description="name or file of a policy; empty: `curate.policy`")


class CaptionOptions(_Options):
    """Options of step `caption`."""

    retry: bool = Field(False, description="also ask again for clips whose answer was unusable")


class ShardOptions(_Options):
    """Options of step `shard`."""

    to: str = Field("", description="then copy the shards to this folder or s3:// URL")


class TrainOptions(_Options):
    """Options of step `train`."""

    stage: str = Field("all", description="one stage, or all of them")
    accept_changes: bool = Field(False, description="continue stages although their settings were changed")


class SampleOptions(_Options):
    """Options of step `sample`."""

    tasks: list[str] = Field(["joint"], min_length=1, description="one video is generated for each task")
    clip: str | None = Field(None, description="clip with the conditions; default: the first of val")
    seed: int = Field(0, description="seed of the noise")


class ExportOptions(_Options):
    """Options of step `export`."""

    out: Path = Field(Path("model"), description="folder to write; relative: below the plan's `folder`")


class Steps(BaseModel):
    """The steps of a plan with their options. A step that is not listed does not run."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    ingest: IngestOptions | None = None
    curate: CurateOptions | None = None
    caption: CaptionOptions | None = None
    shard: ShardOptions | None = None
    report: NoOptions | None = None
    cache_latents: NoOptions | None = Field(None, alias="cache-latents")
    train: TrainOptions | None = None
    sample: SampleOptions | None = None
    export: ExportOptions | None = None

    @staticmethod
    def every() -> Steps:
        """All steps with default options: those of a plan without `steps`."""
        return Steps(
            ingest=IngestOptions(),
            curate=CurateOptions(),
            caption=CaptionOptions(),
            shard=ShardOptions(),
            report=NoOptions(),
            cache_latents=NoOptions(),
            train=TrainOptions(),
            sample=SampleOptions(),
            export=ExportOptions(),
        )

    def options(self, name: str) -> Any:
        """The options of a step; None if the plan does not have it."""
        return getattr(self, name.replace("-", "_"), None)


class Plan(BaseModel):
    """The content of a plan file. After `read_plan` all paths are absolute."""

    model_config = ConfigDict(extra="forbid")
    plan_version: Literal[1] = Field(1, description="version of the format")
    name: str = Field("", description="name of the MLflow run; default: the name of the file")
    home: Path = Field(Path("."), description="folder that relative paths start from: that of the plan file")
    folder: Path = Field(Path("."), description="folder of everything that the plan makes")
    corpus: Path = Field(Path("corpus"), description="corpus; relative: below `folder`")
    run: Path = Field(Path("run"), description="run folder of the training; relative: below `folder`")
    sources: list[str] = Field([], description="videos, folders, globs, URLs, or .txt files that list them")
    preset: str = Field("tiny", description="settings to start from")
    settings: dict[str, Any] = Field({}, description="settings over those of the preset, as in --config FILE")
    steps: Steps = Field(default_factory=Steps.every, description="the steps and their options")

    @property
    def state_folder(self) -> Path:
        """Where the plan's own records lie."""
        return self.folder / STATE_FOLDER


def read_plan(path: Path) -> Plan:
    """Read a plan file and make its paths absolute. Raises UserError that names file and line."""
    content = {name: value for name, value in read_mapping(path).items() if value is not None}
    content["steps"] = _step_options(content.get("steps", {}), path)
    if not content["steps"]:
        del content["steps"]
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        where = f"{path}{line_of(path, error.errors()[0]['loc'])}"
        raise UserError(
            first_problem(error, Plan), where=where, hint="correct the plan", kind="bad-plan"
        ) from error
    if plan.steps.ingest and not plan.sources:
        raise UserError(
            "the plan has the step ingest and names no source",
            where=path,
            hint="add `sources: [FOLDER]`, or list the other steps under `steps`",
            kind="bad-plan",
        )
    return anchored(plan, path)


def _step_options(steps: Any, path: Path) -> Any:
    """Options by step, from a mapping, or from a list of names and of mappings of one name each."""
    if isinstance(steps, list):
        pairs = [
            pair for item in steps for pair in (item.items() if isinstance(item, dict) else [(item, {})])
        ]
        names = [str(name) for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), "")
        if twice:
            raise UserError(
                f"the step {twice} is listed twice", where=path, hint="list it once", kind="bad-plan"
            )
        steps = {str(name): options for name, options in pairs}
    if isinstance(steps, dict):
        return {name: {} if options is None else options for name, options in steps.items()}
    return steps


def anchored(plan: Plan, path: Path) -> Plan:
    """The plan with a name and absolute paths. `path`: its file."""
    home = _below(path.absolute().parent, plan.home)
    folder = _below(home, plan.folder)
    steps = plan.steps.model_copy(deep=True)
    if steps.export:
        steps.export.out = _below(folder, steps.export.out)
    return plan.model_copy(
        update={
            "name": plan.name or path.stem,
            "home": home,
            "folder": folder,
            "corpus": _below(folder, plan.corpus),
            "run": _below(folder, plan.run),
            "sources": [s if protocol_of(s) else str(_below(home, Path(s))) for s in plan.sources],
            "steps": steps,
        }
    )


def plan_settings(
    plan: Plan,
    path: Path,
    preset: str | None = None,
    file: Path | None = None,
    assignments: Sequence[str] = (),
) -> Config:
    """The settings of a plan: preset, `settings`, --config, --set; later overrides earlier.

    MLflow's default folder lies in the plan's `folder`. Raises as `load_config` does.
    """
    tracker = Layer({"tracking": {"folder": str(plan.folder / "mlflow")}}, path)
    of_plan = Layer(plan.settings, path, ("settings",))
    return load_config(preset or plan.preset, file, assignments, layers=[tracker, of_plan])


def resolved(plan: Plan, settings: Config) -> dict[str, Any]:
    """The plan with every setting and option written out: a plan file that gives the same again."""
    document = plan.model_dump(mode="json", by_alias=True, exclude={"steps", "settings"})
    steps = plan.steps.model_dump(mode="json", by_alias=True, exclude_none=True)
    steps = {name: options for name, options in steps.items() if options is not None}
    return document | {
        "steps": steps,
        "settings": settings.model_dump(mode="json", exclude={"tracking": {"parent"}}),
    }


def _below(folder: Path, path: Path) -> Path:
    """A path that starts from a folder if it is relative, without `.` and `..`.

    Raises UsageError for a URL of an object store.
    """
    local = local_folder(os.path.expanduser(path), "a folder of a plan")
    return Path(os.path.normpath(folder / local))
