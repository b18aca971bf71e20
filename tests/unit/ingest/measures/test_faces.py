"""Step `faces`: face signals of a clip, against hand-made tables and naive references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.ingest.measures.clip_parts import analysed_times
from uniavgen.ingest.measures.faces import face_signals, lasting_count, lock_ratio, steadiness
from uniavgen.ingest.records import FacesSeen, FaceTable, Probe, SpokenWord
from uniavgen.shards.corpus.signals import signals_of

PROBE = Probe(10.0, 1280, 720, 25.0, "h264", "aac", True)


def table(frames: list[int], x: list[float] | None = None, **columns: list[float]) -> FaceTable:
    """One track, a face of 0.2 x 0.5 of the frame at `x`; other columns as in `columns`, else 0."""
    count = len(frames)
    left = np.array(x or [0.4] * count, np.float32)
    numbers = {
        name: np.zeros(count, np.float32)
        for name in ("score", "lip_gap", "yaw", "pitch", "roll", "sharpness")
    }
    numbers |= {name: np.array(values, np.float32) for name, values in columns.items()}
    return FaceTable(
        frame=np.array(frames, np.int32),
        track=np.zeros(count, np.int32),
        box=np.stack([left, np.full(count, 0.2), left + 0.2, np.full(count, 0.7)], axis=1).astype(np.float32),
        oval=np.zeros((count, 36, 2), np.float32),
        **numbers,
    )


def seen(
    faces: FaceTable, frames: int, denied: list[int] | None = None, counts: list[int] | None = None
) -> FacesSeen:
    return FacesSeen(
        looked=np.ones(frames, bool),
        face_count=np.array(counts or [-1] * frames, np.int16),
        denied=np.array(denied or [0] * frames, np.int16),
        faces=faces,
    )


def test_signals_cover_frames_of_clip_and_its_main_face() -> None:
    faces = table(
        [4, 5, 6, 7],
        lip_gap=[0.1, 0.2, 0.1, 0.1],
        yaw=[-30, 10, 20, -20],
        pitch=[-5, 5, 5, 5],
        roll=[1, -2, 3, -4],
        score=[0.9, 0.8, 0.7, 0.9],
        sharpness=[5, 6, 7, 8],
    )
    everywhere = seen(faces, 12, counts=[-1, -1, -1, -1, 1, -1, -1, -1, 3, -1, -1, -1])
    found = face_signals(everywhere, faces, 4, 9, PROBE)
    assert found["face_coverage"] == pytest.approx(4 / 5)
    assert found["face_count"] == 1
    assert found["face_height_px"] == pytest.approx(0.5 * 720)
    assert (found["face_yaw_deg"], found["face_pitch_deg"], found["face_roll_deg"]) == (20, 5, 2.5)
    assert found["face_score"] == pytest.approx(0.85)
    assert found["sharpness"] == 6.5
    assert found["mouth_motion"] == pytest.approx((0.1 + 0.1 + 0) / 3 * 16)
    assert found["face_steadiness"] == 1


def test_clip_without_faces_has_every_signal() -> None:
    nobody = face_signals(seen(table([]), 10), table([]), 2, 8, PROBE)
    assert set(nobody) == set(signals_of("faces"))
    assert nobody["face_coverage"] == 0
    assert nobody["face_lock_ratio"] is None
    assert nobody["face_height_px"] is None


def test_unanalysed_frames_have_no_signals() -> None:
    unlooked = FacesSeen(np.zeros(10, bool), np.full(10, -1, np.int16), np.zeros(10, np.int16), table([]))
    assert set(face_signals(unlooked, table([]), 0, 10, PROBE).values()) == {None}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=40))
def test_lock_ratio_counts_frames_with_landmarks(frames: list[tuple[bool, int]]) -> None:
    agreed = sum(face for face, _ in frames)
    landmarked = sum(face or denied > 0 for face, denied in frames)
    found = lock_ratio(
        np.array([face for face, _ in frames], bool), np.array([denied for _, denied in frames], int)
    )
    assert found == (agreed / landmarked if landmarked else None)


def test_unconfirmed_landmarks_lower_lock_ratio() -> None:
    ratios = []
    for wrong in (0, 2, 5, 9):
        faces = table(list(range(wrong, 10)))
        denied = [1] * wrong + [0] * (10 - wrong)
        ratios.append(face_signals(seen(faces, 10, denied), faces, 0, 10, PROBE)["face_lock_ratio"])
    assert ratios == [1.0, 0.8, 0.5, 0.1]


def test_steadiness_falls_with_shaking() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 40)
    found = [
        steadiness(table(list(range(40)), x=(0.4 + size * noise).tolist()), 16 / 9)
        for size in (0, 0.002, 0.01, 0.03)
    ]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    assert found[0] == pytest.approx(1)
    assert steadiness(table([0, 2, 4]), 1.0) is None


def test_steadiness_is_relative_to_face_height() -> None:
    # 0.01 of 1280 px over a face of 0.5 of 720 px
    assert steadiness(table([0, 1, 2], x=[0.4, 0.41, 0.42]), 1280 / 720) == pytest.approx(
        1 - 12.8 / 360, abs=1e-5
    )


@given(st.lists(st.integers(-1, 6), max_size=30))
def test_lasting_count_is_reached_in_a_fifth_of_the_counts(counts: list[int]) -> None:
    counted = sorted(count for count in counts if count >= 0)
    found = lasting_count(np.array(counts, int))
    if not counted:
        assert found is None
    else:
        assert found in counted
        assert sum(count >= found for count in counted) >= len(counted) / 5


def test_faces_are_analysed_early_and_around_words() -> None:
    is_analysed = analysed_times([SpokenWord("late", 100.0, 100.5, 1.0)], 60.0, 0.2)
    times = [0.0, 59.0, 70.0, 99.9, 100.6, 110.0]
    assert [is_analysed(at) for at in times] == [True, True, False, True, True, False]
