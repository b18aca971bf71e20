"""Make Emilia tars of tones; the pitch identifies the utterance."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Spoken(NamedTuple):
    """An utterance: a tone of `hz` and `seconds`. `changes` replace json fields; None removes one."""

    key: str
    speaker: str
    hz: float
    seconds: float
    language: str = "en"
    dnsmos: float = 3.4
    rate: int = 24_000
    text: str = "one two three"
    changes: dict[str, Any] | None = None


def members_of(spoken: Spoken) -> dict[str, bytes]:
    """The mp3 and the json, in the order of Emilia's tars."""
    import soundfile

    time = np.arange(round(spoken.seconds * spoken.rate)) / spoken.rate
    audio = io.BytesIO()
    soundfile.write(audio, 0.5 * np.sin(2 * np.pi * spoken.hz * time), spoken.rate, format="MP3")
    meta = {
        "id": spoken.key,
        "wav": f"{spoken.key}.mp3",
        "text": spoken.text,
        "duration": spoken.seconds,
        "speaker": spoken.speaker,
        "language": spoken.language,
        "dnsmos": spoken.dnsmos,
        "phone_count": 9,
    } | (spoken.changes or {})
    meta = {name: value for name, value in meta.items() if value is not None}
    return {"mp3": audio.getvalue(), "json": json.dumps(meta).encode()}


def write_emilia(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    """Write a tar of samples: key to members by extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_spoken(path: Path, spoken: list[Spoken]) -> Path:
    return write_emilia(path, {entry.key: members_of(entry) for entry in spoken})
