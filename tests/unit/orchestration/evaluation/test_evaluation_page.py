"""The page in a browser: videos are sorted by any score, and nothing is wider than a narrow window."""

from pathlib import Path

import pytest
from browser import chromium

from uniavgen.orchestration.evaluation.catalog import NOT_MEASURED, comparison_note
from uniavgen.orchestration.evaluation.page import draw_scale, write_page

VALUES = {"a": 0.2, "b": 0.9, "c": 0.5, "d": None}


def score(metric: str, better: str = "higher", reported: bool = True) -> dict:
    return {
        "metric": metric, "network": "a network with a long name", "unit": "cosine", "better": better,
        "reported": reported, "why_not": "" if reported else "real 1 is not better than disturbed 2",
        "score": {"value": 0.5, "low": 0.4, "high": 0.6, "count": 3} if reported else None,
        "controls": {"real": 0.9, "disturbed": 0.6, "swapped": 0.1}, "control_clips": 8, "codec": None,
    }  # fmt: skip


def summary() -> dict:
    slices = [
        {"condition": "speaker", "slice": name, "metric": metric, "score": score(metric)["score"]}
        for name in ("ann", "bob")
        for metric in ("TC-ref", "ID-dlib", "IQ-brisque")
    ]
    return {
        "protocol": "paper", "videos": 4, "real_clips": 8, "not_measured": NOT_MEASURED, "errors": [],
        "scores": [score("TC-ref"), score("WER-base", "lower"), score("SC", reported=False)],
        "slices": slices, "comparison": comparison_note("paper", ["TC-ref"]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos = [
        {
            "name": name, "video": f"/videos/{name} #1.mp4", "transcript": "words & <b>more</b>",
            "scores": {} if value is None else {"TC-ref": value},
        }
        for name, value in VALUES.items()
    ]  # fmt: skip
    return write_page(tmp_path_factory.mktemp("page") / "index.html", summary(), videos)


def test_videos_are_sorted_by_a_score_and_the_page_fits_narrow_windows(page: Path, tmp_path: Path) -> None:
    names = "[...document.querySelectorAll('#videos figure')].map(figure => figure.dataset.name).join('')"
    choose = (
        "by.value = '{}'; down.checked = {}; by.dispatchEvent(new Event('change'));"
        "down.dispatchEvent(new Event('change'))"
    )
    with chromium(tmp_path / "profile") as tab:
        for width in (1400, 400):
            tab.open(page, width)
            assert tab.read("document.documentElement.scrollWidth") <= width
        assert tab.read(names) == "abcd"
        tab.read(choose.format("TC-ref", "false"))
        assert tab.read(names) == "acbd"
        tab.read(choose.format("TC-ref", "true"))
        assert tab.read(names) == "bcad"
        assert tab.read("document.querySelector('.value').textContent") == "0.9"
        assert tab.errors == []


def test_unreported_metric_shows_no_score_and_text_is_escaped(page: Path) -> None:
    html = page.read_text()
    assert "its controls are not ordered: real 1 is not better than disturbed 2" in html
    assert "<b>more</b>" not in html
    assert "a%20%231.mp4" in html


def test_scale_puts_the_better_value_right() -> None:
    def place(svg: str, letter: str) -> float:
        before = svg.split(f">{letter}</text>")[0]
        return float(before.rsplit('x="', 1)[1].split('"')[0])

    up = draw_scale(score("TC-ref"))
    assert place(up, "s") < place(up, "d") < place(up, "r")
    down = draw_scale(score("WER-base", "lower"))
    assert place(down, "r") < place(down, "s")
