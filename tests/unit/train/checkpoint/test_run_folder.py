"""The run folder: atomic saves, weights taken from the stage before, errors with hints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.changes import refuse_changes, settings_that_matter
from uniavgen.train.checkpoint.run_folder import (
    RunFolder,
    changed_fields,
    differing,
    digest,
    hand_over,
    load_weights,
    write_tensors,
)
from uniavgen.train.checkpoint.trained_model import load_trained
from uniavgen.train.codec.registry import CodecConfig
from uniavgen.train.config import CheckpointConfig, TrainConfig
from uniavgen.train.model.parts import is_under

SAVED = Path("state") / "weights.pt"


def save(folder: RunFolder, step: int, keep: int = 2, keep_every: int = 0) -> None:
    part = folder.begin(step)
    (part / SAVED).parent.mkdir()
    (part / SAVED).write_text(f"weights of {step}")
    files = {str(SAVED): digest(part / SAVED)}
    folder.commit(step, {"settings": {}}, files, CheckpointConfig(keep=keep, keep_every=keep_every))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "joint")
    for step in (5, 10, 100, 15):
        save(folder, step)
    assert folder.steps() == [15, 100]
    assert folder.state(100)["step"] == 100
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == ["step-100", "step-15"]


def test_keep_every_keeps_its_multiples(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "joint")
    for step in range(5, 45, 5):
        save(folder, step, keep=2, keep_every=15)
    assert folder.steps() == [15, 30, 35, 40]


def test_manifest_names_every_file_and_detects_every_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "joint")
    (folder.begin(5) / "extra.py").write_text("DeepSpeed leaves scripts")
    (folder.part(5) / SAVED).parent.mkdir()
    (folder.part(5) / SAVED).write_text("weights")
    folder.commit(5, {}, {str(SAVED): digest(folder.part(5) / SAVED)}, CheckpointConfig())
    whole = folder.checkpoint(5)
    digests = folder.manifest(5)
    assert {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()} == {
        *digests,
        "manifest.json",
    }
    assert differing(whole, digests) == []
    content = (whole / SAVED).read_bytes()
    for name, damaged in (
        ("flipped", bytes([content[0] ^ 1]) + content[1:]),
        ("truncated", content[:-1]),
        ("empty", b""),
    ):
        (whole / SAVED).write_bytes(damaged)
        wrong = differing(whole, digests)
        assert len(wrong) == 1, name
        assert str(SAVED) in wrong[0], name
    (whole / SAVED).unlink()
    assert differing(whole, digests) == [f"{SAVED} is missing"]
    (whole / "manifest.json").write_text("{")
    assert folder.manifest(5) == {}


def test_commit_refuses_a_file_of_another_rank_that_it_does_not_see(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "joint")
    folder.begin(5)
    with pytest.raises(UserError, match=r"state/weights.pt was written by another rank.*on shared storage"):
        folder.commit(5, {}, {str(SAVED): "0" * 64}, CheckpointConfig())
    assert folder.steps() == []


def test_saving_the_same_step_again_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "joint")
    save(folder, 5)
    save(folder, 5)
    assert folder.steps() == [5]


class Killed(BaseException):
    """Simulates a kill: no code catches it."""


@pytest.mark.parametrize("instant", range(10))
def test_killed_save_leaves_a_complete_checkpoint(
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
            assert instant >= 6, "the save has fewer instants than the test tries"
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
    """A model of two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.video = nn.Linear(2, 3), nn.Linear(2, 2)


def test_hand_over_reports_taken_and_fresh_weights(tmp_path: Path) -> None:
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
        (
            {"audio.weight": (3, 2), "audio.bias": (3,), "voice.x": (1,)},
            ["video"],
            "are not in the model: voice.x",
        ),
        ({"audio.weight": (3, 2)}, ["video"], "are missing: audio.bias"),
        ({"audio.weight": (3, 2), "audio.bias": (3,)}, [], "are missing: video"),
        ({"audio.weight": (2, 2), "audio.bias": (3,)}, ["video"], "another shape: audio.weight"),
    ],
)
def test_hand_over_refuses_unknown_missing_and_misshapen_weights(
    tmp_path: Path, tensors: dict, fresh: list[str], said: str
) -> None:
    finish(RunFolder(tmp_path, "audio"), {name: torch.zeros(shape) for name, shape in tensors.items()})
    with pytest.raises(UserError, match=said):
        hand_over(Two(), tmp_path, "audio", fresh)


def test_missing_stage_before_raises_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="never trained.*uniavgen train audio"):
        hand_over(Two(), tmp_path, "audio", [])
    RunFolder(tmp_path, "audio").write(done=False)
    with pytest.raises(UserError, match="has not finished"):
        hand_over(Two(), tmp_path, "audio", [])


def test_damaged_weights_and_other_versions_raise(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "audio")
    finish(folder, {"x": torch.zeros(1)})
    folder.weights.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged"):
        load_weights(tmp_path, "audio")
    (folder.path / "stage.json").write_text('{"format_version": 99}')
    with pytest.raises(UserError, match="format 99"):
        folder.read()
    for content in ("{", "null", "[1]"):
        (folder.path / "stage.json").write_text(content)
        with pytest.raises(UserError, match="damaged"):
            folder.read()


def test_load_trained_needs_a_finished_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uniavgen train all"):
        load_trained(tmp_path)


def test_load_trained_returns_model_and_configuration(tmp_path: Path) -> None:
    from uniavgen.train.model.dual_branch import DualBranch

    model = DualBranch(TrainConfig().model)
    finish(RunFolder(tmp_path, "joint"), model.state_dict())
    loaded, config = load_trained(tmp_path)
    assert config == TrainConfig()
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )


def test_load_weights_returns_the_average_on_request(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path, "audio")
    folder.write(done=True, config=TrainConfig().model_dump(mode="json"))
    folder.write_weights({"x": torch.zeros(1)}, {"x": torch.ones(1)})
    assert load_weights(tmp_path, "audio")["x"] == 0
    assert load_weights(tmp_path, "audio", ema=True)["x"] == 1
    folder.write_weights({"x": torch.zeros(1)})
    assert load_weights(tmp_path, "audio", ema=True)["x"] == 0


def test_changed_settings_are_refused_by_name_or_accepted(tmp_path: Path) -> None:
    saved, now = (
        {"seed": 0, "stage": {"lr": 1e-3, "batch": 4}},
        {"seed": 0, "stage": {"lr": 2e-3, "batch": 8}},
    )
    with pytest.raises(UserError, match=r"another stage.batch, stage.lr.*--accept-changes"):
        refuse_changes(saved, now, now, tmp_path, accept=False)
    assert refuse_changes(saved, now, now, tmp_path, accept=True) == ["stage.batch", "stage.lr"]
    assert refuse_changes(saved, saved, now, tmp_path, accept=False) == []


def test_setting_added_by_a_newer_release_is_no_change_at_its_default(tmp_path: Path) -> None:
    saved: dict = {"stage": {"tasks": {"dubbing": 1}}}
    defaults = {"stage": {"tasks": {"joint": 1}, "pretrained": {"video": ""}}}
    now = {"stage": {"tasks": {"dubbing": 1}, "pretrained": {"video": ""}}}
    assert refuse_changes(saved, now, defaults, tmp_path, accept=True) == []
    now["stage"]["pretrained"]["video"] = "wan"
    now["stage"]["tasks"]["joint"] = 1
    assert refuse_changes(saved, now, defaults, tmp_path, accept=True) == [
        "stage.pretrained",
        "stage.tasks.joint",
    ]


def test_setting_saved_as_null_is_known(tmp_path: Path) -> None:
    """A change to a default that is not null is a change; a value that stays null is none."""
    saved, now = {"video": {"text_len": None}}, {"video": {"text_len": 512}}
    assert refuse_changes(saved, now, now, tmp_path, accept=True) == ["video.text_len"]
    assert refuse_changes(saved, saved, now, tmp_path, accept=True) == []
    assert refuse_changes({"video": {}}, now, now, tmp_path, accept=True) == []
    assert refuse_changes({"video": {}}, saved, now, tmp_path, accept=True) == ["video.text_len"], (
        "not its default"
    )


def test_settings_without_effect_on_losses_may_change(tmp_path: Path) -> None:
    before = TrainConfig()
    data = before.data.model_copy(
        update={"prefetch": 9, "codecs": CodecConfig(vocoder="vocos", vocoder_weights="here")}
    )
    after = before.model_copy(update={"data": data})
    settings = [settings_that_matter(config, config.stage("joint")) for config in (before, after)]
    assert refuse_changes(*settings, settings[0], tmp_path, accept=True) == []


def test_failed_write_keeps_the_old_safetensors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})
    before = (tmp_path / "x.safetensors").read_bytes()
    monkeypatch.setattr(
        os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "x.safetensors", {"x": torch.ones(1)})
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_changed_fields_have_dotted_names() -> None:
    before = {"a": 1, "data": {"frames": 5, "seed": 0}, "gone": 2, "was null": None}
    now = {"a": 1, "data": {"frames": 9, "seed": 1}, "new": 3}
    assert changed_fields(before, now, ignore=["data.seed"]) == ["data.frames", "gone", "new", "was null"]


def test_under_matches_whole_name_parts() -> None:
    assert is_under("audio.blocks.0", ["audio"])
    assert not is_under("audiobook.x", ["audio"])


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_safetensors_files_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        folder = RunFolder(tmp_path, "joint")
        folder.write(done=True)
        for _ in range(2):  # new, then replaced
            folder.write_weights({"x": torch.zeros(1)}, {"x": torch.ones(1)})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (folder.weights, folder.ema_weights)} == {mode}
