"""What is true about the demo's videos: words, turns, cuts, faces and the planted defects; read and written as truth.json."""

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
"""How many true face ovals a second are kept; between them they are to be interpolated."""

KEPT = "kept"
"""Fate of a source with nothing wrong; every other fate is the name of its planted defect."""


@dataclass(frozen=True)
class WordTruth:
    """A word that is said, in seconds on the clock of the sound track."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class TurnTruth:
    """A stretch in which one voice speaks, in seconds on the clock of the sound track."""

    voice: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class SourceTruth:
    """What is true about one video file.

    `exact_times` is False where words are true but their times were aligned by a program. `face[i]` is the
    oval (36 points, fractions of width and height) at i / FACE_RATE_HZ seconds; empty where there is no face.
    `shift_ms` is how late the sound is against the picture. `fate` is "kept" or the name of the planted
    defect.
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
    """The whole demo corpus; `digest` names the code and parameters that made it."""

    digest: str
    sources: tuple[SourceTruth, ...]

    @property
    def video_seconds(self) -> float:
        return sum(source.duration_s for source in self.sources)

    def save(self, folder: Path) -> None:
        """Write truth.json into `folder`, by rename."""
        part = folder / f".{TRUTH_NAME}.part"
        part.write_text(json.dumps({"truth_version": TRUTH_VERSION, **asdict(self)}))
        os.replace(part, folder / TRUTH_NAME)

    @staticmethod
    def load(folder: str | Path) -> DemoTruth:
        """Read truth.json from `folder`. Raises UserError where it is missing, damaged or of another version."""
        path = Path(folder) / TRUTH_NAME
        try:
            data = json.loads(path.read_text())
            if data["truth_version"] != TRUTH_VERSION:
                raise KeyError("truth_version")
            return DemoTruth(data["digest"], tuple(source_from_json(s) for s in data["sources"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                "no readable truth about a demo corpus", where=path, hint="build the demo corpus again"
            ) from error


def source_from_json(data: dict[str, Any]) -> SourceTruth:
    """A SourceTruth from the JSON form of `dataclasses.asdict`. Raises KeyError or TypeError where it does not fit."""
    fields = dict(data)
    fields["words"] = tuple(WordTruth(**word) for word in data["words"])
    fields["turns"] = tuple(TurnTruth(**turn) for turn in data["turns"])
    fields["cuts_s"] = tuple(data["cuts_s"])
    fields["face"] = tuple(tuple((x, y) for x, y in oval) for oval in data["face"])
    return SourceTruth(**fields)
