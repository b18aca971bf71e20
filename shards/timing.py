"""The clocks: pixel frames at 16 fps, video latents of 1 + 4 + 4 + ... frames, mel frames of 24 kHz sound.

Everything that relates picture to sound in time goes through these functions; nothing else knows the rates.
Sources: 16 fps, 24 kHz and temporal stride 4 from the paper; n_fft 1024 / hop 256 / 100 mels are Vocos' (the paper is silent).
"""

from __future__ import annotations

import math
from fractions import Fraction

from uniavgen.shards.errors import UserError

VIDEO_FPS = 16
SAMPLE_RATE = 24_000
MEL_HOP = 256
LATENT_STRIDE = 4

MELS_PER_FRAME = Fraction(SAMPLE_RATE, MEL_HOP * VIDEO_FPS)
"""Mel frames per pixel frame, 375/64 = 5.859...: never an integer, so alignment always goes by index tables."""


def latents_for_frames(frames: int) -> int:
    """Video latents T = 1 + (F - 1) / 4 that F pixel frames make (paper, section 3.1). F must be 4n + 1."""
    if frames < 1 or (frames - 1) % LATENT_STRIDE:
        near = max(1, 1 + LATENT_STRIDE * round((frames - 1) / LATENT_STRIDE))
        raise UserError(f"frames must be 4n + 1, got {frames}", hint=f"use frames={near}", kind="bad-length")
    return 1 + (frames - 1) // LATENT_STRIDE


def frames_for_latents(latents: int) -> int:
    """Pixel frames F = 1 + 4 (T - 1) that T video latents stand for; the inverse of `latents_for_frames`."""
    return 1 + LATENT_STRIDE * (latents - 1)


def latent_of_frame(frame: int) -> int:
    """Index of the latent that owns a pixel frame: latent 0 owns frame 0, latent i owns frames 4i-3 .. 4i."""
    return 0 if frame == 0 else 1 + (frame - 1) // LATENT_STRIDE


def mels_for_frames(frames: int, mels_per_frame: Fraction = MELS_PER_FRAME) -> int:
    """Mel frames that cover F pixel frames of time (rounded up: 81 frames -> 475)."""
    return math.ceil(frames * mels_per_frame)


def frame_of_mel(mel: int, mels_per_frame: Fraction = MELS_PER_FRAME) -> int:
    """Pixel frame during which a mel frame starts: floor(j / k), exact in rationals."""
    return int(mel / mels_per_frame)


def samples_for_frames(frames: int) -> int:
    """Audio samples that last exactly as long as F pixel frames (1500 a frame)."""
    return frames * SAMPLE_RATE // VIDEO_FPS
