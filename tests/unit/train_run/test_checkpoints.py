"""The run folder: atomic saves, hand-over without silent misses, errors that say what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from shards.errors import UserError
from train.checkpoint import RunFolder, changed_fields, hand_over, load_trained, load_weights, under
from train.stages import TrainConfig


def save(folder: RunFolder, step: int, keep: int = 2) -> None:
    part = folder.begin(step)
    (part / "state").mkdir()
    (part / "state" / "weights.pt").write_text(f"weights of {step}")
    folder.commit(step, {"settings": {}}, keep)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "joint")
    for step in (5, 10, 100, 15):
        save(folder, step)
    assert folder.steps() == [15, 100]
    assert folder.state(100)["step"] == 100
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["step-100", "step-15"]


def test_saving_the_same_step_again_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "joint")
    save(folder, 5)
    save(folder, 5)
    assert folder.steps() == [5]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("instant", range(8))
def test_a_save_killed_at_any_instant_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: int
) -> None:
    folder = RunFolder(tmp_path, "joint")
    save(folder, 5, keep=1)
    calls = iter(range(100))

    def dying(real):
        def call(*args, **kwargs):
            if next(calls) == instant:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (os, "open")):
            patch.setattr(module, name, dying(getattr(module, name)))
        try:
            save(folder, 10, keep=1)
        except Killed:
            pass
        else:
            assert instant >= 5, "the save has fewer instants than the test tries"
    newest = folder.steps()[-1]
    assert folder.state(newest)["step"] == newest
    assert (folder.checkpoint(newest) / "state" / "weights.pt").read_text() == f"weights of {newest}"
    save(folder, 15, keep=1)
    assert folder.steps() == [15]
    assert [p.name for p in folder.checkpoints.iterdir()] == ["step-15"]


def finish(folder: RunFolder, tensors: dict[str, torch.Tensor]) -> None:
    folder.write(done=True, config=TrainConfig().model_dump(mode="json"))
    folder.write_weights(tensors)


class Two(nn.Module):
    """A model of two parts, as the hand-over sees one."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.video = nn.Linear(2, 3), nn.Linear(2, 2)


def test_hand_over_takes_what_was_trained_and_names_what_starts_fresh(tmp_path: Path) -> None:
    before = nn.Linear(2, 3)
    finish(RunFolder(tmp_path, "audio"), {f"audio.{n}": t for n, t in before.state_dict().items()})
    model = Two()
    report = hand_over(model, tmp_path, "audio", ["video"])
    assert torch.equal(model.audio.weight, before.weight)
    assert report.taken == ["audio.bias", "audio.weight"]
    assert report.fresh == ["video.weight", "video.bias"]
    assert report.lines() == ["weights from stage audio:", "  taken    2  audio", "  fresh    2  video"]


@pytest.mark.parametrize(
    ("tensors", "fresh", "said"),
    [
        ({"audio.weight": (3, 2), "audio.bias": (3,), "voice.x": (1,)}, ["video"], "have no place: voice.x"),
        ({"audio.weight": (3, 2)}, ["video"], "are missing: audio.bias"),
        ({"audio.weight": (3, 2), "audio.bias": (3,)}, [], "are missing: video"),
        ({"audio.weight": (2, 2), "audio.bias": (3,)}, ["video"], "another shape: audio.weight"),
    ],
)
def test_hand_over_refuses_silent_misses(tmp_path: Path, tensors: dict, fresh: list[str], said: str) -> None:
    finish(RunFolder(tmp_path, "audio"), {name: torch.zeros(shape) for name, shape in tensors.items()})
    with pytest.raises(UserError, match=said):
        hand_over(Two(), tmp_path, "audio", fresh)


def test_a_stage_without_its_predecessor_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never trained.*uniavgen train audio"):
        hand_over(Two(), tmp_path, "audio", [])
    RunFolder(tmp_path, "audio").write(done=False)
    with pytest.raises(UserError, match="has not finished"):
        hand_over(Two(), tmp_path, "audio", [])


def test_damaged_weights_and_foreign_runs_are_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "audio")
    finish(folder, {"x": torch.zeros(1)})
    folder.weights.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        load_weights(tmp_path, "audio")
    (folder.path / "stage.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="format 99"):
        folder.read()
    (folder.path / "stage.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        folder.read()


def test_a_run_without_a_finished_stage_cannot_be_sampled(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uniavgen train all"):
        load_trained(tmp_path)


def test_a_trained_model_comes_back_with_its_plan(tmp_path: Path) -> None:
    from train.model.dual_branch import DualBranch

    model = DualBranch(TrainConfig().model)
    finish(RunFolder(tmp_path, "joint"), model.state_dict())
    loaded, config = load_trained(tmp_path)
    assert config == TrainConfig()
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True))


def test_changed_settings_are_named_with_their_path() -> None:
    before = {"a": 1, "data": {"frames": 5, "seed": 0}, "gone": 2}
    now = {"a": 1, "data": {"frames": 9, "seed": 1}, "new": 3}
    assert changed_fields(before, now, ignore=["data.seed"]) == ["data.frames", "gone", "new"]


def test_parts_are_whole_names() -> None:
    assert under("audio.blocks.0", ["audio"])
    assert not under("audiobook.x", ["audio"])
