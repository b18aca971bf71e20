"""Lip sync offsets: planted shifts and their sign, unrelated audio, clips of one source read together."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from paths import MEDIA
from speaking_clips import SECONDS, heard, mouth, rendered_frames, spoken

from uniavgen.ingest.config import FaceConfig, IngestConfig, SyncConfig
from uniavgen.ingest.models.lip_sync import (
    LipSync,
    correlation_curve,
    expected_offsets,
    lip_sync,
    octave_loudness,
    sync_clips,
    sync_curve,
)
from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.timing import VIDEO_FPS

CONFIG = SyncConfig()
MARGIN = CONFIG.max_shift_ms / 1000
SHIFTS_MS = [-400, -250, -120, 0, 80, 250, 400]

LINES = [
    ("joe", 0),
    ("joe", 5),
    ("ann", 6),
    ("ann", 14),
    ("bob", 18),
    ("bob", 28),
    ("reader", 0),
    ("reader", 1),
]


def syllables(seed: int, seconds: float) -> np.ndarray:
    """Lip opening 0..1 at 1000 Hz with syllables at irregular times."""
    rng = np.random.default_rng(seed)
    opening, at = np.zeros(round(seconds * 1000)), 0
    while at < len(opening):
        length = int(rng.integers(100, 300))
        bump = rng.uniform(0.3, 1) * np.hanning(length)
        opening[at : at + length] += bump[: len(opening) - at]
        at += int(rng.integers(150, 450))
    return opening


def clip(seed: int, late_ms: float, seconds: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """(lip gap at 16 fps, audio with margins): noise whose level follows the mouth, `late_ms` later."""
    opening = syllables(seed, seconds + 4)
    lips = opening[2000 + np.round(np.arange(round(seconds * 16)) * 62.5).astype(int)]
    times = np.arange(round((seconds + 2 * MARGIN) * AUDIO_RATE)) / AUDIO_RATE + 2 - MARGIN - late_ms / 1000
    level = np.interp(times * 1000, np.arange(len(opening)), opening)
    noise = np.random.default_rng(seed + 1).standard_normal(len(level))
    return lips, (level * noise * 6000).clip(-32768, 32767).astype(np.int16)


@lru_cache
def planted(voice: str, line: int) -> tuple[np.ndarray, np.ndarray]:
    """(planted lip opening, audio of the sentence)."""
    phones, pcm = spoken(voice, line)
    return mouth(phones), pcm


@pytest.mark.parametrize("late_ms", [-400, -120, 0, 80, 250, 400])
def test_planted_shift_is_recovered_within_40_ms_with_sign(late_ms: float) -> None:
    found = [lip_sync(*clip(seed, late_ms), CONFIG) for seed in range(10)]
    errors = [abs(sync.offset_ms - late_ms) for sync in found if sync.offset_ms is not None]
    assert np.sum(np.array(errors) <= 40) >= 9


@pytest.mark.slow
def test_shift_of_speech_on_phoneme_driven_lips_within_40_ms() -> None:
    found = [
        (lip_sync(gap, heard(pcm, MARGIN, late_ms), CONFIG), late_ms)
        for gap, pcm in (planted(*line) for line in LINES)
        for late_ms in SHIFTS_MS
    ]
    errors = np.array(
        [abs(sync.offset_ms - late_ms) for sync, late_ms in found if sync.offset_ms is not None]
    )
    known = np.array([sync.known for sync, _ in found])
    assert len(errors) == len(LINES) * len(SHIFTS_MS)
    assert (errors <= 40).mean() >= 0.9
    assert known.mean() >= 0.8
    assert errors[known].max() <= 80


@pytest.mark.slow
def test_confidence_separates_synced_speech_from_another_sentence() -> None:
    own, dubbed = [], []
    for index, line in enumerate(LINES):
        gap, pcm = planted(*line)
        own += [
            lip_sync(gap, heard(pcm, MARGIN, late_ms), CONFIG).confidence or 0.0 for late_ms in (-250, 0, 120)
        ]
        others = [planted(*LINES[(index + step) % len(LINES)])[1] for step in range(1, 5)]
        dubbed += [lip_sync(gap, heard(other, MARGIN), CONFIG).confidence or 0.0 for other in others]
    wins = np.greater.outer(own, dubbed).mean()
    assert wins >= 0.95
    assert np.mean(np.array(dubbed) >= 0.5) <= 0.1


@pytest.mark.slow
def test_shift_is_recovered_from_measured_landmarks() -> None:
    from uniavgen.ingest.models.face_reader import FaceReader

    reader = FaceReader(FaceConfig())
    for voice, line, look in [("joe", 0, "astronaut"), ("ann", 6, "mirror")]:
        phones, pcm = spoken(voice, line)
        faces = [reader.read(picture) for picture in rendered_frames(look, phones, seed=line)]
        gap = np.array([found[0].lip_gap if found else np.nan for found in faces])
        for late_ms in SHIFTS_MS:
            sync = lip_sync(gap, heard(pcm, MARGIN, late_ms), CONFIG)
            assert sync.offset_ms == pytest.approx(late_ms, abs=40)
            assert sync.known
    reader.close()


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"the development videos are not here ({MEDIA})")
@pytest.mark.parametrize("name", ["studio_english_16khz.mp4", "closeup_english.mp4"])
def test_known_offsets_on_real_faces_are_within_80_ms(name: str, tmp_path: Path) -> None:
    from uniavgen.ingest.io import media
    from uniavgen.ingest.io.probe_client import probe_video
    from uniavgen.ingest.models.face_reader import FaceReader

    config = IngestConfig()
    path = str(MEDIA / name)
    probe = probe_video(path, config.limits)
    sound = media.decode_audio(path, probe, tmp_path / "sound.raw", config.limits)
    reader = FaceReader(config.faces)
    pictures = media.decode_frames(
        path, probe, config.faces.analysis_side, config.shots.fps, None, config.limits
    )
    faces = [reader.read(picture) for picture in pictures]
    reader.close()
    gap = np.array([found[0].lip_gap if found else np.nan for found in faces])
    truth = lip_sync(gap, sound.span(-MARGIN, len(gap) / VIDEO_FPS + MARGIN), config.sync)
    assert truth.known
    assert truth.offset_ms is not None
    errors, known = [], []
    count = round(SECONDS * VIDEO_FPS)
    for first in range(0, len(gap) - count + 1, VIDEO_FPS):
        for late_ms in (-300, -150, 0, 150, 300):
            start_s = first / VIDEO_FPS - late_ms / 1000
            sync = lip_sync(
                gap[first : first + count],
                sound.span(start_s - MARGIN, start_s + SECONDS + MARGIN),
                config.sync,
            )
            assert sync.offset_ms is not None
            errors.append(abs(sync.offset_ms - late_ms - truth.offset_ms))
            known.append(sync.known)
    assert np.mean(known) >= 0.4
    assert np.array(errors)[known].max() <= 80


def test_clips_of_one_source_help_unknown_ones_only() -> None:
    noisy = []
    for seed in range(40, 48):
        lips, pcm = clip(seed, 200, seconds=3.0)
        room = np.random.default_rng(seed).normal(0, 2500, len(pcm))
        noisy.append((lips, (pcm * 0.25 + room).clip(-32768, 32767).astype(np.int16)))
    dubbed, moved = (clip(20, 0)[0], clip(21, 0)[1]), clip(30, -300)
    alone = [lip_sync(*each, CONFIG) for each in (*noisy, dubbed, moved)]
    clips = [*noisy, dubbed, moved, *(clip(seed, 200) for seed in range(4))]
    together = sync_clips([(sync_curve(*each, CONFIG), len(each[0]) / VIDEO_FPS) for each in clips])
    helped = [sync.offset_ms for sync in together[:8] if sync.known]
    assert len(helped) >= sum(sync.known for sync in alone[:8]) + 2
    assert helped == pytest.approx([200] * len(helped), abs=60)
    assert (together[8].offset_ms, together[8].known) == (alone[8].offset_ms, False)
    assert together[9].offset_ms == pytest.approx(-300, abs=40)


def test_expected_offset_excludes_the_clip_itself() -> None:
    rng = np.random.default_rng(0)
    curves = [(rng.random(121).astype(np.float32), length) for length in (2.0, 3.0, 7.0)]
    found = expected_offsets([*curves, (None, 0.0)])
    for own, expected in enumerate(found[:3]):
        others = [pair for other, pair in enumerate(curves) if other != own]
        mean = np.average([curve for curve, _ in others], axis=0, weights=[length for _, length in others])
        assert expected.curve == pytest.approx(mean, abs=1e-6)
    assert found[3].curve == pytest.approx(
        np.average([c for c, _ in curves], axis=0, weights=[2, 3, 7]), abs=1e-6
    )
    assert expected_offsets(curves[:1])[0].curve is None


def test_rarely_seen_face_gives_no_offset() -> None:
    lips, pcm = clip(0, 0)
    lips[: len(lips) // 2] = np.nan
    assert lip_sync(lips, pcm, CONFIG) == LipSync()


@pytest.mark.parametrize("still", ["lips", "sound"])
def test_constant_lips_or_audio_give_no_offset(still: str) -> None:
    lips, pcm = clip(0, 0)
    lips, pcm = (np.full_like(lips, 0.1), pcm) if still == "lips" else (lips, np.zeros_like(pcm))
    assert lip_sync(lips, pcm, CONFIG) == LipSync()


def test_curve_equals_naive_correlation() -> None:
    rng = np.random.default_rng(0)
    lips, sound = rng.standard_normal(300), rng.standard_normal(340)
    curve = correlation_curve(lips, sound, 20)
    assert curve is not None
    assert curve == pytest.approx([np.corrcoef(lips, sound[k : k + 300])[0, 1] for k in range(41)], abs=1e-6)


def test_curve_covers_every_shift_in_10_ms_steps() -> None:
    curve = sync_curve(*clip(0, 0), CONFIG)
    assert curve is not None
    assert curve.shape == (2 * CONFIG.max_shift_ms // 10 + 1,)
    assert np.abs(curve).max() <= 1


@pytest.mark.parametrize(("hertz", "octave"), [(700, 0), (1400, 1), (2800, 2)])
def test_octave_loudness_places_tone_and_burst(hertz: int, octave: int) -> None:
    at = np.arange(AUDIO_RATE) / AUDIO_RATE
    burst = np.exp(-0.5 * np.square((at - 0.4) / 0.03))
    loudness = octave_loudness((9000 * burst * np.sin(2 * np.pi * hertz * at)).astype(np.int16), CONFIG)
    assert loudness.shape == (100, 3)
    assert loudness.max(axis=0).argmax() == octave
    assert loudness[:, octave].argmax() == pytest.approx(40, abs=1)
