"""SyncNet: strict loading of the published layout, planted shifts, MFCCs, face crops."""

from pathlib import Path

import numpy as np
import pytest
import torch

from uniavgen.ingest.config import SyncConfig
from uniavgen.ingest.models.published_networks import BORDER, face_crops, interpolate_boxes, mfcc
from uniavgen.ingest.models.syncnet import Network, SyncNet, shift_distances, sync_from_distances
from uniavgen.shards.errors import UserError

PUBLISHED = {
    "netcnnaud": {
        0: (64, 1, 3, 3),
        4: (192, 64, 3, 3),
        8: (384, 192, 3, 3),
        11: (256, 384, 3, 3),
        14: (256, 256, 3, 3),
        18: (512, 256, 5, 4),
    },
    "netfcaud": {0: (512, 512), 3: (1024, 512)},
    "netfclip": {0: (512, 512), 3: (1024, 512)},
    "netcnnlip": {
        0: (96, 3, 5, 7, 7),
        4: (256, 96, 1, 5, 5),
        8: (256, 256, 1, 3, 3),
        11: (256, 256, 1, 3, 3),
        14: (256, 256, 1, 3, 3),
        18: (512, 256, 1, 6, 6),
    },
}
"""Layers of syncnet_v2.model by tower; all but the last of a tower's `fc` are followed by a norm."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file in the published layout with random values."""
    draw = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for tower, layers in PUBLISHED.items():
        for place, shape in layers.items():
            spread = float(np.prod(shape[1:])) ** -0.5
            state[f"{tower}.{place}.weight"] = torch.randn(shape, generator=draw) * spread
            state[f"{tower}.{place}.bias"] = torch.zeros(shape[0])
            if shape[0] != 1024:
                for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                    state[f"{tower}.{place + 1}.{name}"] = torch.full((shape[0],), float(value))
                state[f"{tower}.{place + 1}.num_batches_tracked"] = torch.tensor(1)
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(state, path)
    return str(path)


def config(path: str) -> SyncConfig:
    return SyncConfig(model="syncnet", syncnet_weights=path)


def test_published_layout_loads_strictly_and_completely(weights: str) -> None:
    assert set(torch.load(weights, weights_only=True)) == set(Network().state_dict())
    SyncNet(config(weights))


@pytest.mark.parametrize("late", [-15, -6, 0, 3, 15])
def test_planted_shift_is_found_and_late_audio_is_positive(late: int) -> None:
    """Equal embeddings for video and audio: an oracle without weights."""
    said = np.random.default_rng(0).standard_normal((160, 8)).astype(np.float32)
    lips, sound = said[40:120], said[40 - 15 - late : 120 + 15 - late]
    sync = sync_from_distances(shift_distances(lips, sound))
    assert sync.offset_ms == late * 40
    assert sync.curve is not None
    assert sync.curve.shape == (121,)
    assert sync.curve.argmax() == 60 + 4 * late
    assert sync.scores["syncnet_distance"] == pytest.approx(0)
    assert sync.scores["syncnet_confidence"] == pytest.approx(np.median(shift_distances(lips, sound)))


def test_shift_distances_are_mean_euclidean_distances() -> None:
    rng = np.random.default_rng(1)
    lips, sound = rng.random((5, 3)), rng.random((9, 3))
    naive = [np.mean([np.sqrt(((lips[i] - sound[i + k]) ** 2).sum()) for i in range(5)]) for k in range(5)]
    assert shift_distances(lips, sound) == pytest.approx(naive)


def test_syncnet_confidence_of_three_maps_to_half() -> None:
    distances = np.array([10.0, 10, 10, 7, 10, 10, 10])
    assert sync_from_distances(distances).confidence == pytest.approx(0.5)
    assert sync_from_distances(np.full(7, 9.0)).confidence == 0


@pytest.mark.slow
def test_network_windows_match_the_frames(weights: str) -> None:
    net = SyncNet(config(weights))
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (26, 90, 120, 3), np.uint8)
    boxes = np.tile([0.3, 0.2, 0.6, 0.8], (26, 1))
    pcm = rng.integers(-9000, 9000, round((26 / 25 + 1.2) * 16_000)).astype(np.int16)
    sync = net.lip_sync(pictures, boxes, pcm)
    assert sync.curve is not None
    assert sync.curve.shape == (121,)
    assert sync.offset_ms is not None
    crops = face_crops(pictures, boxes)
    lips = net.embed_lips(crops[:7])
    assert lips.shape == (3, 1024)
    window = torch.from_numpy(crops[1:6, ..., ::-1].copy()).float().permute(3, 0, 1, 2)[None]
    network = Network()
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.inference_mode():
        alone = network.eval().lips(window)[0].numpy()
    assert lips[1] == pytest.approx(alone, abs=1e-4)
    heard = mfcc(pcm)
    sound = net.embed_audio(heard, 4)
    with torch.inference_mode():
        alone = network.audio(torch.from_numpy(heard[8:28].T.copy())[None, None])[0].numpy()
    assert sound[2] == pytest.approx(alone, abs=1e-4)


def test_rarely_seen_face_is_not_measured(weights: str) -> None:
    boxes = np.full((30, 4), np.nan)
    boxes[:15] = [0.3, 0.2, 0.6, 0.8]
    assert (
        SyncNet(config(weights))
        .lip_sync(np.zeros((30, 60, 60, 3), np.uint8), boxes, np.zeros(9, np.int16))
        .offset_ms
        is None
    )


def test_missing_or_wrong_weights_are_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="weights file does not exist.*sync.syncnet_weights") as missing:
        SyncNet(config(str(tmp_path / "none.model")))
    assert missing.value.kind == "missing-weights"
    other = tmp_path / "other.model"
    torch.save({"a": torch.zeros(1)}, other)
    text = tmp_path / "text.model"
    text.write_text("no weights")
    for path in (other, text):
        with pytest.raises(UserError, match="does not contain the weights of this network") as wrong:
            SyncNet(config(str(path)))
        assert wrong.value.kind == "wrong-weights"


def test_named_model_without_a_path_is_a_configuration_error() -> None:
    with pytest.raises(ValueError, match="syncnet_weights"):
        SyncConfig(model="syncnet")
    with pytest.raises(ValueError, match="light_asd_weights"):
        SyncConfig(active_model="light-asd")


def test_mfcc_equals_naive_definition() -> None:
    pcm = np.random.default_rng(3).integers(-8000, 8000, 1000).astype(np.int16)
    found = mfcc(pcm)
    assert found.shape == (5, 13)
    signal = np.append(pcm[0], pcm[1:] - 0.97 * pcm[:-1].astype(float))
    frame = np.append(signal, np.zeros(400))[640:1040]  # the last one, filled with zeros
    power = np.abs(np.fft.rfft(frame, 512)) ** 2 / 512
    mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 28)
    bins = np.floor(513 * 700 * (10 ** (mels / 2595) - 1) / 16000).astype(int)
    logs = []
    for low, peak, high in zip(bins, bins[1:], bins[2:], strict=False):
        up = sum(power[k] * (k - low) / (peak - low) for k in range(low, peak))
        logs.append(np.log(up + sum(power[k] * (high - k) / (high - peak) for k in range(peak, high))))
    for n in range(1, 13):
        cosine = sum(value * np.cos(np.pi * n * (2 * i + 1) / 52) for i, value in enumerate(logs)) * np.sqrt(
            2 / 26
        )
        assert found[4, n] == pytest.approx(cosine * (1 + 11 * np.sin(np.pi * n / 22)), rel=1e-4)
    assert found[4, 0] == pytest.approx(np.log(power.sum()), rel=1e-5)


def test_crop_shows_the_face_and_gray_outside_the_frame() -> None:
    pictures = np.zeros((14, 100, 200, 3), np.uint8)
    pictures[:, 40:80, 80:120] = (255, 0, 0)
    crops = face_crops(pictures, np.tile([0.4, 0.4, 0.6, 0.8], (14, 1)))
    red = crops[0, ..., 0] > 127
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    scale = 224 / (40 * 1.4)
    assert (rows[0], rows[-1] + 1) == (pytest.approx(0, abs=2), pytest.approx(40 * scale, abs=2))
    assert (columns[0], columns[-1] + 1) == (
        pytest.approx(8 * scale, abs=2),
        pytest.approx(48 * scale, abs=2),
    )
    corner = face_crops(pictures, np.tile([0.0, 0.7, 0.1, 1.0], (14, 1)))[0]
    assert (corner[-1, 0] == BORDER).all()


def test_boxes_are_interpolated_from_16_to_25_fps_within_the_track() -> None:
    frames = np.array([0, 1, 2, 16, 17])
    boxes = np.stack([frames / 100] * 4, axis=1)
    found = interpolate_boxes(frames, boxes, 16, np.arange(27) / 25)
    assert found[1] == pytest.approx([16 / 25 / 100] * 4)
    assert np.isnan(found[13]).all()
    assert np.isfinite(found[[0, 3, 25, 26]]).all()
