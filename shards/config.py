"""Settings of the shards: how tars are packed, which audio shards are read, how many damaged samples are tolerated."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uniavgen.shards.buckets import Buckets

UNKNOWN_LICENCE = "unknown"


class ShardConfig(BaseModel):
    """How large shards are and what they are mixed of; what to verify; what licences sources have."""

    model_config = ConfigDict(extra="forbid")
    shard_mb: float = Field(
        default=512, gt=0, description="size that a shard aims at, in 10^6 bytes (field: 500 to 1000)"
    )
    max_samples: int = Field(default=10_000, ge=1, description="most samples in a shard")
    buckets: Buckets = Field(
        default_factory=Buckets, description="lengths of which every shard holds its share"
    )
    licences: dict[str, str] = Field(
        default_factory=dict,
        description="patterns of source URIs to licences, first match counts: {'/cc/*': CC-BY-4.0}",
    )
    verify_decodes: int = Field(
        default=20, ge=0, description="samples that --verify decodes (our choice), spread over all shards"
    )

    def layout(self) -> dict[str, Any]:
        """The settings that decide what is in which tar; with others the shards that stand remain right."""
        return self.model_dump(mode="json", include={"shard_mb", "max_samples", "buckets"})

    def licence(self, uri: str) -> str:
        """The licence of a source by its URI, `unknown` where no pattern names it."""
        return next(
            (name for pattern, name in self.licences.items() if fnmatchcase(uri, pattern)), UNKNOWN_LICENCE
        )


class ErrorBudgetConfig(BaseModel):
    """How much damage is passed over: a run stops with more damaged samples than both bounds allow."""

    model_config = ConfigDict(extra="forbid")
    max_samples: int = Field(
        default=10, ge=0, description="damaged samples that are always passed over (our choice)"
    )
    max_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="damaged share of the samples read so far that is passed over (our choice)",
    )


class EmiliaConfig(BaseModel):
    """Audio shards in Emilia's form that an audio stage trains on, and which of their utterances it takes."""

    model_config = ConfigDict(extra="forbid")
    shards: list[str] = Field(
        default_factory=list,
        description="tars, folders of tars or globs, local or any URL; empty: the corpus's own clips",
    )
    languages: list[str] = Field(
        default_factory=list, description="languages taken, as the json says them (en); empty: all"
    )
    speakers: list[str] = Field(default_factory=list, description="speakers taken; empty: all")
    min_dnsmos: float = Field(
        default=0.0, ge=0, le=5, description="lowest DNSMOS taken (Emilia itself keeps 3.0 and more)"
    )
    longer: Literal["leave-out", "crop"] = Field(
        default="leave-out",
        description="utterances longer than the window: left out, or a random part, its text estimated at an even pace",
    )

    @field_validator("shards")
    @classmethod
    def _seen_from_anywhere(cls, shards: list[str]) -> list[str]:
        """Workers stand in other folders than the command line."""
        return [name if "://" in name else str(Path(name).expanduser().absolute()) for name in shards]
