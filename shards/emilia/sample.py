"""Speech without pictures: the sample of Emilia's WebDataset tars, as its publishers made them.

    EN_B00000_S00000_W000000.mp3     one utterance, 3 to 30 s of one voice
    EN_B00000_S00000_W000000.json    id, wav, text, duration (s), speaker, language, dnsmos, and by part of the set phone_count

In: members of a tar. Out: an Utterance at 24 kHz. Source: the dataset card of amphion/Emilia-Dataset.
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
"""How far an mp3 may last from what its json says: encoders pad up to four frames of 1152 samples (our choice)."""


class UtteranceMeta(BaseModel):
    """What training needs of an utterance's json; Emilia's other fields are passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    text: str = Field(min_length=1)
    duration: float = Field(gt=0)
    speaker: str = Field(min_length=1)
    language: str = Field(min_length=1)
    dnsmos: float


@dataclass(frozen=True)
class Utterance:
    """One utterance whole: `waveform` float32 [n] at 24 kHz mono."""

    key: str
    meta: UtteranceMeta
    waveform: np.ndarray


def utterance_from(key: str, members: dict[str, bytes]) -> Utterance:
    """The utterance of a sample's members. Raises UserError of kind `damaged-sample` naming what is missing or unreadable."""
    missing = [name for name in ("mp3", "json") if name not in members]
    if missing:
        raise UserError(f"sample {key} lacks {', '.join(missing)}", kind="damaged-sample")
    meta = meta_from(key, members["json"])
    waveform = decode_mp3(key, members["mp3"])
    lasts = len(waveform) / SAMPLE_RATE
    if abs(lasts - meta.duration) > LENGTH_SLACK_S:
        raise UserError(
            f"sample {key} lasts {lasts:.2f} s, its json says {meta.duration:.2f} s", kind="damaged-sample"
        )
    return Utterance(key, meta, waveform)


def meta_from(key: str, content: bytes) -> UtteranceMeta:
    """The json of a sample. Raises UserError of kind `damaged-sample` naming the first field that is wrong."""
    try:
        return UtteranceMeta.model_validate_json(content)
    except ValidationError as error:
        first: Any = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "json"
        raise UserError(f"sample {key} is damaged: {field}: {first['msg']}", kind="damaged-sample") from error


def decode_mp3(key: str, data: bytes) -> np.ndarray:
    """Sound at any rate as float32 [n] at 24 kHz mono. Raises UserError of kind `damaged-sample`."""
    import numpy as np
    import soundfile

    try:
        sound, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (OSError, RuntimeError, ValueError) as error:  # what soundfile raises for damaged media
        raise UserError(f"sample {key} cannot be decoded: {error}", kind="damaged-sample") from error
    mono = sound.mean(axis=1)
    if rate != SAMPLE_RATE and len(mono):
        from scipy.signal import resample_poly

        common = gcd(rate, SAMPLE_RATE)
        mono = resample_poly(mono, SAMPLE_RATE // common, rate // common)
    if not np.isfinite(mono).all():
        raise UserError(f"sample {key} decodes to sound that is not finite", kind="damaged-sample")
    return mono.astype(np.float32)
