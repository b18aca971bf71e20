"""The truth about the demo's videos (words, turns, cuts, faces, planted defects), stored as truth.json."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uniavgen.shards.errors import UserError

TRUTH_NAME = "truth.json"
TRUTH_VERSION = 1
FACE_RATE_HZ = 10.0
"""Stored face ovals per second; interpolate linearly between them."""

KEPT = "kept"
"""Fate of a good video. Every other fate is the name of a planted defect."""


@dataclass(frozen=True)
class WordTruth:
    """A spoken word; times in seconds from the start of the video."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class TurnTruth:
    """A turn of one voice; times in seconds from the start of the video."""

    voice: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class SourceTruth:
    """The truth about one video file.

    `exact_times` is False if the times of the words were aligned by a program. `face[i]` is the face oval (36
    points, fractions of width and height) at i / FACE_RATE_HZ seconds; empty without a face. `shift_ms` is
    the delay of the audio. `fate` is "kept" or the name of the planted defect.
    """

    name: str
    bytes: int
    duration_s: float
    fps: float
    width: int
    height: int
    words: tuple[WordTruth, ...]
    exact_times: bool
    turns: tuple[TurnTruth, ...]
    cuts_s: tuple[float, ...]
    face: tuple[tuple[tuple[float, float], ...], ...]
    shift_ms: float
    fate: str

    @property
    def good(self) -> bool:
        return self.fate == KEPT

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True)
class DemoTruth:
    """The truth about the demo corpus; `digest` identifies the code and the specs that made it."""

    digest: str
    sources: tuple[SourceTruth, ...]

    @property
    def video_seconds(self) -> float:
        return sum(source.duration_s for source in self.sources)

    def save(self, folder: Path) -> None:
        """Write truth.json into `folder`, by rename."""
        unfinished = folder / f".{TRUTH_NAME}.part"
        unfinished.write_text(json.dumps({"truth_version": TRUTH_VERSION, **asdict(self)}))
        os.replace(unfinished, folder / TRUTH_NAME)

    @staticmethod
    def load(folder: str | Path) -> DemoTruth:
        """Read truth.json. Raises UserError if it is missing, damaged or of another version."""
        path = Path(folder) / TRUTH_NAME
        try:
            data = json.loads(path.read_text())
            if data["truth_version"] != TRUTH_VERSION:
                raise KeyError("truth_version")
            return DemoTruth(data["digest"], tuple(source_from_json(s) for s in data["sources"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                "the truth of the demo corpus cannot be read", where=path, hint="build the demo corpus again"
            ) from error


def source_from_json(data: dict[str, Any]) -> SourceTruth:
    """A SourceTruth from `dataclasses.asdict` in JSON. Raises KeyError or TypeError for anything else."""
    fields = dict(data)
    fields["words"] = tuple(WordTruth(**word) for word in data["words"])
    fields["turns"] = tuple(TurnTruth(**turn) for turn in data["turns"])
    fields["cuts_s"] = tuple(data["cuts_s"])
    fields["face"] = tuple(tuple((x, y) for x, y in oval) for oval in data["face"])
    return SourceTruth(**fields)
