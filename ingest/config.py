"""Everything about ingest that a user may set. Imports nothing heavy, so that the command line can show it at once.

What comes out is one `IngestConfig`; `digest()` names the measuring part of it, and a source whose row carries the same
digest is not measured again.
"""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel, ConfigDict, Field, model_validator

STEP_VERSIONS = {
    "probe": "1",
    "sound": "1",
    "diarize": "1",
    "transcribe": "1",
    "watch": "1",
    "propose": "1",
    "measure": "1",
    "cut": "1",
}
"""Version of each step's code: raise one when its answers change, and sources are measured anew."""

MEDIA_EXTENSIONS = frozenset(
    [
        *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
        *(".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ]
)
"""Names that a folder's files must end with to be taken for videos (our choice); a file named outright is always taken."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LimitConfig(_Section):
    """What one source may cost. A source beyond a limit becomes a failure row that names the limit."""

    probe_seconds: float = Field(20.0, gt=0, description="wall-clock limit of opening a file")
    decode_seconds: float = Field(60.0, gt=0, description="wall-clock limit of a decoder, plus `decode_factor` x duration")
    decode_factor: float = Field(10.0, ge=0, description="seconds of decoding allowed for each second of video")
    memory_gb: float = Field(4.0, gt=0, description="address space of a decoder process, in GiB")
    max_pixels: int = Field(40_000_000, gt=0, description="largest picture, in pixels (8K is 33 M)")
    max_duration_s: float = Field(4 * 3600.0, gt=0, description="longest source, in seconds")
    decoder_threads: int = Field(2, ge=1, description="threads of one decoder process")


class ShotConfig(_Section):
    """Shot boundaries by TransNetV2."""

    fps: int = Field(25, ge=5, le=60, description="frames per second that the detector sees (it was trained near 25)")
    threshold: float = Field(0.5, gt=0, lt=1, description="cut probability (the detector's own default)")
    quiet_ratio: float = Field(
        2.5, ge=0, description="a sudden change below this multiple of the usual is no cut; 0: look everywhere"
    )
    quiet_drift: float = Field(12.0, ge=0, description="a change over half a second below this (of 255) is no dissolve")


class DiarizationConfig(_Section):
    """Who speaks when, by pyannote.audio: bundled segmentation, ECAPA voices, agglomerative clustering."""

    ecapa_folder: str = Field("", description="folder with embedding_model.ckpt; empty: fetched")
    segmentation_threshold: float = Field(0.5, gt=0, lt=1, description="speech probability at which a turn starts")
    segmentation_step: float = Field(0.1, gt=0, le=1, description="step of the 5 s window, as a share of it")
    cluster_threshold: float = Field(0.60, gt=0, lt=2, description="cosine distance; the middle of the plateau 0.50-0.70")
    min_cluster_size: int = Field(12, ge=1, le=20, description="voices with fewer windows join their nearest")
    voice_seconds: float = Field(3.0, ge=0.5, description="speech used per embedding (ECAPA's training length)")
    batch_size: int = Field(8, ge=1, description="windows per segmentation batch")


class TranscriptionConfig(_Section):
    """Words by WhisperX (Whisper in CTranslate2), their times by pocketsphinx forced alignment for English."""

    model: str = Field(
        "whisper-base", description="`whisper-base`, a folder with a CTranslate2 model, or a WhisperX model name"
    )
    language: str | None = Field(None, description="fix the language; empty: detect it for each source")
    compute_type: str = Field("int8", description="CTranslate2 number format: int8 on CPUs, float16 on GPUs")
    beam_size: int = Field(5, ge=1, description="beams (WhisperX's default)")
    chunk_seconds: float = Field(28.0, gt=1, le=30, description="longest stretch given to Whisper at once")
    spell_numbers: bool = Field(True, description="write numbers as words, as they are spoken")


class FaceConfig(_Section):
    """Faces by MediaPipe FaceLandmarker on the analysis picture, confirmed by its own face detector."""

    landmarker_folder: str = Field("", description="folder with face_landmarker.task; empty: fetched")
    analysis_side: int = Field(512, ge=128, le=2048, description="longest side of the analysis picture, in pixels")
    max_faces: int = Field(4, ge=1, le=16, description="faces with landmarks per frame")
    detection_confidence: float = Field(0.5, ge=0, le=1, description="the landmarker's thresholds")
    agreement_iou: float = Field(0.25, ge=0, le=1, description="a face counts if the detector finds it too, with this overlap")
    track_iou: float = Field(0.3, ge=0, le=1, description="overlap that joins faces of neighbouring frames")
    track_gap: int = Field(4, ge=0, description="frames that a track may miss")
    tile_confidence: float = Field(
        0.6, ge=0, le=1, description="a small face in a tile needs this much: badges look like faces there"
    )
    tile_every: int = Field(8, ge=0, description="look for small faces in tiles on every n-th frame; 0: never")


class SyncConfig(_Section):
    """Lips against sound, without a trained network."""

    max_shift_ms: int = Field(600, ge=100, le=2000, description="largest shift that is looked for")
    low_hz: float = Field(300.0, gt=0, description="lower edge of the speech band")
    high_hz: float = Field(3000.0, gt=0, description="upper edge of the speech band")


class ClipConfig(_Section):
    """Which spans become clips."""

    min_s: float = Field(2.0, gt=0, description="shortest clip")
    max_s: float = Field(10.0, gt=0, description="longest clip")
    pad_s: float = Field(0.2, ge=0, description="silence wanted either side of the words")
    max_pause_s: float = Field(1.5, gt=0, description="a longer silence between words ends a clip")
    shot_margin_s: float = Field(0.08, ge=0, description="distance kept from a cut")
    unspoken_s: float = Field(60.0, ge=0, description="how much of a source without usable speech is made into clips")

    @model_validator(mode="after")
    def _ordered(self) -> ClipConfig:
        if self.min_s > self.max_s:
            raise ValueError("min_s must not exceed max_s")
        return self


class CutConfig(_Section):
    """How clips are encoded: 16 fps H.264 without sound, 24 kHz mono FLAC."""

    longest_side: int = Field(512, ge=64, description="longest side of the picture; larger ones are scaled down, aspect kept")
    crf: int = Field(18, ge=0, le=51, description="x264 quality, lower is better")
    preset: str = Field("veryfast", description="x264 preset")


class StageConfig(_Section):
    """What one stage of the graph takes of the machine."""

    num_cpus: float = Field(0.5, gt=0, description="share of CPUs that Ray reserves for one worker")
    num_gpus: float = Field(0.0, ge=0, description="share of a GPU that Ray reserves for one worker")
    workers: int = Field(0, ge=0, description="workers at most; 0: as many as the machine's CPUs allow")
    threads: int = Field(1, ge=1, description="threads of numerical libraries in one worker")


class StagesConfig(_Section):
    """The four stages; their shares together fit two CPUs, so that no stage waits for another's worker for ever."""

    prepare: StageConfig = StageConfig(num_cpus=0.25, workers=2)
    speech: StageConfig = StageConfig(num_cpus=0.75)
    sight: StageConfig = StageConfig(num_cpus=0.5)
    cut: StageConfig = StageConfig(num_cpus=0.25, workers=2)


class IngestConfig(_Section):
    """The whole of ingest."""

    limits: LimitConfig = LimitConfig()
    shots: ShotConfig = ShotConfig()
    diarization: DiarizationConfig = DiarizationConfig()
    transcription: TranscriptionConfig = TranscriptionConfig()
    faces: FaceConfig = FaceConfig()
    sync: SyncConfig = SyncConfig()
    clips: ClipConfig = ClipConfig()
    cut: CutConfig = CutConfig()
    stages: StagesConfig = StagesConfig()
    device: str = Field("cpu", description="where models run: cpu or cuda")
    commit_sources: int = Field(16, ge=1, description="sources that are committed together at most")
    commit_seconds: float = Field(5.0, ge=0, description="longest time that finished sources wait for their commit")

    def digest(self) -> str:
        """Name of what is measured and how: settings that change no answer (limits, resources, commits) are left out."""
        measuring = self.model_dump(exclude={"limits", "stages", "device", "commit_sources", "commit_seconds"})
        text = json.dumps([measuring, STEP_VERSIONS], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
