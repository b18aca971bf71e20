"""Changed settings of a stage that is resumed: which differ, and which of them can take effect.

Imports no torch, except where the shapes of two models are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import ABSENT, RunFolder, changed_fields
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.model.family import family_of

TASK_MIXES = ("stage.tasks.", "objective.mix.")
"""Settings whose keys are chosen by the user: a new key is a change."""
NO_MATTER = ("stage.from_scratch", "data.prefetch", "data.codecs.vocoder", "data.codecs.vocoder_weights")
"""Settings of `settings_that_matter` on which no loss depends."""
AT_START_ONLY = {
    "stage.takes_from": "the stage has its weights",
    "stage.starts_fresh": "the stage has its weights",
    "stage.pretrained": "the stage has its weights",
    "stage.trains": "the optimizer's state is of the parts that the stage began to train",
    "stage.decayed": "the optimizer's state is grouped by it",
    "stage.emilia.word_gaps": "the order of utterances depends on it",
    "stage.emilia.shards": "the stage keeps its kind of data",
    "data.latents": "the stage keeps its kind of latents",
    "data.cached": "the stage keeps its kind of latents",
    "fixed_steps": "the losses before the stage were measured on them",
}
"""Settings that act when a stage begins and never again, with the reason. `--accept-changes` refuses them."""


def check_changes(
    folder: RunFolder, step: int, config: TrainConfig, stage: StageConfig, *, accept: bool
) -> list[str]:
    """Dotted names of settings that differ from those of checkpoint `step`; each takes effect on resume.

    Raises UserError if there are any and not `accept`, if one of them cannot take effect, or if the stage is
    to end before the checkpoint.
    """
    where, saved = folder.checkpoint(step), folder.state(step)["settings"]
    defaults = settings_that_matter(TrainConfig(), StageConfig(name=stage.name))
    changed = refuse_changes(saved, settings_that_matter(config, stage), defaults, where, accept=accept)
    refuse_without_effect(changed, where)
    if stage.steps < step:
        raise UserError(
            f"stage {stage.name} is to end at step {stage.steps}, and its checkpoint is of step {step}",
            where=where,
            hint=f"set at least {step} steps, or use another --run folder",
            kind="changed-configuration",
        )
    model = [name for name in changed if name.startswith("model.")]
    if model and (weight := first_reshaped(saved["model"], config, stage)):
        raise UserError(
            f"a resumed stage cannot change {', '.join(model[:4])}: weight {weight} has another shape in the "
            "checkpoint",
            where=where,
            hint="resume with the model it began with, or use another --run folder",
            kind="changed-configuration",
        )
    return changed


def as_begun(
    folder: RunFolder, config: TrainConfig, stage: str, *, accept: bool
) -> tuple[TrainConfig, list[str]]:
    """The configuration with which a begun stage continues, and the settings that it keeps as it began.

    A setting that the stage does not know was added by a newer release, and its default is what the stage
    did. A preset may name another value: it is for new stages. With `accept` such values are taken, except
    where they act at the start only. A stage that has not begun gets the configuration as it is.
    """
    saved = begun_settings(folder, stage)
    if saved is None:
        return config, []
    # a checkpoint of this release holds the defaults that the stage kept
    kept_before = folder.read().get("kept", [])
    now = settings_that_matter(config, config.stage(stage))
    defaults = settings_that_matter(TrainConfig(), StageConfig(name=config.stage(stage).name))
    kept = [
        name
        for name in changed_fields(saved, now, ignore=NO_MATTER)
        if (_value_of(saved, name) is ABSENT or name in kept_before)
        and _value_of(defaults, name) not in (ABSENT, _value_of(now, name))
        and not name.startswith(TASK_MIXES)
        and not (accept and not _acts_at_start_only(name))
    ]
    content = config.model_dump()
    number = next(index for index, entry in enumerate(config.stages) if entry.name == stage)
    for name in kept:
        path = name.split(".")
        section = content["stages"][number] if path[0] == "stage" else content
        for part in path[path[0] == "stage" : -1]:
            section = section[part]
        section[path[-1]] = _value_of(defaults, name)
    return (type(config).model_validate(content) if kept else config), kept


def begun_settings(folder: RunFolder, stage: str) -> Mapping[str, Any] | None:
    """The settings with which a stage began: of its newest readable checkpoint, or of a finished stage."""
    for step in reversed(folder.steps()):
        try:
            settings: Mapping[str, Any] = folder.state(step)["settings"]
        except (OSError, ValueError, KeyError):
            continue
        return settings
    content = folder.read().get("config") if folder.done else None
    if not isinstance(content, Mapping):
        return None
    stages = [entry for entry in content.get("stages", []) if entry.get("name") == stage]
    return {**content, "stage": stages[0]} if stages else None


def _acts_at_start_only(name: str) -> bool:
    return any(name == setting or name.startswith(f"{setting}.") for setting in AT_START_ONLY)


def refuse_without_effect(changed: Sequence[str], where: Path) -> None:
    """Raise UserError for changed settings that act only when a stage begins."""
    for name in changed:
        for setting, reason in AT_START_ONLY.items():
            if name == setting or name.startswith(f"{setting}."):
                raise UserError(
                    f"{name} cannot be changed when a stage is resumed: {reason}",
                    where=where,
                    hint="set it back, or use another --run folder",
                    kind="changed-configuration",
                )


def first_reshaped(saved: Mapping[str, Any], config: TrainConfig, stage: StageConfig) -> str | None:
    """Name of a weight that differs in shape between the saved model configuration and the present one."""
    import torch

    then = type(config.model).model_validate(saved)
    shapes = []
    for model in (then, config.model):
        family = family_of(model)
        with torch.device("meta"):
            built = family.build(family.parts(stage.name))
        shapes.append({name: tuple(weight.shape) for name, weight in built.state_dict().items()})
    names = sorted({*shapes[0], *shapes[1]})
    return next((name for name in names if shapes[0].get(name) != shapes[1].get(name)), None)


def refuse_changes(
    saved: Mapping[str, Any],
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    where: Path,
    *,
    accept: bool,
) -> list[str]:
    """Dotted names of settings that differ from the checkpoint's.

    Raises UserError naming them unless `accept`.

    A setting that the checkpoint lacks does not differ while it has its default value: a newer release added
    it.
    """
    new = [
        name
        for name in changed_fields(saved, settings)
        if _value_of(saved, name) is ABSENT
        and _value_of(settings, name) == _value_of(defaults, name)
        and not name.startswith(TASK_MIXES)
    ]
    changed = changed_fields(saved, settings, ignore=[*new, *NO_MATTER])
    if changed and not accept:
        more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise UserError(
            f"the checkpoint was made with another {', '.join(changed[:8])}{more}",
            where=where,
            hint="resume with the configuration it began with, allow the change with --accept-changes, "
            "or use another --run folder",
            kind="changed-configuration",
        )
    return changed


def _value_of(settings: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name, ABSENT if there is none."""
    value: Any = settings
    for part in name.split("."):
        value = value.get(part, ABSENT) if isinstance(value, Mapping) else ABSENT
    return value


def settings_that_matter(config: TrainConfig, stage: StageConfig) -> dict[str, Any]:
    """Settings that must not change when a stage is resumed: everything on which its losses depend.

    The distribution over workers is not included: a checkpoint of another layout is converted.
    """
    free = {"stages", "checkpoint", "health", "validation", "trace", "workers", "device", "cpus_per_worker"}
    free |= {"max_restarts", "room_wait_s"}
    exclude: Any = {
        **dict.fromkeys(free, True),
        "data": {"damage": True, "shards": True, "cached": {"workers", "num_cpus", "num_gpus"}},
        "deepspeed": {"zero_stage", "offload", "micro_batch", "activation_checkpointing"},
    }
    staged = stage.model_dump(mode="json")
    # audio shards are identified by their digests, wherever they are
    staged["emilia"]["shards"] = bool(stage.emilia.shards)
    return {**config.model_dump(mode="json", exclude=exclude), "stage": staged}
