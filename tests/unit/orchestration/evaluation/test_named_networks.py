"""Meters of named networks on small models with random weights: sizes, definitions, wrong files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from uniavgen.orchestration.evaluation.controls import CodecPass
from uniavgen.orchestration.evaluation.named_networks import DinoMeter, RaftMeter, dino_pixels
from uniavgen.orchestration.evaluation.videos import Media
from uniavgen.shards.errors import UserError
from uniavgen.train.codec.registry import CodecConfig

RNG = np.random.default_rng(0)


def clip(frames: int = 5, height: int = 96, width: int = 64) -> Media:
    pixels = RNG.integers(0, 255, (frames, height, width, 3)).astype(np.uint8)
    return Media(pixels, (3000 * np.sin(np.arange(1000 * frames) / 8)).astype(np.int16))


def test_dino_reads_the_shorter_side_at_224_uncropped_and_normalised() -> None:
    pixels = dino_pixels(np.full((96, 64, 3), 255, np.uint8))
    assert pixels.shape == (1, 3, 336, 224)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx(
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    )


def test_dino_consistency_of_one_repeated_frame_is_one(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    small = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ViTModel(small).save_pretrained(tmp_path)
    made = clip(2)
    still = Media(np.repeat(made.frames[:1], 3, axis=0), made.pcm)
    value, weight = DinoMeter(str(tmp_path)).measure(still).values["SC"]
    assert (value, weight) == (pytest.approx(1.0, abs=1e-5), 2.0)


def test_raft_refuses_other_weights_in_one_line(tmp_path: Path) -> None:
    torch.save({"layer": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no weights of torchvision") as caught:
        RaftMeter(str(tmp_path / "other.pth"))
    assert caught.value.kind == "wrong-weights"


def test_codec_pass_keeps_length_and_cuts_to_whole_blocks() -> None:
    made = clip(frames=11, height=100, width=70)
    passed = CodecPass(CodecConfig())(made)
    assert passed.frames.shape == (9, 96, 64, 3)
    assert passed.frames.dtype == np.uint8
    assert len(passed.pcm) == 9000
    strongest = np.abs(np.fft.rfft(passed.pcm)).argmax() * 16_000 / len(passed.pcm)
    assert strongest == pytest.approx(16_000 / (2 * np.pi * 8), rel=0.15)  # one mel band
