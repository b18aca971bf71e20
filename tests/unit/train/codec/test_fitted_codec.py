"""The fitted codec: components against numpy's exact SVD, round trips, equal bytes, files that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.shards.errors import UserError
from uniavgen.train.codec.fitted import (
    FitDescription,
    FittedCodec,
    fit_basis,
    fit_codec,
    from_blocks,
    to_blocks,
)
from uniavgen.train.codec.relative import add_still, encode_still, subtract_still
from uniavgen.train.codec.video import DctCodec, to_pixels

FIT = FitDescription(32, 48, "stabilised", ("a" * 64,), clips=3)


def moving_blocks(count: int, seed: int = 0) -> torch.Tensor:
    """Blocks uint8 [count, 4, 32, 48, 3] of 10 random patterns in random mixtures, so of rank 10."""
    random = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).normal(size=(10, 4 * 32 * 48 * 3)) * 12
    mixed = 128 + random.normal(size=(count, 10)) @ patterns
    return torch.from_numpy(mixed.clip(0, 255).round().astype(np.uint8)).view(count, 4, 32, 48, 3)


@pytest.fixture(scope="module")
def codec() -> FittedCodec:
    return fit_codec(moving_blocks(120), FIT)


@given(st.integers(1, 3), st.sampled_from([1, 4]), st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_blocks_and_back_give_the_same_frames(batch: int, depth: int, rows: int, columns: int) -> None:
    frames = torch.rand(batch, 2 * depth, 16 * rows, 16 * columns, 3)
    blocks = to_blocks(frames, depth)
    torch.testing.assert_close(from_blocks(blocks, depth, rows, columns), frames)
    last = frames[:, -depth:, 16 * (rows - 1) :, 16 * (columns - 1) :]
    torch.testing.assert_close(blocks[:, -1, -1], last.flatten(1))


def test_components_span_what_exact_svd_spans() -> None:
    blocks = moving_blocks(200)
    basis = fit_basis(blocks, 4)
    place = 4  # row 1, column 1 of 2 x 3
    rows = (blocks[:, :, 16:, 16:32].float() / 127.5 - 1).flatten(1).numpy().astype(np.float64)
    exact = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:10]
    ours = basis.basis[place].double().numpy()
    # cosines of the principal angles between the ten leading directions and our span
    assert np.linalg.svd(exact @ ours.T)[1].min() > 0.999
    np.testing.assert_allclose(ours @ ours.T, np.eye(48), atol=5e-3)  # stored as float16


def test_unseen_blocks_of_the_fitted_kind_survive_and_dct_loses_them(codec: FittedCodec) -> None:
    frames = moving_blocks(1, seed=9).view(1, 4, 32, 48, 3)
    frames = torch.cat([frames[:, :1], frames], dim=1)
    latent = codec.encode(frames)
    assert latent.shape == (1, 48, 2, 2, 3)

    def error(other: FittedCodec | DctCodec) -> float:
        decoded = to_pixels(other.decode(other.encode(frames))).float()
        return float((decoded - frames.float()).square().mean().sqrt())

    assert error(codec) < 3
    assert error(DctCodec()) > 5 * error(codec)


def test_latents_of_the_fitted_clips_have_about_unit_variance(codec: FittedCodec) -> None:
    blocks = moving_blocks(120)
    frames = torch.cat([blocks[:, :1], blocks], dim=1)
    assert float(codec.encode(frames)[:, :, 1].square().mean()) == pytest.approx(1, rel=0.1)


def test_first_frame_is_encoded_alone(codec: FittedCodec) -> None:
    frames = moving_blocks(2).view(1, 8, 32, 48, 3)[:, :5]
    changed = frames.clone()
    changed[:, 1:] = 0
    torch.testing.assert_close(codec.encode(frames)[:, :, :1], codec.encode(changed)[:, :, :1])
    torch.testing.assert_close(codec.encode(frames)[:, :, :1], codec.encode(frames[:, :1]))


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_clips_give_equal_bytes_with_any_number_of_threads(codec: FittedCodec, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(threads)
    try:
        again = fit_codec(moving_blocks(120), FIT)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert again.content == codec.content
    assert fit_codec(moving_blocks(120, seed=1), FIT).digest != codec.digest
    assert fit_codec(moving_blocks(120), replace(FIT, shards=("b" * 64,))).digest != codec.digest


def test_fit_leaves_the_random_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit_codec(moving_blocks(64), FIT)
    torch.testing.assert_close(torch.rand(2), expected)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_clips_without_change_are_encoded_without_nan(level: int) -> None:
    still = torch.full((64, 4, 32, 48, 3), level, dtype=torch.uint8)
    codec = fit_codec(still, FIT)
    frames = still[:1].repeat(1, 3, 1, 1, 1)[:, :9]
    assert codec.encode(frames).isfinite().all()
    decoded = to_pixels(codec.decode(codec.encode(frames)))
    assert (decoded.float() - frames.float()).abs().max() <= 1


def test_saved_codec_is_the_same_codec(codec: FittedCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    path.write_bytes(codec.content)
    loaded = FittedCodec.load(path)
    assert (loaded.digest, loaded.fit, loaded.content) == (codec.digest, codec.fit, codec.content)
    frames = moving_blocks(1, seed=2)
    frames = torch.cat([frames[:, :1], frames], dim=1)
    assert torch.equal(loaded.encode(frames), codec.encode(frames))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda content: b"", "damaged-codec"),
        (lambda content: content[: len(content) // 2], "damaged-codec"),
        (lambda content: b"\0" * 64, "damaged-codec"),
        (lambda content: content.replace(b'\\"height\\": 32', b'\\"height\\": 64'), "damaged-codec"),
        (lambda content: content.replace(b'format_version\\": 1', b'format_version\\": 9'), "wrong-version"),
    ],
)
def test_damaged_file_is_one_line(codec: FittedCodec, tmp_path: Path, damage, kind: str) -> None:
    content = damage(codec.content)
    assert content != codec.content
    path = tmp_path / "codec.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        FittedCodec.load(path)
    assert caught.value.kind == kind
    assert str(path) in str(caught.value.where)


def test_absent_file_is_one_line(tmp_path: Path) -> None:
    for path in ("", tmp_path / "none", tmp_path):
        with pytest.raises(UserError) as caught:
            FittedCodec.load(path)
        assert caught.value.kind == "missing-weights"


def test_windows_of_another_size_or_crop_are_refused(codec: FittedCodec) -> None:
    with pytest.raises(UserError, match="48 x 32 px") as caught:
        codec.encode(torch.zeros(1, 1, 48, 32, 3))
    assert caught.value.kind == "other-codec"
    codec.check_belongs(32, 48, "stabilised")
    for other in ((32, 48, "centre"), (32, 32, "stabilised"), (64, 48, "stabilised")):
        with pytest.raises(UserError):
            codec.check_belongs(*other)


@pytest.mark.parametrize("kind", ["dct", "fitted"])
def test_relative_latents_of_a_still_video_are_zero_and_come_back(kind: str, codec: FittedCodec) -> None:
    chosen = DctCodec() if kind == "dct" else codec
    frames = moving_blocks(3).view(1, 12, 32, 48, 3)[:, :9]
    still = encode_still(chosen, frames[:, 4:5])
    assert still.shape == (1, 48, 2, 2, 3)
    torch.testing.assert_close(still[:, :, :1], chosen.encode(frames[:, 4:5]))
    standing = chosen.encode(frames[:, 4:5].expand(-1, 9, -1, -1, -1))
    torch.testing.assert_close(subtract_still(standing, still), torch.zeros_like(standing), atol=5e-3, rtol=0)
    video = chosen.encode(frames)
    torch.testing.assert_close(add_still(subtract_still(video, still), still), video)
