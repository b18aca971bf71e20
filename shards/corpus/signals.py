"""The signals of a clip: one numeric column per measurement, with unit, meaning and ingest step.

Ingest fills the columns, curation policies judge them, the report explains them. A new signal is two edits: a
row here, and the function of the ingest step that computes it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signal:
    """One measurement of a clip. `step` names the ingest step whose result it is computed from.

    An `added` signal is newer than release 0.3.0: samples leave it out where it was not measured, so the
    shards of an older corpus stay as they are.
    """

    unit: str
    meaning: str
    step: str
    added: bool = False


SIGNALS: dict[str, Signal] = {
    "has_audio": Signal("0 or 1", "1 if the source has an audio track", "probe"),
    "duration_s": Signal("s", "length of the clip", "propose"),
    "width_px": Signal("px", "width of the source's frames", "probe"),
    "height_px": Signal("px", "height of the source's frames", "probe"),
    "fps": Signal("frames/s", "frame rate of the source", "probe"),
    "speech_ratio": Signal("0..1", "share of the clip in which its speaker speaks", "diarize"),
    "overlap_ratio": Signal("0..1", "share of the clip in which another speaker speaks too", "diarize"),
    "speaker_count": Signal("speakers", "number of speakers heard in the clip", "diarize"),
    "word_count": Signal(
        "words",
        "number of whole words spoken in the clip; in scripts without spaces an estimate from the letters",
        "transcribe",
    ),
    "words_per_s": Signal("words/s", "speaking rate", "transcribe"),
    "word_score": Signal("0..1", "mean confidence of the words", "transcribe"),
    "language_probability": Signal("0..1", "confidence of the detected language", "transcribe"),
    "asr_log_probability": Signal("nats", "mean log-probability of the transcript's tokens", "transcribe"),
    "no_speech_probability": Signal("0..1", "Whisper's probability that nobody speaks", "transcribe"),
    "asr_compression_ratio": Signal(
        "ratio",
        "size of the transcript over its compressed size; a high value means repeated text",
        "transcribe",
    ),
    "repeated_ratio": Signal(
        "0..1",
        "share of the words in a phrase that is repeated at once, a typical error of speech recognition",
        "transcribe",
    ),
    "stock_phrase": Signal(
        "0 or 1",
        "1 if the transcript is a sentence that speech recognition is known to invent in silence",
        "transcribe",
    ),
    "unvoiced_word_ratio": Signal(
        "0..1", "share of the words' time in which no speaker is heard", "transcribe"
    ),
    "face_coverage": Signal("0..1", "share of the analysed frames with at least one face", "faces"),
    "face_count": Signal(
        "faces", "largest number of faces visible together in at least a fifth of the frames", "faces"
    ),
    "face_height_px": Signal("px", "median height of the main face at the source's resolution", "faces"),
    "face_yaw_deg": Signal("deg", "median absolute yaw of the main face", "faces"),
    "face_pitch_deg": Signal("deg", "median absolute pitch of the main face", "faces"),
    "face_roll_deg": Signal("deg", "median absolute roll of the main face", "faces"),
    "face_lock_ratio": Signal(
        "0..1",
        "share of the frames with landmarks in which the detector confirms that they lie on a face",
        "faces",
    ),
    "face_steadiness": Signal(
        "0..1", "1 minus the face's movement between frames, relative to its height", "faces"
    ),
    "face_score": Signal("0..1", "median confidence of the face detector for the main face", "faces"),
    "mouth_motion": Signal(
        "1/s", "mean absolute change of the mouth opening, relative to the face height", "faces"
    ),
    "active_face_confidence": Signal(
        "0..1",
        "confidence that the main face is the speaker; 0.5: its mouth fits the audio better than 95 % of the "
        "mouths of people who do not speak it",
        "sync",
    ),
    "active_face_margin": Signal(
        "-1..1", "fit of the main face to the audio minus that of the best other face", "sync"
    ),
    "sync_offset_ms": Signal(
        "ms", "delay of the audio against the lips; positive: the audio is late", "sync"
    ),
    "sync_confidence": Signal(
        "0..1",
        "confidence of the offset; 0.5: the lips fit the audio better than 98 % of unrelated audio; "
        "below, the offset is unknown",
        "sync",
    ),
    "syncnet_confidence": Signal(
        "score", "SyncNet's confidence (LSE-C), only if SyncNet is configured", "sync"
    ),
    "syncnet_distance": Signal(
        "score", "SyncNet's distance (LSE-D, lower is better), only if SyncNet is configured", "sync"
    ),
    "snr_db": Signal("dB", "speech level over background level", "listen"),
    "dnsmos_overall": Signal(
        "1..5", "DNSMOS P.835: estimated listener rating of the audio quality", "listen"
    ),
    "dnsmos_signal": Signal("1..5", "DNSMOS P.835: quality of the speech", "listen"),
    "dnsmos_background": Signal("1..5", "DNSMOS P.835: background noise; 5 means none is noticed", "listen"),
    "silence_ratio": Signal(
        "0..1", "share of the clip in which the audio is 40 dB or more below its loudest second", "listen"
    ),
    "bandwidth_hz": Signal("Hz", "highest frequency at which the source's audio has energy", "listen"),
    "loudness_db": Signal("dBFS", "RMS level of the audio", "listen"),
    "clipping_ratio": Signal("0..1", "share of audio samples at full scale", "listen"),
    "pitch_hz": Signal("Hz", "median fundamental frequency of the voice", "listen"),
    "luma": Signal("0..255", "mean brightness", "picture"),
    "sharpness": Signal(
        "variance", "variance of the Laplacian of the main face, scaled to a height of 128 px", "faces"
    ),
    "motion": Signal("0..255", "mean absolute change from frame to frame", "picture"),
    "bits_per_pixel": Signal("bit", "the source's video bit rate over its pixels per second", "probe"),
    "text_ratio": Signal("0..1", "share of the frame covered by burned-in text", "text"),
    "interlaced_ratio": Signal(
        "0..1", "share of the source's frames with comb artefacts of interlacing", "probe"
    ),
    "hdr": Signal(
        "0 or 1",
        "1 if the source has high dynamic range (PQ or HLG), which was tone-mapped",
        "probe",
        added=True,
    ),
    "channel_correlation": Signal(
        "-1..1",
        "correlation of the source's left and right audio channel; -1: they are in opposite phase",
        "probe",
        added=True,
    ),
    "black_ratio": Signal("0..1", "share of frames that are nearly black", "picture"),
    "frozen_ratio": Signal("0..1", "share of frames equal to the frame before", "picture"),
}
"""Every signal column of the clips table, in column order."""

SYNC_CURVE_STEP_MS = 10
"""Distance in ms between the values of `clips.sync_curve`: the fit of lips to audio at every shift. The
middle value is the fit at 0 ms."""


def signals_of(step: str) -> tuple[str, ...]:
    """Names of the signals that an ingest step measures, in column order.

    Raises ValueError for a step that measures none.
    """
    names = tuple(name for name, signal in SIGNALS.items() if signal.step == step)
    if not names:
        raise ValueError(f"no signal is measured by the step {step!r}")
    return names
