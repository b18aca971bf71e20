"""Validation videos of a stage with random weights: every task, with and without guidance; contact sheets."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from made_runs import SMALL_DATA, SMALL_MODEL, small_config
from made_samples import make_sample, write_shards
from PIL import Image

from uniavgen.orchestration.commands.train import make_validation_videos
from uniavgen.orchestration.config import Config
from uniavgen.orchestration.output.video_file import SHEET_FRAMES, write_contact_sheet
from uniavgen.shards import weights
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import SamplingConfig, StageConfig
from uniavgen.train.diagnostics.config import ValidationConfig
from uniavgen.train.tasks import Task

STAGE = StageConfig(name="multitask", tasks={Task.JOINT: 1, Task.DUBBING: 1})


def test_contact_sheet_holds_the_first_and_the_last_frame(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(0, 130, 10, dtype=np.uint8), 8 * 8 * 3).reshape(13, 8, 8, 3)
    write_contact_sheet(tmp_path / "sheet.png", frames)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (8, 8 * SHEET_FRAMES, 3)
    assert (sheet[0, 0, 0], sheet[0, -1, 0]) == (0, 120)


@pytest.mark.slow
def test_every_task_has_a_video_with_and_without_guidance(tmp_path: Path) -> None:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    from uniavgen.train.model.dual_branch import DualBranch

    shards = write_shards(tmp_path / "shards", [make_sample("a", 30), make_sample("b", 30, seed=1)], "val")
    plan = small_config([STAGE], 1).model_copy(update={"validation": ValidationConfig(films=1)})
    settings = Config(train=plan, sample=SamplingConfig(steps=2))
    folder = RunFolder(tmp_path / "run", "multitask")
    torch.manual_seed(0)
    folder.write(done=True, config=plan.model_dump(mode="json"))
    model = DualBranch(SMALL_MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    folder.write_weights(model.state_dict())
    made = make_validation_videos("multitask", str(shards), tmp_path / "run", settings)
    assert made == tmp_path / "run" / "multitask" / "validation"
    names = [
        f"{task}-a-{guidance}" for task in ("dubbing", "joint") for guidance in ("modality-aware", "none")
    ]
    assert sorted(path.stem for path in made.glob("*.mp4")) == names
    for name in names:
        with av.open(str(made / f"{name}.mp4")) as video:
            assert {stream.type for stream in video.streams} == {"video", "audio"}
            assert len(list(video.decode(video=0))) == SMALL_DATA.frames
        assert Image.open(made / f"{name}.png").size == (SMALL_DATA.width * SHEET_FRAMES, SMALL_DATA.height)
    assert (made / "joint-a-none.mp4").read_bytes() != (made / "joint-a-modality-aware.mp4").read_bytes()
    times = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    assert make_validation_videos("multitask", str(shards), tmp_path / "run", settings, remake=False) is None
    lost = "joint-a-none"
    (made / f"{lost}.png").unlink()
    assert make_validation_videos("multitask", str(shards), tmp_path / "run", settings, remake=False) == made
    assert {path.stem for path in made.iterdir() if path.stat().st_mtime_ns != times[path.name]} == {lost}
    quiet = settings.model_copy(update={"train": plan.model_copy(update={"validation": ValidationConfig()})})
    assert make_validation_videos("multitask", str(shards), tmp_path / "run", quiet) is None
