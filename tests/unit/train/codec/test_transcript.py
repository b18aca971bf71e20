"""Transcripts as ids, and pronunciations."""

import numpy as np
import pytest

from uniavgen.shards.errors import UserError
from uniavgen.train.codec.pronunciation import OUTPUTS, PHONEMES, Pronouncer, dictionary, predict
from uniavgen.train.codec.transcript import BOUNDARY, FILLER, PHONEME_IDS, VOCABULARY, transcript_ids
from uniavgen.train.model.mmdit.config import TRANSCRIPT_VOCABULARY


def test_vocabulary_fits_the_model() -> None:
    assert VOCABULARY == TRANSCRIPT_VOCABULARY
    assert (len(PHONEMES), len(OUTPUTS)) == (39, 74)


def test_dictionary_gives_the_first_pronunciation() -> None:
    assert dictionary()["hello"] == ("HH", "AH", "L", "OW")
    assert {p for phonemes in dictionary().values() for p in phonemes} <= set(PHONEMES)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_words_are_bytes_or_phonemes(share: float) -> None:
    ids = transcript_ids("hi you", 20, lambda word: dictionary()[word], phoneme_share=share)
    spelled = [1 + b for b in b"hi"] + [BOUNDARY] + [1 + b for b in b"you"]
    spoken = [PHONEME_IDS[p] for p in ("HH", "AY")] + [BOUNDARY] + [PHONEME_IDS[p] for p in ("Y", "UW")]
    expected = spoken if share else spelled
    assert ids[2:] == expected + [FILLER] * (18 - len(expected))
    assert len(ids) == 20


def test_draws_are_repeatable_and_mixed() -> None:
    text = " ".join(["hello"] * 40)
    first, again, other = (
        transcript_ids(text, 300, lambda word: dictionary()[word], draw=d) for d in ("a", "a", "b")
    )
    assert first == again != other
    assert {1 + ord("h"), PHONEME_IDS["HH"]} <= set(first)


def test_words_can_begin_at_their_time() -> None:
    ids = transcript_ids("a b", 20, phoneme_share=0, starts=[5, 12])
    assert (ids[5], ids[12]) == (1 + ord("a"), 1 + ord("b"))
    assert set(ids[6:12]) == {FILLER}


def test_bad_texts_are_one_line() -> None:
    with pytest.raises(UserError, match="unknown phoneme QQ"):
        transcript_ids("say {HH QQ}", 50)
    with pytest.raises(UserError, match="needs 8 symbols, the audio has 7 frames"):
        transcript_ids("abcdef", 7)


def test_unknown_words_are_pronounced_by_the_network() -> None:
    from uniavgen.shards import weights

    if not weights.is_cached("g2p-en"):
        pytest.skip("weights g2p-en are not in the cache: resolve them once to run this test")
    pronounce = Pronouncer(weights.resolve("g2p-en") / "checkpoint20.npz")
    assert pronounce("Zuckerberg") == ("Z", "AH", "K", "ER", "B", "ER", "G")
    assert pronounce("hello") == dictionary()["hello"]
    assert pronounce("42") == ()


def test_network_equals_torchs_gru() -> None:
    """Random weights; torch's GRU cells compute the same greedy sequence."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = {"enc_emb": (29, 8), "dec_emb": (74, 8), "fc_w": (74, 8), "fc_b": (74,)}
    for side in ("enc", "dec"):
        shapes |= {
            f"{side}_w_ih": (24, 8),
            f"{side}_w_hh": (24, 8),
            f"{side}_b_ih": (24,),
            f"{side}_b_hh": (24,),
        }
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    cells = {side: torch.nn.GRUCell(8, 8) for side in ("enc", "dec")}
    for side, cell in cells.items():
        cell.load_state_dict(
            {f"weight_{n}": torch.from_numpy(arrays[f"{side}_w_{n}"]) for n in ("ih", "hh")}
            | {f"bias_{n}": torch.from_numpy(arrays[f"{side}_b_{n}"]) for n in ("ih", "hh")}
        )
    state = torch.zeros(1, 8)
    for symbol in (*(3 + ord(c) - ord("a") for c in "zork"), 2):
        state = cells["enc"](torch.from_numpy(arrays["enc_emb"][symbol])[None], state)
    symbol, expected = 2, []
    for _ in range(20):
        state = cells["dec"](torch.from_numpy(arrays["dec_emb"][symbol])[None], state)
        symbol = int(
            (torch.from_numpy(arrays["fc_w"]) @ state[0] + torch.from_numpy(arrays["fc_b"])).argmax()
        )
        if symbol == 3:
            break
        expected.append(OUTPUTS[symbol].rstrip("012"))
    assert predict(arrays, "zork") == tuple(p for p in expected if p in PHONEMES)
