"""Proof of a cut clip: its sound and its pictures are compared with what the analysis decoded.

Analysis decodes a source from its start; a cut seeks. Where both read other parts, other streams, other
channels or other colours, the words and signals of a clip describe something else than its files hold. The
comparison needs no model: sound against sound at 8 kHz (correlation, lag, level), and the brightness of 16 x
9 cells of the frames. All limits are heuristics: they lie between the distances of right clips and those of
planted wrong ones (docs/data-quality.md has the figures).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

CELLS_ACROSS, CELLS_DOWN = 16, 9
"""Rows and columns of the cells of a frame. Frames are compared by the mean brightness of their cells."""

RATE = 8000
"""Sample rate of the compared sound in Hz."""

SEARCH_S = 1.0
"""A lag is searched up to this, so that the failure can name it."""

MAX_LAG_S = 0.02
"""Largest lag of the sound of a right clip."""

MIN_CORRELATION = 0.8
"""Smallest correlation of the sound of a right clip."""

WINDOW_S, MIN_WINDOW_CORRELATION = 0.5, 0.5
"""Length of the stretches whose sound is compared each by itself, and their smallest correlation."""

SILENT = 10 ** (-60 / 20)
"""RMS of float sound in -1..1 below which it is silent."""

QUIET_SHARE = 0.05
"""A stretch with less than this share of the clip's RMS is not compared by itself: codec noise rules it."""

MAX_LEVEL_DB = 3.0
"""Largest difference of the two levels."""

MAX_DIFFERENCE = 6.0
"""Largest mean difference of the cells of two pictures, of 255 levels."""

MAX_MOTION_ERROR, MIN_MOTION = 0.5, 1.0
"""Largest difference of two movements, as a share of the larger one, and the movement in levels (RMS) below
which frames do not move."""

NOISE = 0.05
"""Mean difference in levels that does not tell two neighbouring frames apart."""

SMALL_WIDTH = 96
"""Width in pixels to which a clip's frames are scaled before their cells are measured."""

WHOLE = (0.0, 0.0, 1.0, 1.0)
"""The crop that is none."""

MIN_CELLS = 2
"""Crops with fewer cells than this in a row or column are too small to compare by cells."""

INSIDE = 0.1
"""Share of a cell that may lie outside the crop of a clip."""


@dataclass(frozen=True)
class SoundProof:
    """How the sound of a clip fits that of the analysis. Correlations are None where both are silent."""

    lag_ms: float = 0.0
    """Positive: the clip is late."""
    correlation: float | None = None
    worst_correlation: float | None = None
    """Of the stretches of `WINDOW_S`, at the lag of the whole clip."""
    level_db: float = 0.0
    """Level of the clip against that of the analysis."""

    @property
    def fault(self) -> str:
        if self.correlation is None or self.worst_correlation is None:
            return ""
        wrong = (
            abs(self.lag_ms) > MAX_LAG_S * 1000
            or self.correlation < MIN_CORRELATION
            or self.worst_correlation < MIN_WINDOW_CORRELATION
            or abs(self.level_db) > MAX_LEVEL_DB
        )
        figures = (
            f"lag {self.lag_ms:+.0f} ms, correlation {self.correlation:.2f}, "
            f"in the worst half second {self.worst_correlation:.2f}, level {self.level_db:+.1f} dB"
        )
        return f"its sound is not the analysed one: {figures}" if wrong else ""


@dataclass(frozen=True)
class PictureProof:
    """How the pictures of a clip fit those of the analysis, in levels of 255."""

    first: float
    last: float
    """Mean difference of the cells of the first and the last picture."""
    motion_error: float | None
    """Difference of the two movements as a share of the larger one; None where neither moves."""

    @property
    def fault(self) -> str:
        error = self.motion_error
        wrong = max(self.first, self.last) > MAX_DIFFERENCE or (error or 0.0) > MAX_MOTION_ERROR
        moves = "neither moves" if error is None else f"difference of movement {error:.0%}"
        figures = f"first {self.first:.1f}, last {self.last:.1f} of 255 levels, {moves}"
        return f"its pictures are not the analysed ones: {figures}" if wrong else ""


def compare_sound(clip: np.ndarray, analysed: np.ndarray) -> SoundProof:
    """Compare a clip's sound, float [n] at 8 kHz, with that of the analysis, float [n + 2 * SEARCH_S * 8000]:
    the same span and `SEARCH_S` before and after it.
    """
    reach = round(SEARCH_S * RATE)
    own, other = _level(clip), _level(analysed[reach : reach + len(clip)])
    if max(own, other) < SILENT:
        return SoundProof()
    level_db = float(20 * np.log10(max(own, SILENT / 10) / max(other, SILENT / 10)))
    correlations = _correlations(clip, analysed)
    near = round(MAX_LAG_S * RATE)
    best = int(correlations.argmax())
    best_near = reach - near + int(correlations[reach - near : reach + near + 1].argmax())
    if correlations[best_near] >= min(correlations[best], 1.0) - 0.02:
        best = best_near  # a tone fits at many lags
    worst = _worst_correlation(clip, analysed[best : best + len(clip)])
    return SoundProof((reach - best) / RATE * 1000, float(correlations[best]), worst, level_db)


def _level(sound: np.ndarray) -> float:
    return float(np.sqrt(np.square(sound, dtype=np.float64).mean())) if len(sound) else 0.0


def _correlations(clip: np.ndarray, analysed: np.ndarray) -> np.ndarray:
    """Correlation of a clip with the analysed sound at every lag, float [len(analysed) - len(clip) + 1]."""
    size = 1 << (len(analysed) - 1).bit_length()
    spectrum = np.fft.rfft(analysed, size) * np.conj(np.fft.rfft(clip, size))
    products = np.fft.irfft(spectrum, size)[: len(analysed) - len(clip) + 1]
    sums = np.concatenate([[0.0], np.cumsum(np.square(analysed, dtype=np.float64))])
    energies = sums[len(clip) :] - sums[: len(sums) - len(clip)]
    # against silence nothing correlates
    floor = len(clip) * (SILENT / 10) ** 2
    own = max(float(np.square(clip, dtype=np.float64).sum()), floor)
    return np.asarray(products / np.sqrt(np.maximum(energies, floor) * own))


def _worst_correlation(clip: np.ndarray, analysed: np.ndarray) -> float:
    """The smallest correlation of the stretches in which either is not quiet."""
    size = round(WINDOW_S * RATE)
    quiet = QUIET_SHARE * max(_level(clip), _level(analysed))
    worst = 1.0
    for start in range(0, max(1, len(clip) - size // 2), size):
        one, two = clip[start : start + size], analysed[start : start + size]
        levels = _level(one), _level(two)
        if max(levels) >= max(quiet, SILENT):
            product = float((one.astype(np.float64) * two).mean())
            worst = min(worst, product / max(levels[0] * levels[1], (SILENT / 10) ** 2))
    return worst


def picture_cells(luma: np.ndarray) -> np.ndarray:
    """Mean brightness of the cells of a picture: uint8 [9, 16] of float or uint8 [H, W]."""
    import cv2

    cells = cv2.resize(luma, (CELLS_ACROSS, CELLS_DOWN), interpolation=cv2.INTER_AREA)
    return np.asarray(np.rint(cells), np.uint8)


def compare_pictures(clip: ClipPictures, analysed: np.ndarray, first: int) -> PictureProof:
    """Compare a clip with the cells of all frames of its source, uint8 [F, 9, 16]; its first frame is number
    `first` there. A frame between two places of the grid may take either.
    """
    numbers = np.clip(first + clip.index[:, None] + np.array([-1, 0, 1]), 0, len(analysed) - 1)
    known = analysed[numbers][:, :, clip.rows, clip.columns].astype(np.float32)
    differences = np.abs(clip.cells[:, None] - known).mean(axis=(0, 2, 3))
    best = 1 if differences[1] <= differences.min() + NOISE else int(differences.argmin())
    moved, expected = (cells - cells.mean(axis=0) for cells in (clip.cells, known[:, best]))
    motion = max(float(moved.std()), float(expected.std()))
    error = float((moved - expected).std()) / motion if motion >= MIN_MOTION else None
    edges = [float(np.abs(clip.cells[edge] - known[edge]).mean(axis=(1, 2)).min()) for edge in (0, -1)]
    return PictureProof(edges[0], edges[1], error)


@dataclass(frozen=True)
class ClipPictures:
    """Cells of those frames of a clip that others refer to, the first and the last among them.

    `index` int [n] counts the clip's frames; `cells` float32 [n, h, w] are the `rows` and `columns` of the
    source's grid that the clip shows.
    """

    index: np.ndarray
    cells: np.ndarray
    rows: slice
    columns: slice


def clip_pictures(path: Path, crop: tuple[float, float, float, float]) -> ClipPictures:
    """The cells of a clip's .mp4. `crop` (x0, y0, x1, y1) is its part of the source frame, in fractions.

    Raises UserError (cut-failed) if the file cannot be decoded.
    """
    import cv2

    rows, top, bottom = _cells_inside(crop[1], crop[3], CELLS_DOWN)
    columns, left, right = _cells_inside(crop[0], crop[2], CELLS_ACROSS)
    size = columns.stop - columns.start, rows.stop - rows.start
    index, cells = [], []
    for number, luma in _small_luma(path):
        height, width = luma.shape
        part = luma[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
        index.append(number)
        cells.append(cv2.resize(part, size, interpolation=cv2.INTER_AREA))
    if not cells:
        raise UserError("the cut has no frame", where=path, kind="cut-failed")
    return ClipPictures(np.array(index), np.array(cells, np.float32), rows, columns)


def is_resolved(crop: tuple[float, float, float, float]) -> bool:
    """Whether the grid of the source has enough cells inside a crop."""
    columns = min((crop[2] - crop[0]) * CELLS_ACROSS, (crop[3] - crop[1]) * CELLS_DOWN)
    return columns >= MIN_CELLS + 1


def cropped(frame: np.ndarray, crop: tuple[float, float, float, float]) -> np.ndarray:
    """The part of a frame [H, W, 3] that a crop shows."""
    height, width = frame.shape[:2]
    x0, y0 = int(crop[0] * width), int(crop[1] * height)
    x1, y1 = max(x0 + 1, round(crop[2] * width)), max(y0 + 1, round(crop[3] * height))
    return frame[y0:y1, x0:x1]


def _cells_inside(start: float, end: float, cells: int) -> tuple[slice, float, float]:
    """The cells of a grid that lie in [start, end] of 0..1, and where they begin and end in that span."""
    first = int(np.ceil(start * cells - INSIDE))
    last = max(first + 1, int(np.floor(end * cells + INSIDE)))
    low, high = (np.clip((edge / cells - start) / (end - start), 0.0, 1.0) for edge in (first, last))
    return slice(first, last), float(low), float(high)


def _small_luma(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Number and brightness uint8 [h, SMALL_WIDTH] of about every third frame of a clip, of the first and of
    the last. Frames to which no other refers are not decoded: that halves the cost.
    """
    import av
    from av.video.reformatter import Interpolation

    def small(frame: Any) -> tuple[int, np.ndarray]:
        height = max(1, round(SMALL_WIDTH * frame.height / frame.width))
        # by way of RGB, as in the analysis: the weights of a colour depend on the file
        rgb = frame.reformat(SMALL_WIDTH, height, "rgb24", interpolation=Interpolation.AREA).to_ndarray()
        return round(float(frame.pts * frame.time_base) * VIDEO_FPS), luma_of(rgb)

    try:
        with av.open(f"file:{path}", mode="r") as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            stream.codec_context.skip_frame = "NONREF"
            last = None
            for number, frame in enumerate(container.decode(stream)):
                last = frame
                if number % 2 == 0:
                    yield small(frame)
                    last = None
            if last is not None:
                yield small(last)
    except av.error.FFmpegError as error:
        raise UserError(f"the cut cannot be decoded: {error}", where=path, kind="cut-failed") from error


def luma_of(rgb: np.ndarray) -> np.ndarray:
    """Brightness uint8 [H, W] of uint8 [H, W, 3] RGB, with the weights of BT.601."""
    import cv2

    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def clip_sound(path: Path) -> np.ndarray:
    """The sound of a clip's .flac, float32 [n] at 8 kHz."""
    import soundfile

    pcm, rate = soundfile.read(str(path), dtype="float32")
    return resampled(pcm, rate)


def resampled(sound: np.ndarray, rate: int) -> np.ndarray:
    """float32 [n] at a multiple of 8 kHz, as float32 at 8 kHz: its spectrum below 4 kHz.

    numpy does this well enough; importing scipy.signal takes longer than comparing a hundred clips.
    """
    count = len(sound) * RATE // rate
    spectrum = np.fft.rfft(sound[: count * (rate // RATE)])[: count // 2 + 1]
    return np.asarray(np.fft.irfft(spectrum, count) * (RATE / rate), np.float32)
