"""Codecs: registry, shapes, orthonormality, round trips, timing, and clear errors if weights are missing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import get_args

import pytest
import torch
from pydantic import ValidationError

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import latents_for_frames, mels_for_frames, samples_for_frames
from uniavgen.train.codec import audio, fitted, text, video
from uniavgen.train.codec.config import MelConfig
from uniavgen.train.codec.registry import (
    CAPTION_ENCODERS,
    VIDEO_CODECS,
    VOCODERS,
    CodecConfig,
    load_codecs,
    load_vocoder,
)


def test_registry_names_are_the_choices_of_the_configuration() -> None:
    assert get_args(CodecConfig.model_fields["video"].annotation) == tuple(VIDEO_CODECS)
    assert get_args(CodecConfig.model_fields["caption"].annotation) == tuple(CAPTION_ENCODERS)
    assert get_args(CodecConfig.model_fields["vocoder"].annotation) == tuple(VOCODERS)
    with pytest.raises(ValidationError, match="'dct', 'fitted' or 'wan2.2'"):
        CodecConfig(video="other")


def test_registry_names_are_the_names_of_the_classes() -> None:
    assert [video.DctCodec.name, fitted.FittedCodec.name, video.WanCodec.name] == list(VIDEO_CODECS)
    assert [audio.GriffinLim.name, audio.Vocos.name] == list(VOCODERS)


def test_codecs_without_named_weights_load() -> None:
    assert load_codecs(CodecConfig(), with_video=False).video is None
    for spec in VIDEO_CODECS.values():
        if not spec.needs_weights:
            assert spec.load("", "cpu").encode(torch.zeros(1, 1, 32, 32, 3)).shape == (1, 48, 1, 2, 2)


def test_registry_imports_nothing_heavy() -> None:
    code = (
        "import sys, uniavgen.train.codec.registry; "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def smooth_frames(frames: int, height: int, width: int) -> torch.Tensor:
    """A soft blob that drifts: [1, F, H, W, 3] in -1..1, within the reach of low frequencies."""
    t, y, x = torch.meshgrid(
        torch.arange(frames) / 16, torch.arange(height) / height, torch.arange(width) / width, indexing="ij"
    )
    wave = torch.stack([torch.sin(3 * x + 2 * t), torch.cos(4 * y - t), torch.sin(2 * x + 3 * y)], dim=-1)
    return wave[None] * 0.8


@pytest.mark.parametrize("frames", [1, video.LATENT_STRIDE])
def test_dct_basis_is_orthonormal_with_48_rows(frames: int) -> None:
    basis, spread = video.block_basis(frames)
    assert basis.shape == (48, frames * 16 * 16 * 3)
    wide = basis.double()
    torch.testing.assert_close(wide @ wide.T, torch.eye(48).double(), atol=1e-6, rtol=0)
    assert (spread > 0).all()


def test_dct_keeps_low_frequencies() -> None:
    kept = {index for _, index in video.lowest_coefficients(4)}
    assert {(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 1, 0, 0), (0, 0, 1, 0), (1, 0, 0, 0)} <= kept
    assert not any(y > 7 or x > 7 for _, y, x, _ in kept)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 48), (5, 32, 32), (17, 64, 32)])
def test_dct_latents_have_wan_shapes_and_encode_inverts_decode(frames: int, height: int, width: int) -> None:
    codec = video.DctCodec()
    latent = torch.randn(2, 48, latents_for_frames(frames), height // 16, width // 16) * 0.05
    frames_out = codec.decode(latent)
    assert frames_out.shape == (2, frames, height, width, 3)
    torch.testing.assert_close(codec.encode(frames_out), latent, atol=1e-4, rtol=1e-4)


def test_dct_round_trip_of_smooth_frames() -> None:
    codec, frames = video.DctCodec(), smooth_frames(9, 64, 96)
    error = (codec.decode(codec.encode(frames)) - frames).square().mean()
    assert 10 * math.log10(4 / error) > 35  # peak-to-peak 2
    pixels = video.to_pixels(frames)
    torch.testing.assert_close(codec.encode(pixels), codec.encode(frames), atol=0.05, rtol=0)


@pytest.mark.parametrize(("frames", "height"), [(4, 32), (5, 40)])
def test_codec_refuses_lengths_and_sides_that_do_not_fit(frames: int, height: int) -> None:
    with pytest.raises(UserError, match=r"4n \+ 1|multiples of 16"):
        video.DctCodec().encode(torch.zeros(1, frames, height, 32, 3))


@pytest.fixture(scope="module")
def small_wan():
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=48,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * 48,
        latents_std=[2.0] * 48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )


def test_wan_codec_strides_and_normalisation(small_wan, tmp_path) -> None:
    small_wan.save_pretrained(tmp_path / "vae")
    codec = video.WanCodec.load(str(tmp_path))
    frames = smooth_frames(5, 32, 48)
    latent = codec.encode(frames)
    assert latent.shape == (1, 48, 2, 2, 3)
    plain = small_wan.encode(frames.permute(0, 4, 1, 2, 3)).latent_dist.mode()
    torch.testing.assert_close(latent * 2 + 0.1, plain, atol=1e-5, rtol=1e-5)
    decoded = codec.decode(latent)
    assert decoded.shape == frames.shape
    torch.testing.assert_close(
        decoded, small_wan.decode(plain).sample.permute(0, 2, 3, 4, 1).clamp(-1, 1), atol=1e-4, rtol=1e-4
    )


def test_wan_codec_refuses_another_vae() -> None:
    from types import SimpleNamespace

    config = SimpleNamespace(z_dim=16, scale_factor_temporal=4, scale_factor_spatial=8)
    with pytest.raises(UserError, match="Wan2.2"):
        video.WanCodec(SimpleNamespace(config=config))


@pytest.mark.parametrize(
    "config",
    [
        CodecConfig(video="wan2.2"),
        CodecConfig(caption="umt5"),
        CodecConfig(video="wan2.2", video_weights="/nowhere"),
    ],
)
def test_missing_weights_raise_with_a_hint(config: CodecConfig) -> None:
    with pytest.raises(UserError, match="needs weights|no Wan2.2 VAE") as caught:
        load_codecs(config)
    assert "data.codecs" in str(caught.value)


def test_missing_vocoder_raises_with_a_hint() -> None:
    with pytest.raises(UserError, match="vocos") as caught:
        load_vocoder(CodecConfig(vocoder="vocos"), audio.MelCodec(MelConfig()))
    assert "griffin-lim" in str(caught.value)


@pytest.mark.parametrize("frames", [1, 5, 17, 81])
def test_mel_length_of_f_pixel_frames(frames: int) -> None:
    codec = audio.MelCodec(MelConfig())
    mel = codec.encode(torch.zeros(2, samples_for_frames(frames)), mels_for_frames(frames))
    assert mel.shape == (2, 100, mels_for_frames(frames))


def test_mel_refuses_a_short_waveform() -> None:
    with pytest.raises(UserError, match="mel frames"):
        audio.MelCodec(MelConfig()).encode(torch.zeros(1, 2560), 100)


def test_mel_frame_of_a_click() -> None:
    waveform = torch.zeros(1, 24_000)
    waveform[0, 40 * 256] = 1.0
    mel = audio.MelCodec(MelConfig()).encode(waveform, 93)
    assert mel[0].mean(0).argmax() == 40


def test_griffin_lim_restores_pitch_and_level_of_a_tone() -> None:
    config = CodecConfig()
    codec = audio.MelCodec(config.mel)
    time = torch.arange(24_000) / 24_000
    tone = 0.5 * torch.sin(2 * math.pi * 1000 * time)[None]
    vocoder = load_vocoder(config, codec)
    waveform = vocoder.decode(codec.encode(tone, 94), 24_000)
    assert waveform.shape == tone.shape
    inner = slice(4000, 20_000)
    spectrum = torch.fft.rfft(waveform[0, inner]).abs()
    assert abs(spectrum.argmax().item() * 24_000 / 16_000 - 1000) < 30
    assert 0.5 < waveform[0, inner].std() / tone[0, inner].std() < 1.5
    assert torch.equal(waveform, vocoder.decode(codec.encode(tone, 94), 24_000))


def test_speech_bytes_are_shifted_by_one_and_padded_with_zero() -> None:
    ids, mask = text.encode_speech(["ab", "", "é"], 4)
    assert ids.tolist() == [[98, 99, 0, 0], [0, 0, 0, 0], [196, 170, 0, 0]]
    assert mask.sum(1).tolist() == [2, 0, 2]
    assert text.encode_speech(["abcdef"], 4)[0].tolist() == [[98, 99, 100, 101]]
    # a character of three bytes is taken whole or not at all
    assert text.encode_speech(["今日"], 5)[1].sum() == 3


def test_umt5_loads_from_a_diffusers_folder(tmp_path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "person": 4, "talks": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path / "tokenizer")
    small = UMT5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    UMT5EncoderModel(small).save_pretrained(tmp_path / "text_encoder")
    encoder = text.load_umt5(str(tmp_path))
    features, mask = encoder.encode(["a person talks", "a"], 6)
    assert features.shape == (2, 6, 16)
    assert mask.sum(1).tolist() == [3, 1]
    assert features[1, 1:].abs().sum() == 0


def test_minilm_features_do_not_depend_on_other_captions() -> None:
    from uniavgen.shards import weights

    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    encoder = load_codecs(CodecConfig()).caption
    assert encoder is not None
    features, mask = encoder.encode(["A woman talks to the camera.", "A man."], 24)
    assert features.shape == (2, 24, CodecConfig().caption_width)
    torch.testing.assert_close(encoder.encode(["A man."], 24)[0][0], features[1], atol=1e-5, rtol=1e-4)
    assert not mask[1].all()


def test_digests_follow_the_constants() -> None:
    assert audio.MelCodec(MelConfig()).digest == audio.MelCodec(MelConfig()).digest
    assert audio.MelCodec(MelConfig(mean=0.0)).digest != audio.MelCodec(MelConfig()).digest
    assert json.dumps(video.DctCodec().digest)
