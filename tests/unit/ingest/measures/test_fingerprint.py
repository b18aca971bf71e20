"""Steps `hash` and `fingerprint`: similar for duplicates, different for others, meaning of each bit."""

import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import MEDIA

from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.measures import fingerprint
from uniavgen.ingest.measures.fingerprint import sound_hash, sound_span, text_hash, video_hash
from uniavgen.ingest.measures.hash import VideoHasher, change_hash
from uniavgen.shards.corpus.fingerprints import FREQUENCIES, MIRRORED
from uniavgen.shards.timing import VIDEO_FPS

SPEAKING = ["closeup_english.mp4", "address_english_mpeg4.mp4", "russian_speech_hevc.mp4"]

changes = st.integers(0, 10_000).map(
    lambda seed: np.random.default_rng(seed).normal(0, 20, (32, 32)).astype(np.float32)
)


def ffmpeg(*arguments: object, data: bytes | None = None) -> bytes:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def pictures(path: Path, side: int = 128) -> np.ndarray:
    """uint8 [F, side, side, 3] on the 16 fps grid."""
    scale = f"fps={VIDEO_FPS}:start_time=0,scale={side}:{side}:flags=area"
    raw = ffmpeg("-i", path, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, side, side, 3)


def sound(path: Path, *filters: str) -> np.ndarray:
    chosen = ["-af", ",".join(filters)] if filters else []
    return np.frombuffer(
        ffmpeg("-i", path, "-vn", *chosen, "-ac", 1, "-ar", 16000, "-f", "s16le", "-"), np.int16
    )


def hashes_of(frames: np.ndarray) -> np.ndarray:
    hasher = VideoHasher()
    for index, frame in enumerate(frames):
        hasher.add_frame(index, frame)
    return hasher.hashes()


def share_apart(one: np.ndarray, other: np.ndarray, bits: int) -> float:
    """Mean share of differing bits of hashes at the same index, where both are not 0."""
    length = min(len(one), len(other))
    a, b = np.asarray(one[:length], np.uint64), np.asarray(other[:length], np.uint64)
    both = (a != 0) & (b != 0)
    assert both.sum() >= 3
    return float(np.bitwise_count((a ^ b)[both]).mean() / bits)


@given(changes)
@settings(max_examples=20, deadline=None)
def test_every_bit_is_the_sign_of_one_frequency(change: np.ndarray) -> None:
    middle = (2 * np.arange(32) + 1) * np.pi / 64
    found = change_hash(change)
    for bit, (v, u) in enumerate(FREQUENCIES):
        amount = (change * np.outer(np.cos(v * middle), np.cos(u * middle))).sum()
        if abs(amount) > 1e-2:
            assert (found >> bit) & 1 == (amount > 0)


@given(changes)
@settings(max_examples=20, deadline=None)
def test_mirrored_frame_has_mirrored_hash(change: np.ndarray) -> None:
    assert change_hash(change[:, ::-1]) == change_hash(change) ^ MIRRORED
    assert 0 < change_hash(change) < 2**63
    assert change_hash(change + 50) == change_hash(change)
    assert change_hash(-change) == change_hash(change) ^ (2**63 - 1)


def test_hash_compares_half_second_after_with_half_second_before() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (50, 32, 32, 3)).astype(np.uint8)
    found = hashes_of(frames)
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]).astype(np.float64)
    assert len(found) == 11
    for k in range(2, 11):
        at = 4 * k
        assert found[k] == change_hash(
            (grey[at : at + 8].mean(axis=0) - grey[at - 8 : at].mean(axis=0)).astype(np.float32)
        )
    assert found[:2].tolist() == [0, 0]


def test_clip_keeps_only_hashes_of_its_own_frames() -> None:
    draw = np.random.default_rng(1)
    frames = draw.integers(0, 255, (96, 32, 32, 3)).astype(np.uint8)
    start_s, end_s = 1.3, 4.1
    clip = video_hash(hashes_of(frames), start_s, end_s)
    others = frames.copy()
    others[: round(start_s * VIDEO_FPS)] = 0
    others[int(end_s * VIDEO_FPS) + 1 :] = 0
    assert video_hash(hashes_of(others), start_s, end_s) == clip
    assert len(clip) == 7  # at 2.0, 2.25, ... 3.5 s
    assert video_hash(hashes_of(frames), 0.0, 0.9) == []


def test_still_frames_have_no_hash() -> None:
    still = np.full((64, 90, 160, 3), 120, np.uint8) + np.random.default_rng(2).integers(
        0, 3, (64, 90, 160, 3)
    ).astype(np.uint8)
    assert set(hashes_of(still).tolist()) == {0}
    assert hashes_of(still[:10]).tolist() == []


def test_text_hash_ignores_case_and_changes_little_with_one_word() -> None:
    text = (
        "It was the best of times, it was the worst of times; it was the age of wisdom, "
        "it was the age of foolishness."
    )
    other = (
        "Four score and seven years ago our fathers brought forth on this continent a new nation "
        "conceived in liberty."
    )
    one = text_hash(text)
    assert one is not None
    assert -(2**63) <= one < 2**63
    assert text_hash(text.upper().replace(",", " -")) == one

    def bits(another: str) -> int:
        found = text_hash(another)
        assert found is not None
        return ((one ^ found) & (2**64 - 1)).bit_count()

    assert 0 < bits(text.replace("wisdom", "winter")) <= 16
    assert bits(other) >= 22
    assert (text_hash(""), text_hash(" ... ")) == (None, None)
    assert text_hash("yes") not in (None, text_hash("no"))


@pytest.fixture(scope="module")
def speech() -> Path:
    import importlib.util

    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "sample" / "sample.wav"


def test_sound_hash_survives_half_the_bitrate_and_differs_for_other_speech(
    speech: Path, tmp_path: Path
) -> None:
    full, half = tmp_path / "full.m4a", tmp_path / "half.m4a"
    ffmpeg("-i", speech, "-b:a", "64k", full)
    ffmpeg("-i", full, "-b:a", "32k", half)
    one, other = sound(full), sound(half)
    near, far = [], []
    for start in (0, 6, 12, 18, 24):
        span = slice(start * 16000, (start + 6) * 16000)
        items, same = sound_hash(one[span]), sound_hash(other[span])
        assert items is not None
        assert same is not None
        assert len(items) == len(same) == 27
        assert min(items) >= 0
        assert max(items) < 2**32
        near.append(share_apart(np.array(items), np.array(same), 32))
        away = sound_hash(one[(start + 3) * 16000 : (start + 9) * 16000]) if start < 20 else None
        far += [share_apart(np.array(items), np.array(away), 32)] if away else []
    assert max(near) <= 0.10
    assert min(far) >= 0.30


def test_silence_has_no_sound_hash_and_short_clip_is_extended() -> None:
    assert sound_hash(np.zeros(64000, np.int16)) == []
    assert sound_hash(np.full(16000, 9000, np.int16)) == []
    assert sound_span(3.0, 5.0) == (3.0, 7.0)
    assert sound_span(3.0, 9.5) == (3.0, 9.5)


def test_without_chromaprint_there_is_no_sound_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tmp_path / "ffmpeg"
    plain.write_text("#!/bin/sh\necho \"Unknown format 'chromaprint'.\"\n")
    plain.chmod(0o755)
    noise = np.random.default_rng(0).integers(-3000, 3000, 64000).astype(np.int16)
    assert sound_hash(noise, str(plain)) == sound_hash(noise) != []  # the packaged one steps in
    monkeypatch.setattr(fingerprint, "ffmpeg_path", lambda choice="": str(plain))
    fingerprint.fingerprinting_ffmpeg.cache_clear()
    try:
        assert sound_hash(noise) is None
    finally:
        fingerprint.fingerprinting_ffmpeg.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"the development videos are not here ({MEDIA})")
def test_video_hash_survives_bitrate_mirror_and_size_on_real_videos(
    tmp_path: Path,
) -> None:
    originals = {name: hashes_of(pictures(MEDIA / name)[: 5 * VIDEO_FPS]) for name in SPEAKING}
    small = "scale=trunc(iw/4)*2:-2"
    for name, found in originals.items():
        seconds = {
            "closeup_english.mp4": 6.1,
            "address_english_mpeg4.mp4": 8.0,
            "russian_speech_hevc.mp4": 10.0,
        }[name]
        rate = (MEDIA / name).stat().st_size * 8 / seconds
        cheap = ["-t", 5, "-an", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
        half, flipped = tmp_path / f"half-{name}", tmp_path / f"flip-{name}"
        ffmpeg(
            "-i", MEDIA / name, *cheap, "-b:v", int(rate / 2), half, *cheap, "-vf", f"hflip,{small}", flipped
        )
        assert share_apart(found, hashes_of(pictures(half)), 63) <= 0.08
        mirrored = hashes_of(pictures(flipped))
        assert share_apart(found, np.where(mirrored, mirrored ^ MIRRORED, 0), 63) <= 0.12
        assert share_apart(found, mirrored, 63) >= 0.26
    for name, found in originals.items():
        for other, apart in originals.items():
            if other != name:
                assert min(share_apart(found[shift:], apart, 63) for shift in range(8)) >= 0.26
