"""The registry of ingest steps, in the order in which a source passes through them.

A new step is a module here, one line of `STEPS`, and its signals in `shards.corpus.signals`.
"""

from __future__ import annotations

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step import Step, StepGraph
from uniavgen.ingest.measures.cut import CutStep
from uniavgen.ingest.measures.decode import DecodeStep
from uniavgen.ingest.measures.diarize import DiarizeStep
from uniavgen.ingest.measures.faces import FaceStep
from uniavgen.ingest.measures.fetch import FetchStep
from uniavgen.ingest.measures.fingerprint import FingerprintStep
from uniavgen.ingest.measures.hash import HashStep
from uniavgen.ingest.measures.listen import ListenStep
from uniavgen.ingest.measures.measure import MeasureStep
from uniavgen.ingest.measures.picture import PictureStep
from uniavgen.ingest.measures.probe import ProbeStep
from uniavgen.ingest.measures.propose import ProposeStep
from uniavgen.ingest.measures.repair import RepairStep
from uniavgen.ingest.measures.shots import ShotStep
from uniavgen.ingest.measures.sound import SoundStep
from uniavgen.ingest.measures.sync import SyncStep
from uniavgen.ingest.measures.text import TextStep
from uniavgen.ingest.measures.transcribe import TranscribeStep

STEPS: tuple[type[Step], ...] = (
    FetchStep,
    ProbeStep,
    RepairStep,
    SoundStep,
    DiarizeStep,
    TranscribeStep,
    DecodeStep,
    FaceStep,
    ShotStep,
    PictureStep,
    TextStep,
    HashStep,
    ProposeStep,
    ListenStep,
    SyncStep,
    FingerprintStep,
    MeasureStep,
    CutStep,
)


def step_graph(config: IngestConfig) -> StepGraph:
    """All steps under a configuration."""
    return StepGraph(STEPS, config)
