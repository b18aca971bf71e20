"""Resume a stage: find the newest complete checkpoint, and convert it for the present layout.

Damaged checkpoints, changed settings and conversions are logged as events in events.jsonl.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.checkpoint_conversion import Layout, convert, load_plain
from uniavgen.train.checkpoint.run_folder import ABSENT, MANIFEST, STATE, RunFolder, changed_fields, differing
from uniavgen.train.checkpoint.saving import load_checkpoint
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.engine.collectives import all_gather_object

log = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"
TASK_MIXES = ("stage.tasks.", "objective.mix.")
"""Settings whose keys are chosen by the user: a new key is a change."""
NO_MATTER = ("data.prefetch", "data.codecs.vocoder", "data.codecs.vocoder_weights")
"""Settings of `settings_that_matter` on which no loss depends."""


@dataclass(frozen=True)
class Resumption:
    """A checkpoint to resume from.

    `path` is its folder, or a converted copy that is removed after loading.
    """

    step: int
    path: Path
    state: dict[str, Any]
    checkpoint: Path
    converted: bool = False

    @property
    def universal(self) -> bool:
        """Whether the engine must be built to load DeepSpeed's universal format."""
        return self.converted and not self.state["now"].plain

    def load(self, engine: Any) -> None:
        """Restore the engine and the random generators. All ranks call this. Raises UserError."""
        if self.converted and self.state["now"].plain:
            load_plain(engine, self.path)
        else:
            load_checkpoint(engine, self.path)
        restore_random(self.checkpoint)
        dist.barrier()
        if self.converted and dist.get_rank() == 0:
            shutil.rmtree(self.path, ignore_errors=True)


def find_checkpoint(
    folder: RunFolder,
    config: TrainConfig,
    stage: StageConfig,
    trained: Sequence[str],
    *,
    accept_changes: bool = False,
) -> Resumption | None:
    """The checkpoint to resume from; None if there is none yet. All ranks call this and get the same.

    `trained`: names of the trainable parameters. Raises UserError if all checkpoints are damaged, or if the
    configuration changed and not `accept_changes`.
    """
    steps, damaged = all_gather_object(folder.steps())[0], {}
    while steps:
        damage = damage_of(folder, steps[-1])
        if not damage:
            break
        damaged[steps.pop()] = damage
    if damaged and not steps:
        step, damage = next(iter(damaged.items()))
        raise UserError(
            f"all checkpoints are damaged; the newest, {step}: {damage[0]}",
            where=folder.checkpoints,
            hint=f"delete {folder.checkpoints} to train the stage from its start",
            kind="damaged-checkpoint",
        )
    if not steps:
        return None
    step = steps[-1]
    state = folder.state(step)
    settings = settings_that_matter(config, stage)
    defaults = settings_that_matter(TrainConfig(), StageConfig(name=stage.name))
    changed = refuse_changes(
        state["settings"], settings, defaults, folder.checkpoint(step), accept=accept_changes
    )
    if dist.get_rank() == 0:
        for other, damage in damaged.items():
            folder.log_event(
                "damaged", f"checkpoint {other} is damaged ({damage[0]}); resuming from {step}", files=damage
            )
            folder.remove_checkpoint(other)
        if changed:
            folder.log_event(
                "changed", f"resuming from step {step} with another {', '.join(changed)}", fields=changed
            )
    return convert_if_needed(folder, step, state, Layout.of(config, dist.get_world_size()), trained)


def damage_of(folder: RunFolder, step: int) -> list[str]:
    """One line for each damaged file of a checkpoint.

    Each rank reads a share of the files; all ranks call this.
    """
    # rank 0 decides: a shared folder may show the files later to other ranks
    digests = all_gather_object(folder.manifest(step))[0]
    if not digests:
        return [f"{MANIFEST} is missing or damaged"]
    if STATE not in digests:
        return [f"{MANIFEST} does not name {STATE}"]
    share = dict(sorted(digests.items())[dist.get_rank() :: dist.get_world_size()])
    return sorted(
        line for lines in all_gather_object(differing(folder.checkpoint(step), share)) for line in lines
    )


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


def convert_if_needed(
    folder: RunFolder, step: int, state: dict[str, Any], now: Layout, trained: Sequence[str]
) -> Resumption:
    """The checkpoint itself, or a converted copy if its layout differs from `now`. All ranks call this."""
    saved, path = Layout(**state["layout"]), folder.checkpoint(step)
    state = state | {"now": now}
    if now.reads(saved):
        return Resumption(step, path, state, path)
    converted = folder.checkpoints / f".step-{step}.universal"
    error: UserError | None = None
    if dist.get_rank() == 0:
        folder.log_event("converted", f"checkpoint {step} was made by {saved}; it is converted for {now}")
        shutil.rmtree(converted, ignore_errors=True)
        try:
            convert(path, converted, saved, now, trained)
        except UserError as caught:
            error = caught
        except Exception as caught:  # all ranks must raise it: they wait for rank 0
            what = (
                f"the checkpoint cannot be converted from {saved} to {now}: {type(caught).__name__}: {caught}"
            )
            error = UserError(what, where=path, hint=f"resume with {saved}", kind="no-conversion")
    error = all_gather_object(error)[0]
    if error is not None:
        raise error
    return Resumption(step, converted, state, path, converted=True)


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


def random_state() -> dict[str, Tensor]:
    """State of this rank's random generators.

    Training uses none of them: this is for code that a user adds.
    """
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def random_file(rank: int) -> str:
    return f"random-{rank}.safetensors"


def restore_random(checkpoint: Path) -> None:
    """Restore the random generators of this rank, if the checkpoint has a rank of this number."""
    from safetensors.torch import load_file

    path = checkpoint / random_file(dist.get_rank())
    if not path.is_file():
        return
    state = load_file(path)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
