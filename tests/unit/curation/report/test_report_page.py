"""Report page: shows every reason, plays clips, needs no network, stays small."""

import base64
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from made_signals import varied_clips

from uniavgen.curation.config import DuplicateConfig, ReportConfig
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import Rule, load_policy, policy_from
from uniavgen.curation.report.examples import format_bounds
from uniavgen.curation.report.judged import judged_corpus
from uniavgen.curation.report.page import ReportSummary, write_report
from uniavgen.curation.report.previews import compute_waveform, make_preview, pack_oval
from uniavgen.curation.report.templating import UNIT_WORDS
from uniavgen.curation.report.totals import (
    MAX_ROWS,
    query_duplicates,
    query_lengths,
    query_shares,
    query_splits,
    query_strata,
)
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import FaceTrack, decode_video

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def decided(
    tmp_path_factory: pytest.TempPathFactory, make_clip: Make, clip_media: dict[str, bytes]
) -> Corpus:
    """Kept clips of two speakers, and one clip for each of five reasons, the last without media.

    Read only.
    """
    defects: list[dict[str, Any]] = [
        {"language": "ru"},
        {"face_count": 4.0},
        {"snr_db": None},
        {"sync_offset_ms": 400.0, "duration_s": 6.0},
        {"transcript": "", "words": []},
    ]
    good = [make_clip(f"src-{person}", 2.0 * i, person) for person in "ab" for i in range(3)]
    bad = [make_clip("src-bad <b>", 2.0 * i, "c", **defect) for i, defect in enumerate(defects)]
    made = Corpus.create(tmp_path_factory.mktemp("decided") / "corpus")
    made.upsert("clips", [*good, *bad])
    about = {"duration_s": 20.0, "width": 640, "height": 480, "fps": 25.0, "turns": [], "shots": []}
    made.upsert(
        "sources",
        [{"source_id": f"src-{name}", "uri": f"/v/src-{name}.mp4"} | about for name in ("a", "b", "bad <b>")],
    )
    made.upsert(
        "failures",
        [{"uri": "/v/a&b.mp4", "stage": "probe", "error_type": "no-video", "message": "no <video>"}],
    )
    for row in [*good, *bad[:-1]]:
        for extension, data in clip_media.items():
            path = made.media_path(row["clip_id"], extension)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    decide(made, load_policy("default"))
    return made


@pytest.fixture
def corpus(decided: Corpus, tmp_path: Path) -> Corpus:
    return Corpus.open(shutil.copytree(decided.root, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def reported(decided: Corpus, tmp_path_factory: pytest.TempPathFactory) -> ReportSummary:
    """The report of `decided`."""
    return write_report(
        Corpus.open(shutil.copytree(decided.root, tmp_path_factory.mktemp("reported") / "corpus"))
    )


def text_of(page: str) -> str:
    """The page without scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def data_of(page: str) -> dict[str, Any]:
    """The data of the page's scripts."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.S)
    assert match
    data: dict[str, Any] = json.loads(match.group(1))
    return data


def test_page_shows_every_reason_rule_signal_source_and_failure(
    decided: Corpus, reported: ReportSummary
) -> None:
    page = reported.page.read_text()
    text = html.unescape(text_of(page))
    for reason in set(decided.read("decisions")["reason"].to_pylist()) - {""}:
        assert f'<button data-filter="{reason}"' in text
        assert f'data-reason="{reason}"' in text
    for rule in load_policy("default").rules:
        assert rule.says in text
    for name in [*SIGNALS, "src-a.mp4", "src-bad <b>.mp4", "a&b.mp4", "no <video>", "no media for this clip"]:
        assert name in text
    assert (reported.examples, reported.reasons) == (11, 5)
    assert "<b>.mp4" not in page


def test_rejected_card_shows_value_and_sentence(reported: ReportSummary) -> None:
    text = html.unescape(re.sub(r"</?b>", "", text_of(reported.page.read_text())))
    for why in (
        "face_count 4 faces: the rule requires that at most one face is visible",
        "language “ru”: the rule requires that the language is English",
        "sync_offset_ms 400 milliseconds: the rule requires that lips and audio are in sync within 160 ms",
        "transcript empty: the rule requires that the clip contains recognised words",
        "snr_db was not measured",
    ):
        assert f'<p class="why">{why}' in text


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"min": 8}, "at least 8 decibels"),
        ({"max": 0.25}, "at most 0.25 decibels"),
        ({"min": -2, "max": 3}, "−2 to 3 decibels"),
        ({"equals": 1}, "1 decibel"),
        ({"in": [1, 2]}, "1 or 2 decibels"),
    ],
)
def test_format_bounds_includes_unit(bounds: dict[str, Any], text: str) -> None:
    assert format_bounds(Rule.model_validate({"name": "a", "column": "snr_db", "says": "", **bounds})) == text


def test_every_unit_reads_as_words() -> None:
    units = {UNIT_WORDS.get(signal.unit, signal.unit) for signal in SIGNALS.values()}
    assert not [unit for unit in units if not re.fullmatch(r"[a-z]{3,}( [a-z]+| [−0-9]+)*|0 or 1", unit)]


def test_page_links_only_into_its_folder(reported: ReportSummary) -> None:
    page = reported.page
    links = [
        unquote(html.unescape(link))
        for link in re.findall(r'(?:src|href)="([^"#]+)', text_of(page.read_text()))
    ]
    assert sum(link.startswith("clips/") for link in links) == 10
    assert sum(link.startswith("sources/") for link in links) == 11 + 3, (
        "from every example and from the list"
    )
    assert all((page.parent / link).is_file() for link in links)


def test_previews_are_bounded_in_count_and_bytes(corpus: Corpus) -> None:
    few = ReportConfig(max_kept=2, per_reason=1, max_rejected=3)
    assert write_report(corpus, few).examples == 5
    folder = corpus.root / "report" / "clips"
    size = max(path.stat().st_size for path in folder.iterdir())
    page = write_report(corpus, ReportConfig(preview_mb=2.5 * size / 1e6)).page.read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2.5 * size
    assert page.count("no preview: report.preview_mb is used up") == 10 - len(list(folder.iterdir())) > 0


def test_old_previews_are_deleted(corpus: Corpus) -> None:
    (corpus.root / "report" / "clips").mkdir(parents=True)
    (corpus.root / "report" / "clips" / "old.mp4").write_bytes(b"")
    summary = write_report(corpus, ReportConfig(max_kept=2, per_reason=0))
    assert summary.examples == 2
    assert len(list((corpus.root / "report" / "clips").iterdir())) == 2
    decisions = corpus.query("SELECT speaker, clip_id FROM clips")
    speakers = dict(zip(decisions["clip_id"].to_pylist(), decisions["speaker"].to_pylist(), strict=True))
    assert len({speakers[path.stem] for path in (corpus.root / "report" / "clips").iterdir()}) == 2


def test_equal_tables_give_equal_page(corpus: Corpus, reported: ReportSummary) -> None:
    first, second = reported.page, write_report(corpus).page
    roots = [str(page.parent.parent.resolve()) for page in (first, second)]
    assert second.read_text().replace(roots[1], roots[0]) == first.read_text()


def test_preview_copies_video_stream_and_adds_audio(corpus: Corpus, tmp_path: Path) -> None:
    import av

    clip = corpus.read("clips")["clip_id"][0].as_py()
    made = make_preview(corpus, clip, tmp_path)
    assert made is not None
    assert (made["width"], made["height"], len(made["wave"])) == (128, 96, 160)
    original = corpus.media_path(clip, "mp4").read_bytes()
    assert np.array_equal(decode_video((tmp_path / made["file"]).read_bytes()), decode_video(original))
    with av.open(str(tmp_path / made["file"]), mode="r") as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == "aac"
        assert sound.duration is not None
        assert float(sound.duration * sound.time_base) == pytest.approx(2.0, abs=0.06)


def test_preview_of_unreadable_media_is_none(corpus: Corpus, tmp_path: Path) -> None:
    clip = corpus.read("clips")["clip_id"][0].as_py()
    corpus.media_path(clip, "mp4").write_bytes(b"no movie")
    assert make_preview(corpus, clip, tmp_path) is None
    assert make_preview(corpus, "00", tmp_path) is None
    assert list(tmp_path.glob("*.mp4")) == []


def test_waveform_peaks_where_audio_is_loud(tmp_path: Path) -> None:
    import soundfile

    sound = np.zeros(24_000, np.float32)
    sound[12_000:18_000] = 0.25
    soundfile.write(tmp_path / "s.flac", sound, 24_000)
    bars = compute_waveform(tmp_path / "s.flac", bars=8)
    assert bars == [0, 0, 0, 0, 100, 100, 0, 0]


def test_packed_ovals_decode_to_input() -> None:
    oval = np.random.default_rng(0).random((5, 36, 2)).astype(np.float32)
    score = np.array([1, 1, 0, 1, 1], np.float32)
    packed = pack_oval(FaceTrack(oval, np.zeros((5, 4), np.float32), score))
    read = np.frombuffer(base64.b64decode(packed["data"]), "<u2").reshape(5, packed["points"], 2)
    assert np.allclose(read[score > 0] / 65534, oval[score > 0], atol=1e-5)
    assert (read[2] == 65535).all()


def test_histograms_count_every_measured_clip_and_include_bounds(corpus: Corpus) -> None:
    histograms = data_of(write_report(corpus, ReportConfig(bins=7)).page.read_text())["histograms"]
    assert set(histograms) == set(SIGNALS)
    for h in histograms.values():
        assert sum(h["passing"]) + sum(h["failing"]) == h["count"] == 11 - h["missing"]
        assert sum(h["passing"]) == (6 if h["count"] else 0)
    assert histograms["snr_db"]["missing"] == 1
    assert histograms["duration_s"]["lines"] == [2.0, 10.0]


def test_large_corpus_is_sampled_and_page_says_so(corpus: Corpus, reported: ReportSummary) -> None:
    page = write_report(corpus, ReportConfig(sample_clips=8)).page.read_text()
    thresholds = data_of(page)["thresholds"]
    assert thresholds["clips"] <= 8 < thresholds["total"] == 11
    assert sum(stratum["clips"] for stratum in thresholds["strata"]) == 11
    assert f"Estimated from {thresholds['clips']} of 11 clips" in page
    assert "All 11 clips are counted" in reported.page.read_text()


def test_hours_by_language_speaker_and_length(decided: Corpus) -> None:
    with judged_corpus(decided, load_policy("default")) as connection:
        languages = {
            row["label"]: (row["clips"], row["kept"])
            for row in query_shares(connection, "language", "others")
        }
        assert languages == {"en": (10, 6), "ru": (1, 0)}
        speakers = query_shares(connection, "clip_id", "others")
        assert [row["label"] for row in query_lengths(connection)] == ["2–3 s"]
    assert sum(row["clips"] for row in speakers) == len(speakers) == 11


def test_rows_beyond_max_are_merged(make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus(
        [make_clip("s", 3.0 * i, f"{i:02d}", end_s=3.0 * i + 1 + i / 2) for i in range(MAX_ROWS + 3)]
    )
    decide(corpus, load_policy("default"))
    with judged_corpus(corpus, load_policy("default")) as connection:
        speakers = query_shares(connection, "speaker", "other speakers")
        bands = query_lengths(connection)
    assert [row["label"] for row in speakers[:2]] == ["s-14", "s-13"]
    assert speakers[-1]["label"] == "3 other speakers"
    assert sum(row["seconds"] for row in speakers) == sum(1 + i / 2 for i in range(MAX_ROWS + 3))
    assert sum(row["clips"] for row in bands) == MAX_ROWS + 3
    assert [row["label"] for row in bands] == [f"{low}–{low + 1} s" for low in range(1, 9)]


def test_strata_rows_sum_to_splits(decided: Corpus) -> None:
    with judged_corpus(decided, load_policy("default")) as connection:
        sides, rows = query_splits(connection), query_strata(connection)
    assert [row["split"] for row in sides] == ["train", "val"]
    assert sum(row["clips"] for row in sides) == 6
    for axis in ("language", "voice pitch", "clip length"):
        parts = [row for row in rows if row["axis"] == axis]
        assert sum(row["train"] for row in parts) == sides[0]["seconds"]
        assert sum(row["val"] for row in parts) == sides[1]["seconds"]
    assert [row["label"] for row in rows] == ["en", "120–165 Hz", "below 4 s"]


def test_strata_rows_beyond_max_are_merged(make_corpus: Make, make_clip: Make) -> None:
    rows = [
        make_clip("s", 3.0 * i, "a", language=f"l{i:02d}", end_s=3.0 * i + 2 + i / 10)
        for i in range(MAX_ROWS + 3)
    ]
    corpus = make_corpus(rows)
    policy = policy_from(
        {"name": "all", "rules": [{"name": "long", "column": "duration_s", "min": 0, "says": ""}]},
        where="test",
    )
    decide(corpus, policy)
    with judged_corpus(corpus, policy) as connection:
        languages = [row for row in query_strata(connection) if row["axis"] == "language"]
    assert [row["label"] for row in languages[-2:]] == ["l03", "3 others"]
    assert sum(row["train"] + row["val"] for row in languages) == pytest.approx(
        sum(2 + i / 10 for i in range(MAX_ROWS + 3))
    )


def test_duplicates_are_shown_by_kind_with_example_pair(tmp_path: Path, make_clip: Make) -> None:
    made = Corpus.create(tmp_path / "copies")
    made.upsert("clips", varied_clips(make_clip, 60, copies=8))
    decide(made, load_policy("pretrain"))
    lost = [row["clip_id"] for row in made.read("decisions").to_pylist() if row["reason"] == "duplicate"]
    page = write_report(made, ReportConfig(max_kept=0, per_reason=0)).page.read_text()
    with judged_corpus(made, load_policy("pretrain")) as connection:
        kinds = query_duplicates(connection, made, DuplicateConfig())
    assert [(row["kind"], row["clips"], row["groups"]) for row in kinds] == [("copy", len(lost), len(lost))]
    pair = kinds[0]["example"]
    assert pair["clip_id"] in lost
    assert (pair["picture"], pair["sound"]) == (0.0, 0.0)
    shown = re.findall(r'data-clip="(\w+)"', text_of(page))
    assert shown == [pair["kept_clip"], pair["clip_id"]]


def test_undecided_corpus_error_has_hint(make_corpus: Make, make_clip: Make) -> None:
    with pytest.raises(UserError, match="uniavgen curate"):
        write_report(make_corpus([make_clip("s", 0.0, "a")]))
