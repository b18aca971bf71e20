"""The run folder: files of each training stage, and weights of a finished stage for the next one.

    run/<stage>/stage.json                 configuration, step, done, key report, result
    run/<stage>/events.jsonl               events for people: one JSON line each, with `event` and `text`
    run/<stage>/order.npz                  the samples of the stage in the order of their numbers
    run/<stage>/val-order.npz              the same for validation
    run/<stage>/checkpoints/step-N/        DeepSpeed's state of every rank, state.json, and manifest.json
    run/<stage>/model.safetensors          the final weights in fp32, once the stage is done
    run/<stage>/ema.safetensors            their exponential moving average, if `train.ema` is set

Files are replaced by rename, so a reader sees the old file or the new one. Several nodes need a shared
folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from uniavgen.shards.errors import UserError
from uniavgen.shards.jsonl import append_row
from uniavgen.train.config import CheckpointConfig
from uniavgen.train.model.parts import is_under, part_of

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT_VERSION = 1
ABSENT = object()
"""Value of a setting that is missing; None is a value that a setting may have."""
State = TypeVar("State")
STATE, MANIFEST = "state.json", "manifest.json"


@dataclass(frozen=True)
class KeyReport:
    """Names of weights taken from the stage before, and of weights initialised at random (`fresh`)."""

    source: str
    taken: list[str]
    fresh: list[str]

    def lines(self) -> list[str]:
        """The report for people: counts by part of the model."""
        taken, fresh = _by_part(self.taken), _by_part(self.fresh)
        text = [f"weights from {self.source}:"] if self.source else ["weights initialised at random:"]
        return (
            text
            + [f"  taken {count:4d}  {part}" for part, count in taken]
            + [f"  fresh {count:4d}  {part}" for part, count in fresh]
        )


class RunFolder:
    """Paths and files of one stage in a run folder."""

    def __init__(self, run_dir: str | Path, stage: str) -> None:
        self.path = Path(run_dir).absolute() / stage
        self.stage = stage

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def ema_weights(self) -> Path:
        return self.path / "ema.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def order(self, split: str) -> Path:
        """The file with the numbers of the samples (`shards.read.sample_order`)."""
        return self.path / ("order.npz" if split == "train" else f"{split}-order.npz")

    @property
    def stop_request(self) -> Path:
        """A file that asks the workers to save and stop."""
        return self.path / "stop"

    def log_event(self, event: str, text: str, **values: Any) -> None:
        """Append an event to events.jsonl: a line of text for people, and further values."""
        line = {"time": round(time.time(), 3), "event": event, "text": text, **values}
        append_row(self.events, line)

    def read(self) -> dict[str, Any]:
        """The content of stage.json, {} if there is none.

        Raises UserError if it is damaged or of another version.
        """
        path = self.path / "stage.json"
        if not path.is_file():
            return {}
        try:
            content: dict[str, Any] = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(
                "stage.json is damaged",
                where=path,
                hint="move it away and run the same command again: the stage resumes from its checkpoint",
            ) from error
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"the run has format {content.get('format_version')}, this program reads {FORMAT_VERSION}",
                where=path,
                hint="use the matching release of uniavgen, or another --run folder",
                kind="wrong-version",
            )
        return content

    def write(self, **content: Any) -> None:
        """Set entries of stage.json and keep the others. Raises UserError if the folder cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            merged = {**self.read(), "format_version": FORMAT_VERSION, "stage": self.stage, **content}
            write_text(self.path / "stage.json", json.dumps(merged, indent=1) + "\n")
        except OSError as error:
            raise UserError(
                f"the run folder cannot be written: {error.strerror}",
                where=self.path,
                hint="check rights and space",
            ) from error

    @property
    def done(self) -> bool:
        return bool(self.read().get("done")) and self.weights.is_file()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        names = [
            path.parent.name.removeprefix("step-") for path in self.checkpoints.glob(f"step-*/{MANIFEST}")
        ]
        return sorted(int(name) for name in names if name.isdigit())

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def part(self, step: int) -> Path:
        """Folder in which a checkpoint is written before it is complete."""
        return self.checkpoints / f".step-{step}.part"

    def begin(self, step: int) -> Path:
        """Make an empty folder for a checkpoint, and remove leftovers of interrupted saves.

        Rank 0 calls this.
        """
        for leftover in self.checkpoints.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.part(step).mkdir(parents=True)
        return self.part(step)

    def commit(
        self, step: int, state: Mapping[str, Any], files: Mapping[str, str], keep: CheckpointConfig
    ) -> Path:
        """Complete the checkpoint in `part(step)`, then remove older ones as `keep` says. Rank 0 calls this.

        `files`: SHA-256 by name of the files that all ranks have written and synced. The manifest names
        these, state.json and any other file of the folder. Raises UserError if rank 0 does not see one of
        `files`.
        """
        part, target = self.part(step), self.checkpoint(step)
        (part / STATE).write_text(
            json.dumps({"format_version": FORMAT_VERSION, "step": step, **state}) + "\n"
        )
        paths = {str(path.relative_to(part)): path for path in part.rglob("*")}
        unseen = [name for name in files if name not in paths]
        if unseen:
            raise UserError(
                f"{unseen[0]} was written by another rank, and rank 0 does not see it",
                where=part,
                hint="put the run folder on shared storage",
                kind="not-shared",
            )
        others = {name: digest(path) for name, path in paths.items() if path.is_file() and name not in files}
        for name, path in paths.items():
            if name in others or path.is_dir():
                sync(path)
        write_text(part / MANIFEST, json.dumps({"sha256": {**files, **others}}, indent=1) + "\n")
        if step in self.steps():  # the same step of the same run: the existing checkpoint is equal
            shutil.rmtree(part)
        else:
            shutil.rmtree(target, ignore_errors=True)  # without a manifest it is no checkpoint
            os.replace(part, target)
        sync(self.checkpoints)
        steps = self.steps()
        kept = {
            *steps[-keep.keep :],
            *(saved for saved in steps if keep.keep_every and saved % keep.keep_every == 0),
        }
        for old in steps:
            if old not in kept:
                self.remove_checkpoint(old)
        return target

    def remove_checkpoint(self, step: int) -> None:
        """Remove a checkpoint. It is renamed first, so that a kill leaves nothing that looks complete."""
        doomed = self.checkpoints / f".step-{step}.old"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(self.checkpoint(step), doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def manifest(self, step: int) -> dict[str, str]:
        """SHA-256 of every file of a checkpoint by relative path; {} without a readable manifest."""
        try:
            content: dict[str, str] = json.loads((self.checkpoint(step) / MANIFEST).read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return content

    def state(self, step: int) -> dict[str, Any]:
        """The content of state.json of a checkpoint."""
        content: dict[str, Any] = json.loads((self.checkpoint(step) / STATE).read_text())
        return content

    def write_weights(self, tensors: Mapping[str, Tensor], ema: Mapping[str, Tensor] | None = None) -> None:
        """Replace model.safetensors; replace ema.safetensors, or remove it if there is no average."""
        self.ema_weights.unlink(missing_ok=True)
        if ema:
            write_tensors(self.ema_weights, ema, {"stage": self.stage})
        write_tensors(self.weights, tensors, {"stage": self.stage})


def digest(path: Path) -> str:
    """SHA-256 of a file as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """One line for each file of a folder that is missing or has another SHA-256 than in `digests`."""
    lines = []
    for name, sha256 in digests.items():
        path = folder / name
        if not path.is_file():
            lines.append(f"{name} is missing")
        elif digest(path) != sha256:
            lines.append(f"{name} has another SHA-256 than was written ({path.stat().st_size} bytes)")
    return lines


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace a safetensors file by rename. Raises OSError or SafetensorError."""
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.part")
    part.write_bytes(b"")
    mode = part.stat().st_mode  # as the umask says; safetensors makes files that only their owner can read
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
    part.chmod(mode)
    sync(part)
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Replace a text file by rename. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    sync(part)
    os.replace(part, path)


def sync(path: Path) -> None:
    """fsync a file or folder, before a rename that relies on its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hand_over(
    model: nn.Module, run_dir: str | Path, source: str | None, starts_fresh: Sequence[str]
) -> KeyReport:
    """Load the weights of stage `source` into `model`, and report every key.

    Raises UserError if the stage is not done, a weight is not in the model or has another shape there, or a
    weight of the model is neither taken nor under one of the prefixes in `starts_fresh`.
    """
    if source is None:
        return KeyReport("", [], list(model.state_dict()))
    where = RunFolder(run_dir, source).weights
    return take_weights(model, load_weights(run_dir, source), f"stage {source}", where, starts_fresh)


def take_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, where: Path, starts_fresh: Sequence[str]
) -> KeyReport:
    """Load weights into `model` and report every key; `source` and `where` say where they are from.

    Raises UserError as `hand_over` does.
    """
    current = model.state_dict()
    names = list(current)
    unknown = [name for name in tensors if name not in current]
    misshapen = [
        f"{n} {tuple(t.shape)} into {tuple(current[n].shape)}"
        for n, t in tensors.items()
        if n in current and t.shape != current[n].shape
    ]
    missing = [name for name in names if name not in tensors and not is_under(name, starts_fresh)]
    for problem, affected in (
        ("are not in the model", unknown),
        ("have another shape", misshapen),
        ("are missing", missing),
    ):
        if affected:
            listed = ", ".join(affected[:3]) + (", ..." if len(affected) > 3 else "")
            raise UserError(
                f"{len(affected)} weights of {source} {problem}: {listed}",
                where=where,
                hint="train with the same model configuration, or name the new parts in starts_fresh",
                kind="weights-mismatch",
            )
    model.load_state_dict(tensors, strict=False)
    return KeyReport(source, list(tensors), [name for name in names if name not in tensors])


def finished(run_dir: str | Path, stage: str) -> RunFolder:
    """The folder of a stage that is done. Raises UserError if it is not."""
    folder = RunFolder(run_dir, stage)
    if not folder.done:
        state = "has not finished" if folder.read() else "was never trained"
        raise UserError(
            f"stage {stage} {state}",
            where=folder.path,
            hint=f"run first: uniavgen train {stage}",
            kind="missing-stage",
        )
    return folder


def load_weights(run_dir: str | Path, stage: str, *, ema: bool = False) -> dict[str, Tensor]:
    """The weights of a finished stage, or with `ema` their moving average if the stage has one.

    Raises UserError if the stage is not done or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = finished(run_dir, stage)
    path = folder.ema_weights if ema and folder.ema_weights.is_file() else folder.weights
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the weights are damaged: {error}", where=path, hint=f"train stage {stage} again"
        ) from error


def changed_fields(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignore: Iterable[str] = (), prefix: str = ""
) -> list[str]:
    """Dotted names of settings that differ between two configuration dumps, except those in `ignore`.

    A setting that only one of them has differs, even if it is null.
    """
    skip = set(ignore)
    changed = []
    for key in sorted({*before, *now}):
        name = f"{prefix}{key}"
        old, new = before.get(key, ABSENT), now.get(key, ABSENT)
        if name in skip or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed += changed_fields(old, new, ignore=skip, prefix=f"{name}.")
        else:
            changed.append(name)
    return changed


def restored(kind: type[State], saved: Mapping[str, Any]) -> State:
    """A dataclass from its saved fields: unknown fields are ignored, missing ones have their default."""
    return kind(**{entry.name: saved[entry.name] for entry in fields(kind) if entry.name in saved})  # type: ignore[arg-type]


def _by_part(names: Sequence[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:
        part = part_of(name)
        counts[part] = counts.get(part, 0) + 1
    return sorted(counts.items())
