"""`uniavgen curate`: decide every clip by a policy, or answer questions about a policy without writing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CorpusOption, command

if TYPE_CHECKING:
    from uniavgen.curation.policy.decisions import CurationSummary, WindowFit
    from uniavgen.curation.policy.rules import Policy
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.mlflow_runs import Run
    from uniavgen.shards.corpus.tables import Corpus

SENSITIVITY_STEPS = 11
"""Thresholds that `--sensitivity` tries for each bound."""


@command
def curate(
    settings: Config,
    corpus: CorpusOption,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Name or YAML file of a policy.", metavar="FILE|NAME")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            help="Show what another threshold would keep; write nothing.",
            metavar="RULE[.min|.max]=VALUE",
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain", help="Show every rule's verdict on one clip; write nothing.", metavar="CLIP"
        ),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Show how each threshold changes the yield; write nothing.")
    ] = False,
) -> dict[str, Any]:
    """Decide which clips to keep, with a reason for each.

    No video is opened: a policy compares columns of the clips table with thresholds. Deciding again takes
    seconds.

    Example: uniavgen curate --corpus data/corpus --what-if snr=20
    """
    from uniavgen.shards.errors import UsageError

    if sum((bool(what_if), explain is not None, sensitivity)) > 1:
        raise UsageError("give one of them at a time", where="--what-if, --explain, --sensitivity")
    if what_if:
        return show_what_if(corpus, settings, policy, what_if)
    if explain is not None:
        return explain_clip(corpus, settings, policy, explain)
    if sensitivity:
        return show_sensitivity(corpus, settings, policy)
    return curate_corpus(corpus, settings, policy)


def curate_corpus(root: Path, settings: Config, policy_name: str | None = None) -> dict[str, Any]:
    """Decide every clip by a policy, print what was rejected and record it in MLflow."""
    from uniavgen.curation.policy.decisions import decide, fit_windows
    from uniavgen.curation.policy.rules import load_policy
    from uniavgen.orchestration.tracking.corpus_run import corpus_version, record_in_corpus_run
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.open(root)
    policy = load_policy(policy_name or settings.curate.policy)
    summary = decide(corpus, policy, settings.curate.split, settings.curate.duplicates)
    _show_summary(summary, settings.curate.split.val_share)
    fits = fit_windows(corpus, preset_windows())
    _show_windows(fits)
    funnel = corpus.root / "policies" / f"funnel-{summary.policy_digest}.json"
    funnel.write_text(json.dumps([dataclasses.asdict(row) for row in summary.funnel], indent=1) + "\n")

    def log(run: Run) -> None:
        run.params({"policy": summary.policy, "policy_digest": summary.policy_digest})
        run.tags({"policy_digest": summary.policy_digest, "corpus_version": corpus_version(corpus)})
        run.metrics(
            {
                "corpus/kept": summary.kept,
                "corpus/kept_hours": summary.kept_hours,
                "corpus/train": summary.train,
                "corpus/val": summary.val,
            }
        )
        run.metrics(
            {f"rejected/{reason.replace(':', ' ')}": count for reason, count in summary.reasons.items()}
        )
        run.artifact(funnel, "funnel")

    record_in_corpus_run(corpus, settings.tracking, log)
    windows = [dataclasses.asdict(fit) for fit in fits]
    return {
        "command": "curate",
        "corpus": str(corpus.root),
        **dataclasses.asdict(summary),
        "windows": windows,
    }


def preset_windows() -> dict[str, int]:
    """The shortest training window of each preset, in frames; presets of `ablate` train on other data."""
    from uniavgen.orchestration.config import load_config, preset_names

    windows = {}
    for name in preset_names():
        if not name.startswith("ablate"):
            data = load_config(name).train.data
            windows[name] = min([shape.frames for shape in data.buckets] or [data.frames])
    return dict(sorted(windows.items(), key=lambda window: window[1]))


def show_what_if(
    root: Path, settings: Config, policy_name: str | None, assignments: list[str]
) -> dict[str, Any]:
    """Print what other thresholds would keep, beside what the policy keeps now."""
    from uniavgen.curation.policy.what_if import what_if
    from uniavgen.orchestration.output import console

    corpus, policy = _corpus_and_policy(root, settings, policy_name)
    answer = what_if(corpus, policy, assignments)
    rows = [
        (before.rule, before.failed_first, after.failed_first, after.failed_first - before.failed_first)
        for before, after in zip(answer.funnel_before, answer.funnel_after, strict=True)
        if before.failed_first != after.failed_first
    ]
    columns = ("rejected first by", "now", "then", "change")
    console.table(f"{policy.name} with {', '.join(assignments)}", columns, rows)
    before, after = answer.before, answer.after
    console.console.print(
        f"kept now: {before.clips:,} clips, {before.hours:.2f} h; "
        f"then: [bold]{after.clips:,} clips, {after.hours:.2f} h[/] "
        f"({after.clips - before.clips:+,} clips, {after.hours - before.hours:+.2f} h); nothing was written"
    )
    return {
        "command": "curate",
        "question": "what-if",
        "assignments": assignments,
        **dataclasses.asdict(answer),
    }


def explain_clip(root: Path, settings: Config, policy_name: str | None, clip: str) -> dict[str, Any]:
    """Print every rule's verdict on one clip, with the values that it compared."""
    from uniavgen.curation.policy.what_if import explain
    from uniavgen.orchestration.output import console

    corpus, policy = _corpus_and_policy(root, settings, policy_name)
    verdicts = explain(corpus, policy, clip)
    rows = [
        (
            row["rule"],
            row["verdict"],
            ", ".join(f"{name} = {console.format_value(value)}" for name, value in row["values"].items()),
            row["says"],
        )
        for row in verdicts
    ]
    columns = ("rule", "verdict", "values", "requires that")
    console.table(f"clip {clip} under policy {policy.name}", columns, rows)
    failed = [row["rule"] for row in verdicts if row["verdict"] in ("failed", "missing")]
    reason = failed[0] if failed else _reason_after_rules(corpus, policy, clip)
    passes = "" if failed else "passes every rule; "
    console.console.print(f"{passes}rejected, first by [bold]{reason}[/]" if reason else "[bold]kept[/]")
    return {
        "command": "curate",
        "question": "explain",
        "clip": clip,
        "policy": policy.name,
        "rules": verdicts,
        "reason": reason,
    }


def _reason_after_rules(corpus: Corpus, policy: Policy, clip: str) -> str:
    """Why this policy's decisions reject a clip that passes its rules: a duplicate, or its split; else empty.

    `clip`: an id or its beginning.
    """
    import pyarrow.compute as pc

    decisions = corpus.read("decisions", ["clip_id", "reason", "policy_digest"])
    of_clip = pc.starts_with(decisions["clip_id"], pattern=clip)
    rows = decisions.filter(of_clip).to_pylist()
    return next((str(row["reason"]) for row in rows if row["policy_digest"] == policy.digest), "")


def show_sensitivity(root: Path, settings: Config, policy_name: str | None) -> dict[str, Any]:
    """Print how the number of kept clips changes with each threshold, over the range of its values."""
    from uniavgen.curation.policy.what_if import clips_for, sensitivity
    from uniavgen.orchestration.output import console

    corpus, policy = _corpus_and_policy(root, settings, policy_name)
    bounds = sensitivity(clips_for(corpus, policy), policy, steps=SENSITIVITY_STEPS)
    rows = []
    for bound in bounds:
        if len(set(bound.clips)) == 1:  # no threshold changes anything
            continue
        kept = dict(zip(bound.thresholds, bound.clips, strict=True))
        ends = [bound.thresholds[0], bound.thresholds[-1]]
        loose, tight = [f"{kept[at]:,} at {at:.3g}" for at in (ends if bound.bound == "min" else ends[::-1])]
        rows.append((f"{bound.rule}.{bound.bound}", bound.threshold, 100 * bound.gain, loose, tight))
    kept_now = bounds[0].clips_now if bounds else 0
    console.table(
        f"sensitivity of {policy.name} ({kept_now:,} clips kept now)",
        ("bound", "threshold", "rejected by it alone, % of kept", "kept at loosest", "kept at tightest"),
        rows,
    )
    return {
        "command": "curate",
        "question": "sensitivity",
        "policy": policy.name,
        "bounds": [dataclasses.asdict(bound) for bound in bounds],
    }


def _corpus_and_policy(root: Path, settings: Config, policy_name: str | None) -> tuple[Corpus, Policy]:
    """The corpus, and the named policy, else the one that made the decisions, else the configured one."""
    from uniavgen.curation.policy.decisions import decided_policy
    from uniavgen.curation.policy.rules import load_policy
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.open(root)
    if policy_name is None and len(corpus.read("decisions", ["clip_id"])):
        return corpus, decided_policy(corpus)
    return corpus, load_policy(policy_name or settings.curate.policy)


def _show_summary(summary: CurationSummary, val_share: float) -> None:
    """Print every rejected clip by reason, what is kept, and what is unusual about the split."""
    from uniavgen.curation.report.templating import format_span
    from uniavgen.orchestration.output import console

    rows = [(row.reason, row.clips, format_span(row.hours * 3600), row.says) for row in summary.rejected]
    if len(rows) > 1:
        lost = format_span((summary.hours - summary.kept_hours) * 3600)
        rows.append(("all rejected", summary.clips - summary.kept, lost, ""))
    if rows:
        console.table(
            f"policy {summary.policy}: rejected clips by first reason",
            ("reason", "clips", "time", "because"),
            rows,
        )
    console.console.print(
        f"kept [bold]{summary.kept}[/] of {summary.clips} clips, {format_span(summary.kept_hours * 3600)} of "
        f"{format_span(summary.hours * 3600)}; train {summary.train}, val {summary.val} "
        f"({format_span(summary.val_hours * 3600)})" + ("" if summary.written else " (nothing changed)")
    )
    for warning in split_warnings(summary, val_share):
        console.print_warning(warning)


def _show_windows(fits: Sequence[WindowFit]) -> None:
    """Print how much of train is long enough for each preset."""
    from uniavgen.curation.report.templating import format_span
    from uniavgen.orchestration.output import console
    from uniavgen.shards.timing import VIDEO_FPS

    rows = [
        (
            fit.name,
            f"{fit.frames / VIDEO_FPS:.2f} s",
            fit.clips,
            format_span(fit.hours * 3600),
            100 * fit.share,
        )
        for fit in fits
    ]
    console.table(
        "train clips that are as long as a preset's window",
        ("preset", "window", "clips", "time", "% of train"),
        rows,
    )


def split_warnings(summary: CurationSummary, val_share: float) -> list[str]:
    """An empty side, a val far from its share, clips that left val, and raised similarity thresholds."""
    warnings = []
    share = summary.val_hours / summary.kept_hours if summary.kept_hours else 0.0
    hint = "add other persons, or raise curate.split.near_voice and curate.split.near_face"
    far = f"val has {100 * share:.1f} % of the kept time, not {100 * val_share:g} %"
    if summary.kept and val_share and not summary.val:
        warnings.append(f"val is empty: all kept clips are of persons who may be the same; {hint}")
    elif summary.kept and val_share and not summary.train:
        warnings.append(f"train is empty: all kept clips are of persons who may be one in val; {hint}")
    elif summary.kept and share < val_share / 2:
        warnings.append(f"{far}: most persons may be the same as one in train; {hint}")
    elif share > 2 * val_share:
        warnings.append(f"{far}: many persons may be the same as one in val; {hint}")
    if summary.left_val:
        warnings.append(
            f"{summary.left_val} clips moved from val to train: their persons are, or may be, the same as "
            "one in train"
        )
    warnings += [
        f"{name} similarity threshold raised to cosine {cosine:.2f} to cap chance matches of speakers"
        for name, cosine in summary.near_cut.items()
    ]
    return warnings
