"""What a user may set about curation: the policy, how voices are split, how much the report shows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class SplitConfig(BaseModel):
    """How train and val are kept apart."""

    model_config = ConfigDict(extra="forbid")
    val_share: float = Field(
        default=0.1, ge=0.0, le=0.5, description="share of the kept seconds that go to val"
    )
    same_voice: float = Field(
        default=0.6,
        ge=-1.0,
        le=1.0,
        description="cosine of two voice embeddings from which speakers are surely one person "
        "(our choice; ECAPA over the demo's sources: same voice 0.81 and more, others 0.31 and less)",
    )
    near_voice: float = Field(
        default=0.4,
        ge=-1.0,
        le=1.0,
        description="from this cosine they may be one person, and are never put on two sides",
    )
    people_by: list[Literal["voice", "face"]] = Field(
        default=["voice", "face"], min_length=1, description="what is compared to tell persons apart"
    )
    same_face: float = Field(
        default=0.95,
        ge=-1.0,
        le=1.0,
        description="cosine of two face vectors from which they are surely one person's (dlib's on ten real films: one person "
        "0.94 and more, two 0.91 and less; SFace: 0.6)",
    )
    near_face: float = Field(
        default=0.915,
        ge=-1.0,
        le=1.0,
        description="from this cosine they may be one person's, and are never put on two sides (dlib's own bound; OpenCV's for "
        "SFace: 0.363)",
    )
    join_sources: bool = Field(default=False, description="also keep all speakers of one source on one side")
    strata: list[Literal["language", "pitch", "duration"]] = Field(
        default=["language"],
        description="val holds its share of each language, of each band of voice pitch (below 120, 165, 220 Hz and above) "
        "and of clip length (below 4, 7 s and above), as far as whole persons allow",
    )


class DuplicateConfig(BaseModel):
    """When two clips are copies of one another, and which of them is kept.

    Distances are shares of differing bits along the best alignment. On real and made footage: re-encodes at half the bitrate
    0.00-0.07 (picture) and 0.01-0.10 (sound), crops by a tenth 0.10-0.24, other content 0.26 and more in both.
    """

    model_config = ConfigDict(extra="forbid")
    enabled: bool = Field(
        default=True, description="reject all but the best of clips that are copies of one another"
    )
    kinds: list[Literal["copy", "overlap", "same-sound", "same-picture"]] = Field(
        default=["copy", "overlap", "same-sound", "same-picture"],
        description="what counts: whole copies, copies of a part, the same speech with another picture, and the reverse",
    )
    picture_distance: float = Field(
        default=0.21, ge=0, le=0.5, description="pictures agree up to this share of bits"
    )
    sound_distance: float = Field(
        default=0.2, ge=0, le=0.5, description="sounds agree up to this share of bits"
    )
    min_pictures: int = Field(
        default=4,
        ge=1,
        description="video hashes that must be compared; fewer than twice as many must agree better, in proportion",
    )
    min_sounds: int = Field(
        default=8, ge=1, description="the same of acoustic items, an eighth of a second each"
    )
    min_shared: float = Field(
        default=0.5, gt=0, le=1, description="share of the shorter clip that the other must hold"
    )
    speeds: list[Annotated[float, Field(gt=0.5, lt=2)]] = Field(
        default=[1.0, 25 / 24, 24 / 25, 1.1, 1 / 1.1],
        min_length=1,
        description="ratios of speed that are tried: as it is, film shown as television and back, a tenth faster and slower",
    )


class CurateConfig(BaseModel):
    """Which policy judges the clips, and how they are split."""

    model_config = ConfigDict(extra="forbid")
    policy: str = Field(
        default="default", description="name of a policy that ships with the package, or path of a YAML file"
    )
    duplicates: DuplicateConfig = Field(default_factory=DuplicateConfig, description="what becomes of copies")
    split: SplitConfig = Field(default_factory=SplitConfig, description="how train and val are kept apart")


class CaptionConfig(BaseModel):
    """What describes the kept clips, and what that may cost."""

    model_config = ConfigDict(extra="forbid")
    backend: Literal["measurements", "openai", "transformers"] = Field(
        default="measurements",
        description="measurements: a sentence from the signals; openai: an OpenAI-compatible endpoint that takes pictures "
        "(vLLM, SGLang); transformers: a local image-text-to-text model",
    )
    model: str = Field(default="", description="name at the endpoint, or folder of the local model")
    base_url: str = Field(default="http://127.0.0.1:8000/v1", description="the endpoint (vLLM's own default)")
    api_key_variable: str = Field(
        default="OPENAI_API_KEY", description="environment variable that holds the key"
    )
    device: str = Field(default="cpu", description="where a local model runs")
    prompt: str = Field(
        default="talking_head", description="name of a prompt that ships with the package, or a text file"
    )
    pictures: int = Field(default=4, ge=1, le=64, description="pictures shown of a clip, at equal distances")
    side: int = Field(default=512, ge=64, description="longest side of a picture shown, in pixels")
    max_tokens: int = Field(default=200, ge=1, description="longest answer, in tokens")
    min_words: int = Field(default=5, ge=1, description="a shorter answer is a bad one")
    max_words: int = Field(default=200, ge=1, description="a longer answer is a bad one")
    concurrency: int = Field(default=8, ge=1, description="requests under way at a time")
    timeout_s: float = Field(default=60.0, gt=0, description="longest wait for one answer")
    retries: int = Field(
        default=4, ge=0, description="times that a request is sent again, with growing pauses"
    )
    give_up_after: int = Field(default=8, ge=1, description="unanswered requests in a row that end the run")
    budget_requests: int = Field(default=0, ge=0, description="requests at most in one run; 0: no limit")
    budget_tokens: int = Field(default=0, ge=0, description="tokens at most in one run; 0: no limit")


class ReportConfig(BaseModel):
    """How much the page shows; totals and histograms always cover the whole corpus."""

    model_config = ConfigDict(extra="forbid")
    max_kept: int = Field(default=12, ge=0, description="playable examples of kept clips")
    per_reason: int = Field(default=2, ge=0, description="playable examples per reason of rejection")
    max_rejected: int = Field(default=40, ge=0, description="playable examples of rejected clips in all")
    preview_mb: float = Field(
        default=100.0, ge=0, description="size of all playable clips together, in megabytes"
    )
    sample_clips: int = Field(
        default=20_000,
        ge=1,
        description="clips that the page carries to follow its thresholds; a larger corpus is sampled",
    )
    max_rows: int = Field(
        default=100, ge=1, description="rows shown of the sources table and of the failures table"
    )
    source_pages: int = Field(
        default=12,
        ge=0,
        description="pages with a timeline: sources of the examples, the longest, and those that lost most",
    )
    bins: int = Field(default=32, ge=2, description="bars of a histogram")
