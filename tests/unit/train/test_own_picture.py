"""Generation from a picture with a run on relative latents of face crops.

An untrained x0 network predicts no change, so the video must be a still of the picture.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import SMALL_DATA, SMALL_MODEL, small_config
from made_samples import make_sample

from uniavgen.shards import weights
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import FaceTrack
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.checkpoint.trained_model import export_weights
from uniavgen.train.codec.fitted import FittedCodec
from uniavgen.train.codec.registry import CodecConfig
from uniavgen.train.codec.video import to_pixels
from uniavgen.train.config import SamplingConfig, TrainConfig, tiny_stages
from uniavgen.train.data.codec_fitting import RUN_CODEC, ensure_codec, keep_in_run
from uniavgen.train.data.config import DataConfig
from uniavgen.train.generation import ClipGenerator, Conditions, conditions_from, generate, portrait_of
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.tasks import Task

TWO_STEPS = SamplingConfig(steps=2)
DATA = SMALL_DATA.model_copy(
    update={"crop": "stabilised", "relative": True, "codecs": CodecConfig(video="fitted")}
)
X0_MODEL = SMALL_MODEL.model_copy(
    update={"video": SMALL_MODEL.video.model_copy(update={"prediction": "data", "places": (2, 2)})}
)


@pytest.fixture(scope="module")
def run_dir(shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of untrained weights with the codec that is fitted to the shards, away from them."""
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    import shutil

    corpus = tmp_path_factory.mktemp("corpus")
    shutil.copytree(shards_dir, corpus / "shards")
    folder = RunFolder(tmp_path_factory.mktemp("run"), "joint")
    keep_in_run(ensure_codec(corpus / "shards", DATA), folder.path.parent)
    shutil.rmtree(corpus)
    torch.manual_seed(0)
    settings = small_config(tiny_stages()).model_dump(mode="json")
    settings |= {"data": DATA.model_dump(mode="json"), "model": X0_MODEL.model_dump(mode="json")}
    folder.write(done=True, config=TrainConfig.model_validate(settings).model_dump(mode="json"))
    folder.write_weights(DualBranch(X0_MODEL).state_dict())
    return folder.path.parent


def picture_and_face() -> tuple[np.ndarray, FaceTrack]:
    """A frame of a made clip of odd size, and its face."""
    sample = make_sample("own", 5, height=98, width=130)
    picture = np.pad(sample.frames()[2], ((0, 1), (0, 1), (0, 0)), mode="edge")
    oval = sample.face.oval[:1] * (np.array([130, 98]) / [131, 99]).astype(np.float32)
    return picture, FaceTrack(oval, sample.face.box[:1], sample.face.score[:1])


def test_picture_without_change_is_a_still_and_whole(run_dir: Path) -> None:
    picture, face = picture_and_face()
    reference, portrait = portrait_of(picture, face, DATA)
    assert reference.shape == (64, 64, 3)
    words = Conditions("A person.", "Hello.", reference)
    crop = generate(run_dir, "joint", words, TWO_STEPS)
    codec = FittedCodec.load(run_dir / RUN_CODEC)
    still = codec.encode(torch.from_numpy(reference).expand(1, DATA.frames, -1, -1, -1))
    np.testing.assert_allclose(crop.frames, to_pixels(codec.decode(still))[0].numpy(), atol=1)
    whole = generate(run_dir, "joint", replace(words, portrait=portrait), TWO_STEPS)
    assert whole.frames.shape == (DATA.frames, 98, 130, 3)
    np.testing.assert_array_equal(whole.waveform, crop.waveform)
    np.testing.assert_array_equal(whole.frames[:, 0, 0], np.repeat(picture[None, 0, 0], DATA.frames, axis=0))


def test_picture_that_is_no_crop_is_refused(run_dir: Path) -> None:
    raw = Conditions("A person.", "Hello.", np.zeros((80, 100, 3), np.uint8))
    with pytest.raises(UserError, match="100 x 80 px") as caught:
        generate(run_dir, "joint", raw, TWO_STEPS)
    assert caught.value.kind == "bad-size"


@pytest.mark.parametrize("task", list(Task))
def test_every_task_runs_on_the_crops_of_a_clip(run_dir: Path, task: Task) -> None:
    made = generate(run_dir, task, make_sample("a", 30, height=96, width=128), TWO_STEPS, seed=1)
    assert made.frames.shape == (DATA.frames, 64, 64, 3)


def test_continuation_keeps_the_given_beginning(run_dir: Path) -> None:
    conditions = conditions_from(make_sample("a", 30, height=96, width=128), DATA, 1)
    made = generate(run_dir, Task.CONTINUATION, conditions, TWO_STEPS)
    codec = FittedCodec.load(run_dir / RUN_CODEC)
    expected = to_pixels(codec.decode(codec.encode(torch.from_numpy(conditions.frames)[None])))[0].numpy()
    np.testing.assert_allclose(made.frames[0], expected[0], atol=1)


def test_export_holds_the_codec_and_generates_the_same(run_dir: Path, tmp_path: Path) -> None:
    described = export_weights(run_dir, tmp_path / "model")
    assert RUN_CODEC in described["sha256"]
    sample = make_sample("a", 30, height=96, width=128)
    ours, exported = (
        ClipGenerator(folder).generate(Task.JOINT, sample, TWO_STEPS, 3)
        for folder in (run_dir, tmp_path / "model")
    )
    np.testing.assert_array_equal(ours.frames, exported.frames)
    (tmp_path / "model" / RUN_CODEC).write_bytes(b"another")
    with pytest.raises(UserError) as caught:
        ClipGenerator(tmp_path / "model")
    assert caught.value.kind == "damaged-export"


def test_run_without_its_codec_says_so(run_dir: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / RUN_CODEC).unlink()
    with pytest.raises(UserError) as caught:
        _ = ClipGenerator(tmp_path / "run").codecs
    assert caught.value.kind == "missing-weights"


def test_small_data_is_valid_as_a_whole() -> None:
    assert DataConfig.model_validate(DATA.model_dump()) == DATA
