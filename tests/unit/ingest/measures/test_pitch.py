"""Pitch: planted voices are found to within a per cent, noise has none, and a voice played faster is as much higher."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from uniavgen.ingest.measures.pitch import fundamental, pitch_hz
from uniavgen.ingest.records import AUDIO_RATE


def hum(hertz: float, seconds: float = 2.0, noise: float = 0.0) -> np.ndarray:
    """A voice-like sound: a row of harmonics that fall by 6 dB an octave, through one formant at 600 Hz."""
    at = np.arange(int(seconds * AUDIO_RATE)) / AUDIO_RATE
    parts = [
        np.sin(2 * np.pi * hertz * k * at + k) / k * np.exp(-(((hertz * k - 600) / 500) ** 2))
        for k in range(1, 25)
    ]
    wave = np.sum(parts, axis=0) + 0.05 * np.sin(2 * np.pi * hertz * at)
    wave = wave / np.abs(wave).max() + noise * np.random.default_rng(0).standard_normal(len(at))
    return (np.clip(0.4 * wave, -1, 1) * 32767).astype(np.int16)


@pytest.mark.parametrize("hertz", [75.0, 110.0, 147.0, 210.0, 260.0, 330.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_planted_pitch_is_found(hertz: float, noise: float) -> None:
    assert pitch_hz(hum(hertz, noise=noise)) == pytest.approx(hertz, rel=0.01)


def test_noise_silence_and_next_to_nothing_have_no_pitch() -> None:
    noise = (np.random.default_rng(1).standard_normal(AUDIO_RATE * 2) * 4000).astype(np.int16)
    assert pitch_hz(noise) is None
    assert pitch_hz(np.zeros(AUDIO_RATE, np.int16)) is None
    assert pitch_hz(np.zeros(10, np.int16)) is None


def test_pauses_do_not_count() -> None:
    sound = np.concatenate([hum(120), np.zeros(AUDIO_RATE, np.int16), hum(120)])
    found = fundamental(sound)
    assert pitch_hz(sound) == pytest.approx(120, rel=0.01)
    assert np.isnan(found[110:140]).all()


def test_real_speech_played_a_quarter_faster_is_a_quarter_higher() -> None:
    import soundfile
    from scipy.signal import resample_poly

    package = find_spec("pyannote.audio")  # only its data is wanted
    assert package is not None
    assert package.origin is not None
    speech, rate = soundfile.read(Path(package.origin).parent / "sample" / "sample.wav", dtype="int16")
    assert rate == AUDIO_RATE
    speech = speech[8 * rate : 12 * rate]
    plain = pitch_hz(speech)
    faster = pitch_hz(resample_poly(speech.astype(np.float64), 4, 5).astype(np.int16))
    assert plain is not None
    assert faster == pytest.approx(1.25 * plain, rel=0.04)
    assert 70 < plain < 300
