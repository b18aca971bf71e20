"""Phonemes of English words: pocketsphinx's CMUdict, and for other words a small recurrent network.

Phonemes are ARPABET without stress, because that dictionary has none. The network's weights are those of the
package g2p-en (Apache-2.0), read as data: the package is never imported.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH"
_VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW"
VOWELS = frozenset(_VOWELS.split())
PHONEMES = tuple(sorted(f"{_CONSONANTS} {_VOWELS}".split()))
"""The 39 phonemes of CMUdict."""

GRAPHEMES = ("<pad>", "<unk>", "</s>", *string.ascii_lowercase)
OUTPUTS = (
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    # the network also knows UW without stress
    *sorted(["UW", *(f"{p}{stress}" for p in PHONEMES for stress in ("012" if p in VOWELS else ("",)))]),
)
"""Symbols of the network, in the order of its weights: vowels with stress, 74 in all."""

MAX_PHONEMES = 20
"""Longest pronunciation that the network writes."""

Arrays = Mapping[str, NDArray[np.float32]]


@lru_cache(maxsize=1)
def dictionary() -> dict[str, tuple[str, ...]]:
    """Word in lower case -> its first pronunciation in pocketsphinx's English dictionary."""
    from pocketsphinx import get_model_path

    words: dict[str, tuple[str, ...]] = {}
    path = Path(get_model_path("en-us/cmudict-en-us.dict"))
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phonemes = line.split()
        if "(" not in word:  # word(2) is an alternative
            words[word] = tuple(phonemes)
    return words


class Pronouncer:
    """Phonemes of a word, from the dictionary or from the network."""

    def __init__(self, weights: Path) -> None:
        """`weights`: `checkpoint20.npz` of g2p-en."""
        with np.load(weights, allow_pickle=False) as file:
            self.arrays: Arrays = {name: file[name] for name in file.files}

    def __call__(self, word: str) -> tuple[str, ...]:
        """Phonemes of an English word; () without Latin letters."""
        word = word.lower().replace("\u2019", "'")
        known = dictionary().get(word)
        if known is not None:
            return known
        letters = re.sub("[^a-z]", "", word)
        return predict(self.arrays, letters) if letters else ()


def predict(arrays: Arrays, letters: str) -> tuple[str, ...]:
    """Pronunciation by the network: GRU encoder, greedy GRU decoder, stress removed."""
    state = np.zeros(arrays["enc_w_hh"].shape[1], dtype=np.float32)
    for letter in (*letters, "</s>"):
        state = _gru(arrays, "enc", arrays["enc_emb"][GRAPHEMES.index(letter)], state)
    symbol, phonemes = OUTPUTS.index("<s>"), []
    for _ in range(MAX_PHONEMES):
        state = _gru(arrays, "dec", arrays["dec_emb"][symbol], state)
        symbol = int(np.argmax(arrays["fc_w"] @ state + arrays["fc_b"]))
        if OUTPUTS[symbol] == "</s>":
            break
        phonemes.append(OUTPUTS[symbol].rstrip("012"))
    return tuple(phoneme for phoneme in phonemes if phoneme in PHONEMES)


def _gru(
    arrays: Arrays, side: str, x: NDArray[np.float32], state: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One step of a GRU with PyTorch's gate order: reset, update, new."""
    from_input = arrays[f"{side}_w_ih"] @ x + arrays[f"{side}_b_ih"]
    from_state = arrays[f"{side}_w_hh"] @ state + arrays[f"{side}_b_hh"]
    (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(from_input, 3), np.split(from_state, 3)
    reset, update = 1 / (1 + np.exp(-(r_x + r_h))), 1 / (1 + np.exp(-(z_x + z_h)))
    return np.asarray((1 - update) * np.tanh(n_x + reset * n_h) + update * state, dtype=np.float32)
