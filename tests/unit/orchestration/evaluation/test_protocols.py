"""Lists and layouts of test sets: what is read, and one line for everything that is wrong."""

import re
import shutil
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import MEDIA

from uniavgen.ingest.config import IngestConfig
from uniavgen.orchestration.evaluation.protocols import (
    GRID_WORDS,
    PROTOCOLS,
    grid_alignment,
    grid_sentence,
)
from uniavgen.orchestration.evaluation.videos import list_videos, read_media
from uniavgen.shards.errors import UserError

SENTENCES = st.tuples(*(st.sampled_from(sorted(words.items())) for words in GRID_WORDS))


def touch(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("bbaf2n", "bin blue at f two now"),
        ("swwz9s", "set white with z nine soon"),
        ("lgbkzp", "lay green by k zero please"),
        ("bbaw2n", None),  # there is no letter w
        ("bbaf2", None),
        ("report", None),
    ],
)
def test_grid_sentence_of_a_file_name(name: str, sentence: str | None) -> None:
    assert grid_sentence(name) == sentence


@given(SENTENCES)
def test_every_grid_sentence_is_read_from_its_letters(choice: tuple[tuple[str, str], ...]) -> None:
    assert grid_sentence("".join(letter for letter, _ in choice)) == " ".join(word for _, word in choice)


def test_grid_has_64000_sentences() -> None:
    counts = [len(words) for words in GRID_WORDS]
    assert counts == [4, 4, 4, 25, 10, 4]
    assert set(GRID_WORDS[3]) == set(string.ascii_lowercase) - {"w"}


def test_grid_folder_prefers_alignments_and_knows_speakers(tmp_path: Path) -> None:
    touch(tmp_path / "s1" / "bbaf2n.mpg")
    touch(tmp_path / "s2" / "video" / "lgbkzp.mpg")
    touch(
        tmp_path / "s2" / "align" / "lgbkzp.align",
        "0 9000 sil\n9000 15000 lay\n15000 20000 sp\n20000 74500 green\n",
    )
    touch(tmp_path / "s2" / "readme.mpg")
    items = {item.name: item for item in PROTOCOLS["grid"].read(tmp_path)}
    assert {name: item.text for name, item in items.items()} == {
        "s1-bbaf2n": "bin blue at f two now",
        "s2-lgbkzp": "lay green",
    }
    assert items["s1-bbaf2n"].conditions == {"speaker": "s1"}


def test_grid_alignment_leaves_silence_out() -> None:
    assert grid_alignment("0 1 sil\n1 2 bin\n2 3 sp\n3 4 blue\n") == "bin blue"


def test_vggsound_reads_test_clips_that_are_there(tmp_path: Path) -> None:
    touch(
        tmp_path / "vggsound.csv",
        'ab-c_d,30,"playing piano, hands",test\nother,1,dog,train\ngone,2,cat,test\n',
    )
    touch(tmp_path / "video" / "ab-c_d_000030.mp4")
    touch(tmp_path / "video" / "other_000001.mp4")
    (item,) = PROTOCOLS["vggsound"].read(tmp_path)
    assert (item.name, item.conditions) == ("ab-c_d_000030", {"label": "playing piano, hands"})


def test_list_reads_files_text_and_conditions(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "v.wav", "real.mp4"):
        touch(tmp_path / name)
    touch(
        tmp_path / "videos.csv",
        'video,text,voice,truth,language,age\na.mp4,"Hello, you",v.wav,real.mp4,en,30\nb.mp4,,,,de,\n',
    )
    first, second = list_videos(tmp_path)
    assert (first.name, first.text, first.voice) == ("a", "Hello, you", str(tmp_path / "v.wav"))
    assert (first.truth, first.conditions) == (str(tmp_path / "real.mp4"), {"language": "en", "age": 30.0})
    assert (second.text, second.voice, second.conditions) == ("", "", {"language": "de"})


def test_folder_without_a_list_gives_its_videos_by_name(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.webm", "notes.txt"):
        touch(tmp_path / name)
    assert [item.name for item in list_videos(tmp_path)] == ["a", "b"]


def test_digest_follows_content_and_text_not_the_name(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", "same")
    touch(tmp_path / "b.mp4", "same")
    first, second = list_videos(tmp_path)
    assert first.digest() == second.digest()
    touch(tmp_path / "b.mp4", "other")
    assert first.digest() != second.digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,text\na.mp4,x\n", "no column `video`"),
        ("video,text\na.mp4\n", "line 2"),
        ("video,text\na.mp4,x,y\n", "line 2"),
        ("video,text\n,x\n", "names no video"),
        ("video,text\ngone.mp4,x\n", "no file gone.mp4"),
        ("video,voice\na.mp4,gone.wav\n", "no file gone.wav"),
        ("video\na.mp4\na.mp4\n", "two lines are named a"),
        ("video\n", "the list names no video"),
        ("", "no column `video`"),
    ],
)
def test_wrong_list_is_one_line_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path / "a.mp4")
    touch(tmp_path / "videos.csv", text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        list_videos(tmp_path)
    assert "videos.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_empty_and_missing_folders_are_refused(tmp_path: Path, protocol: str) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError) as caught:
            PROTOCOLS[protocol].read(folder)
        assert caught.value.hint


def test_damaged_vggsound_table_names_the_line(tmp_path: Path) -> None:
    touch(tmp_path / "vggsound.csv", "a,1,dog,test\nb,one,dog,test\n")
    with pytest.raises(UserError, match="line 2"):
        PROTOCOLS["vggsound"].read(tmp_path)


@pytest.mark.skipif(not MEDIA.is_dir(), reason="the development videos are not here")
def test_grid_clip_is_read_with_its_sentence(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    shutil.copy(MEDIA / "one_sentence_mpeg1.mpg", tmp_path / "s1" / "bbaf2n.mpg")
    (item,) = PROTOCOLS["grid"].read(tmp_path)
    media = read_media(item, IngestConfig(), side=512, max_seconds=30)
    assert media.text == "bin blue at f two now"
    assert len(media.frames) == pytest.approx(3 * 16, abs=2)
    assert len(media.pcm) == pytest.approx(3 * 16_000, abs=1600)
    assert media.pcm.any()
