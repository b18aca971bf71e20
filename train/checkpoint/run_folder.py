"""The run folder: checkpoints to resume from, plain weights to hand on, and what each stage says about itself.

    run/<stage>/stage.json                 configuration, step, done, key report, result
    run/<stage>/events.jsonl               what happened beside the figures: one JSON line each, with `event` and `text`
    run/<stage>/checkpoints/step-N/        DeepSpeed's state of every worker, state.json, and manifest.json, written last
    run/<stage>/model.safetensors          the stage's weights, whole and in fp32, once it is done
    run/<stage>/ema.safetensors            their moving average, where `train.ema` asks for one

Everything appears by rename: a reader sees the old state or the new one, never a part. Several nodes need a folder that
they share.
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

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT_VERSION = 1
ABSENT = object()
"""In the place of a setting that is not there at all, which null would not say."""
State = TypeVar("State")
STATE, MANIFEST = "state.json", "manifest.json"


@dataclass(frozen=True)
class KeyReport:
    """What became of every weight at a hand-over: `taken` from the stage before, `fresh` (started at random, as planned)."""

    source: str
    taken: list[str]
    fresh: list[str]

    def lines(self) -> list[str]:
        """The report for people, counted by part."""
        taken, fresh = _by_part(self.taken), _by_part(self.fresh)
        text = [f"weights from {self.source}:"] if self.source else ["weights from nowhere (random start):"]
        return (
            text
            + [f"  taken {count:4d}  {part}" for part, count in taken]
            + [f"  fresh {count:4d}  {part}" for part, count in fresh]
        )


class RunFolder:
    """One stage's place in a run folder."""

    def __init__(self, run_dir: str | Path, stage: str) -> None:
        self.path = Path(run_dir).absolute() / stage
        self.stage = stage

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def average(self) -> Path:
        return self.path / "ema.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def stop_request(self) -> Path:
        """A file whose presence asks the workers to save and leave."""
        return self.path / "stop"

    def tell(self, event: str, text: str, **figures: Any) -> None:
        """Note something that people should hear of, in one line."""
        line = {"time": round(time.time(), 3), "event": event, "text": text, **figures}
        append_row(self.events, line)

    def read(self) -> dict[str, Any]:
        """The content of stage.json; {} where the stage was never started. Raises UserError where it is damaged or foreign."""
        path = self.path / "stage.json"
        if not path.is_file():
            return {}
        try:
            content: dict[str, Any] = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(
                "stage.json is damaged", where=path, hint=f"delete {self.path} and train the stage again"
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
        """Replace entries of stage.json; others stay."""
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
        """Steps of the whole checkpoints there are, oldest first."""
        found = [
            path.parent.name.removeprefix("step-") for path in self.checkpoints.glob(f"step-*/{MANIFEST}")
        ]
        return sorted(int(name) for name in found if name.isdigit())

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def part(self, step: int) -> Path:
        """Where a checkpoint is written before it is whole."""
        return self.checkpoints / f".step-{step}.part"

    def begin(self, step: int) -> Path:
        """A clean folder to write a checkpoint into; leftovers of an interrupted save are removed. One process calls this."""
        for leftover in self.checkpoints.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.part(step).mkdir(parents=True)
        return self.part(step)

    def commit(
        self, step: int, state: Mapping[str, Any], files: Mapping[str, str], keep: CheckpointConfig
    ) -> Path:
        """Make the written checkpoint the newest one, then drop those that `keep` does not name. One process calls this.

        `files` are the digests of what those who wrote into `part(step)` have brought to the disk; they go into the manifest
        with those of state.json and of whatever else stands there. Raises UserError where one of them is not to be seen.
        """
        part, whole = self.part(step), self.checkpoint(step)
        (part / STATE).write_text(
            json.dumps({"format_version": FORMAT_VERSION, "step": step, **state}) + "\n"
        )
        found = {str(path.relative_to(part)): path for path in part.rglob("*")}
        unseen = [name for name in files if name not in found]
        if unseen:
            raise UserError(
                f"{unseen[0]}, which another worker wrote, is not to be seen from the first one",
                where=part,
                hint="put the run folder where all nodes see it",
                kind="not-shared",
            )
        others = {name: digest(path) for name, path in found.items() if path.is_file() and name not in files}
        for name, path in found.items():
            if name in others or path.is_dir():
                sync(path)
        write_text(part / MANIFEST, json.dumps({"sha256": {**files, **others}}, indent=1) + "\n")
        if step in self.steps():  # the same step of the same run: what stands is as good
            shutil.rmtree(part)
        else:
            shutil.rmtree(whole, ignore_errors=True)  # without a manifest it is none
            os.replace(part, whole)
        sync(self.checkpoints)
        steps = self.steps()
        kept = {
            *steps[-keep.keep :],
            *(found for found in steps if keep.keep_every and found % keep.keep_every == 0),
        }
        for old in steps:
            if old not in kept:
                self.set_aside(old)
        return whole

    def set_aside(self, step: int) -> None:
        """Remove a checkpoint; renamed first, so that a kill in the middle leaves nothing that looks whole."""
        doomed = self.checkpoints / f".step-{step}.old"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(self.checkpoint(step), doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def manifest(self, step: int) -> dict[str, str]:
        """Digest of every file of a checkpoint, by its path within it; {} where the manifest itself is damaged."""
        try:
            content: dict[str, str] = json.loads((self.checkpoint(step) / MANIFEST).read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return content

    def state(self, step: int) -> dict[str, Any]:
        """What state.json of a checkpoint says."""
        content: dict[str, Any] = json.loads((self.checkpoint(step) / STATE).read_text())
        return content

    def write_weights(
        self, tensors: Mapping[str, Tensor], average: Mapping[str, Tensor] | None = None
    ) -> None:
        """Replace model.safetensors, and ema.safetensors by the average if there is one."""
        self.average.unlink(missing_ok=True)
        if average:
            write_tensors(self.average, average, {"stage": self.stage})
        write_tensors(self.weights, tensors, {"stage": self.stage})


def digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """What is wrong with the files of a folder: one entry for each that is missing or has another digest."""
    wrong = []
    for name, known in digests.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif digest(path) != known:
            wrong.append(f"{name} is not what was written ({path.stat().st_size} bytes)")
    return wrong


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Replace a safetensors file by rename."""
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
    sync(part)
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content by rename."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    sync(part)
    os.replace(part, path)


def sync(path: Path) -> None:
    """Force a file or folder to the disk before a rename that relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hand_over(
    model: nn.Module, run_dir: str | Path, source: str | None, starts_fresh: Sequence[str]
) -> KeyReport:
    """Load the weights of stage `source` into `model` and say what became of every key.

    Refuses silent misses: raises UserError where the stage is not done, a weight has no place or another shape in the
    model, or a weight of the model is neither taken nor under one of the prefixes in `starts_fresh`.
    """
    names = list(model.state_dict())
    if source is None:
        return KeyReport("", [], names)
    tensors = load_weights(run_dir, source)
    own = model.state_dict()
    unplaced = [name for name in tensors if name not in own]
    misshapen = [
        f"{n} {tuple(t.shape)} into {tuple(own[n].shape)}"
        for n, t in tensors.items()
        if n in own and t.shape != own[n].shape
    ]
    missing = [name for name in names if name not in tensors and not under(name, starts_fresh)]
    for problem, found in (
        ("have no place", unplaced),
        ("have another shape", misshapen),
        ("are missing", missing),
    ):
        if found:
            raise UserError(
                f"{len(found)} weights of stage {source} {problem}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}",
                where=RunFolder(run_dir, source).weights,
                hint="train with the same model configuration, or name the new parts in starts_fresh",
                kind="weights-mismatch",
            )
    model.load_state_dict(tensors, strict=False)
    return KeyReport(f"stage {source}", list(tensors), [name for name in names if name not in tensors])


def finished(run_dir: str | Path, stage: str) -> RunFolder:
    """The folder of a stage that is done. Raises UserError where it is not."""
    folder = RunFolder(run_dir, stage)
    if not folder.done:
        began = "has not finished" if folder.read() else "was never trained"
        raise UserError(
            f"stage {stage} {began}",
            where=folder.path,
            hint=f"run first: uniavgen train {stage}",
            kind="missing-stage",
        )
    return folder


def load_weights(run_dir: str | Path, stage: str, *, average: bool = False) -> dict[str, Tensor]:
    """The finished weights of a stage, or with `average` their moving average where the stage has one.

    Raises UserError where there are none or the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = finished(run_dir, stage)
    path = folder.average if average and folder.average.is_file() else folder.weights
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the weights are damaged: {error}", where=path, hint=f"train stage {stage} again"
        ) from error


def changed_fields(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignore: Iterable[str] = (), prefix: str = ""
) -> list[str]:
    """Dotted names of settings that differ between two dumps; `ignore` lists names that may differ.

    A setting that only one of them has differs, also where it is null.
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
    """A state that was saved as a mapping: what this release no longer knows is left out, what it adds is at its default."""
    return kind(**{entry.name: saved[entry.name] for entry in fields(kind) if entry.name in saved})  # type: ignore[arg-type]


def under(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a parameter's name lies under one of the dotted prefixes."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _by_part(names: Sequence[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:
        part = name.split(".", 1)[0]
        counts[part] = counts.get(part, 0) + 1
    return sorted(counts.items())
