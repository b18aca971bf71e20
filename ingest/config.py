"""Everything about ingest that a user may set. Imports nothing heavy, so that the command line can show it at once.

What comes out is one `IngestConfig`; `digest()` names the measuring part of it, and a source whose row carries the same
digest is not measured again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uniavgen.ingest.engine.step_graph import step_keys

MEDIA_EXTENSIONS = frozenset(
    [
        *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
        *(".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ]
)
"""Names that a folder's files must end with to be taken for videos (our choice); a file named outright is always taken."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SourceConfig(_Section):
    """Where videos may come from, and what fetching them may cost."""

    allow_http: bool = Field(False, description="read http(s) addresses too")
    cache_gb: float = Field(
        50.0,
        gt=0,
        description="size of the run's cache of fetched sources, in GiB; it lies on the corpus's disk",
    )
    source_gb: float = Field(20.0, gt=0, description="largest remote source, in GiB")
    fetch_seconds: float = Field(
        3600.0, gt=0, description="longest time of one fetch, the wait for room in the cache included"
    )


class LimitConfig(_Section):
    """What one source may cost. A source beyond a limit becomes a failure row that names the limit."""

    probe_seconds: float = Field(20.0, gt=0, description="wall-clock limit of opening a file")
    decode_seconds: float = Field(
        60.0, gt=0, description="wall-clock limit of a decoder, plus `decode_factor` x duration"
    )
    decode_factor: float = Field(
        10.0, ge=0, description="seconds of decoding allowed for each second of video"
    )
    memory_gb: float = Field(4.0, gt=0, description="address space of a decoder process, in GiB")
    max_pixels: int = Field(40_000_000, gt=0, description="largest picture, in pixels (8K is 33 M)")
    max_duration_s: float = Field(4 * 3600.0, gt=0, description="longest source, in seconds")
    step_seconds: float = Field(
        300.0, gt=0, description="wall-clock limit of one step, plus `step_factor` x duration"
    )
    step_factor: float = Field(
        20.0, ge=0, description="seconds that one step may take for each second of video"
    )
    step_memory_gb: float = Field(
        8.0, gt=0, description="resident memory of a worker, in GiB; beyond it the worker is ended"
    )
    decoder_threads: int = Field(2, ge=1, description="threads of one decoder process")


class ShotConfig(_Section):
    """Shot boundaries by TransNetV2, or by PySceneDetect: a hundredth of the cost, hard cuts alone."""

    detector: Literal["transnetv2", "scenedetect"] = Field("transnetv2", description="what finds the cuts")
    fps: int = Field(
        25,
        ge=5,
        le=60,
        description="frames per second that the detector sees (TransNetV2 was trained near 25)",
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="TransNetV2: cut probability (its own default)")
    quiet_ratio: float = Field(
        2.5,
        ge=0,
        description="TransNetV2: a sudden change below this multiple of the usual is no cut; 0: look everywhere",
    )
    quiet_drift: float = Field(
        12.0, ge=0, description="TransNetV2: a change over half a second below this (of 255) is no dissolve"
    )
    quiet_blend: float = Field(
        0.15,
        ge=0,
        le=1,
        description="TransNetV2: a slow change further from a blend than this is motion, no dissolve",
    )
    adaptive_threshold: float = Field(
        3.0,
        gt=0,
        description="PySceneDetect: change over its surroundings' mean that makes a cut (its own default)",
    )
    content_threshold: float = Field(
        15.0,
        gt=0,
        description="PySceneDetect: smallest change in hue, saturation and brightness (its own default)",
    )


class DiarizationConfig(_Section):
    """Who speaks when, by pyannote.audio: bundled segmentation, ECAPA voices, agglomerative clustering."""

    model: str = Field(
        "embedded",
        description="`embedded`, or a pyannote pipeline by folder or name (pyannote/speaker-diarization-community-1; HF_TOKEN)",
    )
    ecapa_folder: str = Field("", description="folder with embedding_model.ckpt; empty: fetched")
    piece_s: float = Field(
        300.0, ge=10, description="longer sources are heard in pieces of this length at most (our choice)"
    )
    segmentation_threshold: float = Field(
        0.5, gt=0, lt=1, description="speech probability at which a turn starts"
    )
    segmentation_step: float = Field(0.1, gt=0, le=1, description="step of the 5 s window, as a share of it")
    voice_stride: int = Field(
        3,
        ge=1,
        le=10,
        description="voices are taken in every n-th window, the others follow by overlap (1: twice the cost)",
    )
    cluster_threshold: float = Field(
        0.60, gt=0, lt=2, description="cosine distance; the plateau is 0.50-0.60"
    )
    min_voice_s: float = Field(
        4.0,
        ge=0,
        description="voices whose windows start within less than this join their nearest; the plateau is 1-4",
    )
    voice_seconds: float = Field(
        3.0, ge=0.5, description="speech used per embedding (ECAPA's training length)"
    )
    batch_size: int = Field(
        4, ge=1, description="windows per segmentation batch, voices per embedding batch (more on a GPU)"
    )


class TranscriptionConfig(_Section):
    """Words by WhisperX (Whisper in CTranslate2), their times by forced alignment."""

    model: str = Field(
        "whisper-base",
        description="`whisper-base`, a folder with a CTranslate2 model, or a WhisperX model name",
    )
    language: str | None = Field(None, description="fix the language; empty: detect it for each source")
    compute_type: str = Field("int8", description="CTranslate2 number format: int8 on CPUs, float16 on GPUs")
    beam_size: int = Field(5, ge=1, description="beams (WhisperX's default)")
    chunk_seconds: float = Field(28.0, gt=1, le=30, description="longest stretch given to Whisper at once")
    encoder_pad_s: float = Field(
        10.0,
        ge=0,
        le=30,
        description="silence after a chunk that the encoder is shown; 30: always Whisper's full 30 s",
    )
    align_model: str = Field(
        "pocketsphinx",
        description="word times: `pocketsphinx` (English), `whisperx` (its model per language), or a wav2vec2 folder or name",
    )
    spell_numbers: bool = Field(True, description="write numbers as words, as they are spoken")


class FaceConfig(_Section):
    """Faces by MediaPipe FaceLandmarker on the analysis picture, confirmed by its own face detector."""

    landmarker_folder: str = Field("", description="folder with face_landmarker.task; empty: fetched")
    analysis_side: int = Field(
        512, ge=128, le=2048, description="longest side of the analysis picture, in pixels"
    )
    max_faces: int = Field(4, ge=1, le=16, description="faces with landmarks per frame")
    detection_confidence: float = Field(0.5, ge=0, le=1, description="the landmarker's thresholds")
    agreement_iou: float = Field(
        0.25, ge=0, le=1, description="a face counts if the detector finds it too, with this overlap"
    )
    agreement_distance: float = Field(
        0.3,
        gt=0,
        description="and if both place eyes, nose and mouth alike: mean distance over the face height",
    )
    turn_limit_deg: float = Field(
        70.0,
        gt=0,
        le=90,
        description="beyond this turn from the camera half of the landmarks are guesses (our choice)",
    )
    confirm_every: int = Field(
        4, ge=1, description="frames after which the detector is asked about a track again"
    )
    track_iou: float = Field(0.3, ge=0, le=1, description="overlap that joins faces of neighbouring frames")
    track_gap: int = Field(4, ge=0, description="frames that a track may miss")
    tile_confidence: float = Field(
        0.6, ge=0, le=1, description="a small face in a tile needs this much: badges look like faces there"
    )
    tile_every: int = Field(
        8, ge=0, description="look for small faces in tiles on every n-th frame; 0: never"
    )
    vectors: Literal["dlib", "sface", "none"] = Field(
        "dlib", description="what tells whose face it is; `none` leaves the column empty"
    )
    vectors_folder: str = Field("", description="folder with the encoder's file; empty: fetched")


class TextConfig(_Section):
    """Burned-in text by PP-OCRv4's text detector (differentiable binarisation, arXiv 1911.08947)."""

    folder: str = Field("", description="folder with text_detector.onnx; empty: fetched")
    every_s: float = Field(
        2.0, gt=0, description="seconds between the pictures that are looked at; the shortest clip's length"
    )
    pixel_probability: float = Field(
        0.3, gt=0, lt=1, description="probability at which a pixel is text (PP-OCR's default)"
    )
    box_probability: float = Field(
        0.5, gt=0, lt=1, description="mean probability in a box of text (RapidOCR's default)"
    )
    box_growth: float = Field(
        1.6, ge=0, description="growth of boxes over the shrunk text in them (PP-OCR's default)"
    )


class SoundQualityConfig(_Section):
    """How good the sound is, by DNSMOS P.835 and by signal measurements."""

    dnsmos_folder: str = Field("", description="folder with sig_bak_ovr.onnx; empty: fetched")
    bandwidth_seconds: float = Field(
        60.0, gt=1, description="how much of a source is read at its own rate for the bandwidth"
    )


class SyncConfig(_Section):
    """Lips against sound: how far the sound is off, and which of the faces speaks."""

    model: Literal["embedded", "syncnet"] = Field(
        "embedded",
        description="`embedded`: lip opening against loudness, no weights; `syncnet`: with its published weights",
    )
    syncnet_weights: str = Field("", description="path of syncnet_v2.model, for `model: syncnet`")
    active_model: Literal["embedded", "light-asd"] = Field(
        "embedded", description="which face speaks: `embedded` or `light-asd` with its published weights"
    )
    light_asd_weights: str = Field(
        "", description="path of finetuning_TalkSet.model, for `active_model: light-asd`"
    )
    max_shift_ms: int = Field(
        600, ge=100, le=2000, description="largest shift that is looked for (SyncNet's own: 15 frames)"
    )
    low_hz: float = Field(
        500.0, ge=50, le=4000, description="lower edge of the lowest octave (measured; Grant and Seitz 2000)"
    )
    high_hz: float = Field(4000.0, ge=100, le=8000, description="upper edge of the highest octave")

    @model_validator(mode="after")
    def _whole(self) -> SyncConfig:
        if self.low_hz * 1.5 > self.high_hz:
            raise ValueError("high_hz must be an octave or more above low_hz")
        for chosen, named, weights in (
            ("syncnet", self.model, self.syncnet_weights),
            ("light-asd", self.active_model, self.light_asd_weights),
        ):
            if named == chosen and not weights:
                raise ValueError(
                    f"{chosen} needs the path of its weights: sync.{chosen.replace('-', '_')}_weights"
                )
        return self


class ClipConfig(_Section):
    """Which spans become clips."""

    min_s: float = Field(2.0, gt=0, description="shortest clip")
    max_s: float = Field(10.0, gt=0, description="longest clip")
    pad_s: float = Field(0.2, ge=0, description="silence wanted either side of the words")
    max_pause_s: float = Field(1.5, gt=0, description="a longer silence between words ends a clip")
    shot_margin_s: float = Field(0.08, ge=0, description="distance kept from a cut")
    unspoken_s: float = Field(
        60.0, ge=0, description="how much of a source without usable speech is made into clips"
    )

    @model_validator(mode="after")
    def _ordered(self) -> ClipConfig:
        if self.min_s > self.max_s:
            raise ValueError("min_s must not exceed max_s")
        return self


class CutConfig(_Section):
    """How clips are encoded: 16 fps H.264 without sound, 24 kHz mono FLAC."""

    pixels: int = Field(
        512 * 512,
        ge=64 * 64,
        description="pixels of a picture at most; larger ones are scaled down, aspect kept",
    )
    multiple: int = Field(
        2,
        ge=2,
        le=128,
        multiple_of=2,
        description="width and height are multiples of this; the rest is cropped",
    )
    crop: Literal["none", "face"] = Field(
        "none", description="the whole picture, or the part round the main face"
    )
    crop_aspect: float = Field(1.0, gt=0.2, lt=5, description="width over height of the part round the face")
    crop_faces: float = Field(
        2.2, ge=1, description="height of the part round the face, in heights of the face"
    )
    crf: int = Field(18, ge=0, le=51, description="x264 quality, lower is better")
    preset: str = Field("veryfast", description="x264 preset")


class StageConfig(_Section):
    """What one stage of the graph takes of the machine."""

    num_cpus: float = Field(0.5, gt=0, description="share of CPUs that Ray reserves for one worker")
    num_gpus: float = Field(0.0, ge=0, description="share of a GPU that Ray reserves for one worker")
    workers: int = Field(0, ge=0, description="workers at most; 0: as many as the machine's CPUs allow")
    threads: int = Field(1, ge=1, description="threads of numerical libraries in one worker")


class StagesConfig(_Section):
    """What the workers take; their shares together fit two CPUs, so that no stage waits for another's worker for ever."""

    layout: Literal["auto", "joint", "split"] = Field(
        "auto",
        description="`joint`: speech and sight in one worker, so that neither waits for the other; `split`: apart, for a GPU "
        "or little memory; `auto`: split where a share of a GPU is given",
    )
    prepare: StageConfig = StageConfig(num_cpus=0.25)
    joint: StageConfig = StageConfig(num_cpus=0.75)
    speech: StageConfig = StageConfig(num_cpus=0.75)
    sight: StageConfig = StageConfig(num_cpus=0.5)
    cut: StageConfig = StageConfig(num_cpus=0.25)


class IngestConfig(_Section):
    """The whole of ingest."""

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
    stages: StagesConfig = StagesConfig()
    device: str = Field("cpu", description="where models run: cpu or cuda")
    scratch_gb: float = Field(
        20.0, ge=0, description="sound that waits for its next stage, in GiB; beyond it, decoded again"
    )
    commit_sources: int = Field(16, ge=1, description="sources that are committed together at most")
    commit_seconds: float = Field(
        5.0, ge=0, description="longest time that finished sources wait for their commit"
    )

    def keys(self) -> dict[str, str]:
        """Key of every step under these settings (`ingest.graph`): limits, resources and commits change no answer."""
        return step_keys(self.model_dump(mode="json"))

    def digest(self) -> str:
        """Name of what is measured and how: a source whose row carries it is done."""
        return hashlib.sha256(json.dumps(self.keys(), sort_keys=True).encode()).hexdigest()[:16]
