"""The steps of a plan: what each reads, writes and depends on, and the command body that it calls.

Whether an input of a step changed is read from versions of tables and hashes of manifests, not from the
content. This takes less than a second for a corpus of any size.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.plan_runs.plan_file import Plan
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config

CODE_FILES = ("*.py", "*.yaml", "*.txt", "*.html", "*.js", "*.css")
MISSING = "missing"
"""Identity of a file or folder that is not there."""


@dataclass(frozen=True)
class Job:
    """A plan and its settings: what a step's functions get."""

    plan: Plan
    settings: Config


@dataclass(frozen=True)
class Step:
    """One step of a plan.

    `inputs` and `outputs` give identities by name; equal identities mean equal content. A step runs again if
    an input, a setting, the code, or what it wrote has changed. `run` returns the command's summary.
    """

    name: str
    run: Callable[[Job], dict[str, Any]]
    inputs: Callable[[Job], dict[str, str]]
    outputs: Callable[[Job], dict[str, str]]
    after: tuple[str, ...] = ()
    """Steps whose output it reads."""
    sections: tuple[str, ...] = ()
    """Dotted names of the settings that it depends on."""
    code: tuple[str, ...] = ()
    """Packages and modules below `uniavgen` that it runs."""
    why_not: Callable[[Job], str] = lambda job: ""
    """Why these settings leave the step nothing to do; "" if there is something."""
    uses_ray: bool = False
    """It works on Ray, which is not started anew between two such steps."""


def step_settings(step: Step, job: Job) -> dict[str, Any]:
    """The settings and options that a step depends on, by dotted name."""
    from uniavgen.orchestration.tracking.mlflow_runs import flatten

    document = job.settings.model_dump(mode="json")
    values: dict[str, Any] = {}
    for name in step.sections:
        part: Any = document
        for key in name.split("."):
            part = part[key]
        values |= flatten(part, f"{name}.") if isinstance(part, Mapping) else {name: part}
    options = job.plan.steps.options(step.name)
    if options is not None:
        values |= flatten(options.model_dump(mode="json"), f"steps.{step.name}.")
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


@cache
def code_digest(names: tuple[str, ...]) -> str:
    """Hash of the source files of packages and modules below `uniavgen`."""
    digest = hashlib.sha256()
    for name in names:
        module = importlib.util.find_spec(f"uniavgen.{name}")
        if module is None or module.origin is None:
            raise ValueError(f"no module uniavgen.{name}")
        origin = Path(module.origin)
        files = [origin]
        if origin.name == "__init__.py":
            files = sorted(file for pattern in CODE_FILES for file in origin.parent.rglob(pattern))
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def tables(job: Job, *names: str) -> dict[str, str]:
    """Identities of tables of the corpus. A deletion rewrites tables, whose versions then count from 0."""
    from uniavgen.shards.corpus.deletion import read_tombstones
    from uniavgen.shards.corpus.tables import Corpus

    if not (job.plan.corpus / "corpus.json").is_file():
        return {f"table {name}": MISSING for name in names}
    corpus = Corpus.open(job.plan.corpus)
    deletions = read_tombstones(corpus.root).deletions
    return {
        f"table {name}": f"version {version}" + (f", {deletions} deletions" if deletions else "")
        for name, version in corpus.versions(names).items()
    }


def file_digest(path: Path) -> str:
    """SHA-256 of a small file; `missing` if it is not there."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else MISSING


def file_stamp(path: Path) -> str:
    """Size and time of a large file; `missing` if it is not there."""
    if not path.is_file():
        return MISSING
    status = path.stat()
    return f"{status.st_size} bytes, {status.st_mtime_ns}"


def source_list(job: Job) -> dict[str, str]:
    """The sources that the plan names, by URI and stamp. Raises UserError if there are none."""
    from uniavgen.ingest.io.sources import find_sources

    with chdir(job.plan.home):
        entries = find_sources(list(job.plan.sources), job.settings.ingest.sources).entries
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.uri}\0{entry.stamp}\n".encode("utf-8", "surrogateescape"))
    return {"sources": f"{len(entries)} ({digest.hexdigest()[:12]})"}


def _policy(job: Job) -> dict[str, str]:
    from uniavgen.curation.policy.rules import load_policy

    policy = load_policy(_policy_name(job))
    return {"policy": f"{policy.name} {policy.digest}"}


def _policy_name(job: Job) -> str:
    return str(job.plan.steps.options("curate").policy or job.settings.curate.policy)


def manifest(job: Job) -> dict[str, str]:
    """Identity of the shards of the corpus."""
    return {"shards": file_digest(job.plan.corpus / "shards" / "manifest.json")}


def _shards_and_copy(job: Job) -> dict[str, str]:
    """The shards of the corpus, and the copy that training reads, if one is configured."""
    copy = job.settings.train.data.shards
    return manifest(job) | ({"copy of the shards": copy} if copy else {})


def latents(job: Job) -> dict[str, str]:
    """Identity of the cached latents: their manifests, and the sidecars by name and size."""
    from uniavgen.shards.latents.cache import cache_folders

    digest = hashlib.sha256()
    folders = cache_folders(job.plan.corpus / "shards")
    for folder in folders:
        digest.update(file_digest(folder / "manifest.json").encode())
        for path in sorted(folder.glob("*.tar")):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return {"latents": digest.hexdigest()[:16] if folders else MISSING}


def weights(job: Job) -> dict[str, str]:
    """Identity of the weights of the run's stages."""
    from uniavgen.train.checkpoint.run_folder import RunFolder

    folders = {stage.name: RunFolder(job.plan.run, stage.name) for stage in job.settings.train.stages}
    return {
        f"weights of {name}": file_stamp(folder.weights) if folder.done else MISSING
        for name, folder in folders.items()
    }


def _trained(job: Job) -> dict[str, str]:
    """The weights of the stages that step `train` trains."""
    stage = job.plan.steps.options("train").stage
    return {
        name: stamp for name, stamp in weights(job).items() if stage == "all" or name == f"weights of {stage}"
    }


def _videos(job: Job) -> dict[str, str]:
    options = job.plan.steps.options("sample")
    pattern = f"-{options.clip or '*'}-seed{options.seed}.mp4"
    return {
        f"sample {task}": ", ".join(
            file_stamp(path) for path in sorted((job.plan.run / "samples").glob(f"{task}{pattern}"))
        )
        or MISSING
        for task in options.tasks
    }


def _run_ingest(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.ingest import ingest_corpus

    retry = job.plan.steps.options("ingest").retry
    return ingest_corpus(list(job.plan.sources), job.plan.corpus, job.settings, retry=retry)


def _run_curate(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.curate import curate_corpus

    return curate_corpus(job.plan.corpus, job.settings, _policy_name(job))


def _run_caption(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.caption import caption_corpus

    summary = caption_corpus(job.plan.corpus, job.settings, retry=job.plan.steps.options("caption").retry)
    if summary["stopped"]:
        raise UserError(
            f"captions stopped: {summary['stopped']}",
            where=job.plan.corpus,
            hint="run the plan again to continue",
            kind="captions-stopped",
        )
    return summary


def _run_shard(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.shard import publish_corpus_shards, shard_corpus

    if to := job.plan.steps.options("shard").to:
        return publish_corpus_shards(job.plan.corpus, job.settings, to)
    return shard_corpus(job.plan.corpus, job.settings)


def _run_report(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.report import report_corpus

    return report_corpus(job.plan.corpus, job.settings)


def _run_cache(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.cache_latents import cache_corpus_latents

    summary = cache_corpus_latents(job.plan.corpus, job.settings)
    if summary["failed"]:
        raise UserError(
            f"{len(summary['failed'])} shards have no latents: {summary['failed'][0]}",
            where=job.plan.corpus,
            hint="run the plan again to try them again",
            kind="no-latents",
        )
    return summary


def _run_train(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.train import train_stages
    from uniavgen.orchestration.output import console

    options = job.plan.steps.options("train")
    summary = train_stages(
        options.stage,
        job.plan.corpus,
        job.plan.run,
        job.settings,
        accept_changes=options.accept_changes,
        label=f"preset {job.plan.preset} and the settings of the plan",
    )
    if not any(stage["ran"] for stage in summary["stages"]):
        console.print_line(
            "every stage was finished before; to train on other shards, name another `run` in the plan"
        )
    return summary


def _run_sample(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.sample import sample_video

    options = job.plan.steps.options("sample")
    made = [
        sample_video(
            job.plan.run, job.plan.corpus, job.settings, task=task, clip=options.clip, seed=options.seed
        )
        for task in options.tasks
    ]
    return made[0] if len(made) == 1 else {"command": "sample", "videos": made}


def _run_export(job: Job) -> dict[str, Any]:
    from uniavgen.orchestration.commands.export import export_run

    return export_run(job.plan.run, job.plan.steps.options("export").out)


def _captions_from_measurements(job: Job) -> str:
    backend = job.settings.caption.backend
    return "captions are made from measurements when shards are written" if backend == "measurements" else ""


def _several_windows(job: Job) -> str:
    several = bool(job.settings.train.data.buckets)
    return "several windows are configured: training encodes latents while it runs" if several else ""


STEPS = (
    Step(
        "ingest",
        _run_ingest,
        inputs=source_list,
        outputs=lambda job: tables(job, "sources", "clips"),
        sections=("ingest",),
        code=("shards", "ingest", "orchestration.commands.ingest"),
        uses_ray=True,
    ),
    Step(
        "curate",
        _run_curate,
        inputs=lambda job: tables(job, "sources", "clips") | _policy(job),
        outputs=lambda job: tables(job, "decisions"),
        after=("ingest",),
        sections=("curate",),
        code=("shards", "curation", "orchestration.commands.curate"),
    ),
    Step(
        "caption",
        _run_caption,
        inputs=lambda job: tables(job, "clips", "decisions"),
        outputs=lambda job: tables(job, "captions"),
        after=("curate",),
        sections=("caption",),
        code=("shards", "curation", "orchestration.commands.caption"),
        why_not=_captions_from_measurements,
    ),
    Step(
        "shard",
        _run_shard,
        inputs=lambda job: tables(job, "clips", "decisions", "captions"),
        outputs=manifest,
        after=("curate", "caption"),
        sections=("shard", "caption"),
        code=("shards", "curation", "orchestration.commands.shard"),
    ),
    Step(
        "report",
        _run_report,
        inputs=lambda job: tables(job, "sources", "clips", "decisions", "captions"),
        outputs=lambda job: {"page": file_stamp(job.plan.corpus / "report" / "index.html")},
        after=("curate", "caption"),
        sections=("report", "curate.duplicates"),
        code=("shards", "curation", "orchestration.commands.report"),
    ),
    Step(
        "cache-latents",
        _run_cache,
        inputs=manifest,
        outputs=latents,
        after=("shard",),
        sections=("train.data",),
        code=("shards", "train", "orchestration.commands.cache_latents"),
        uses_ray=True,
        why_not=_several_windows,
    ),
    Step(
        "train",
        _run_train,
        inputs=_shards_and_copy,
        outputs=_trained,
        after=("shard", "cache-latents"),
        sections=("train",),
        code=("shards", "train", "orchestration.commands.train"),
        uses_ray=True,
    ),
    Step(
        "sample",
        _run_sample,
        inputs=lambda job: manifest(job) | weights(job),
        outputs=_videos,
        after=("shard", "train"),
        sections=("sample", "train.device"),
        code=("shards", "train", "orchestration.commands.sample"),
    ),
    Step(
        "export",
        _run_export,
        inputs=weights,
        outputs=lambda job: {"export": file_stamp(job.plan.steps.options("export").out / "config.json")},
        after=("train",),
        code=("shards", "train", "orchestration.commands.export"),
    ),
)
"""Every step that a plan can have, in the order in which they run."""
