"""The clocks against counting by hand."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import clock
from shards.errors import UserError


def test_eighty_one_frames_are_twenty_one_latents_and_475_mel_frames() -> None:
    assert clock.latents_for_frames(81) == 21
    assert clock.mels_for_frames(81) == 475
    assert float(clock.MELS_PER_FRAME) == pytest.approx(5.859375)


@given(st.integers(1, 500))
def test_latents_and_frames_are_inverse(latents: int) -> None:
    frames = clock.frames_for_latents(latents)
    assert clock.latents_for_frames(frames) == latents
    owners = [clock.latent_of_frame(frame) for frame in range(frames)]
    assert owners.count(0) == 1
    assert all(owners.count(latent) == 4 for latent in range(1, min(latents, 20)))
    assert owners[-1] == latents - 1


@pytest.mark.parametrize(("frames", "use"), [(80, 81), (2, 1), (0, 1), (83, 81)])
def test_a_length_that_is_not_4n_plus_1_names_the_nearest_one(frames: int, use: int) -> None:
    with pytest.raises(UserError, match=f"use frames={use}"):
        clock.latents_for_frames(frames)


@given(st.integers(0, 100_000))
def test_a_mel_frame_starts_within_its_pixel_frame(mel: int) -> None:
    frame = clock.frame_of_mel(mel)
    start_s = Fraction(mel * clock.MEL_HOP, clock.SAMPLE_RATE)
    assert Fraction(frame, clock.VIDEO_FPS) <= start_s < Fraction(frame + 1, clock.VIDEO_FPS)


@given(st.integers(1, 10_000))
def test_mel_frames_cover_the_picture_and_no_more(frames: int) -> None:
    mels = clock.mels_for_frames(frames)
    samples = clock.samples_for_frames(frames)
    assert (mels - 1) * clock.MEL_HOP < samples <= mels * clock.MEL_HOP
