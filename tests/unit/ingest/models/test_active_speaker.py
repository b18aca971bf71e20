"""Active speaker by lip movement: two faces, off-screen voices, late audio."""

from functools import lru_cache

import numpy as np
import pytest
from speaking_clips import SECONDS, chewing, heard, mouth, rendered_frames, spoken

from uniavgen.ingest.config import FaceConfig, SyncConfig
from uniavgen.ingest.models.active_speaker import (
    ClipFaces,
    FaceCurve,
    choose_face,
    find_active_face,
    find_speaking_faces,
    score_faces,
)

CONFIG = SyncConfig()
MARGIN = CONFIG.max_shift_ms / 1000
LEFT, RIGHT = 0, 1

SPEAKERS = {"joe": ("astronaut", 0), "ann": ("mirror", 6), "bob": ("dark", 18)}
"""Voice -> look and sentence."""


@lru_cache
def pictures(who: str) -> list[np.ndarray]:
    if who in SPEAKERS:
        look, line = SPEAKERS[who]
        return rendered_frames(look, spoken(who, line)[0], seed=line, size=224)
    return rendered_frames("warm", chewing() if who == "chewing" else (), seed=3, size=224)


@lru_cache
def gaps(left: str, right: str) -> dict[int, np.ndarray]:
    """Lip openings measured on frames with two faces side by side."""
    from uniavgen.ingest.models.face_reader import FaceReader

    reader = FaceReader(FaceConfig())
    found = {LEFT: np.full(len(pictures(left)), np.nan), RIGHT: np.full(len(pictures(left)), np.nan)}
    for frame, halves in enumerate(zip(pictures(left), pictures(right), strict=True)):
        for face in reader.read(np.concatenate(halves, axis=1)):
            found[LEFT if face.box[0] + face.box[2] < 1 else RIGHT][frame] = face.lip_gap
    reader.close()
    return found


def sound(voice: str, late_ms: float = 0.0) -> np.ndarray:
    return heard(spoken(voice, SPEAKERS[voice][1])[1], MARGIN, late_ms)


CASES = [
    ("joe", "ann", "joe", LEFT),
    ("joe", "ann", "ann", RIGHT),
    ("bob", "joe", "bob", LEFT),
    ("bob", "joe", "joe", RIGHT),
    ("ann", "bob", "ann", LEFT),
    ("ann", "bob", "bob", RIGHT),
    ("joe", "silent", "joe", LEFT),
    ("chewing", "joe", "joe", RIGHT),
    ("ann", "chewing", "ann", LEFT),
    ("silent", "bob", "bob", RIGHT),
]


@pytest.mark.slow
def test_speaker_of_two_faces_is_found_in_nine_of_ten_cases() -> None:
    found = [find_active_face(gaps(left, right), sound(voice), CONFIG) for left, right, voice, _ in CASES]
    right_ones = [active.track == track for active, (*_, track) in zip(found, CASES, strict=True)]
    assert sum(right_ones) >= 9
    for active, correct in zip(found, right_ones, strict=True):
        if correct:
            assert active.confidence is not None
            assert active.margin is not None
            assert active.confidence >= 0.5
            assert active.margin > 0


@pytest.mark.slow
def test_off_screen_voice_gives_no_speaker() -> None:
    cases = [
        ("joe", "silent", "bob"),
        ("joe", "silent", "ann"),
        ("ann", "chewing", "joe"),
        ("ann", "chewing", "bob"),
    ]
    cases += [("silent", "bob", "ann"), ("joe", "ann", "bob"), ("bob", "joe", "ann"), ("ann", "bob", "joe")]
    # from the middle of a sentence: every planted sentence starts at the same time, and two that start
    # together do match
    found = [
        find_active_face(gaps(left, right), sound(voice, -1100), CONFIG, largest=LEFT)
        for left, right, voice in cases
    ]
    unknown = [active for active in found if active.track is None]
    assert len(unknown) >= 7
    for active in unknown:
        assert active.main == LEFT
        assert active.confidence is not None
        assert active.confidence < 0.5


@pytest.mark.slow
def test_late_audio_gives_speaker_and_offset() -> None:
    clips = []
    for voice, line in [("joe", 0), ("joe", 5), ("joe", 11), ("joe", 13)]:
        phones, pcm = spoken(voice, line)
        still = np.random.default_rng(line).normal(0, 2e-4, round(SECONDS * 16))
        clips.append(
            ClipFaces({3: still, 8: mouth(phones)}, heard(pcm, MARGIN, late_ms=450), largest=3, speaker="A")
        )
    found = find_speaking_faces(clips, CONFIG)
    assert [each.active.track for each in found] == [8] * 4
    assert [each.sync.offset_ms for each in found] == pytest.approx([450] * 4, abs=40)
    alone = [find_active_face(clip.gaps, clip.pcm, CONFIG).confidence or 0.0 for clip in clips]
    together = [each.active.confidence or 0.0 for each in found]
    assert np.mean(together) > np.mean(alone) + 0.2


def bump(at_ms: float, height: float) -> np.ndarray:
    shifts = np.arange(-600, 601, 10)
    return (height * np.exp(-0.5 * np.square((shifts - at_ms) / 40))).astype(np.float32)


def test_match_at_unlikely_offset_is_weighted_down() -> None:
    curves = {offset: FaceCurve(bump(offset, 0.5), 5.0, 1.0) for offset in (0, 200, 400)}
    fits = score_faces(curves, expected_ms=0.0)
    assert fits[0] > fits[200] > fits[400]
    assert score_faces(curves, expected_ms=400.0)[400] == pytest.approx(fits[0])


def test_mouth_that_hardly_moves_is_silent() -> None:
    fits = score_faces({0: FaceCurve(bump(0, 0.9), 5.0, 0.05), 1: FaceCurve(None, 5.0, 0.0)}, expected_ms=0.0)
    assert fits[0] < 0.1
    assert fits[1] == 0.0
    assert choose_face(fits, largest=0).track is None


def test_main_face_is_the_speaker_else_the_largest() -> None:
    speaking = choose_face({0: 0.2, 1: 1.4}, largest=0)
    assert (speaking.track, speaking.main, speaking.confidence, speaking.margin) == (
        1,
        1,
        1.0,
        pytest.approx(0.8),
    )
    unknown = choose_face({0: 0.2, 1: 0.4}, largest=0)
    assert (unknown.track, unknown.main, unknown.confidence, unknown.margin) == (
        None,
        0,
        0.2,
        pytest.approx(-0.2),
    )
    assert choose_face({4: 0.7}).margin == pytest.approx(0.7)
    assert choose_face({}, largest=2) == choose_face({}, largest=2).__class__(None, 2)
    assert choose_face({1: 0.1}, largest=2).confidence is None


def test_no_audio_or_short_face_gives_no_measurement() -> None:
    lips = np.abs(np.random.default_rng(0).normal(0.02, 0.01, 80))
    silence = np.zeros(round((5 + 2 * MARGIN) * 16_000), np.int16)
    assert find_active_face({0: lips}, silence, CONFIG, largest=0).confidence is None
    brief = np.full(80, np.nan)
    brief[10:18] = lips[10:18]
    noise = np.random.default_rng(1).normal(0, 3000, len(silence)).astype(np.int16)
    assert list(find_active_face({0: lips, 1: brief}, noise, CONFIG).fits) == [0]


def test_face_that_enters_midway_is_compared_with_its_own_span() -> None:
    phones, pcm = spoken("joe", 0)
    late = mouth(phones)
    late[:32] = np.nan
    active = find_active_face({0: late}, heard(pcm, MARGIN), CONFIG)
    assert active.track == 0
