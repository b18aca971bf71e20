"""Vision-language models that caption a clip from a few frames: an OpenAI-compatible endpoint (vLLM, SGLang
and others) or a local transformers model.

A backend raises `BadAnswerError` if the answer is not a caption, `UnreachableError` if the endpoint does not
answer, and UserError if no request can succeed (wrong key, unknown model, missing weights).
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from uniavgen.curation.config import CaptionConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.text import count_words

REFUSALS = re.compile(
    r"^\W*(i('m| am) (sorry|unable|not able)|sorry\b|as an ai\b|i can('t|not)\b|unfortunately\b)",
    re.IGNORECASE,
)
"""Openings of refusals. Heuristic, from answers of common instruction-tuned models."""


class BadAnswerError(Exception):
    """The model's answer is not a caption."""


class UnreachableError(Exception):
    """The endpoint did not answer, after the client's retries."""


@dataclass(frozen=True)
class VlmAnswer:
    """A caption, and the tokens of prompt and answer together."""

    text: str
    tokens: int


class VlmBackend(Protocol):
    """Captions one clip from JPEG frames. `model` is stored with every caption."""

    model: str

    async def caption(self, frames: Sequence[bytes], prompt: str) -> VlmAnswer: ...


def make_backend(config: CaptionConfig) -> VlmBackend:
    """The configured backend. Raises UserError if it cannot be made."""
    if not config.model:
        raise UserError("no captioning model is configured", hint="--set caption.model=NAME", kind="no-model")
    return OpenAIBackend(config) if config.backend == "openai" else TransformersBackend(config)


def parse_caption(text: str | None, config: CaptionConfig) -> str:
    """The caption in an answer, as one paragraph.

    Raises BadAnswerError if it is empty, a refusal, too short or too long.
    """
    caption = " ".join((text or "").split()).strip('"“” ')
    words = round(count_words(caption))
    if not caption:
        raise BadAnswerError("the answer is empty")
    if REFUSALS.match(caption):
        raise BadAnswerError(f"the model declines: {caption[:120]}")
    if not config.min_words <= words <= config.max_words:
        raise BadAnswerError(
            f"{words} words, wanted {config.min_words} to {config.max_words}: {caption[:80]}"
        )
    return caption


class OpenAIBackend:
    """A chat-completions endpoint that accepts images. The client library waits, backs off and retries."""

    def __init__(self, config: CaptionConfig) -> None:
        from openai import AsyncOpenAI

        self.config = config
        self.model = config.model
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            # local servers need no key, the library does
            api_key=os.environ.get(config.api_key_variable) or "none",
            timeout=config.timeout_s,
            max_retries=config.retries,
        )

    async def caption(self, frames: Sequence[bytes], prompt: str) -> VlmAnswer:
        import openai

        urls = [f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}" for frame in frames]
        content: list[Any] = [{"type": "text", "text": prompt}]
        content += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        try:
            answer = await self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=self.config.max_tokens,
                temperature=0.0,
            )
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(
                f"the endpoint refuses: {_first_line(error)}",
                where=self.config.base_url,
                hint=f"check caption.model, caption.base_url and ${self.config.api_key_variable}",
                kind="endpoint-refuses",
            ) from error
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            raise UnreachableError(_first_line(error)) from error
        except (openai.OpenAIError, ValueError) as error:
            raise BadAnswerError(_first_line(error)) from error
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None:
            raise BadAnswerError("the answer contains no message")
        usage = getattr(answer, "usage", None)
        caption = parse_caption(choices[0].message.content, self.config)
        return VlmAnswer(caption, getattr(usage, "total_tokens", 0) or 0)


class TransformersBackend:
    """A transformers image-text-to-text model from a folder or by name. Chat models use their template."""

    def __init__(self, config: CaptionConfig) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.config = config
        self.model = config.model
        self._torch = torch
        try:
            self._processor = AutoProcessor.from_pretrained(config.model)
            self._network = AutoModelForImageTextToText.from_pretrained(config.model).eval().to(config.device)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the captioning model cannot be loaded: {_first_line(error)}",
                where=config.model,
                hint="name a folder with a transformers image-text-to-text model",
                kind="missing-weights",
            ) from error

    async def caption(self, frames: Sequence[bytes], prompt: str) -> VlmAnswer:
        return await asyncio.to_thread(self._caption, frames, prompt)

    def _caption(self, frames: Sequence[bytes], prompt: str) -> VlmAnswer:
        import io

        from PIL import Image

        images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
        if getattr(self._processor, "chat_template", None):
            content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
            messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
            inputs = self._processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        else:  # models without a chat template, such as BLIP, continue a sentence about one image
            inputs = self._processor(images=images[len(images) // 2], return_tensors="pt")
        inputs = inputs.to(self.config.device)
        with self._torch.inference_mode():
            tokens = self._network.generate(**inputs, max_new_tokens=self.config.max_tokens, do_sample=False)
        prompt_tokens = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        text = self._processor.batch_decode(tokens[:, prompt_tokens:], skip_special_tokens=True)[0]
        return VlmAnswer(parse_caption(text, self.config), int(tokens.shape[1]))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
