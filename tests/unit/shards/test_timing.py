"""Conversion between frames, latents and mel frames, against counting by hand."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.shards import timing
from uniavgen.shards.errors import UserError


def test_81_frames_are_21_latents_and_475_mel_frames() -> None:
    assert timing.latents_for_frames(81) == 21
    assert timing.mels_for_frames(81) == 475
    assert float(timing.MELS_PER_FRAME) == pytest.approx(5.859375)


@given(st.integers(1, 500))
def test_latents_and_frames_are_inverse(latents: int) -> None:
    frames = timing.frames_for_latents(latents)
    assert timing.latents_for_frames(frames) == latents
    owners = [timing.latent_of_frame(frame) for frame in range(frames)]
    assert owners.count(0) == 1
    assert all(owners.count(latent) == 4 for latent in range(1, min(latents, 20)))
    assert owners[-1] == latents - 1


@pytest.mark.parametrize(("frames", "use"), [(80, 81), (2, 1), (0, 1), (83, 81)])
def test_invalid_frame_count_suggests_the_nearest_valid_one(frames: int, use: int) -> None:
    with pytest.raises(UserError, match=f"use frames={use}"):
        timing.latents_for_frames(frames)


@given(st.integers(0, 100_000))
def test_mel_frame_starts_inside_its_pixel_frame(mel: int) -> None:
    frame = timing.frame_of_mel(mel)
    start_s = Fraction(mel * timing.MEL_HOP, timing.SAMPLE_RATE)
    assert Fraction(frame, timing.VIDEO_FPS) <= start_s < Fraction(frame + 1, timing.VIDEO_FPS)


@given(st.integers(1, 10_000))
def test_mel_frames_cover_the_video_and_no_more(frames: int) -> None:
    mels = timing.mels_for_frames(frames)
    samples = timing.samples_for_frames(frames)
    assert (mels - 1) * timing.MEL_HOP < samples <= mels * timing.MEL_HOP
