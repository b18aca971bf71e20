"""Two policies, or two corpora, side by side: counts add up, and clips that only one side keeps are found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_signals import varied_clips

from uniavgen.curation.config import DuplicateConfig, ReportConfig, SplitConfig
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy, parse_policy
from uniavgen.curation.report.comparison import Comparable, compare, other_corpus, other_policy
from uniavgen.curation.report.judged import judged_corpus
from uniavgen.curation.report.page import write_report
from uniavgen.orchestration.commands.report import find_comparable
from uniavgen.orchestration.config import Config
from uniavgen.shards.corpus.tables import Corpus

CLIPS = 80
TIGHT = """
name: tight
extends: default
drop: [luma]
rules:
  - {name: snr, column: snr_db, min: 20, says: the audio is clean}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., dict[str, Any]]) -> Corpus:
    made = Corpus.create(tmp_path_factory.mktemp("here") / "corpus")
    made.upsert("clips", varied_clips(make_clip, CLIPS))
    decide(made, load_policy("default"))
    return made


def compared(corpus: Corpus, other: Comparable) -> dict[str, Any]:
    with judged_corpus(corpus, load_policy("default"), other=other.decisions) as connection:
        return compare(connection, other)


def test_policies_are_compared_as_they_decide(corpus: Corpus) -> None:
    tight = parse_policy(TIGHT, where="tight")
    before = corpus.versions()
    other = other_policy(corpus, tight, SplitConfig(), DuplicateConfig())
    answer = compared(corpus, other)
    assert corpus.versions() == before, "nothing is written"
    assert (answer["here"], answer["name"]) == ("policy default", "policy tight")
    here = {row["clip_id"]: row for row in corpus.read("decisions").to_pylist()}
    there = {row["clip_id"]: row for row in other.decisions.to_pylist()}
    kept = [{clip for clip, row in side.items() if row["kept"]} for side in (here, there)]
    assert [row["clips"] for row in answer["overlap"]] == [
        len(kept[0] & kept[1]),
        len(kept[0] - kept[1]),
        len(kept[1] - kept[0]),
    ]
    assert all(row["clips"] for row in answer["overlap"])
    for side, decisions in (("here", here), ("there", there)):
        rejected = sum(not row["kept"] for row in decisions.values())
        assert sum(row[side]["clips"] for row in answer["reasons"]) == rejected
        totals = {row["label"]: row[side] for row in answer["totals"]}
        assert totals["kept clips"] == CLIPS - rejected
        assert totals["time in train"] + totals["time in val"] == pytest.approx(totals["time of kept clips"])
    snr = next(row for row in answer["signals"] if row["name"] == "snr_db")
    assert snr["sides"]["there"][0] >= 20 > snr["sides"]["here"][0]


def test_corpora_are_compared_and_absent_clips_count(
    corpus: Corpus, tmp_path: Path, make_clip: Callable[..., dict[str, Any]]
) -> None:
    second = Corpus.create(tmp_path / "corpus")
    second.upsert("clips", varied_clips(make_clip, CLIPS)[:30])
    decide(second, load_policy("default"))
    other = find_comparable(corpus, Config(), str(second.root))
    answer = compared(corpus, other)
    assert answer["name"] == f"corpus {second.root.resolve()}", (
        "two folders with one name are shown with their paths"
    )
    assert {row["label"]: (row["here"], row["there"]) for row in answer["totals"]}["clips"] == (CLIPS, 30)
    both, here, there = (row["clips"] for row in answer["overlap"])
    kept = corpus.read("decisions").to_pylist()
    assert both + here == sum(row["kept"] for row in kept)
    assert there == 0
    assert other_corpus(corpus, second).decisions.equals(other.decisions)


def test_page_shows_both_sides(corpus: Corpus) -> None:
    other = find_comparable(corpus, Config(), "fine-tune")
    page = write_report(corpus, ReportConfig(source_pages=0), other=other).page.read_text()
    assert "kept only by policy fine-tune" in page
    assert "Side by side" in page
    assert "Side by side" not in write_report(corpus, ReportConfig(source_pages=0)).page.read_text()
