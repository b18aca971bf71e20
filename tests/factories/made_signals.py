"""Clips rows with varied signals, for tests of rules, histograms and thresholds."""

from collections.abc import Callable
from typing import Any

import numpy as np


def varied_clips(
    make_clip: Callable[..., dict[str, Any]], count: int, seed: int = 0, copies: int = 0
) -> list[dict[str, Any]]:
    """`count` rows of ten-clip sources in three languages; one value in twenty is missing.

    The last `copies` repeat the first ones from other sources: same fingerprints and signals, fewer pixels.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count - copies):
        signals: dict[str, Any] = {
            "snr_db": round(float(rng.normal(18, 7)), 1),
            "luma": float(rng.normal(110, 35)),
            "face_yaw_deg": float(abs(rng.normal(0, 16))),
            "word_score": float(np.clip(rng.normal(0.75, 0.2), 0, 1)),
            "sync_confidence": float(rng.uniform(0.2, 1)),
            "sync_offset_ms": float(rng.normal(20, 90)),
            "pitch_hz": float(rng.normal(170, 45)),
        }
        signals |= {name: None for name in signals if rng.random() < 0.05}
        source, start, length = f"s{i // 10:05d}", 15.0 * (i % 10), round(float(rng.uniform(1.5, 11)), 2)
        row = make_clip(source, start, "ABC"[i % 3], **signals, language=["en", "en", "en", "de"][i % 4])
        row |= {"duration_s": length, "end_s": start + length} | prints(rng, length)
        rows.append(row)
    for i in range(copies):
        name = f"copy{i:05d}"
        twin = make_clip(name, rows[i]["start_s"], "A", width_px=320.0, height_px=240.0)
        rows.append(
            {
                **rows[i],
                **{key: twin[key] for key in ("clip_id", "source_id", "speaker", "width_px", "height_px")},
            }
        )
    return rows


def prints(rng: np.random.Generator, length_s: float) -> dict[str, list[int]]:
    """Random fingerprints that match no others."""
    picture, sound = (
        max(0, round((length_s - 1) * 4) + 1),
        max(0, round((length_s - 2.7) / (1365 / 11025)) + 1),
    )
    return {
        "video_hash": rng.integers(0, 2**62, picture).tolist(),
        "sound_hash": rng.integers(0, 2**32, sound).tolist(),
    }
