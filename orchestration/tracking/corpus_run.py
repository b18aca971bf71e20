"""The MLflow run of a corpus: one run for all commands on that corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from uniavgen.orchestration.output.console import format_value
from uniavgen.orchestration.tracking.mlflow_runs import Run, fail_fast, open_run, warn_on_error

if TYPE_CHECKING:
    from uniavgen.orchestration.tracking.config import TrackingConfig
    from uniavgen.shards.corpus.tables import Corpus


def record_in_corpus_run(corpus: Corpus, tracking: TrackingConfig, log: Callable[[Run], None]) -> None:
    """Open the corpus's run, or continue it, and call `log` with it.

    An error of the tracker is a warning: the work on the corpus is done, whatever is recorded of it.
    """
    fail_fast()
    with (
        warn_on_error(f"this command on {corpus.root.name}"),
        open_run(tracking, corpus.root, tracking.run_name("corpus", corpus.root), corpus_note(corpus)) as run,
    ):
        log(run)
        run.describe(lambda error: corpus_note(corpus, error))


def corpus_note(corpus: Corpus, error: str = "") -> str:
    """Description of a corpus's run: what the corpus holds now. `error`: what ended the command."""
    counts = (
        "SELECT (SELECT count(*) FROM sources) AS sources, (SELECT count(*) FROM clips) AS clips, "
        "(SELECT sum(duration_s) FROM sources) AS source_s, "
        "(SELECT sum(end_s - start_s) FROM clips) AS clip_s, "
        "(SELECT count(*) FROM decisions WHERE kept) AS kept"
    )
    totals = corpus.query(counts).to_pylist()[0]
    kinds = corpus.query("SELECT error_type, count(*) AS n FROM failures GROUP BY 1 ORDER BY 2 DESC, 1")
    failed = ", ".join(f"{row['error_type']} {row['n']}" for row in kinds.to_pylist()) or "none"
    hours = {name: format_value((totals[name] or 0.0) / 3600) for name in ("source_s", "clip_s")}
    paragraphs = [
        f"**ended: {error}**" if error else "",
        f"Corpus `{corpus.root}`, version `{corpus_version(corpus)}`.",
        f"{totals['sources']:,} sources ({hours['source_s']} h), {totals['clips']:,} clips "
        f"({hours['clip_s']} h), {totals['kept']:,} of them kept. Failures: {failed}.",
        "One run for all commands on this corpus. Artifacts: the report page, the funnel of the policy, the "
        "manifest of the shards.",
    ]
    return "\n\n".join(part for part in paragraphs if part)


def corpus_version(corpus: Corpus) -> str:
    """Identity of the corpus's content: table versions, policy digest of the decisions, number of deletions.

    A deletion writes the tables anew, and their versions count from 0 again: so deletions are counted too.
    """
    from uniavgen.shards.corpus.deletion import read_tombstones

    versions = "-".join(f"{name[:2]}{version}" for name, version in corpus.versions().items())
    digests = corpus.query("SELECT DISTINCT policy_digest FROM decisions ORDER BY 1").to_pylist()
    count = read_tombstones(corpus.root).deletions
    deletions = [f"forgot{count}"] if count else []  # part of a recorded parameter: not renamed
    return "-".join([versions, *(row["policy_digest"][:8] for row in digests), *deletions])
