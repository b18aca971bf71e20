"""Resume a stage: find the newest complete checkpoint, and convert it for the present layout.

Damaged checkpoints, changed settings and conversions are logged as events in events.jsonl.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.changes import check_changes
from uniavgen.train.checkpoint.checkpoint_conversion import Layout, convert, load_plain
from uniavgen.train.checkpoint.run_folder import MANIFEST, STATE, RunFolder, differing
from uniavgen.train.checkpoint.saving import load_checkpoint
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.engine.collectives import all_gather_object
from uniavgen.train.engine.deepspeed_compat import separate_step_counters
from uniavgen.train.engine.deepspeed_engine import restore_configured_settings

log = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"


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

    def load(self, engine: Any, stage: StageConfig) -> None:
        """Restore the engine and the random generators, with the optimizer settings of `stage`.

        All ranks call this. Raises UserError.
        """
        if self.converted and self.state["now"].plain:
            load_plain(engine, self.path)
        else:
            load_checkpoint(engine, self.path)
        separate_step_counters(engine.basic_optimizer)
        restore_configured_settings(engine, stage)
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

    `trained`: names of the trainable parameters. Raises UserError if all checkpoints are damaged, if the
    configuration changed and not `accept_changes`, or if a change cannot take effect.
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
            hint="restore one from a copy, or train the stage from its start in another --run folder",
            kind="damaged-checkpoint",
        )
    if not steps:
        return None
    step = steps[-1]
    changed = check_changes(folder, step, config, stage, accept=accept_changes)
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
    state = folder.state(step)
    return convert_if_needed(folder, step, state, Layout.of(config, dist.get_world_size()), trained)


def damage_of(folder: RunFolder, step: int) -> list[str]:
    """One line for each damaged file of a checkpoint.

    Each rank reads a share of the files; all ranks call this. Raises UserError if a file cannot be read.
    """
    # rank 0 decides: a shared folder may show the files later to other ranks
    digests = all_gather_object(folder.manifest(step))[0]
    if not digests:
        return [f"{MANIFEST} is missing or damaged"]
    if STATE not in digests:
        return [f"{MANIFEST} does not name {STATE}"]
    share = dict(sorted(digests.items())[dist.get_rank() :: dist.get_world_size()])
    path = folder.checkpoint(step)
    damage, failure = [], ""
    try:
        # a file that was read wrong once, as over a network, is read again: a damaged checkpoint is removed
        damage = differing(path, share) and differing(path, share)
    except OSError as error:
        failure = f"{error.strerror or error}: {error.filename}"
    of_ranks = all_gather_object((damage, failure))
    if failures := [failed for _, failed in of_ranks if failed]:
        raise UserError(
            f"checkpoint {step} cannot be read: {failures[0]}",
            where=path,
            hint="check the disk and the mount, then run the same command again; nothing was removed",
            kind="unreadable-checkpoint",
        )
    return sorted(line for lines, _ in of_ranks for line in lines)


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
