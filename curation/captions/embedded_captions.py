"""Captions from measurements, for clips that no vision-language model has captioned.

A caption says only what was measured: nothing about who the person is, what they wear or where they are. The
bounds between words are heuristics.
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
    "pt": "Portuguese",
    "ja": "Japanese",
    "ko": "Korean",
    "da": "Danish",
    "nl": "Dutch",
    "ar": "Arabic",
    "hi": "Hindi",
}


def caption_from_measurements(row: Mapping[str, Any]) -> tuple[str, str]:
    """Caption and its model name, `measurements-v1`, of a row of the clips table (None: not measured)."""
    parts = [_person(row), _framing(row), _light(row), _audio(row)]
    return " ".join(part for part in parts if part), MODEL


def _interval_name(value: float | None, names: str, *bounds: float) -> str:
    """The name of the interval with this value: n + 1 comma-separated names for n rising bounds; "" if not
    measured.
    """
    if value is None or value != value:
        return ""
    return names.split(",")[sum(value >= bound for bound in bounds)]


def _person(row: Mapping[str, Any]) -> str:
    several = (row.get("face_count") or 1) >= 1.5
    if not (row.get("transcript") or "").strip():
        subject = "Several people are" if several else "One person is"
        return f"{subject if row.get('face_coverage') else 'Nobody is'} seen; no words are heard."
    speaker = "One of several people" if several else "One person"
    who = speaker if row.get("face_coverage") else "A voice"
    language = _LANGUAGES.get(row.get("language") or "", "an unnamed language")
    pace = _interval_name(
        row.get("words_per_s"), "slowly,at a calm pace,at a lively pace,fast", 1.5, 2.5, 3.5
    )
    return f"{who} speaks {f'{language} {pace}'.strip()}."


def _framing(row: Mapping[str, Any]) -> str:
    if not row.get("face_coverage"):
        return ""
    face_height, height = row.get("face_height_px"), row.get("height_px")
    share = face_height / height if face_height and height else None
    shot = _interval_name(share, "a wide shot,a medium shot,a close-up,an extreme close-up", 0.15, 0.35, 0.65)
    gaze = _interval_name(
        row.get("face_yaw_deg"), "facing the camera,turned slightly aside,turned aside", 12, 30
    )
    head = _interval_name(
        row.get("face_steadiness"), "the head moves much,the head moves a little,the head is still", 0.9, 0.98
    )
    sentence = ", ".join(part for part in (shot, gaze, head) if part)
    return sentence[:1].upper() + sentence[1:] + "." if sentence else ""


def _light(row: Mapping[str, Any]) -> str:
    light = _interval_name(row.get("luma"), "dark,dim,evenly lit,bright", 40, 80, 170)
    return f"The picture is {light}." if light else ""


def _audio(row: Mapping[str, Any]) -> str:
    sound = _interval_name(row.get("snr_db"), "noisy,slightly noisy,clear", 8, 18)
    return f"The sound is {sound}." if sound and (row.get("transcript") or "").strip() else ""
