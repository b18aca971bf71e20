"""Settings of `uniavgen evaluate`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class NetworkWeights(BaseModel):
    """Weights of published networks that the user has. Empty: the metric is not measured."""

    model_config = ConfigDict(extra="forbid")
    syncnet: str = Field("", description="syncnet_v2.model: LSE-C and LSE-D (the papers' LS)")
    dino: str = Field("", description="folder of DINO ViT-B/16 in transformers layout: SC")
    raft: str = Field("", description="torchvision's raft_large_C_T_V1 state dict (RAFT-things): DD")
    musiq: str = Field("", description="musiq_spaq_ckpt-358bb6af.pth, with the package pyiqa installed: IQ")
    audiobox: str = Field(
        "", description="checkpoint.pt of AudioBox Aesthetics, with its package installed: PQ, CU"
    )
    features: str = Field(
        "", description="folder of panns.npz, passt.npz, vggish.npz, imagebind.npz, synchformer.npz"
    )


class EvaluateConfig(BaseModel):
    """How generated videos are evaluated. The measuring steps take their settings from `ingest`."""

    model_config = ConfigDict(extra="forbid")
    weights: NetworkWeights = Field(default_factory=NetworkWeights, description="published networks")
    meters: list[str] = Field(
        default_factory=list,
        description="meters that run, as `words` or `lip-sync`; empty: all. The docs name them",
    )
    controls: int = Field(8, ge=3, le=1000, description="real clips that are measured as controls")
    max_seconds: float = Field(30.0, gt=0, le=120, description="longest video that is read into memory")
    side: int = Field(
        512, ge=64, le=1024, description="longest side of the frames that are measured, in pixels"
    )
    codec: bool = Field(True, description="measure real clips through the run's codecs too (the ceiling)")
    bands: int = Field(
        3, ge=2, le=10, description="bands of equal count that a numeric condition is cut into"
    )
