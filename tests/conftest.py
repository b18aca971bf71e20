"""Fixtures of a small corpus with real tables and media (H.264, FLAC, face.npz), made without ingest."""

import io
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus, clip_id
from uniavgen.shards.sample import FaceTrack
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS


def pytest_configure() -> None:
    """No example has a time limit: the first one imports libraries, and machines are loaded.

    UNIAVGEN_TEST_FFMPEG=/usr/bin/ffmpeg names another ffmpeg for every test that names none itself.
    """
    settings.register_profile("uniavgen", deadline=None)
    settings.load_profile("uniavgen")
    if choice := os.environ.get("UNIAVGEN_TEST_FFMPEG"):
        from uniavgen.ingest.config import IngestConfig, LimitConfig

        LimitConfig.model_fields["ffmpeg"].default = choice
        LimitConfig.model_rebuild(force=True)
        IngestConfig.model_fields["limits"].default = LimitConfig()
        IngestConfig.model_rebuild(force=True)
        assert IngestConfig().limits.ffmpeg == choice


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test go first, so that no worker is left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Give speechbrain's placeholders of missing packages the `__file__` that hypothesis reads."""
    for module in list(sys.modules.values()) if "speechbrain" in sys.modules else ():
        if type(module).__module__ == "speechbrain.utils.importutils":
            module.__file__ = None


GOOD = {
    "has_audio": 1.0,
    "duration_s": 2.0,
    "width_px": 640.0,
    "height_px": 480.0,
    "fps": 25.0,
    "speech_ratio": 0.9,
    "overlap_ratio": 0.0,
    "speaker_count": 1.0,
    "words_per_s": 2.5,
    "word_score": 0.9,
    "language_probability": 0.98,
    "asr_log_probability": -0.3,
    "no_speech_probability": 0.05,
    "face_coverage": 1.0,
    "face_count": 1.0,
    "face_height_px": 240.0,
    "face_yaw_deg": 5.0,
    "face_steadiness": 0.99,
    "mouth_motion": 0.5,
    "sync_offset_ms": 10.0,
    "sync_confidence": 0.7,
    "snr_db": 25.0,
    "loudness_db": -22.0,
    "clipping_ratio": 0.0,
    "luma": 110.0,
    "sharpness": 200.0,
    "frozen_ratio": 0.02,
    "black_ratio": 0.0,
    "face_score": 0.9,
    "asr_compression_ratio": 1.4,
    "word_count": 3.0,
    "repeated_ratio": 0.0,
    "stock_phrase": 0.0,
    "unvoiced_word_ratio": 0.0,
    "face_pitch_deg": 4.0,
    "face_roll_deg": 2.0,
    "face_lock_ratio": 1.0,
    "active_face_confidence": 0.8,
    "active_face_margin": 0.5,
    "dnsmos_overall": 3.2,
    "dnsmos_signal": 3.5,
    "dnsmos_background": 3.9,
    "silence_ratio": 0.1,
    "bandwidth_hz": 12000.0,
    "motion": 2.0,
    "bits_per_pixel": 0.1,
    "text_ratio": 0.0,
    "interlaced_ratio": 0.0,
    "pitch_hz": 140.0,
}
"""Signals of a clip that the default policy keeps."""


def voice(speaker: str) -> list[float]:
    """A unit vector [192] from the speaker's name. Vectors of two names are nearly orthogonal."""
    import numpy as np

    seed = int.from_bytes(speaker.encode()[:8].ljust(8, b"\0"), "big")
    vector = np.random.default_rng(seed).standard_normal(192)
    embedding: list[float] = (vector / np.linalg.norm(vector)).astype(np.float32).tolist()
    return embedding


def clip_row(source: str, start_s: float, speaker: str, **changes: Any) -> dict[str, Any]:
    """A row of the clips table, 2 s long, that the default policy keeps; `changes` replace columns."""
    times = [0.2, 0.7, 1.3]
    words = [
        {"text": text, "start_s": at, "end_s": at + 0.4, "score": 0.9}
        for text, at in zip(["hello", "dear", "world"], times, strict=True)
    ]
    row = {
        "clip_id": clip_id(source, start_s, start_s + 2),
        "source_id": source,
        "start_s": start_s,
        "end_s": start_s + 2,
        "speaker": f"{source}-{speaker}",
        "voice": voice(speaker),
        "transcript": "hello dear world",
        "words": words,
        "language": "en",
        "versions": {"ingest": "1"},
        **{name: GOOD.get(name) for name in SIGNALS},
    }
    return row | changes


@cache
def media(frames: int = 32) -> dict[str, bytes]:
    """The three files of a clip: a bright disc moving over grey, a tone, the disc's outline as the face."""
    import av
    import numpy as np
    import soundfile

    video = io.BytesIO()
    rows, columns = np.mgrid[0:96, 0:128]
    centres = [(48.0, 44.0 + i) for i in range(frames)]
    with av.open(video, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=VIDEO_FPS)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for y, x in centres:
            frame = np.full((96, 128, 3), 60, np.uint8)
            frame[(rows - y) ** 2 + (columns - x) ** 2 < 24**2] = 210
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    audio = io.BytesIO()
    seconds = np.arange(frames * SAMPLE_RATE // VIDEO_FPS) / SAMPLE_RATE
    wave = 0.3 * np.sin(440 * 2 * np.pi * seconds) * np.sin(1.5 * np.pi * seconds)
    soundfile.write(audio, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    outline = np.stack([np.cos(angle) * 24 / 128, np.sin(angle) * 24 / 96], axis=1)
    oval = np.stack([np.add(outline, (x / 128, y / 96)) for y, x in centres]).astype(np.float32)
    box = np.concatenate([oval.min(axis=1), oval.max(axis=1)], axis=1)
    track = FaceTrack(oval, box, np.ones(frames, np.float32))
    return {"mp4": video.getvalue(), "flac": audio.getvalue(), "face.npz": track.to_bytes()}


def source_row(source: str, **changes: Any) -> dict[str, Any]:
    return {
        "source_id": source,
        "uri": f"/videos/{source}.mp4",
        "duration_s": 20.0,
        "width": 640,
        "height": 480,
        "fps": 25.0,
        "video_codec": "h264",
        "audio_codec": "aac",
        "has_audio": True,
        "turns": [],
        "shots": [],
        "step_seconds": {},
        "digest": "0",
        **changes,
    }


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """`make_corpus(rows, name="corpus")`: a corpus with these clips, their sources, and media."""

    def make(rows: list[dict[str, Any]], name: str = "corpus") -> Corpus:
        corpus = Corpus.create(tmp_path / name)
        corpus.upsert("clips", rows)
        corpus.upsert(
            "sources", [source_row(source) for source in sorted({row["source_id"] for row in rows})]
        )
        for row in rows:
            for extension, data in media().items():
                path = corpus.media_path(row["clip_id"], extension)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        return corpus

    return make


@pytest.fixture(scope="session")
def clip_media() -> dict[str, bytes]:
    """The three files of a 2 s clip by extension (see `media`)."""
    return media()


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., dict[str, Any]]:
    """`make_clip(source, start_s, speaker, **changes)`: see `clip_row`."""
    return clip_row
