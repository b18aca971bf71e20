"""The worked examples of docs/extending.md do what the page says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from paths import ROOT
from test_commands_in_docs import fenced_blocks

import uniavgen
from uniavgen.shards.corpus.tables import Corpus

PAGE = ROOT / "docs" / "extending.md"


def test_the_rule_example_decides(
    tmp_path: Path, make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    changes: list[dict[str, Any]] = [
        {"frozen_ratio": 0.9, "face_height_px": 300.0},
        {"face_height_px": 250.0},
        {"word_count": 30.0, "face_height_px": 300.0},
    ]
    rows = [make_clip(f"s{i}", 0.0, "abc"[i], **change) for i, change in enumerate(changes)]
    policy = tmp_path / "steady.yaml"
    policy.write_text(fenced_blocks(PAGE, ("yaml",))[0])
    table = uniavgen.Corpus(make_corpus(rows).root).decide(policy).table
    reasons = dict(zip(table["clip_id"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert [reasons[row["clip_id"]] for row in rows] == ["", "face_height", "pace"]
