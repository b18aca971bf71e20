"""`uniavgen curate --what-if`, `--explain` and `--sensitivity`: answers printed as tables; nothing is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console

if TYPE_CHECKING:
    from uniavgen.curation.policy.rules import Policy
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus


def ask_what_if(
    root: Path, settings: Config, policy_name: str | None, assignments: list[str]
) -> dict[str, Any]:
    """What other thresholds would keep, beside what the policy keeps now."""
    from uniavgen.curation.policy.what_if import what_if

    corpus, policy = _asked(root, settings, policy_name)
    answer = what_if(corpus, policy, assignments)
    rows = [
        (before.rule, before.failed_first, after.failed_first, after.failed_first - before.failed_first)
        for before, after in zip(answer.funnel_before, answer.funnel_after, strict=True)
        if before.failed_first != after.failed_first
    ]
    console.table(
        f"{policy.name} with {', '.join(assignments)}", ("rejected first by", "now", "then", "change"), rows
    )
    before, after = answer.before, answer.after
    console.console.print(
        f"kept now: {before.clips:,} clips, {before.hours:.2f} h; then: [bold]{after.clips:,} clips, {after.hours:.2f} h[/] "
        f"({after.clips - before.clips:+,} clips, {after.hours - before.hours:+.2f} h); nothing was written"
    )
    return {
        "command": "curate",
        "question": "what-if",
        "assignments": assignments,
        **dataclasses.asdict(answer),
    }


def explain_clip(root: Path, settings: Config, policy_name: str | None, clip: str) -> dict[str, Any]:
    """Every rule's verdict on one clip, with the values that it read."""
    from uniavgen.curation.policy.what_if import explain

    corpus, policy = _asked(root, settings, policy_name)
    told = explain(corpus, policy, clip)
    rows = [
        (
            row["rule"],
            row["verdict"],
            ", ".join(f"{k} = {console.shown(v)}" for k, v in row["values"].items()),
            row["says"],
        )
        for row in told
    ]
    console.table(f"clip {clip} under policy {policy.name}", ("rule", "verdict", "values", "asks that"), rows)
    wrong = [row["rule"] for row in told if row["verdict"] in ("failed", "missing")]
    console.console.print(f"rejected; first by [bold]{wrong[0]}[/]" if wrong else "[bold]kept[/]")
    return {"command": "curate", "question": "explain", "clip": clip, "policy": policy.name, "rules": told}


def ask_sensitivity(root: Path, settings: Config, policy_name: str | None) -> dict[str, Any]:
    """How the yield follows each threshold: what a tenth of the values' range looser or tighter would change."""
    from uniavgen.curation.policy.what_if import clips_for, sensitivity

    corpus, policy = _asked(root, settings, policy_name)
    found = sensitivity(clips_for(corpus, policy), policy, steps=11)
    rows, idle = [], 0
    for row in found:
        if len(set(row.clips)) == 1:
            idle += 1
            continue
        kept = dict(zip(row.thresholds, row.clips, strict=True))
        ends = [row.thresholds[0], row.thresholds[-1]]
        loose, tight = [f"{kept[at]:,} at {at:.3g}" for at in (ends if row.bound == "min" else ends[::-1])]
        rows.append((f"{row.rule}.{row.bound}", row.threshold, 100 * row.gain, loose, tight))
    kept_now = found[0].clips_now if found else 0
    console.table(
        f"sensitivity of {policy.name} ({kept_now:,} clips kept now)",
        ("bound", "threshold", "rule alone rejects, % of kept", "loosest seen keeps", "tightest seen keeps"),
        rows,
    )
    return {
        "command": "curate",
        "question": "sensitivity",
        "policy": policy.name,
        "bounds": [dataclasses.asdict(r) for r in found],
    }


def _asked(root: Path, settings: Config, policy_name: str | None) -> tuple[Corpus, Policy]:
    """The corpus, and the policy that is asked about: the one named, else the one that decided, else the configured one."""
    from uniavgen.curation.policy.decisions import decided_policy
    from uniavgen.curation.policy.rules import load_policy
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.open(root)
    if policy_name is None and len(corpus.read("decisions", ["clip_id"])):
        return corpus, decided_policy(corpus)
    return corpus, load_policy(policy_name or settings.curate.policy)
