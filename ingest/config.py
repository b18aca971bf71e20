"""Configuration of ingest. Imports nothing heavy, so that the command line can read it quickly.

Sections that change results are part of the step keys (`engine.step`); `sources`, `limits`, `pools`, `device`
and the commit settings are not.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PACKAGED, ON_PATH = "packaged", "path"
"""Values of `limits.ffmpeg`: the pinned ffmpeg of the imageio-ffmpeg wheel, the first one on PATH."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SourceConfig(_Section):
    """Where videos may come from, and what downloading them may cost."""

    allow_http: bool = Field(False, description="also read http(s) URLs")
    cache_gb: float = Field(
        50.0, gt=0, description="size of the run's download cache, in GiB; it lies on the corpus's disk"
    )
    audio_track: str = Field(
        "",
        description="audio track of files with several: a language (`en`, `eng`) or a number from 0; empty: "
        "the one that the file marks as default",
    )
    source_gb: float = Field(20.0, gt=0, description="largest remote source, in GiB")
    fetch_seconds: float = Field(
        3600.0, gt=0, description="time limit of one download, including the wait for space in the cache"
    )


class LimitConfig(_Section):
    """Limits of one source, and the program that works within them. A source beyond a limit becomes a failure
    row that names the limit.
    """

    probe_seconds: float = Field(20.0, gt=0, description="time limit of opening a file")
    decode_seconds: float = Field(
        60.0, gt=0, description="time limit of a decoder, plus `decode_factor` x duration"
    )
    decode_factor: float = Field(10.0, ge=0, description="seconds of decoding per second of video")
    memory_gb: float = Field(4.0, gt=0, description="address space of a decoder process, in GiB")
    max_pixels: int = Field(40_000_000, gt=0, description="largest frame, in pixels (8K is 33 M)")
    max_duration_s: float = Field(4 * 3600.0, gt=0, description="longest source, in seconds")
    step_seconds: float = Field(
        300.0, gt=0, description="time limit of one step, plus `step_factor` x duration"
    )
    step_factor: float = Field(20.0, ge=0, description="seconds of a step per second of video")
    step_memory_gb: float = Field(
        8.0, gt=0, description="resident memory of a worker, in GiB; beyond it the worker is ended"
    )
    decoder_threads: int = Field(2, ge=1, description="threads of one decoder process")
    ffmpeg: str = Field(
        PACKAGED,
        min_length=1,
        description="program that decodes and cuts: `packaged` (the pinned one), `path` (the first on PATH), "
        "or a file; another version than the pinned one cuts all clips again",
    )


class ShotConfig(_Section):
    """Shot boundaries by TransNetV2, or by PySceneDetect at a hundredth of the cost (hard cuts only)."""

    detector: Literal["transnetv2", "scenedetect"] = Field("transnetv2", description="shot detector")
    fps: int = Field(
        25,
        ge=5,
        le=60,
        description="frames per second of the detector's input (TransNetV2 was trained near 25)",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="TransNetV2: cut probability (its default)")
    quiet_ratio: float = Field(
        2.5,
        ge=0,
        description="TransNetV2: smallest sudden change of a cut, over the usual one; 0: check every frame",
    )
    quiet_drift: float = Field(
        12.0, ge=0, description="TransNetV2: smallest change over half a second of a dissolve, of 255"
    )
    quiet_blend: float = Field(
        0.15,
        ge=0,
        le=1,
        description="TransNetV2: largest distance of a dissolve from a linear blend of its ends",
    )
    adaptive_threshold: float = Field(
        3.0,
        gt=0,
        description="PySceneDetect: ratio of a cut's change to the mean change around it (its default)",
    )
    content_threshold: float = Field(
        15.0,
        gt=0,
        description="PySceneDetect: smallest change in hue, saturation and brightness (its default)",
    )


class DiarizationConfig(_Section):
    """Speaker turns by pyannote.audio: segmentation, ECAPA speaker embeddings, agglomerative clustering."""

    model: str = Field(
        "embedded",
        description="`embedded`, or a pyannote pipeline by folder or name "
        "(pyannote/speaker-diarization-community-1; HF_TOKEN)",
    )
    ecapa_folder: str = Field("", description="folder with embedding_model.ckpt; empty: download")
    piece_s: float = Field(
        300.0, ge=10, description="longer sources are diarized in chunks of at most this length"
    )
    segmentation_threshold: float = Field(
        0.5, gt=0, lt=1, description="speech probability at which a turn starts"
    )
    segmentation_step: float = Field(0.1, gt=0, le=1, description="hop of the 5 s window, as a share of it")
    voice_stride: int = Field(
        3,
        ge=1,
        le=10,
        description="embed voices in every n-th window, match the others by overlap (1: twice the cost)",
    )
    cluster_threshold: float = Field(
        0.60, gt=0, lt=2, description="cosine distance; results are stable over 0.50-0.60"
    )
    min_voice_s: float = Field(
        4.0,
        ge=0,
        description="speakers with less speech than this join the nearest one; results are stable over 1-4",
    )
    voice_seconds: float = Field(3.0, ge=0.5, description="speech per embedding (ECAPA's training length)")
    batch_size: int = Field(
        4, ge=1, description="windows per segmentation batch, voices per embedding batch (more on a GPU)"
    )


class TranscriptionConfig(_Section):
    """Words by WhisperX (Whisper in CTranslate2), word times by forced alignment."""

    model: str = Field(
        "whisper-base",
        description="`whisper-base`, a folder with a CTranslate2 model, or a WhisperX model name",
    )
    language: str | None = Field(None, description="language code; empty: detect it for each source")
    compute_type: str = Field("int8", description="CTranslate2 number format: int8 on CPUs, float16 on GPUs")
    beam_size: int = Field(5, ge=1, description="beam size (WhisperX's default)")
    chunk_seconds: float = Field(
        28.0, gt=1, le=30, description="longest chunk that Whisper transcribes at once"
    )
    encoder_pad_s: float = Field(
        10.0,
        ge=0,
        le=30,
        description="silence added after a chunk for the encoder; 30: always Whisper's full 30 s",
    )
    align_model: str = Field(
        "pocketsphinx",
        description="word times: `pocketsphinx` (English), `whisperx` (its model per language), "
        "or a wav2vec2 folder or name",
    )
    spell_numbers: bool = Field(True, description="write numbers as words, as they are spoken")


class FaceConfig(_Section):
    """Faces by MediaPipe FaceLandmarker on the analysis frame, confirmed by MediaPipe's face detector."""

    landmarker_folder: str = Field("", description="folder with face_landmarker.task; empty: download")
    analysis_side: int = Field(
        512, ge=128, le=2048, description="longest side of the analysis frame, in pixels"
    )
    max_faces: int = Field(4, ge=1, le=16, description="faces with landmarks per frame")
    detection_confidence: float = Field(0.5, ge=0, le=1, description="thresholds of the landmarker")
    agreement_iou: float = Field(
        0.25, ge=0, le=1, description="overlap with a face of the detector that confirms a landmarked face"
    )
    agreement_distance: float = Field(
        0.3,
        gt=0,
        description="and the largest mean distance of eyes, nose and mouth, over the face height",
    )
    turn_limit_deg: float = Field(
        70.0,
        gt=0,
        le=90,
        description="largest turn from the camera; beyond it half of the landmarks are guesses",
    )
    confirm_every: int = Field(4, ge=1, description="frames between two confirmations of a track")
    track_iou: float = Field(0.3, ge=0, le=1, description="overlap that joins faces of neighbouring frames")
    track_gap: int = Field(4, ge=0, description="frames that a track may miss")
    tile_confidence: float = Field(
        0.6,
        ge=0,
        le=1,
        description="confidence of a small face in a tile; lower values accept badges as faces",
    )
    tile_every: int = Field(8, ge=0, description="search small faces in tiles on every n-th frame; 0: never")
    vectors: Literal["dlib", "sface", "none"] = Field(
        "dlib", description="face embedding model; `none` leaves the column empty"
    )
    vectors_folder: str = Field("", description="folder with the embedding model's file; empty: download")


class TextConfig(_Section):
    """Burned-in text by PP-OCRv4's text detector (differentiable binarisation, arXiv 1911.08947)."""

    folder: str = Field("", description="folder with text_detector.onnx; empty: download")
    every_s: float = Field(
        2.0, gt=0, description="seconds between analysed frames; the shortest clip's length"
    )
    pixel_probability: float = Field(
        0.3, gt=0, lt=1, description="probability at which a pixel is text (PP-OCR's default)"
    )
    box_probability: float = Field(
        0.5, gt=0, lt=1, description="mean probability in a text box (RapidOCR's default)"
    )
    box_growth: float = Field(
        1.6, ge=0, description="growth of boxes over the shrunk text in them (PP-OCR's default)"
    )


class SoundQualityConfig(_Section):
    """Audio quality by DNSMOS P.835 and by signal measurements."""

    dnsmos_folder: str = Field("", description="folder with sig_bak_ovr.onnx; empty: download")
    bandwidth_seconds: float = Field(
        60.0, gt=1, description="length of audio from which the source's bandwidth is measured"
    )


class SyncConfig(_Section):
    """Lip sync: the offset between audio and lips, and which face speaks."""

    model: Literal["embedded", "syncnet"] = Field(
        "embedded",
        description="`embedded`: lip opening against loudness, no weights; `syncnet`: its published weights",
    )
    syncnet_weights: str = Field("", description="path of syncnet_v2.model, for `model: syncnet`")
    active_model: Literal["embedded", "light-asd"] = Field(
        "embedded", description="active speaker: `embedded`, or `light-asd` with its published weights"
    )
    light_asd_weights: str = Field(
        "", description="path of finetuning_TalkSet.model, for `active_model: light-asd`"
    )
    max_shift_ms: int = Field(
        600, ge=100, le=2000, description="largest offset that is searched (SyncNet's default: 15 frames)"
    )
    low_hz: float = Field(
        500.0, ge=50, le=4000, description="lower edge of the lowest octave (measured; Grant and Seitz 2000)"
    )
    high_hz: float = Field(4000.0, ge=100, le=8000, description="upper edge of the highest octave")

    @model_validator(mode="after")
    def _check_octaves_and_weights(self) -> SyncConfig:
        if self.low_hz * 1.5 > self.high_hz:
            raise ValueError("high_hz must be an octave or more above low_hz")
        for model, selected, weights in (
            ("syncnet", self.model, self.syncnet_weights),
            ("light-asd", self.active_model, self.light_asd_weights),
        ):
            if selected == model and not weights:
                raise ValueError(
                    f"{model} needs the path of its weights: sync.{model.replace('-', '_')}_weights"
                )
        return self


class ClipConfig(_Section):
    """Which intervals become clips."""

    min_s: float = Field(2.0, gt=0, description="shortest clip")
    max_s: float = Field(10.0, gt=0, description="longest clip")
    pad_s: float = Field(0.2, ge=0, description="silence kept before and after the words")
    max_pause_s: float = Field(1.5, gt=0, description="a longer silence between words ends a clip")
    shot_margin_s: float = Field(0.08, ge=0, description="distance kept from a shot boundary")
    unspoken_s: float = Field(
        60.0, ge=0, description="length of a source without usable speech that becomes clips"
    )

    @model_validator(mode="after")
    def _check_lengths(self) -> ClipConfig:
        if self.min_s > self.max_s:
            raise ValueError("min_s must not exceed max_s")
        return self


class CutConfig(_Section):
    """How clips are encoded: 16 fps H.264 without audio, 24 kHz mono FLAC."""

    pixels: int = Field(
        512 * 512, ge=64 * 64, description="most pixels per frame; larger frames are scaled down, aspect kept"
    )
    multiple: int = Field(
        2,
        ge=2,
        le=128,
        multiple_of=2,
        description="width and height are multiples of this; the remainder is cropped",
    )
    crop: Literal["none", "face"] = Field(
        "none", description="`none`: the full frame; `face`: a crop around the main face"
    )
    crop_aspect: float = Field(1.0, gt=0.2, lt=5, description="width over height of the face crop")
    crop_faces: float = Field(2.2, ge=1, description="height of the face crop, in heights of the face")
    crf: int = Field(18, ge=0, le=51, description="x264 quality; lower is better")
    preset: str = Field("veryfast", description="x264 preset")


class PoolConfig(_Section):
    """What one worker pool takes of the machine."""

    num_cpus: float = Field(0.5, gt=0, description="CPUs that Ray reserves for one worker")
    num_gpus: float = Field(0.0, ge=0, description="share of a GPU that Ray reserves for one worker")
    workers: int = Field(0, ge=0, description="most workers; 0: as many as the machine's CPUs allow")
    threads: int = Field(1, ge=1, description="threads of numerical libraries in one worker")


class PoolsConfig(_Section):
    """Resources of the worker pools. Together they fit two CPUs, so that no pool blocks another."""

    layout: Literal["auto", "joint", "split"] = Field(
        "auto",
        description="`joint`: speech and sight in one worker, so that neither waits for the other; "
        "`split`: separate, for a GPU or little memory; `auto`: split if a share of a GPU is configured",
    )
    prepare: PoolConfig = PoolConfig(num_cpus=0.25)
    joint: PoolConfig = PoolConfig(num_cpus=0.75)
    speech: PoolConfig = PoolConfig(num_cpus=0.75)
    sight: PoolConfig = PoolConfig(num_cpus=0.5)
    cut: PoolConfig = PoolConfig(num_cpus=0.25)


class IngestConfig(_Section):
    """All settings of ingest."""

    sources: SourceConfig = SourceConfig()
    limits: LimitConfig = LimitConfig()
    shots: ShotConfig = ShotConfig()
    diarization: DiarizationConfig = DiarizationConfig()
    transcription: TranscriptionConfig = TranscriptionConfig()
    faces: FaceConfig = FaceConfig()
    text: TextConfig = TextConfig()
    sync: SyncConfig = SyncConfig()
    sound_quality: SoundQualityConfig = SoundQualityConfig()
    clips: ClipConfig = ClipConfig()
    cut: CutConfig = CutConfig()
    # written as `stages` with by_alias: runs in MLflow keep the parameter names of 0.3
    pools: PoolsConfig = Field(PoolsConfig(), serialization_alias="stages")
    device: str = Field("cpu", description="device of the models: cpu or cuda")
    scratch_gb: float = Field(
        20.0,
        ge=0,
        description="decoded audio kept for the next pool, in GiB; beyond it, audio is decoded again",
    )
    commit_sources: int = Field(16, ge=1, description="most sources in one commit")
    commit_seconds: float = Field(5.0, ge=0, description="longest wait of a finished source for its commit")

    @model_validator(mode="before")
    @classmethod
    def _accept_stages(cls, values: Any) -> Any:
        """Read `stages`, the name of `pools` until 0.3, with a warning; both may be given, `stages` wins."""
        if not isinstance(values, dict) or "stages" not in values:
            return values
        warnings.warn("ingest.stages is called ingest.pools now", FutureWarning, stacklevel=2)
        return {
            **{name: value for name, value in values.items() if name != "stages"},
            "pools": _merged(values.get("pools", {}), values["stages"]),
        }


def _merged(base: Any, over: Any) -> Any:
    """Nested dictionaries merged, with the values of `over` where both have one."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{name: _merged(base.get(name, {}), value) for name, value in over.items()}}
