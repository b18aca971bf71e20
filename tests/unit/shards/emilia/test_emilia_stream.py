"""Emilia tars: index, filters, sequence and its resumption, damaged samples and tars."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from made_emilia import Spoken, members_of, write_emilia, write_spoken

from uniavgen.shards.config import EmiliaConfig, ErrorBudgetConfig
from uniavgen.shards.emilia.index import EmiliaIndex, find_tars, read_index
from uniavgen.shards.emilia.sample import Utterance, decode_mp3
from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.errors import UserError

SPOKEN = {
    "EN-B000000": [
        Spoken("EN_B00000_S00000_W000000", "anna", 200, 0.6),
        Spoken("EN_B00000_S00000_W000001", "anna", 300, 0.9),
        Spoken("EN_B00000_S00000_W000002", "anna", 400, 2.0),
        Spoken("EN_B00000_S00001_W000000", "bert", 500, 0.7, dnsmos=2.9),
    ],
    "EN-B000001": [
        Spoken("EN_B00001_S00000_W000000", "carl", 600, 0.8),
        Spoken("DE_B00001_S00001_W000000", "dora", 700, 0.8, language="de"),
    ],
}
BY_KEY = {spoken.key: spoken for tar in SPOKEN.values() for spoken in tar}
SHORT = ["EN_B00000_S00000_W000000", "EN_B00000_S00000_W000001"]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emilia")
    for name, spoken in SPOKEN.items():
        write_spoken(folder / f"{name}.tar", spoken)
    return folder


def pitch_of(waveform: np.ndarray) -> float:
    """The strongest frequency in Hz of audio at 24 kHz."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), 2**17))
    return float(np.argmax(spectrum) * 24_000 / 2**17)


def epoch(stream: EmiliaStream, start: int = 0) -> list[Utterance]:
    return [stream.sample_at(position) for position in range(start, start + len(stream))]


def test_epoch_has_every_fitting_utterance_once_with_its_audio_and_json(tars: Path) -> None:
    stream = EmiliaStream(EmiliaConfig(shards=[str(tars)]), window_s=1.0)
    read = epoch(stream)
    assert sorted(utterance.key for utterance in read) == sorted(
        key for key, spoken in BY_KEY.items() if spoken.seconds <= 1
    )
    for utterance in read:
        spoken = BY_KEY[utterance.key]
        assert (utterance.meta.speaker, utterance.meta.language) == (spoken.speaker, spoken.language)
        assert utterance.meta.text == spoken.text
        assert pitch_of(utterance.waveform) == pytest.approx(spoken.hz, abs=3)
        assert len(utterance.waveform) == pytest.approx(spoken.seconds * 24_000, abs=3 * 1152)
    assert stream.left_out == {"language": 0, "speaker": 0, "dnsmos": 0, "length": 1}
    assert "left out: length 1" in stream.line


@pytest.mark.parametrize(
    ("filters", "passing"),
    [
        ({"languages": ["de"]}, {"DE_B00001_S00001_W000000"}),
        ({"speakers": ["anna"]}, set(SHORT)),
        ({"speakers": ["anna"], "longer": "crop"}, {*SHORT, "EN_B00000_S00000_W000002"}),
        ({"min_dnsmos": 3.0, "languages": ["en"]}, {*SHORT, "EN_B00001_S00000_W000000"}),
    ],
)
def test_filters_use_the_json(tars: Path, filters: dict, passing: set[str]) -> None:
    stream = EmiliaStream(EmiliaConfig(shards=[f"{tars}/*.tar"], **filters), window_s=1.0)
    assert set(stream.keys) == passing
    assert len(stream) + sum(stream.left_out.values()) == len(BY_KEY)


def test_error_without_utterances_lists_the_filters(tars: Path) -> None:
    with pytest.raises(UserError, match=r"none of 6 utterances .*6 for language.*lasts 1\.00 s"):
        EmiliaStream(EmiliaConfig(shards=[str(tars)], languages=["fr"]), window_s=1.0)
    with pytest.raises(UserError, match="no audio shards here"):
        EmiliaStream(EmiliaConfig(shards=[str(tars / "none*.tar")]), window_s=1.0)


def test_sequence_depends_on_seed_and_resumes_on_moved_and_added_tars(tars: Path, tmp_path: Path) -> None:
    config = EmiliaConfig(shards=[str(tars)])
    stream = EmiliaStream(config, 1.0, seed=3)
    keys = [stream.shard_and_key_at(position) for position in range(3 * len(stream))]
    assert keys == [
        EmiliaStream(config, 1.0, seed=3).shard_and_key_at(position) for position in range(3 * len(stream))
    ]
    assert keys != [
        EmiliaStream(config, 1.0, seed=4).shard_and_key_at(position) for position in range(3 * len(stream))
    ]
    for name in SPOKEN:
        shutil.copy(tars / f"{name}.tar", tmp_path)
    write_spoken(tmp_path / "AA-new.tar", [Spoken("AA_B00000_S00000_W000000", "emil", 800, 0.6)])
    moved = EmiliaConfig(shards=[str(tmp_path)])
    assert len(EmiliaStream(moved, 1.0, seed=3)) == len(stream) + 1
    resumed = EmiliaStream(moved, 1.0, seed=3, shards=stream.shards)
    assert [resumed.shard_and_key_at(position) for position in range(7, 15)] == keys[7:15]
    write_spoken(tmp_path / "EN-B000001.tar", SPOKEN["EN-B000001"][:1])
    with pytest.raises(UserError, match="1 of the run's 2 audio shards are missing or changed") as caught:
        EmiliaStream(moved, 1.0, seed=3, shards=stream.shards)
    assert caught.value.kind == "shards-changed"


def test_tars_with_equal_content_keep_their_paths_after_repeated_resume(tars: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(tars / "EN-B000000.tar", tmp_path / folder)
    config = EmiliaConfig(shards=[str(tmp_path)])
    stream = EmiliaStream(config, 1.0, seed=3)
    resumed = EmiliaStream(config, 1.0, seed=3, shards=stream.shards)
    assert resumed.shards == stream.shards
    again = EmiliaStream(config, 1.0, seed=3, shards=resumed.shards)
    assert [again.shard_and_key_at(at) for at in range(20)] == [
        stream.shard_and_key_at(at) for at in range(20)
    ]


def test_unknown_store_protocol_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^unknown kind of store: [^\n]*nostore[^\n]*$") as caught:
        EmiliaStream(EmiliaConfig(shards=["nostore://bucket/EN"]), 1.0)
    assert caught.value.kind == "no-store"


def test_other_by_speaker_draws_uniformly_and_never_the_same_utterance(tars: Path) -> None:
    stream = EmiliaStream(EmiliaConfig(shards=[str(tars)]), window_s=1.0)
    random, names = (
        np.random.default_rng(0),
        [stream.shard_and_key_at(position)[1] for position in range(len(stream))],
    )
    position = names.index(SHORT[0])
    drawn = [stream.other_by_speaker(position, random) for _ in range(20)]
    # also the one that is too long for the window
    assert {other.key for other in drawn if other} == {SHORT[1], "EN_B00000_S00000_W000002"}
    assert stream.other_by_speaker(names.index("EN_B00001_S00000_W000000"), random) is None


def test_mp3_of_another_rate_is_resampled_to_24_khz() -> None:
    waveform = decode_mp3("key", members_of(Spoken("key", "a", 440, 0.5, rate=44_100))["mp3"])
    assert len(waveform) == pytest.approx(12_000, abs=1200)
    assert pitch_of(waveform) == pytest.approx(440, abs=3)


def damaged_members(fault: str) -> dict[str, bytes]:
    good = members_of(Spoken("x", "anna", 250, 0.8))
    if fault == "cut mp3":
        return good | {"mp3": good["mp3"][: len(good["mp3"]) // 2]}
    if fault == "no mp3 at all":
        return good | {"mp3": b"this is no audio" * 40}
    if fault == "broken json":
        return good | {"json": good["json"][:-9]}
    if fault == "no json":
        return {"mp3": good["mp3"]}
    return members_of(Spoken("x", "anna", 250, 0.8, changes={fault: None}))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("text", "text: Field required"),
        ("speaker", "speaker: Field required"),
        ("language", "language: Field required"),
        ("dnsmos", "dnsmos: Field required"),
        ("broken json", "Invalid JSON"),
        ("no json", "lacks json"),
        ("cut mp3", "has 0"),
        ("no mp3 at all", "cannot be decoded"),
    ],
)
def test_damaged_sample_is_named_and_counted_and_others_are_read(
    tmp_path: Path, fault: str, message: str
) -> None:
    good = {key: members_of(BY_KEY[key]) for key in SHORT}
    tar = write_emilia(
        tmp_path / "EN-B000000.tar", {**good, "EN_B00000_S00000_W000009": damaged_members(fault)}
    )
    stream = EmiliaStream(EmiliaConfig(shards=[str(tar)], languages=["en"]), 1.0)
    position = next(at for at in range(3) if stream.shard_and_key_at(at)[1].endswith("9"))
    assert sorted(stream.sample_at(at).key for at in range(3) if at != position) == SHORT
    with pytest.raises(UserError, match=message) as refused:
        stream.sample_at(position)
    assert refused.value.kind == "damaged-sample"
    assert "EN-B000000.tar" in refused.value.where
    assert list(stream.error_budget.damaged) == ["EN_B00000_S00000_W000009"]
    strict = EmiliaStream(
        EmiliaConfig(shards=[str(tar)]), 1.0, error_budget=ErrorBudgetConfig(max_samples=0, max_share=0)
    )
    with pytest.raises(UserError, match=r"1 of \d samples read are damaged") as caught:
        epoch(strict)
    assert caught.value.kind == "too-many-damaged"


@pytest.mark.parametrize("fault", ["truncated", "damaged header", "no tar", "empty"])
def test_damaged_tar_is_an_error(tars: Path, tmp_path: Path, fault: str) -> None:
    content = (tars / "EN-B000000.tar").read_bytes()
    index = read_index(find_tars([str(tars / "EN-B000000.tar")])[0])
    second = int(index.offset[1])
    damaged = {
        "truncated": content[: second + 1000],
        "damaged header": content[:second] + b"\xff" * 512 + content[second + 512 :],
        "no tar": b"an answer of a proxy" * 100,
        "empty": b"\0" * 10240,
    }
    path = tmp_path / "EN-B000000.tar"
    path.write_bytes(damaged[fault])
    with pytest.raises(
        UserError, match=r"^the audio shard [^\n]*EN-B000000\.tar[^\n]*fetch it again$"
    ) as caught:
        EmiliaStream(EmiliaConfig(shards=[str(path)]), 1.0)
    assert caught.value.kind == "damaged-shard"


def test_index_is_reused_until_the_tar_or_the_index_changes(tmp_path: Path) -> None:
    tar = write_spoken(tmp_path / "EN-B000000.tar", SPOKEN["EN-B000000"])
    stored = tmp_path / "EN-B000000.tar.emilia.npz"
    first = read_index(find_tars([str(tar)])[0])
    assert np.array_equal(first.key, EmiliaIndex.from_bytes(stored.read_bytes()).key)
    stamp = stored.stat().st_mtime_ns
    read_index(find_tars([str(tar)])[0])
    assert stored.stat().st_mtime_ns == stamp
    stored.write_bytes(stored.read_bytes()[:100])
    assert read_index(find_tars([str(tar)])[0]).digest == first.digest
    write_spoken(tar, SPOKEN["EN-B000001"])
    changed = read_index(find_tars([str(tar)])[0])
    assert changed.digest != first.digest
    assert len(changed) == 2


def test_index_of_a_remote_tar_is_stored_in_the_run_folder(tars: Path, tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/emilia/EN/EN-B000000.tar", (tars / "EN-B000000.tar").read_bytes())
    stream = EmiliaStream(EmiliaConfig(shards=["memory://emilia/EN"]), 1.0, cache=tmp_path / "indexes")
    assert sorted(utterance.key for utterance in epoch(stream))[:2] == SHORT
    assert memory.ls("/emilia/EN", detail=False) == ["/emilia/EN/EN-B000000.tar"]
    assert [
        path.name.endswith("-EN-B000000.tar.emilia.npz") for path in (tmp_path / "indexes").iterdir()
    ] == [True]
