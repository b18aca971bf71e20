"""Each measurement of sound moves the right way, and monotonically, under a planted degradation of real speech."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.signal import butter, resample_poly, sosfilt

from uniavgen.ingest.config import SoundQualityConfig
from uniavgen.ingest.measures.sound_quality import (
    DNSMOS_SAMPLES,
    SILENCE_DB,
    SOUND_SIGNALS,
    SoundMeter,
    bandwidth_hz,
    clipped_ratio,
    level_db,
    silence_ratio,
    snr_db,
)
from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.corpus.signals import SIGNALS


@pytest.fixture(scope="module")
def meter() -> SoundMeter:
    return SoundMeter(SoundQualityConfig())


@pytest.fixture(scope="module")
def reading() -> np.ndarray:
    """Six seconds of the recorded reading, float at 16 kHz, half of full scale."""
    import soundfile

    from uniavgen.shards.weights import resolve

    waveform, rate = soundfile.read(resolve("two-cities") / "two_cities.wav", dtype="float32")
    waveform = resample_poly(waveform[rate : 7 * rate], AUDIO_RATE, rate)
    return np.asarray(0.5 * waveform / np.abs(waveform).max())


def as_pcm(sound: np.ndarray) -> np.ndarray:
    return (sound * 32768).clip(-32768, 32767).astype(np.int16)


def falls(values: Sequence[float | None]) -> bool:
    return all(a > b for a, b in itertools.pairwise(values))  # type: ignore[operator]


def test_noise_lowers_snr_and_every_opinion(meter: SoundMeter, reading: np.ndarray) -> None:
    noise = np.random.default_rng(0).standard_normal(len(reading))
    found = [meter.signals(as_pcm(reading + level * noise)) for level in (0.0, 0.01, 0.03, 0.1)]
    assert set(found[0]) == set(SOUND_SIGNALS) <= set(SIGNALS)
    for name in ("snr_db", "dnsmos_overall", "dnsmos_signal", "dnsmos_background"):
        assert falls([signals[name] for signals in found]), name
    assert found[0]["dnsmos_overall"] > 2.8  # type: ignore[operator]
    assert found[-1]["dnsmos_overall"] < 1.6  # type: ignore[operator]


def test_clipping_raises_its_ratio_and_lowers_the_opinion(meter: SoundMeter, reading: np.ndarray) -> None:
    found = [meter.signals(as_pcm(reading * gain)) for gain in (1, 4, 12, 40)]
    assert found[0]["clipping_ratio"] == 0
    assert falls([-signals["clipping_ratio"] for signals in found])  # type: ignore[operator]
    assert falls([signals["dnsmos_overall"] for signals in found])
    assert falls([-signals["loudness_db"] for signals in found])  # type: ignore[operator]


def test_muffling_lowers_the_opinion_of_the_speech(meter: SoundMeter, reading: np.ndarray) -> None:
    muffled = [
        sosfilt(butter(8, edge, fs=AUDIO_RATE, output="sos"), reading) for edge in (7000, 2500, 1200, 600)
    ]
    assert falls([meter.signals(as_pcm(sound))["dnsmos_signal"] for sound in muffled])


def test_gaps_raise_the_silence_ratio_by_what_they_take(reading: np.ndarray) -> None:
    found = []
    for share in (0.0, 0.1, 0.3, 0.6):
        cells = reading.copy().reshape(10, -1)
        cells[:, : round(share * cells.shape[1])] = 0
        found.append(silence_ratio(as_pcm(cells.ravel())))
    assert falls([-ratio for ratio in found if ratio is not None])
    assert found[-1] == pytest.approx(0.6 + 0.4 * found[0], abs=0.1)  # type: ignore[operator]


def test_the_level_of_a_clip_does_not_change_what_counts_as_silent(reading: np.ndarray) -> None:
    assert silence_ratio(as_pcm(reading)) == pytest.approx(silence_ratio(as_pcm(reading * 0.1)), abs=0.02)


def test_bandwidth_follows_a_low_pass_at_the_source_s_own_rate() -> None:
    import soundfile

    from uniavgen.shards.weights import resolve

    waveform, rate = soundfile.read(resolve("two-cities") / "two_cities.wav", dtype="float32")
    waveform = waveform[: 8 * rate]
    found = []
    for edge in (6500, 4500, 3000, 1500):
        found.append(bandwidth_hz(as_pcm(sosfilt(butter(16, edge, fs=rate, output="sos"), waveform)), rate))
        assert edge <= found[-1] <= 1.6 * edge  # type: ignore[operator]
    assert falls(found)
    # the reading was enlarged from 16 kHz; what stands above is the dither of that
    assert 7000 <= bandwidth_hz(as_pcm(waveform), rate) <= 8250  # type: ignore[operator]
    upsampled = resample_poly(resample_poly(waveform, 1, 6), 6, 1)
    assert bandwidth_hz(as_pcm(upsampled), rate) == pytest.approx(4000, abs=750)


def test_hiss_alone_has_no_bandwidth_and_less_than_a_second_none_to_tell() -> None:
    hiss = np.random.default_rng(0).standard_normal(96_000)
    assert bandwidth_hz(as_pcm(0.1 * hiss), 48_000) == 0
    assert bandwidth_hz(np.zeros(96_000, np.int16), 48_000) == 0
    assert bandwidth_hz(as_pcm(hiss[:1000]), 48_000) is None


def test_a_short_clip_is_repeated_and_a_long_one_is_heard_throughout(
    meter: SoundMeter, reading: np.ndarray
) -> None:
    short = as_pcm(reading[: 3 * AUDIO_RATE])
    by_hand = np.tile(short, 4)[:DNSMOS_SAMPLES]
    assert meter.signals(short)["dnsmos_overall"] == pytest.approx(meter.signals(by_hand)["dnsmos_overall"])
    clean = np.tile(reading, 2)[: 11 * AUDIO_RATE]
    spoilt = clean.copy()
    spoilt[10 * AUDIO_RATE :] += 0.2 * np.random.default_rng(0).standard_normal(AUDIO_RATE)
    assert meter.signals(as_pcm(spoilt))["dnsmos_overall"] < meter.signals(as_pcm(clean))["dnsmos_overall"]  # type: ignore[operator]


def test_silence_and_no_sound_are_told_as_what_they_are(meter: SoundMeter) -> None:
    assert meter.signals(np.zeros(0, np.int16)) == dict.fromkeys(SOUND_SIGNALS)
    silent = meter.signals(np.zeros(2 * AUDIO_RATE, np.int16))
    assert (silent["loudness_db"], silent["silence_ratio"], silent["clipping_ratio"]) == (SILENCE_DB, 1, 0)
    assert silent["dnsmos_overall"] is None


def test_a_full_scale_square_wave_is_at_0_db_and_a_tenth_at_minus_20() -> None:
    square = np.where(np.arange(16_000) % 100 < 50, 1.0, -1.0)
    assert level_db(as_pcm(square)) == pytest.approx(0, abs=0.01)
    assert level_db(as_pcm(square / 10)) == pytest.approx(-20, abs=0.01)
    assert level_db(np.zeros(0, np.int16)) is None


def test_snr_is_what_was_planted() -> None:
    times = np.arange(48_000) / AUDIO_RATE
    bursts = 0.1 * np.random.default_rng(0).standard_normal(len(times)) * (np.sin(4 * np.pi * times) > -0.2)
    noise = np.random.default_rng(1).standard_normal(len(times))
    for level in (0.003, 0.01, 0.03):
        assert snr_db(as_pcm(bursts + level * noise)) == pytest.approx(20 * np.log10(0.1 / level), abs=3)


def test_a_lone_peak_is_no_clipping() -> None:
    lone = np.zeros(1000, np.int16)
    lone[500] = 32767
    assert clipped_ratio(lone) == 0
    lone[501] = 32767
    assert clipped_ratio(lone) == pytest.approx(0.002)
