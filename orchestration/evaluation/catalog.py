"""Table of the metrics, and the published tables that some of them may be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    `network` names what measures it. `column` is the published column with the same definition and network,
    "" where it must not be compared with a published number. `better` is the direction of quality, also for
    motion, whose order is only used by its controls. `of_set`: one value for a set of clips, not for each.
    """

    network: str
    unit: str
    better: Literal["higher", "lower"]
    column: str = ""
    of_set: bool = False
    needs: str = ""
    """What a video must have beside picture and sound: `text`, `voice`, `image` or weights."""
    weight: str = ""
    """What clips are weighted with, "" for equal weights."""


METRICS: dict[str, MetricSpec] = {
    "WER-base": MetricSpec("Whisper base (embedded)", "share", "lower", needs="text", weight="words"),
    "DNSMOS-OVRL": MetricSpec("DNSMOS P.835", "MOS 1..5", "higher"),
    "DNSMOS-BAK": MetricSpec("DNSMOS P.835", "MOS 1..5", "higher"),
    "DistillMOS": MetricSpec("DistillMOS v7 (package distillmos)", "MOS 1..5", "higher", needs="distillmos"),
    "PQ": MetricSpec("AudioBox Aesthetics", "1..10", "higher", "PQ", needs="audiobox"),
    "CU": MetricSpec("AudioBox Aesthetics", "1..10", "higher", "CU", needs="audiobox"),
    "TC-ref": MetricSpec("ECAPA-TDNN", "cosine", "higher", needs="voice"),
    "TC-self": MetricSpec("ECAPA-TDNN", "cosine", "higher"),
    "TC-face": MetricSpec("ECAPA-TDNN and dlib face, fitted to the corpus", "AUC", "higher", of_set=True),
    "sync-confidence": MetricSpec("lip opening against loudness (no network)", "0..1", "higher"),
    "sync-offset": MetricSpec("lip opening against loudness (no network)", "s", "lower"),
    "LSE-C": MetricSpec("SyncNet v2", "distance", "higher", "LS", needs="syncnet"),
    "LSE-D": MetricSpec("SyncNet v2", "distance", "lower", needs="syncnet"),
    "face-found": MetricSpec("MediaPipe FaceLandmarker", "share of frames", "higher"),
    "ID-dlib": MetricSpec("dlib face ResNet", "cosine", "higher", needs="image"),
    "SC-dlib": MetricSpec("dlib face ResNet, VBench's formula", "0..1", "higher", weight="frames"),
    "SC": MetricSpec("DINO ViT-B/16", "0..1", "higher", "SC", needs="dino", weight="frames"),
    "motion-dis": MetricSpec("OpenCV DIS flow", "px at 256", "higher"),
    "DD": MetricSpec("RAFT-things", "share of videos", "higher", "DD", needs="raft"),
    "IQ-brisque": MetricSpec("BRISQUE", "0..1", "higher"),
    "IQ": MetricSpec("MUSIQ-SPAQ (package pyiqa)", "0..1", "higher", "IQ", needs="musiq"),
    "FD-mel": MetricSpec("log-mel statistics (no network)", "squared distance", "lower", of_set=True),
    "FD-PANNs": MetricSpec("PANNs Cnn14 16k", "squared distance", "lower", "FD_PANNs", True, "features"),
    "FD-PaSST": MetricSpec("PaSST", "squared distance", "lower", "FD_PaSST", True, "features"),
    "FD-VGG": MetricSpec("VGGish", "squared distance", "lower", "FD_VGG", True, "features"),
    "KL-PANNs": MetricSpec("PANNs Cnn14 16k", "nats", "lower", "KL_PANNs", needs="features"),
    "KL-PaSST": MetricSpec("PaSST", "nats", "lower", "KL_PaSST", needs="features"),
    "IS": MetricSpec("PANNs Cnn14 16k", "score", "higher", "IS", True, "features"),
    "IB-score": MetricSpec("ImageBind-huge", "cosine x 100", "higher", "IB", needs="features"),
    "DeSync": MetricSpec("Synchformer", "s", "lower", "DeSync", needs="features"),
}
"""By name. The name is the paper's only where network and definition are the paper's."""

NOT_MEASURED = {
    "EC": "needs a judge or a speech-emotion network; there is no open one with embedded weights",
    "TC": "the paper's is a closed judge's; TC-ref, TC-self and TC-face are other scales",
    "WER": "the paper does not say which Whisper; WER-base is Whisper base",
    "DNSMOS-SIG": "white noise at 20 and 0 dB did not order it on the demo's clips",
    "DD-dis": "slowed and still videos did not order it on the demo's clips; see motion-dis",
}
"""Metrics of the papers' tables without a score of that name, and why."""


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper: rows of method and values by column. `public`: the test set can be had."""

    title: str
    source: str
    remark: str
    rows: Mapping[str, Mapping[str, float]]
    public: bool = False


UNIAVGEN = PublishedTable(
    "UniAVGen, main table",
    "arXiv 2511.03334",
    "Joint generation on the paper's test set, which is not public. TC and EC are a closed judge's. "
    "The size of Whisper is not said.",
    {
        "OmniAvatar (two-stage)": {
            "PQ": 8.15, "CU": 7.41, "WER": 0.152,
            "SC": 0.987, "DD": 0.000, "LS": 6.34, "TC": 0.454, "EC": 0.349,
        },
        "Ovi": {
            "PQ": 6.03, "CU": 6.01, "WER": 0.216,
            "SC": 0.972, "DD": 0.360, "LS": 6.48, "TC": 0.828, "EC": 0.558,
        },
        "UniAVGen": {
            "PQ": 7.00, "CU": 6.62, "WER": 0.151,
            "SC": 0.973, "DD": 0.410, "LS": 5.95, "TC": 0.832, "EC": 0.573,
        },
    },
)  # fmt: skip

_MMAUDIO_COLUMNS = ("FD_PaSST", "FD_PANNs", "FD_VGG", "KL_PANNs", "KL_PaSST", "IS", "IB", "DeSync")
_MMAUDIO_ROWS = {
    "Frieren": (106.10, 11.45, 1.34, 2.73, 2.86, 12.25, 22.78, 0.851),
    "V2A-Mapper": (84.57, 8.40, 0.84, 2.69, 2.56, 12.47, 22.58, 1.225),
    "FoleyCrafter": (140.09, 16.24, 2.51, 2.30, 2.23, 15.68, 25.68, 1.225),
    "V-AURA": (218.50, 14.80, 2.88, 2.42, 2.07, 10.08, 27.64, 0.654),
    "MMAudio S-16k": (70.19, 5.22, 0.79, 1.65, 1.59, 14.44, 29.13, 0.483),
    "MMAudio S-44k": (65.25, 5.55, 1.66, 1.67, 1.44, 18.02, 32.27, 0.444),
    "MMAudio M-44k": (61.88, 4.74, 1.13, 1.66, 1.41, 17.41, 32.99, 0.443),
    "MMAudio L-44k": (60.60, 4.72, 0.97, 1.65, 1.40, 17.40, 33.22, 0.442),
}

MMAUDIO = PublishedTable(
    "MMAudio, video to audio on VGGSound",
    "arXiv 2412.15322, table 1",
    "The test split of VGGSound, about 15,000 clips of 8 s, with their labels as text. FD and IS depend on "
    "the number of clips: compare them only on the whole split.",
    {method: dict(zip(_MMAUDIO_COLUMNS, row, strict=True)) for method, row in _MMAUDIO_ROWS.items()},
    public=True,
)

TABLES: dict[str, PublishedTable] = {"paper": UNIAVGEN, "vggsound": MMAUDIO}
"""By protocol."""


def comparable_columns(measured: Sequence[str]) -> dict[str, str]:
    """Published column -> our metric, for metrics that are measured with the published network and
    definition.
    """
    return {METRICS[name].column: name for name in measured if METRICS[name].column}


def comparison_note(protocol: str, measured: Sequence[str]) -> str:
    """In plain words, what of the published table may be compared with our scores."""
    table = TABLES.get(protocol)
    if table is None:
        return f"No published table of protocol {protocol} is stored here."
    columns = comparable_columns(measured)
    shared = [column for row in list(table.rows.values())[:1] for column in row if column in columns]
    if not shared:
        return (
            f"Nothing here may be compared with {table.title}: no metric of this run has its network. "
            f"{table.remark}"
        )
    limit = "if these videos are its test set" if table.public else "but not by test set"
    return (
        f"By network and definition {', '.join(shared)} may be compared with {table.title}, {limit}. "
        f"{table.remark}"
    )
