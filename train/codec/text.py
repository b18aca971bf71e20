"""Text codecs: captions to features for the video branch, speech text to byte ids for the audio branch.

captions: B strings -> features [B, Lc, Dc] and mask bool [B, Lc]      (minilm: Dc 384, umt5: Dc 4096)
speech:   B strings -> ids int64 [B, Ls], 1..256 for bytes and 0 for padding, and mask bool [B, Ls]
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uniavgen.shards import weights
from uniavgen.shards.errors import UserError
from uniavgen.train.codec.digests import weights_digest


class CaptionEncoder:
    """A frozen transformer. Its last hidden states, before any pooling, condition the video branch."""

    def __init__(self, name: str, description: str, tokenizer: Any, model: Any) -> None:
        self.name = name
        self.description = description
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)

    @cached_property
    def digest(self) -> str:
        """Digest of weights, configuration and vocabulary: changes if the features would."""
        return weights_digest(
            self.model, self.model.config.to_dict() | {"vocabulary": self.tokenizer.get_vocab()}
        )

    @torch.no_grad()
    def encode(self, captions: list[str], tokens: int) -> tuple[Tensor, Tensor]:
        """Features [B, tokens, Dc] (zero where there is no token, as in Wan) and mask bool [B, tokens].

        The length is fixed, so that a caption's features do not depend on the other captions of the batch.
        """
        inputs = self.tokenizer(
            captions, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt"
        )
        inputs = inputs.to(self.model.device)
        features = self.model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
        ).last_hidden_state
        mask = inputs.attention_mask.bool()
        return features.float() * mask[..., None], mask


def load_minilm(source: str = "", device: str = "cpu") -> CaptionEncoder:
    """MiniLM from a named folder, or the embedded weights. Raises UserError if they cannot be fetched."""
    from transformers import AutoModel, AutoTokenizer

    folder = weights.resolve("minilm", source or None)
    model = AutoModel.from_pretrained(folder).to(device)
    return CaptionEncoder(
        "minilm", "MiniLM token features: a stand-in for umT5", AutoTokenizer.from_pretrained(folder), model
    )


def load_umt5(source: str, device: str = "cpu") -> CaptionEncoder:
    """umT5-XXL encoder from a hub id, a folder, or a Wan diffusers folder (`text_encoder`, `tokenizer`)."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    hint = (
        "name train.data.codecs.caption_weights (umt5-xxl or a Wan2.2 folder), "
        "or use train.data.codecs.caption=minilm"
    )
    if not source:
        raise UserError(
            "caption encoder umt5 needs weights",
            where="train.data.codecs.caption_weights",
            hint=hint,
            kind="missing-weights",
        )
    split = (Path(source) / "text_encoder").is_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(source) / "tokenizer" if split else source)
        model = UMT5EncoderModel.from_pretrained(Path(source) / "text_encoder" if split else source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"umT5 cannot be loaded: {reason}", where=source, hint=hint, kind="missing-weights"
        ) from error
    return CaptionEncoder("umt5", "umT5 token features, as in the paper", tokenizer, model.to(device))


def encode_speech(texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Byte ids int64 [B, length] and mask bool [B, length]: UTF-8 bytes plus one.

    At most `length` bytes of a text are taken, without a part of a character at their end.
    """
    ids = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        data = text.encode()[:length].decode(errors="ignore").encode()
        ids[row, : len(data)] = torch.tensor(list(data), dtype=torch.int64) + 1
    return ids, ids > 0
