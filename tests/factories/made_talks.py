"""Rows of a made-up talk as ingest writes them: shots, turns, words, face tracks, clips, sync curves."""

from collections.abc import Callable
from typing import Any

import numpy as np

from uniavgen.shards.corpus.tables import clip_id

SENTENCE = "people often forget their keys when somebody calls them away during a long and busy breakfast"
WORDS = SENTENCE.split()


def sync_curve(offset_ms: float, height: float) -> list[float]:
    """A peak of this height at the offset, over a low wave, at shifts of -600..+600 ms."""
    shift = np.arange(-600, 601, 10)
    peak = height * np.exp(-(((shift - offset_ms) / 60.0) ** 2))
    curve: list[float] = (peak + 0.08 * np.cos(shift / 90.0)).astype(np.float32).tolist()
    return curve


def talk(source_id: str, duration_s: float, speakers: int = 2, seed: int = 0) -> dict[str, Any]:
    """Columns of a sources row: turns of 4-12 s, a word every 0.35 s, a shot per turn, a face per shot."""
    rng = np.random.default_rng(seed)
    row: dict[str, Any] = {
        "source_id": source_id,
        "duration_s": duration_s,
        "bytes": int(duration_s * 250_000),
    }
    row |= {
        "turns": [],
        "shots": [],
        "words": [],
        "tracks": [],
        "step_seconds": {"faces": duration_s * 0.4, "sync": 1.5},
    }
    at, turn = 0.4, 0
    while at < duration_s - 4:
        end = min(duration_s - 0.2, at + rng.uniform(4, 12))
        name = f"SPEAKER_{int(rng.integers(speakers)):02d}"
        row["turns"].append({"label": name, "start_s": at, "end_s": end})
        row["shots"].append(
            {"label": "", "start_s": row["shots"][-1]["end_s"] if row["shots"] else 0.0, "end_s": end + 0.2}
        )
        row["tracks"].append(
            {"track": turn, "start_s": at - 0.2, "end_s": end + 0.2, "height_px": float(rng.uniform(90, 420))}
        )
        for i, start in enumerate(np.arange(at + 0.1, end - 0.4, 0.35)):
            text = WORDS[(turn + i) % len(WORDS)]
            word = {
                "text": text,
                "start_s": start,
                "end_s": start + 0.3,
                "score": float(rng.uniform(0.5, 1)),
                "speaker": name,
            }
            row["words"].append(word)
        at, turn = end + rng.uniform(0.3, 2.0), turn + 1
    return row


def talk_clips(
    row: dict[str, Any], make_clip: Callable[..., dict[str, Any]], seed: int = 0
) -> list[dict[str, Any]]:
    """One clip per turn, in sync or 20-180 ms late, with confidence 0.3-0.95; one in six is noisy."""
    rng = np.random.default_rng(seed)
    rows = []
    for turn in row["turns"]:
        start, end = turn["start_s"], turn["end_s"]
        said = [word for word in row["words"] if start <= word["start_s"] < end]
        offset, sure = float(rng.choice([-15, 20, 40, 180])), float(rng.uniform(0.3, 0.95))
        changes: dict[str, Any] = {
            "clip_id": clip_id(row["source_id"], start, end),
            "end_s": end,
            "duration_s": end - start,
        }
        changes |= {
            "transcript": " ".join(word["text"] for word in said),
            "sync_offset_ms": offset,
            "sync_confidence": sure,
        }
        changes |= {
            "sync_curve": sync_curve(offset, 0.7 * sure),
            "snr_db": 4.0 if rng.random() < 1 / 6 else 25.0,
        }
        rows.append(make_clip(row["source_id"], start, turn["label"], **changes))
    return rows
