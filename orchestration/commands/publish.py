"""`uniavgen shard --to URL`: the shards, once written, copied to an object store or another folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config


def publish_corpus_shards(root: Path, settings: Config, url: str) -> dict[str, Any]:
    """Write the shards, then bring the copy at the URL in line with them."""
    from uniavgen.orchestration.commands.corpus_jobs import shard_corpus
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.write.publish import publish_shards

    summary = shard_corpus(root, settings)
    with console.progress(f"to {url}") as bar:
        published = publish_shards(
            Corpus.open(root).root / "shards",
            url,
            on_progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    counts = f"{published.sent} tars sent ({published.bytes / 1e6:.1f} MB), {published.stood} there already"
    console.console.print(f"{url}: {counts}, {published.removed} removed", markup=False)
    return {**summary, "published": dataclasses.asdict(published)}
