"""The MLflow run of a corpus: one run for all commands on that corpus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

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
        open_run(tracking, corpus.root, "corpus build") as run,
    ):
        log(run)


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
