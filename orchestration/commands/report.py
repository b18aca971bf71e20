"""`uniavgen report`: write the corpus report, one HTML page that works offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CorpusOption, command

if TYPE_CHECKING:
    from uniavgen.curation.report.comparison import Comparable
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus


@command
def report(
    settings: Config,
    corpus: CorpusOption,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Then serve it on this machine: search and play all clips. Ctrl-C ends it."
        ),
    ] = False,
    port: Annotated[int, typer.Option("--port", help="Port for --serve; 0 takes a free one.")] = 0,
    compare: Annotated[
        str | None,
        typer.Option("--compare", help="Show this policy (name or file) or other corpus side by side."),
    ] = None,
) -> dict[str, Any]:
    """Write the corpus report: funnel, signals, playable clips.

    The page is CORPUS/report/index.html. It works offline. With --serve it can search and play every clip.

    Example: uniavgen report --corpus data/corpus --serve
    Example: uniavgen report --corpus data/corpus --compare fine-tune
    """
    from uniavgen.shards.corpus.tables import Corpus

    other = find_comparable(Corpus.open(corpus), settings, compare) if compare else None
    answer = report_corpus(corpus, settings, other)
    if serve:
        serve_report(corpus, port, other)
    return answer


def find_comparable(corpus: Corpus, settings: Config, name: str) -> Comparable:
    """The corpus in the folder `name`, else the decisions that the policy `name` makes."""
    from uniavgen.curation.policy.rules import load_policy
    from uniavgen.curation.report.comparison import other_corpus, other_policy
    from uniavgen.shards.corpus.tables import Corpus

    if Path(name).is_dir():
        return other_corpus(corpus, Corpus.open(Path(name)))
    return other_policy(corpus, load_policy(name), settings.curate.split, settings.curate.duplicates)


def serve_report(root: Path, port: int, other: Comparable | None = None) -> None:
    """Serve the report of a corpus until Ctrl-C."""
    from uniavgen.curation.report.serve import ReportServer
    from uniavgen.orchestration.output import console
    from uniavgen.shards.corpus.tables import Corpus

    with ReportServer(Corpus.open(root), port, other) as server:
        console.console.print(f"report: open [bold]{server.url}[/] on this machine; Ctrl-C ends it")
        try:
            server.wait()
        except KeyboardInterrupt:
            console.console.print("stopped")


def report_corpus(root: Path, settings: Config, other: Comparable | None = None) -> dict[str, Any]:
    """Write the page and store it as an artifact of the corpus's run. `other` is shown side by side."""
    from rich.markup import escape

    from uniavgen.curation.report.page import write_report
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.tracking.corpus_run import record_in_corpus_run
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.open(root)
    page = write_report(corpus, settings.report, settings.curate.duplicates, other).page
    console.console.print(f"report: open [bold]{escape(str(page))}[/] in a browser")
    record_in_corpus_run(corpus, settings.tracking, lambda run: run.artifact(page.parent, "report"))
    return {"command": "report", "corpus": str(corpus.root), "page": str(page)}
