"""Models and data sets that the settings name and whose licence forbids commercial use, or is not stated.

The licences of all models are listed in docs/licences.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uniavgen.ingest.config import IngestConfig
    from uniavgen.train.config import TrainConfig

VOXPOPULI_LANGUAGES = ("fr", "de", "es", "it")
"""Languages whose alignment model in WhisperX is a VoxPopuli model of torchaudio."""
NON_COMMERCIAL = "CC-BY-NC-4.0"
NOT_STATED = "no licence stated"


@dataclass(frozen=True)
class Restriction:
    """What is restricted, by which licence, and the setting that chose it."""

    what: str
    licence: str
    setting: str

    def __str__(self) -> str:
        effect = "not for commercial use" if self.licence == NON_COMMERCIAL else "ask its authors before use"
        return f"{self.what}: {self.licence}, {effect} ({self.setting}; see docs/licences.md)"


def ingest_restrictions(config: IngestConfig) -> list[Restriction]:
    """Restricted models that an ingest with these settings may use."""
    found = []
    model, language = config.transcription.align_model, config.transcription.language
    setting = "ingest.transcription.align_model"
    if model == "whisperx" and (language is None or language in VOXPOPULI_LANGUAGES):
        languages = language or "French, German, Spanish and Italian"
        found.append(Restriction(f"word times of {languages} (VoxPopuli)", NON_COMMERCIAL, setting))
    if any(name in model.lower() for name in ("voxpopuli", "mms")):
        found.append(Restriction(f"word times ({model})", NON_COMMERCIAL, setting))
    if config.sync.model == "syncnet":
        found.append(Restriction("the weights of SyncNet", NOT_STATED, "ingest.sync.model"))
    if config.sync.active_model == "light-asd":
        found.append(Restriction("the weights of Light-ASD", NOT_STATED, "ingest.sync.active_model"))
    return found


def training_restrictions(config: TrainConfig) -> list[Restriction]:
    """Restricted data that a training with these settings reads."""
    return [
        Restriction(
            "audio of Emilia, except its part Emilia-YODAS (CC-BY-4.0),",
            NON_COMMERCIAL,
            f"train.stages.{number}.emilia.shards",
        )
        for number, stage in enumerate(config.stages)
        if stage.emilia.shards
    ]


def warn(restrictions: list[Restriction]) -> None:
    """Print a warning for each."""
    from uniavgen.orchestration.output import console

    for restriction in restrictions:
        console.print_warning(str(restriction))
