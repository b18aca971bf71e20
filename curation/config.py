"""What a user may set about curation: the policy, how voices are split, how much the report shows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SplitConfig(BaseModel):
    """How train and val are kept apart."""

    model_config = ConfigDict(extra="forbid")
    val_share: float = Field(
        default=0.1, ge=0.0, le=0.5, description="share of voice groups (and at most of seconds) that go to val"
    )
    same_voice: float = Field(
        default=0.4,
        ge=-1.0,
        le=1.0,
        description="cosine of two voice embeddings from which speakers count as one voice "
        "(our choice; ECAPA over the demo's sources: same voice 0.81 and more, others 0.31 and less)",
    )
    join_sources: bool = Field(default=False, description="also keep all speakers of one source on one side")


class CurateConfig(BaseModel):
    """Which policy judges the clips, and how they are split."""

    model_config = ConfigDict(extra="forbid")
    policy: str = Field(default="default", description="name of a policy that ships with the package, or path of a YAML file")
    split: SplitConfig = Field(default_factory=SplitConfig, description="how train and val are kept apart")


class ReportConfig(BaseModel):
    """How much the page shows; totals and histograms always cover the whole corpus."""

    model_config = ConfigDict(extra="forbid")
    max_kept: int = Field(default=12, ge=0, description="playable examples of kept clips")
    per_reason: int = Field(default=2, ge=0, description="playable examples per reason of rejection")
    max_rows: int = Field(default=100, ge=1, description="rows shown of the sources table and of the failures table")
    bins: int = Field(default=32, ge=2, description="bars of a histogram")
