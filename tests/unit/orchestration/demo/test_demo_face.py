"""The animated portrait: an independent face detector finds face, lips and oval; lips and audio agree."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from uniavgen.orchestration.demo import face, script, speech
from uniavgen.orchestration.demo.portrait import LOOKS, OVAL
from uniavgen.shards.sample import FaceTrack
from uniavgen.shards.weights import resolve


def _landmarks(pictures: list[np.ndarray]) -> list[np.ndarray | None]:
    """MediaPipe's 478 points [478, 2] of each picture, None where it does not see exactly one face."""
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    model = BaseOptions(model_asset_path=str(resolve("face-landmarker") / "face_landmarker.task"))
    found: list[np.ndarray | None] = []
    with vision.FaceLandmarker.create_from_options(
        vision.FaceLandmarkerOptions(base_options=model, num_faces=3)
    ) as finder:
        for picture in pictures:
            faces = finder.detect(mediapipe.Image(mediapipe.ImageFormat.SRGB, picture)).face_landmarks
            found.append(np.array([[p.x, p.y] for p in faces[0]]) if len(faces) == 1 else None)
    return found


@pytest.mark.parametrize("look", sorted(LOOKS))
def test_detector_finds_face_lips_and_oval_in_every_frame(look: str) -> None:
    from uniavgen.orchestration.demo.score import oval_iou

    track = speech.assemble([speech.say(script.SENTENCES[2], "joe")], seed=1)
    frames = list(face.animate(look, track.phones, np.arange(0.2, 3.2, 0.04).tolist(), seed=3))
    seen = _landmarks([frame.picture for frame in frames])
    assert all(points is not None for points in seen)
    points = np.array(seen)
    height = points[:, 152, 1] - points[:, 10, 1]
    gap = (points[:, 14, 1] - points[:, 13, 1]) / height
    assert np.corrcoef(gap, [frame.opening for frame in frames])[0, 1] > 0.9
    assert np.median(height) * frames[0].picture.shape[0] >= 160
    found = FaceTrack(
        points[:, list(OVAL)].astype(np.float32), np.zeros((len(frames), 4)), np.ones(len(frames))
    )
    assert oval_iou(found, np.array([frame.oval for frame in frames])).min() > 0.9


def test_lips_and_audio_are_in_sync() -> None:
    """Correlate the derivatives of the lip gap and of the 300-3000 Hz envelope."""
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import butter, sosfiltfilt

    for voice in speech.VOICES:
        track = speech.assemble([speech.say(script.SENTENCES[7], voice)], seed=1)
        times = np.arange(0, track.duration_s, 0.01)
        opening, _ = speech_mouth(track, times)
        band = sosfiltfilt(butter(4, [300, 3000], "band", fs=speech.RATE, output="sos"), track.waveform)
        energy = np.concatenate([[0], np.cumsum(band**2)])
        edges = np.round(np.clip([times - 0.01, times + 0.01], 0, track.duration_s) * speech.RATE).astype(int)
        envelope = np.sqrt(np.diff(energy[edges], axis=0)[0] / 960)
        a, b = (np.gradient(gaussian_filter1d(x, 2)) for x in (envelope, opening))
        a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
        peaks = {
            lag: np.mean(a[max(0, lag) : len(a) + min(0, lag)] * b[max(0, -lag) : len(b) - max(0, lag)])
            for lag in range(-60, 61)
        }
        best = max(peaks, key=lambda lag: peaks[lag])
        assert abs(best) * 10 <= 40
        assert peaks[best] > 0.5


def speech_mouth(track: speech.Track, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from uniavgen.orchestration.demo.visemes import mouth_track

    return mouth_track(track.phones, times)


def test_frames_depend_on_the_seed() -> None:
    times = [0.0, 0.4, 0.8]
    one, two, other = (list(face.animate("dark", [], times, seed=s)) for s in (4, 4, 5))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[1].oval, other[1].oval)


def test_silent_portrait_blinks_and_moves_with_a_still_mouth() -> None:
    frames = list(face.animate("astronaut", [], np.arange(0, 4, 0.04).tolist(), seed=2))
    openings = np.array([frame.opening for frame in frames])
    assert np.ptp(openings) < 0.002
    assert all((a.picture != b.picture).any() for a, b in pairwise(frames))
    points = np.array(_landmarks([frame.picture for frame in frames]))
    lids = np.linalg.norm(points[:, 159] - points[:, 145], axis=1) / (points[:, 152, 1] - points[:, 10, 1])
    assert lids.min() < 0.5 * np.median(lids)


def test_mirrored_looks_have_mirrored_ovals() -> None:
    plain, turned = LOOKS["astronaut"], LOOKS["mirror"]
    assert turned.mirror
    assert not plain.mirror
    oval = next(iter(face.animate("mirror", [], [0.0]))).oval
    assert oval[OVAL.index(454), 0] < oval[OVAL.index(234), 0]


def test_pattern_moves_and_shows_no_face() -> None:
    frames = list(face.pattern([0.0, 0.5, 1.0]))
    assert (frames[0] != frames[1]).mean() > 0.5
    assert _landmarks(frames) == [None, None, None]
