"""Captions from measurements."""

from collections.abc import Callable
from typing import Any

from uniavgen.curation.captions.embedded_captions import MODEL, caption_from_measurements

Make = Callable[..., Any]


def test_caption_states_measurements_and_model_name(make_clip: Make) -> None:
    text, model = caption_from_measurements(make_clip("s", 0.0, "a"))
    assert model == MODEL == "measurements-v1"
    assert text == (
        "One person speaks English at a lively pace. A close-up, facing the camera, the head is still. "
        "The picture is evenly lit. The sound is clear."
    )


def test_caption_omits_missing_measurements(make_clip: Make) -> None:
    blank = make_clip("s", 0.0, "a")
    blank = {name: None if isinstance(value, float) else value for name, value in blank.items()}
    assert caption_from_measurements({**blank, "transcript": ""})[0] == "Nobody is seen; no words are heard."
    assert (
        caption_from_measurements({**blank, "face_coverage": 1.0, "snr_db": float("nan")})[0]
        == "One person speaks English."
    )
