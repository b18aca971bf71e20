"""`uniavgen report`: write the page of a corpus or of a training run; it works offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import command

if TYPE_CHECKING:
    from uniavgen.curation.report.comparison import Comparable
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus


@command
def report(
    settings: Config,
    corpus: Annotated[Path | None, typer.Option("--corpus", help="Corpus folder.", metavar="DIR")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Training run, instead of a corpus.", metavar="DIR")
    ] = None,
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
    """Write the page of a corpus or of a training run.

    CORPUS/report/index.html: funnel, signals, playable clips; with --serve it can search and play every clip.
    RUN/report/index.html: losses by task, speed, plan and actual, events, videos. Both work offline.

    Example: uniavgen report --corpus data/corpus --serve
    Example: uniavgen report --corpus data/corpus --compare fine-tune
    Example: uniavgen report --run data/run
    """
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.errors import UsageError

    if (corpus is None) == (run is None):
        raise UsageError("name one of them", where="--corpus, --run")
    if run is not None:
        if serve or compare or port:
            raise UsageError("these are for a corpus", where="--serve, --port, --compare")
        return report_run(run, settings)
    assert corpus is not None
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


def report_run(run_dir: Path, settings: Config) -> dict[str, Any]:
    """Write the page of a training run and store it as an artifact of its MLflow run."""
    from rich.markup import escape

    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.status.run_page import write_run_page
    from uniavgen.orchestration.tracking.mlflow_runs import fail_fast, open_run, warn_on_error

    page = write_run_page(run_dir)
    console.console.print(f"report: open [bold]{escape(str(page))}[/] in a browser")
    fail_fast()
    name = settings.tracking.run_name("training", run_dir)
    description = f"Training in `{run_dir}`, which is not recorded in this store; its page is an artifact."
    with warn_on_error("the page"), open_run(settings.tracking, run_dir, name, description) as run:
        run.artifact(page, "report")
    return {"command": "report", "run": str(run_dir), "page": str(page)}
