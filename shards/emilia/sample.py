"""One utterance of the Emilia dataset, from the members of its WebDataset tars.

    EN_B00000_S00000_W000000.mp3     one utterance, 3 to 30 s of one speaker
    EN_B00000_S00000_W000000.json    id, wav, text, duration (s), speaker, language, dnsmos, ...

Source: the dataset card of amphion/Emilia-Dataset.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import SAMPLE_RATE

if TYPE_CHECKING:
    import numpy as np

LENGTH_SLACK_S = 0.25
"""Largest difference in length between mp3 and json. Heuristic: encoders pad up to 4 frames of 1152
samples."""


class UtteranceMeta(BaseModel):
    """The fields of an utterance's json that training needs. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    text: str = Field(min_length=1)
    duration: float = Field(gt=0)
    speaker: str = Field(min_length=1)
    language: str = Field(min_length=1)
    dnsmos: float


@dataclass(frozen=True)
class Utterance:
    """One decoded utterance: `waveform` float32 [n] at 24 kHz mono."""

    key: str
    meta: UtteranceMeta
    waveform: np.ndarray


def utterance_from(key: str, members: dict[str, bytes]) -> Utterance:
    """Decode an utterance. Raises UserError of kind `damaged-sample` that names the faulty part."""
    missing = [name for name in ("mp3", "json") if name not in members]
    if missing:
        raise UserError(f"sample {key} lacks {', '.join(missing)}", kind="damaged-sample")
    meta = meta_from(key, members["json"])
    waveform = decode_mp3(key, members["mp3"])
    seconds = len(waveform) / SAMPLE_RATE
    if abs(seconds - meta.duration) > LENGTH_SLACK_S:
        raise UserError(
            f"sample {key} has {seconds:.2f} s, but {meta.duration:.2f} s in its json", kind="damaged-sample"
        )
    return Utterance(key, meta, waveform)


def meta_from(key: str, content: bytes) -> UtteranceMeta:
    """Parse the json of an utterance. Raises UserError of kind `damaged-sample` that names a wrong field."""
    try:
        return UtteranceMeta.model_validate_json(content)
    except ValidationError as error:
        first: Any = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "json"
        raise UserError(f"sample {key} is damaged: {field}: {first['msg']}", kind="damaged-sample") from error


def decode_mp3(key: str, data: bytes) -> np.ndarray:
    """Decode audio of any rate to float32 [n] at 24 kHz mono. Raises UserError of kind `damaged-sample`."""
    import numpy as np
    import soundfile

    try:
        audio, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (OSError, RuntimeError, ValueError) as error:  # what soundfile raises for damaged media
        raise UserError(f"sample {key} cannot be decoded: {error}", kind="damaged-sample") from error
    mono = audio.mean(axis=1)
    if rate != SAMPLE_RATE and len(mono):
        from scipy.signal import resample_poly

        common = gcd(rate, SAMPLE_RATE)
        mono = resample_poly(mono, SAMPLE_RATE // common, rate // common)
    if not np.isfinite(mono).all():
        raise UserError(f"sample {key} has NaN or Inf audio", kind="damaged-sample")
    return mono.astype(np.float32)
