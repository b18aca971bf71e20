"""Configuration of curation: policy, duplicates, split, captions, report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class SplitConfig(BaseModel):
    """Split of train and val by person."""

    model_config = ConfigDict(extra="forbid")
    val_share: float = Field(
        default=0.1, ge=0.0, le=0.5, description="share of the kept seconds that go to val"
    )
    same_voice: float = Field(
        default=0.6,
        ge=-1.0,
        le=1.0,
        description="cosine of two speaker embeddings from which they are the same person "
        "(heuristic; ECAPA over the demo's sources: same voice 0.81 and more, others 0.31 and less)",
    )
    near_voice: float = Field(
        default=0.4,
        ge=-1.0,
        le=1.0,
        description="cosine of two speaker embeddings from which they may be the same person, and never are "
        "on two sides",
    )
    people_by: list[Literal["voice", "face"]] = Field(
        default=["voice", "face"], min_length=1, description="embeddings that identify a person"
    )
    same_face: float = Field(
        default=0.95,
        ge=-1.0,
        le=1.0,
        description="cosine of two face embeddings from which they are the same person (dlib on ten real "
        "videos: same person 0.94 and more, others 0.91 and less; for SFace set 0.6)",
    )
    near_face: float = Field(
        default=0.915,
        ge=-1.0,
        le=1.0,
        description="cosine of two face embeddings from which they may be the same person, and never are on "
        "two sides (dlib's documented bound; OpenCV's for SFace: 0.363)",
    )
    join_sources: bool = Field(default=False, description="keep all speakers of one source on one side")
    strata: list[Literal["language", "pitch", "duration"]] = Field(
        default=["language"],
        description="val gets its share of each of these, as far as whole persons allow: language, band of "
        "voice pitch (below 120, 165, 220 Hz and above), band of clip length (below 4, 7 s and "
        "above)",
    )


class DuplicateConfig(BaseModel):
    """When two clips are duplicates.

    Distances are shares of differing bits along the best alignment. Measured on real and synthetic videos:
    re-encodes at half the bitrate 0.00-0.07 (picture) and 0.01-0.10 (sound), crops by a tenth 0.10-0.24,
    other content 0.26 and more.
    """

    model_config = ConfigDict(extra="forbid")
    enabled: bool = Field(default=True, description="reject all but the best of duplicate clips")
    kinds: list[Literal["copy", "overlap", "same-sound", "same-picture"]] = Field(
        default=["copy", "overlap", "same-sound", "same-picture"],
        description="kinds that count: a whole copy, a copy of a part, the same sound with another picture, "
        "and the reverse",
    )
    picture_distance: float = Field(
        default=0.21, ge=0, le=0.5, description="largest share of differing bits of equal pictures"
    )
    sound_distance: float = Field(
        default=0.2, ge=0, le=0.5, description="largest share of differing bits of equal sound"
    )
    min_pictures: int = Field(
        default=4,
        ge=1,
        description="fewest video hashes to compare; below twice as many the allowed distance shrinks in "
        "proportion",
    )
    min_sounds: int = Field(
        default=8, ge=1, description="the same for audio fingerprint items, an eighth of a second each"
    )
    min_shared: float = Field(
        default=0.5, gt=0, le=1, description="share of the shorter clip that both must contain"
    )
    speeds: list[Annotated[float, Field(gt=0.5, lt=2)]] = Field(
        default=[1.0, 25 / 24, 24 / 25, 1.1, 1 / 1.1],
        min_length=1,
        description="speed ratios to try: unchanged, 24 to 25 fps and back, a tenth faster and slower",
    )


class CurateConfig(BaseModel):
    """Policy, duplicates and split."""

    model_config = ConfigDict(extra="forbid")
    policy: str = Field(default="default", description="name of a shipped policy, or path of a YAML file")
    duplicates: DuplicateConfig = Field(default_factory=DuplicateConfig, description="duplicate clips")
    split: SplitConfig = Field(default_factory=SplitConfig, description="split of train and val")


class CaptionConfig(BaseModel):
    """Captioning model and its budget."""

    model_config = ConfigDict(extra="forbid")
    backend: Literal["measurements", "openai", "transformers"] = Field(
        default="measurements",
        description="measurements: a sentence from the signals; openai: an OpenAI-compatible endpoint that "
        "accepts images (vLLM, SGLang); transformers: a local image-text-to-text model",
    )
    model: str = Field(default="", description="model name at the endpoint, or folder of a local model")
    base_url: str = Field(
        default="http://127.0.0.1:8000/v1", description="URL of the endpoint (vLLM's default)"
    )
    api_key_variable: str = Field(
        default="OPENAI_API_KEY", description="environment variable with the API key"
    )
    device: str = Field(default="cpu", description="torch device of a local model")
    prompt: str = Field(
        default="talking_head", description="name of a shipped prompt, or path of a text file"
    )
    pictures: int = Field(default=4, ge=1, le=64, description="frames per request, evenly spaced")
    side: int = Field(default=512, ge=64, description="longest side of a frame in a request, in pixels")
    max_tokens: int = Field(default=200, ge=1, description="longest answer, in tokens")
    min_words: int = Field(default=5, ge=1, description="fewest words of a valid answer")
    max_words: int = Field(default=200, ge=1, description="most words of a valid answer")
    concurrency: int = Field(default=8, ge=1, description="concurrent requests")
    timeout_s: float = Field(default=60.0, gt=0, description="timeout of one request")
    retries: int = Field(default=4, ge=0, description="retries of a request, with growing pauses")
    give_up_after: int = Field(
        default=8, ge=1, description="consecutive unanswered requests that end the run"
    )
    budget_requests: int = Field(default=0, ge=0, description="most requests of one run; 0: no limit")
    budget_tokens: int = Field(default=0, ge=0, description="most tokens of one run; 0: no limit")


class ReportConfig(BaseModel):
    """Size of the report page. Totals and histograms always cover the whole corpus."""

    model_config = ConfigDict(extra="forbid")
    max_kept: int = Field(default=12, ge=0, description="playable examples of kept clips")
    per_reason: int = Field(default=2, ge=0, description="playable examples per reason for rejection")
    max_rejected: int = Field(
        default=40, ge=0, description="playable examples of rejected clips, all reasons together"
    )
    preview_mb: float = Field(default=100.0, ge=0, description="total size of playable clips, in megabytes")
    sample_clips: int = Field(
        default=20_000,
        ge=1,
        description="clips in the report page's data for moving thresholds; a larger corpus is sampled",
    )
    max_listed: int = Field(
        default=2000,
        ge=1,
        description="clips that the report page can search, sort and filter; --serve searches all",
    )
    max_rows: int = Field(
        default=100, ge=1, description="rows of the sources table and of the failures table"
    )
    source_pages: int = Field(
        default=12,
        ge=0,
        description="source pages with a timeline: sources of the examples, the longest, and those that "
        "lost most",
    )
    bins: int = Field(default=32, ge=2, description="bins of a histogram")
