"""What a clip's faces say: how much, how large, turned how far, how steady, how surely.

Goes in: the clip's part of `FacesSeen` and the rows of its main face. Comes out: signals under their names in
`shards.corpus.signals`; None where there is nothing to measure.
"""

from __future__ import annotations

import numpy as np

from uniavgen.ingest.records import FacesSeen, FaceTable, Probe
from uniavgen.shards.timing import VIDEO_FPS

FACE_SIGNALS = (
    "face_coverage",
    "face_count",
    "face_height_px",
    "face_yaw_deg",
    "face_pitch_deg",
    "face_roll_deg",
    "face_lock_ratio",
    "face_steadiness",
    "face_score",
    "mouth_motion",
    "sharpness",
)
"""Every name that `face_signals` gives."""


def face_signals(
    seen: FacesSeen, main: FaceTable, first: int, last: int, probe: Probe
) -> dict[str, float | None]:
    """Signals of the frames [first, last) of a source; `main` holds the rows of the clip's main face."""
    signals: dict[str, float | None] = dict.fromkeys(FACE_SIGNALS)
    looked = int(seen.looked[first:last].sum())
    if not looked:
        return signals
    with_face = np.zeros(len(seen.denied[first:last]), bool)
    frames = seen.faces.frame
    with_face[frames[(frames >= first) & (frames < last)] - first] = True
    signals["face_coverage"] = float(with_face.sum()) / looked
    signals["face_count"] = lasting_count(seen.face_count[first:last])
    signals["face_lock_ratio"] = lock_ratio(with_face, seen.denied[first:last])
    return {**signals, **_main_signals(main, probe)} if len(main.frame) else signals


def lock_ratio(with_face: np.ndarray, denied: np.ndarray) -> float | None:
    """Share of the frames with landmarks in which the detector agrees: `with_face` bool [F] has a confirmed face, `denied`
    int [F] places that are none. None where nothing has landmarks."""
    landmarked = (with_face | (denied > 0)).sum()
    return float(with_face.sum() / landmarked) if landmarked else None


def lasting_count(counts: np.ndarray) -> float | None:
    """Faces seen together in at least a fifth of the counted frames: the 80th percentile. -1 was not counted."""
    counted = counts[counts >= 0]
    return float(np.percentile(counted, 80, method="lower")) if len(counted) else None


def steadiness(main: FaceTable, aspect: float) -> float | None:
    """1 minus the mean movement of the face's middle between neighbouring frames over its height; `aspect` is the picture's
    width over its height. None where no two frames are neighbours."""
    neighbours = np.diff(main.frame) == 1
    if not neighbours.any():
        return None
    centre = (main.box[:, :2] + main.box[:, 2:]) / 2 * (aspect, 1.0)
    moved = np.linalg.norm(np.diff(centre, axis=0), axis=1) / _heights(main)[1:]
    return float(np.clip(1.0 - moved[neighbours].mean(), 0.0, 1.0))


def _main_signals(main: FaceTable, probe: Probe) -> dict[str, float | None]:
    neighbours = np.diff(main.frame) == 1
    return {
        "face_height_px": float(np.median(_heights(main))) * probe.height,
        "face_yaw_deg": float(np.median(np.abs(main.yaw))),
        "face_pitch_deg": float(np.median(np.abs(main.pitch))),
        "face_roll_deg": float(np.median(np.abs(main.roll))),
        "face_score": float(np.median(main.score)),
        "sharpness": float(np.median(main.sharpness)),
        "face_steadiness": steadiness(main, probe.width / max(1, probe.height)),
        "mouth_motion": float(np.abs(np.diff(main.lip_gap))[neighbours].mean() * VIDEO_FPS)
        if neighbours.any()
        else None,
    }


def _heights(faces: FaceTable) -> np.ndarray:
    heights: np.ndarray = faces.box[:, 3] - faces.box[:, 1]
    return heights
