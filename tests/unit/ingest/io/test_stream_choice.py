"""Which video and audio stream is chosen, by flags, titles, sizes and languages."""

from typing import Any

import pytest

from uniavgen.ingest.io.stream_choice import choose_video, rank_audio
from uniavgen.ingest.records import StreamInfo
from uniavgen.shards.errors import UserError


def audios(*facts: dict[str, Any]) -> list[StreamInfo]:
    video = StreamInfo(0, "video", "h264", width=640, height=360)
    return [video, *(StreamInfo(index + 1, "audio", "aac", **fact) for index, fact in enumerate(facts))]


AUDIOS = {
    "first of equals": (({}, {}), [1, 2]),
    "default": (({}, {"default": True}), [2, 1]),
    "commentary flagged as default": (({"default": True, "roles": ("comment",)}, {}), [2, 1]),
    "audio description": (({"roles": ("visual_impaired", "descriptions")}, {}), [2, 1]),
    "hearing impaired": (({"roles": ("hearing_impaired",)}, {}), [2, 1]),
    "dubbed": (({"roles": ("dub",), "default": True}, {"roles": ("original",)}), [2, 1]),
    "title in English": (({"title": "Director's Commentary", "default": True}, {}), [2, 1]),
    "title in German": (({"title": "Audiodeskription"}, {"title": "Stereo"}), [2, 1]),
    "title in Spanish": (({"title": "Comentarios"}, {}), [2, 1]),
    "short title": (({"title": "English AD"}, {"title": "English"}), [2, 1]),
    "no description": (({"title": "Adele live", "default": True}, {}), [1, 2]),
    "all secondary": (({"roles": ("comment",)}, {"roles": ("dub",), "default": True}), [2, 1]),
}


@pytest.mark.parametrize("name", AUDIOS)
def test_audio_streams_are_ranked_by_flags_and_titles(name: str) -> None:
    facts, expected = AUDIOS[name]
    assert [stream.index for stream in rank_audio(audios(*facts))] == expected


def test_audio_of_the_videos_programme_is_preferred() -> None:
    assert [stream.index for stream in rank_audio(audios({}, {}, {}), related=2)] == [2, 1, 3]


LANGUAGES = ({"language": "ger", "default": True}, {"language": "en-US"}, {"language": "zho"}, {})


@pytest.mark.parametrize(
    ("wanted", "index"),
    [("de", 1), ("deu", 1), ("DE", 1), ("en", 2), ("eng", 2), ("en-GB", 2), ("zh", 3), ("chi", 3), ("3", 4)],
)
def test_audio_track_is_named_by_language_or_number(wanted: str, index: int) -> None:
    assert [stream.index for stream in rank_audio(audios(*LANGUAGES), wanted)] == [index]


@pytest.mark.parametrize("wanted", ["fr", "4", "und", "-1"])
def test_missing_audio_track_names_those_of_the_file(wanted: str) -> None:
    with pytest.raises(UserError, match="the file has 0: ger, 1: en-US, 2: zho, 3: unknown") as caught:
        rank_audio(audios(*LANGUAGES), wanted)
    assert caught.value.kind == "no-audio-track"


VIDEOS = {
    "default": (((640, 360, False, ()), (640, 360, True, ())), 1),
    "largest of equals": (((320, 180, False, ()), (640, 360, False, ())), 1),
    "tiny default": (((96, 54, True, ()), (640, 360, False, ())), 1),
    "smaller default": (((640, 360, False, ()), (480, 270, True, ())), 1),
    "cover picture": (((1400, 1400, True, ("attached_pic",)), (640, 360, False, ())), 1),
    "only a cover picture": (((1400, 1400, True, ("attached_pic",)),), 0),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_video_is_chosen_by_flags_and_size(name: str) -> None:
    facts, expected = VIDEOS[name]
    streams = [
        StreamInfo(index, "video", "h264", default=default, roles=roles, width=width, height=height)
        for index, (width, height, default, roles) in enumerate(facts)
    ]
    chosen = choose_video(streams)
    assert chosen is not None
    assert chosen.index == expected


def test_file_without_streams_has_no_choice() -> None:
    assert choose_video([]) is None
    assert rank_audio([], "en") == []
