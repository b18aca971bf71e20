"""Settings of the shards: how tars are packed, which audio shards are read, how much damage is tolerated."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uniavgen.shards.buckets import Buckets

UNKNOWN_LICENCE = "unknown"


class ShardConfig(BaseModel):
    """Size and composition of shards, licences of sources, and how much `--verify` decodes."""

    model_config = ConfigDict(extra="forbid")
    shard_mb: float = Field(
        default=512, gt=0, description="target size of a shard in 10^6 bytes (common practice: 500 to 1000)"
    )
    max_samples: int = Field(default=10_000, ge=1, description="largest number of samples in a shard")
    buckets: Buckets = Field(
        default_factory=Buckets, description="length buckets; every shard holds its share of each"
    )
    licences: dict[str, str] = Field(
        default_factory=dict,
        description="pattern of source URIs to licence; the first match counts: {'/cc/*': CC-BY-4.0}",
    )
    verify_decodes: int = Field(
        default=20,
        ge=0,
        description="number of samples that --verify decodes (heuristic), spread over all shards",
    )

    def packing(self) -> dict[str, Any]:
        """The settings that decide which sample is in which tar. Others do not change shards."""
        return self.model_dump(mode="json", include={"shard_mb", "max_samples", "buckets"})

    def licence_of(self, uri: str) -> str:
        """The licence of a source by its URI; `unknown` if no pattern matches."""
        return next(
            (name for pattern, name in self.licences.items() if fnmatchcase(uri, pattern)), UNKNOWN_LICENCE
        )


class ErrorBudgetConfig(BaseModel):
    """Number of damaged samples that a run tolerates. It stops at more than both bounds allow. Heuristics."""

    model_config = ConfigDict(extra="forbid")
    max_samples: int = Field(
        default=10, ge=0, description="number of damaged samples that are always tolerated"
    )
    max_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="tolerated share of damaged samples among those read so far",
    )


class EmiliaConfig(BaseModel):
    """Audio shards of an audio stage, in the format of the Emilia dataset, and filters of utterances."""

    model_config = ConfigDict(extra="forbid")
    shards: list[str] = Field(
        default_factory=list,
        description="tars, folders of tars or globs, local or fsspec URLs; empty: the corpus's clips",
    )
    languages: list[str] = Field(
        default_factory=list, description="languages to use, as written in the json (en); empty: all"
    )
    speakers: list[str] = Field(default_factory=list, description="speakers to use; empty: all")
    min_dnsmos: float = Field(
        default=0.0, ge=0, le=5, description="lowest DNSMOS to use (Emilia itself keeps 3.0 and more)"
    )
    longer: Literal["leave-out", "crop"] = Field(
        default="leave-out",
        description="longer utterances than the window: skip, or crop a random part and estimate its text "
        "from a constant speaking rate",
    )
    word_gaps: bool = Field(
        default=False,
        description="crop longer utterances at pauses between words, whatever `longer` says; where no "
        "pause fits, a random part",
    )
    padding: Literal["scored", "ignored"] = Field(
        default="scored",
        description="zeros after an utterance that is shorter than the window; ignored: neither attended "
        "to nor scored; scored: as in runs of 0.5 and older",
    )

    @field_validator("shards")
    @classmethod
    def _make_absolute(cls, shards: list[str]) -> list[str]:
        """Workers run in other folders than the command line."""
        return [name if "://" in name else str(Path(name).expanduser().absolute()) for name in shards]
