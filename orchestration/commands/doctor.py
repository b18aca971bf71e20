"""What this machine can run, which weights it has, what is missing and how to get it."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console
from uniavgen.shards.errors import UserError
from uniavgen.shards.weights import REGISTRY, cache_folder, is_cached
from uniavgen.train.codec.registry import CAPTION_ENCODERS, VIDEO_CODECS, VOCODERS

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

PACKAGES = (
    "ray",
    "torch",
    "deepspeed",
    "webdataset",
    "pyannote.audio",
    "mediapipe",
    "whisperx",
    "ffmpeg-python",
    "mlflow",
)
LIBRARIES = {"libEGL.so.1": "libegl1", "libGLESv2.so.2": "libgles2", "libGL.so.1": "libgl1"}
DISK_NEEDED_GB = 5


@dataclass(frozen=True)
class Finding:
    """One line of the examination; `needed` findings that are not `ok` make the command exit with 1."""

    topic: str
    name: str
    ok: bool
    found: str
    hint: str = ""
    needed: bool = True


def examine(settings: Config) -> dict[str, Any]:
    """Look at everything, print it, and return it as a summary; `missing` lists what the machine must still get."""
    findings = [*_machine(), *_programs(), *_packages(), *_weights(settings)]
    rows = [
        (f.topic, f.name, "ok" if f.ok else "MISSING" if f.needed else "later", f.found, f.hint)
        for f in findings
    ]
    console.table("this machine", ("topic", "name", "state", "found", "what to do"), rows)
    missing = [finding.name for finding in findings if finding.needed and not finding.ok]
    if missing:
        console.console.print(f"[red]missing: {', '.join(missing)}")
    else:
        console.console.print(
            "[green]ready:[/] try `uniavgen demo`, or `uniavgen ingest VIDEOS --corpus DIR`"
        )
    return {"missing": missing, "findings": [vars(finding) for finding in findings]}


def _machine() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    python = ".".join(str(part) for part in sys.version_info[:3])
    return [
        Finding(
            "machine", "python", (3, 11) <= sys.version_info[:2] < (3, 13), python, "use Python 3.11 or 3.12"
        ),
        Finding("machine", "cores", cores >= 2, str(cores), "training starts two workers; give two cores"),
        Finding("machine", "memory", memory >= 8, f"{memory:.0f} GiB", "8 GiB at least"),
        Finding(
            "machine",
            "disk",
            free >= DISK_NEEDED_GB,
            f"{free:.0f} GiB free",
            f"{DISK_NEEDED_GB} GiB at least",
        ),
        Finding(
            "machine",
            "gpu",
            bool(gpus),
            ", ".join(gpus) or "none",
            "the CPU serves; presets above tiny want GPUs",
            False,
        ),
    ]


def _programs() -> list[Finding]:
    from uniavgen.ingest.io.ffmpeg import ffmpeg_path

    try:
        ffmpeg, ok = ffmpeg_path(), True
    except UserError as error:
        ffmpeg, ok = str(error), False
    compiler = shutil.which("g++")
    ninja = shutil.which("ninja")
    return [
        Finding("program", "ffmpeg", ok, ffmpeg, "pip install imageio-ffmpeg, or put ffmpeg on PATH"),
        _chromaprint(ok),
        Finding(
            "program",
            "g++",
            bool(compiler),
            compiler or "none",
            "apt-get install g++ (DeepSpeed builds with it)",
        ),
        Finding("program", "ninja", bool(ninja), ninja or "none", "pip install ninja"),
        *(
            Finding("library", name, _loads(name), package, f"apt-get install {package}")
            for name, package in LIBRARIES.items()
        ),
    ]


def _chromaprint(with_ffmpeg: bool) -> Finding:
    from uniavgen.ingest.measures.fingerprints import fingerprinting_ffmpeg

    ffmpeg = fingerprinting_ffmpeg() if with_ffmpeg else None
    remedy = "pip install imageio-ffmpeg: without it copies are known by their picture alone"
    return Finding(
        "program",
        "chromaprint",
        bool(ffmpeg),
        ffmpeg or "no ffmpeg here has it",
        "" if ffmpeg else remedy,
        needed=False,
    )


def _packages() -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            findings.append(Finding("package", name, True, version(name)))
        except PackageNotFoundError:
            findings.append(Finding("package", name, False, "none", "make install"))
    return findings


def _weights(settings: Config) -> list[Finding]:
    """Embedded weights (fetched on first use) and the larger ones that the user may name."""
    findings = []
    for name, weights in REGISTRY.items():
        ok = is_cached(name)
        found = f"{weights.purpose}: {cache_folder() / name if ok else 'not fetched yet'}"
        findings.append(
            Finding("embedded weights", name, ok, found, "" if ok else "fetched on first use", needed=False)
        )
    codecs = settings.train.data.codecs
    for key, purpose, table in (
        ("video", "video codec", VIDEO_CODECS),
        ("caption", "caption encoder", CAPTION_ENCODERS),
        ("vocoder", "vocoder", VOCODERS),
    ):
        stand_in = type(codecs).model_fields[key].default
        for name in (name for name, spec in table.items() if spec.needs_weights):
            chosen = getattr(codecs, key) == name
            found = f"{purpose}; `{stand_in}` stands in: {'named' if chosen else 'not named'}"
            hint = "" if chosen else f"--set train.data.codecs.{key}={name}"
            findings.append(Finding("named weights", name, chosen, found, hint, needed=False))
    return findings


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
