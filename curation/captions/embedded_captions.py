"""Embedded captions: an honest sentence made of a clip's measurements, where no vision model has described it.

In: a row of the clips table. Out: the sentence and the name of what made it. It says only what was measured: nothing
about who the person is, what they wear or where they are. Bounds of the words are our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "measurements-v1"

_LANGUAGES = {
    "en": "English",
    "ru": "Russian",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "zh": "Chinese",
}
_LANGUAGES |= {
    "pt": "Portuguese",
    "ja": "Japanese",
    "ko": "Korean",
    "da": "Danish",
    "nl": "Dutch",
    "ar": "Arabic",
    "hi": "Hindi",
}


def caption(row: Mapping[str, Any]) -> tuple[str, str]:
    """Caption and its model, `measurements-v1`, for a clips row (a mapping of column to value; None = not measured)."""
    parts = [_person(row), _framing(row), _light(row), _sound(row)]
    return " ".join(part for part in parts if part), MODEL


def _between(value: float | None, names: str, *bounds: float) -> str:
    """The name of the interval that holds a value: n + 1 names, comma-separated, for n rising bounds; "" for None."""
    if value is None or value != value:
        return ""
    return names.split(",")[sum(value >= bound for bound in bounds)]


def _person(row: Mapping[str, Any]) -> str:
    several = (row.get("face_count") or 1) >= 1.5
    if not (row.get("transcript") or "").strip():
        seen = (
            "Nobody is"
            if not row.get("face_coverage")
            else "Several people are"
            if several
            else "One person is"
        )
        return f"{seen} seen; no words are heard."
    who = "A voice" if not row.get("face_coverage") else "One of several people" if several else "One person"
    language = _LANGUAGES.get(row.get("language") or "", "an unnamed language")
    pace = _between(row.get("words_per_s"), "slowly,at a calm pace,at a lively pace,fast", 1.5, 2.5, 3.5)
    return f"{who} speaks {f'{language} {pace}'.strip()}."


def _framing(row: Mapping[str, Any]) -> str:
    if not row.get("face_coverage"):
        return ""
    height, whole = row.get("face_height_px"), row.get("height_px")
    share = height / whole if height and whole else None
    shot = _between(share, "a wide shot,a medium shot,a close-up,an extreme close-up", 0.15, 0.35, 0.65)
    gaze = _between(row.get("face_yaw_deg"), "facing the camera,turned slightly aside,turned aside", 12, 30)
    head = _between(
        row.get("face_steadiness"), "the head moves much,the head moves a little,the head is still", 0.9, 0.98
    )
    told = ", ".join(part for part in (shot, gaze, head) if part)
    return told[:1].upper() + told[1:] + "." if told else ""


def _light(row: Mapping[str, Any]) -> str:
    light = _between(row.get("luma"), "dark,dim,evenly lit,bright", 40, 80, 170)
    return f"The picture is {light}." if light else ""


def _sound(row: Mapping[str, Any]) -> str:
    sound = _between(row.get("snr_db"), "noisy,slightly noisy,clear", 8, 18)
    return f"The sound is {sound}." if sound and (row.get("transcript") or "").strip() else ""
