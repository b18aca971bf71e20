"""Light-ASD: strict loading of the published weights; speaking mouths score above resting and chewing
ones.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from paths import PUBLISHED_WEIGHTS
from speaking_clips import chewing, spoken

from uniavgen.ingest.config import SyncConfig
from uniavgen.ingest.measures.sync import ClipFrames, SyncModels
from uniavgen.ingest.models.active_speaker import ClipFaces
from uniavgen.ingest.models.light_asd import LightAsd, Network, speaking_confidence
from uniavgen.shards.errors import UserError

PUBLISHED = PUBLISHED_WEIGHTS / "lightasd_finetuning_TalkSet.model"

needs_weights = pytest.mark.skipif(
    not PUBLISHED.is_file(), reason=f"the published weights are not here ({PUBLISHED})"
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("asd") / "drawn.model"
    torch.save(Network().state_dict(), path)
    return str(path)


def test_network_has_published_names_and_shapes() -> None:
    shapes = {name: tuple(value.shape) for name, value in Network().state_dict().items()}
    assert len(shapes) == 192
    for name, shape in {
        "model.visualEncoder.block1.s_5.weight": (32, 1, 1, 5, 5),
        "model.visualEncoder.block3.t_3.weight": (128, 128, 3, 1, 1),
        "model.visualEncoder.block2.bn_last.running_var": (64,),
        "model.audioEncoder.block2.m_3.weight": (64, 32, 3, 1),
        "model.audioEncoder.block3.last.weight": (128, 128, 1, 1),
        "model.GRU.gru_backward.weight_hh_l0": (384, 128),
        "lossAV.FC.weight": (2, 128),
        "lossV.FC.bias": (2,),
    }.items():
        assert shapes[name] == shape


def test_one_score_per_frame_when_audio_is_short(drawn: str) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (12, 50, 60, 3), np.uint8)
    boxes = np.tile([0.2, 0.2, 0.7, 0.8], (12, 1))
    scores = LightAsd(drawn).scores(pictures, boxes, rng.integers(-999, 999, 12 * 640).astype(np.int16))
    assert scores.shape == (12,)
    assert np.isfinite(scores).all()
    short = LightAsd(drawn).scores(pictures, boxes, rng.integers(-999, 999, 10 * 640).astype(np.int16))
    assert short.shape == (12,)


def test_confidence_is_half_for_undecided_frames() -> None:
    assert speaking_confidence(np.zeros(10)) == pytest.approx(0.5)
    assert speaking_confidence(np.array([-9.0] * 5 + [9.0] * 5)) > 0.99
    assert speaking_confidence(np.full(10, -3.0)) < 0.1


def test_light_asd_missing_weights_are_a_one_line_error(tmp_path: Path) -> None:
    config = SyncConfig(active_model="light-asd", light_asd_weights=str(tmp_path / "none"))
    with pytest.raises(UserError, match="weights file does not exist.*sync.light_asd_weights"):
        SyncModels(config)


def test_embedded_models_need_no_frames() -> None:
    reader = SyncModels(SyncConfig())
    assert not reader.needs_frames
    assert reader.measure([]) == []


@pytest.mark.slow
@needs_weights
def test_speaking_mouth_scores_above_resting_and_chewing() -> None:
    """2 s of frames at 25 fps, side by side, with the planted boxes."""
    from uniavgen.orchestration.demo import face

    times = [1.0 + frame / 25 for frame in range(50)]
    phones, pcm = spoken("joe", 0)
    heads = {0: ("dark", ()), 1: ("astronaut", phones), 2: ("mirror", chewing())}
    videos = {
        track: list(face.animate(look, said, times, size=192, seed=1))
        for track, (look, said) in heads.items()
    }
    pictures = np.concatenate(
        [np.stack([frame.picture for frame in video]) for video in videos.values()], axis=2
    )
    boxes = {}
    for track, video in videos.items():
        ovals = np.stack([frame.oval for frame in video])
        box = np.concatenate([ovals.min(axis=1), ovals.max(axis=1)], axis=1)
        box[:, [0, 2]] = (box[:, [0, 2]] + track) / 3
        boxes[track] = box
    config = SyncConfig(active_model="light-asd", light_asd_weights=str(PUBLISHED))
    reader = SyncModels(config)
    assert reader.needs_frames
    margin = config.max_shift_ms * 16
    sound = pcm[16_000 - margin : 3 * 16_000 + margin]
    gaps = {
        track: np.interp(np.arange(32) / 16, np.arange(50) / 25, [f.opening for f in video])
        for track, video in videos.items()
    }
    (found,) = reader.measure([ClipFaces(gaps, sound, largest=0)], lambda _: ClipFrames(pictures, boxes))
    fits = found.active.fits
    assert found.active.track == 1
    assert fits[1] > 0.8
    assert fits[0] < 0.3
    assert fits[2] < fits[1] - 0.1
