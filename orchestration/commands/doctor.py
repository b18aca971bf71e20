"""`uniavgen doctor`: check what this machine can run, which weights it has, and what is missing."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CheckFailed, command

if TYPE_CHECKING:
    from uniavgen.ingest.config import LimitConfig
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
"""Shared libraries -> the Debian package of each."""
MIN_DISK_GIB = 5
MIN_MEMORY_GIB = 8
MIN_CORES = 2
"""Training starts two ranks by default."""


@dataclass(frozen=True)
class Finding:
    """One checked thing. A `needed` one that is not `ok` makes the command exit with 1."""

    topic: str
    name: str
    ok: bool
    found: str
    hint: str = ""
    needed: bool = True


@command
def doctor(
    settings: Config,
    all_: Annotated[bool, typer.Option("--all", help="Also print what is in order.")] = False,
) -> dict[str, Any]:
    """Check what this machine can run and what is missing.

    Problems are printed first, with the way to solve them. Exit code 1 if something necessary is missing.

    Example: uniavgen doctor --preset paper
    """
    summary = check_machine(settings, show_all=all_)
    if summary["missing"]:
        raise CheckFailed(summary)
    return summary


def check_machine(settings: Config, *, show_all: bool = False) -> dict[str, Any]:
    """Check everything and print the problems. In the summary, `missing` lists what is necessary and
    missing.
    """
    from uniavgen.orchestration.output import console

    findings = [
        *_machine(),
        *_programs(settings),
        *_packages(),
        *_weights(settings),
        *_restrictions(settings),
    ]
    missing = [finding for finding in findings if finding.needed and not finding.ok]
    optional = [finding for finding in findings if not finding.needed and not finding.ok]
    in_order = [finding for finding in findings if finding.ok]
    columns = ("topic", "name", "found", "what to do")
    for title, group in (
        ("missing", missing),
        ("optional, not present", optional),
        ("in order", in_order if show_all else []),
    ):
        if group:
            console.table(
                title, columns, [(f.topic, f.name, f.found, f.hint if not f.ok else "") for f in group]
            )
    if not show_all:
        names = ", ".join(finding.name for finding in in_order)
        console.print_line(f"in order ({len(in_order)}, --all shows them): {names}")
    if missing:
        console.console.print(f"[red]missing: {', '.join(finding.name for finding in missing)}")
    else:
        console.console.print(
            "[green]ready:[/] run `uniavgen demo`, or `uniavgen ingest VIDEOS --corpus DIR`"
        )
    return {
        "missing": [finding.name for finding in missing],
        "findings": [vars(finding) for finding in findings],
    }


def _machine() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    python = ".".join(str(part) for part in sys.version_info[:3])
    return [
        Finding("machine", "python", sys.version_info[:2] == (3, 11), python, "use Python 3.11"),
        Finding("machine", "cores", cores >= MIN_CORES, str(cores), f"at least {MIN_CORES} cores"),
        Finding(
            "machine",
            "memory",
            memory >= MIN_MEMORY_GIB,
            f"{memory:.0f} GiB",
            f"at least {MIN_MEMORY_GIB} GiB",
        ),
        Finding(
            "machine",
            "disk",
            free >= MIN_DISK_GIB,
            f"{free:.0f} GiB free",
            f"at least {MIN_DISK_GIB} GiB",
        ),
        Finding(
            "machine",
            "gpu",
            bool(gpus),
            ", ".join(gpus) or "none",
            "tiny runs on the CPU; larger presets need GPUs",
            False,
        ),
    ]


def _programs(settings: Config) -> list[Finding]:
    from uniavgen.ingest.config import PACKAGED

    choice = settings.ingest.limits.ffmpeg
    ffmpeg = _ffmpeg(settings.ingest.limits)
    compiler = shutil.which("g++")
    ninja = shutil.which("ninja")
    return [
        ffmpeg,
        _chromaprint(choice if ffmpeg.ok else PACKAGED),
        Finding(
            "program",
            "g++",
            bool(compiler),
            compiler or "none",
            "apt-get install g++ (DeepSpeed compiles with it)",
        ),
        Finding("program", "ninja", bool(ninja), ninja or "none", "pip install ninja"),
        *(
            Finding("library", name, _can_load(name), package, f"apt-get install {package}")
            for name, package in LIBRARIES.items()
        ),
    ]


def _ffmpeg(limits: LimitConfig) -> Finding:
    """The configured ffmpeg, checked by use: its path, version and what it lacks."""
    from uniavgen.ingest.ffmpeg_check import examine_ffmpeg
    from uniavgen.shards.errors import UserError

    hint = "--set ingest.limits.ffmpeg=packaged, or pip install --force-reinstall imageio-ffmpeg"
    try:
        report = examine_ffmpeg(limits)
    except UserError as error:
        return Finding("program", "ffmpeg", False, str(error), hint)
    found = f"{limits.ffmpeg} ({report.path}), {report.problem or f'version {report.version}'}"
    return Finding("program", "ffmpeg", not report.problem, found, hint)


def _chromaprint(choice: str) -> Finding:
    """An ffmpeg with chromaprint: `choice`, else the packaged one. One that was refused is not asked."""
    from uniavgen.ingest.measures.fingerprint import fingerprinting_ffmpeg

    ffmpeg = fingerprinting_ffmpeg(choice)
    hint = "pip install imageio-ffmpeg: without chromaprint, duplicates are found by their frames only"
    return Finding(
        "program",
        "chromaprint",
        bool(ffmpeg),
        ffmpeg or "none: no ffmpeg that can be used has it",
        "" if ffmpeg else hint,
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
    """Embedded weights, which are downloaded on first use, and larger ones that a setting selects."""
    from uniavgen.shards.weights import REGISTRY, cache_folder, damaged_files, is_cached
    from uniavgen.train.codec.registry import CAPTION_ENCODERS, VIDEO_CODECS, VOCODERS

    findings = [
        Finding(
            "embedded weights", path.parent.name, False, f"damaged: {path}", "delete it: it is fetched again"
        )
        for path in damaged_files()
    ]
    damaged = {finding.name for finding in findings}
    for name, weights in REGISTRY.items():
        if name in damaged:
            continue
        ok = is_cached(name)
        found = f"{weights.purpose}: {cache_folder() / name if ok else 'not downloaded yet'}"
        findings.append(
            Finding(
                "embedded weights", name, ok, found, "" if ok else "downloaded on first use", needed=False
            )
        )
    codecs = settings.train.data.codecs
    for key, purpose, table in (
        ("video", "video codec", VIDEO_CODECS),
        ("caption", "caption encoder", CAPTION_ENCODERS),
        ("vocoder", "vocoder", VOCODERS),
    ):
        configured = getattr(codecs, key)
        for name in (name for name, spec in table.items() if spec.needs_weights):
            chosen = configured == name
            found = f"{purpose}, `{configured}` is configured"
            hint = "" if chosen else f"--set train.data.codecs.{key}={name}"
            findings.append(Finding("optional weights", name, chosen, found, hint, needed=False))
    return findings


def _restrictions(settings: Config) -> list[Finding]:
    """Models and data that the settings name and whose licence restricts their use."""
    from uniavgen.orchestration.planning.restrictions import ingest_restrictions, training_restrictions

    found = [*ingest_restrictions(settings.ingest), *training_restrictions(settings.train)]
    hint = "see docs/licences.md before commercial use"
    return [
        Finding("licence", each.setting, False, f"{each.what}: {each.licence}", hint, False) for each in found
    ]


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
