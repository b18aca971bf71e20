"""The run folder: checkpoints to resume from, plain weights to hand on, and what each stage says about itself.

    run/<stage>/stage.json                 configuration, step, done, key report, result
    run/<stage>/checkpoints/step-N/        DeepSpeed's state of every worker, and state.json
    run/<stage>/model.safetensors          the stage's weights, whole and in fp32, once it is done

Everything appears by rename: a reader sees the old state or the new one, never a part. Several nodes need a folder that
they share.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import UserError
from train.stages import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.model.dual_branch import DualBranch

FORMAT_VERSION = 1


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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def read(self) -> dict[str, Any]:
        """The content of stage.json; {} where the stage was never started. Raises UserError where it is damaged or foreign."""
        path = self.path / "stage.json"
        if not path.is_file():
            return {}
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise UserError("stage.json is damaged", where=path, do=f"delete {self.path} and train the stage again") from error
        if content.get("format_version") != FORMAT_VERSION:
            raise UserError(
                f"the run has format {content.get('format_version')}, this program reads {FORMAT_VERSION}",
                where=path,
                do="use the matching release of uniavgen, or another --run folder",
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
                f"the run folder cannot be written: {error.strerror}", where=self.path, do="check rights and space"
            ) from error

    @property
    def done(self) -> bool:
        return bool(self.read().get("done")) and self.weights.is_file()

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints there are, oldest first."""
        found = [path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*") if (path / "state.json").is_file()]
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

    def commit(self, step: int, state: Mapping[str, Any], keep: int) -> Path:
        """Make the written checkpoint the newest one, then drop all but the `keep` newest. One process calls this."""
        part, whole = self.part(step), self.checkpoint(step)
        (part / "state.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "step": step, **state}) + "\n")
        for file in part.rglob("*"):
            if file.is_file():
                sync(file)
        if whole.exists():  # the same step of the same run: what stands is as good
            shutil.rmtree(part)
        else:
            os.replace(part, whole)
        sync(self.checkpoints)
        for old in self.steps()[:-keep]:
            # renamed first, so that a kill in the middle of removing leaves nothing that looks whole
            doomed = self.checkpoints / f".step-{old}.old"
            os.replace(self.checkpoint(old), doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        return whole

    def state(self, step: int) -> dict[str, Any]:
        """What state.json of a checkpoint says."""
        content: dict[str, Any] = json.loads((self.checkpoint(step) / "state.json").read_text())
        return content

    def write_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace model.safetensors."""
        from safetensors.torch import save_file

        part = self.path / ".model.safetensors.part"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata={"stage": self.stage})
        sync(part)
        os.replace(part, self.weights)


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


def hand_over(model: nn.Module, run_dir: str | Path, source: str | None, starts_fresh: Sequence[str]) -> KeyReport:
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
        f"{n} {tuple(t.shape)} into {tuple(own[n].shape)}" for n, t in tensors.items() if n in own and t.shape != own[n].shape
    ]
    missing = [name for name in names if name not in tensors and not under(name, starts_fresh)]
    for problem, found in (("have no place", unplaced), ("have another shape", misshapen), ("are missing", missing)):
        if found:
            raise UserError(
                f"{len(found)} weights of stage {source} {problem}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}",
                where=RunFolder(run_dir, source).weights,
                do="train with the same model configuration, or name the new parts in starts_fresh",
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
            f"stage {stage} {began}", where=folder.path, do=f"run first: uniavgen train {stage}", kind="missing-stage"
        )
    return folder


def load_weights(run_dir: str | Path, stage: str) -> dict[str, Tensor]:
    """The finished weights of a stage. Raises UserError where there are none or the file is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = finished(run_dir, stage)
    try:
        return load_file(folder.weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights are damaged: {error}", where=folder.weights, do=f"train stage {stage} again") from error


def changed_fields(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignore: Iterable[str] = (), prefix: str = ""
) -> list[str]:
    """Dotted names of settings that differ between two dumps; `ignore` lists names that may differ."""
    skip = set(ignore)
    changed = []
    for key in sorted({*before, *now}):
        name = f"{prefix}{key}"
        old, new = before.get(key), now.get(key)
        if name in skip or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed += changed_fields(old, new, ignore=skip, prefix=f"{name}.")
        else:
            changed.append(name)
    return changed


def under(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a parameter's name lies under one of the dotted prefixes."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _by_part(names: Sequence[str]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:
        part = name.split(".", 1)[0]
        counts[part] = counts.get(part, 0) + 1
    return sorted(counts.items())


def trained_config(run_dir: str | Path, stage: str | None = None) -> tuple[str, TrainConfig]:
    """A finished stage and the configuration it was trained with, without its weights.

    `stage` None takes the last finished stage that has both branches. Raises UserError where there is none.
    """
    if stage is None:
        done = [name for name in ("multitask", "joint") if RunFolder(run_dir, name).done]
        if not done:
            raise UserError(
                "no finished joint or multitask stage in this run",
                where=run_dir,
                do="run: uniavgen train all",
                kind="missing-stage",
            )
        stage = done[0]
    return stage, TrainConfig.model_validate(finished(run_dir, stage).read()["config"])


def load_trained(run_dir: str | Path, stage: str | None = None) -> tuple[DualBranch, TrainConfig]:
    """A finished stage's model on the CPU in eval mode, and its configuration; raises as `trained_config` does."""
    from train.model.dual_branch import DualBranch

    stage, config = trained_config(run_dir, stage)
    tensors = load_weights(run_dir, stage)
    model = DualBranch(config.model)
    model.load_state_dict(tensors)
    return model.eval(), config
