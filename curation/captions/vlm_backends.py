"""What describes a clip from its pictures: an OpenAI-compatible endpoint (vLLM, SGLang and others) or a local model.

Goes in: JPEG pictures and a prompt. Comes out: a `Description`, checked to be one. Raises `BadAnswerError` where the model's
answer is no caption, UserError where nothing can be asked at all (no server, wrong key, unknown model, missing weights).
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

REFUSALS = re.compile(
    r"^\W*(i('m| am) (sorry|unable|not able)|sorry\b|as an ai\b|i can('t|not)\b|unfortunately\b)",
    re.IGNORECASE,
)
"""How models begin when they decline (our choice, from answers of common instruction-tuned models)."""


class BadAnswerError(Exception):
    """The model answered, and the answer is no caption."""


class UnreachableError(Exception):
    """The endpoint did not answer, after the client's own retries."""


@dataclass(frozen=True)
class Description:
    """A caption and the tokens that it cost, prompt and answer together."""

    text: str
    tokens: int


class Describer(Protocol):
    """`model` is stored with every caption."""

    model: str

    async def describe(self, pictures: Sequence[bytes], prompt: str) -> Description: ...


def make_describer(config: CaptionConfig) -> Describer:
    """The backend that the configuration names. Raises UserError where it cannot be made."""
    if not config.model:
        raise UserError("no captioning model is named", hint="--set caption.model=NAME", kind="no-model")
    return Endpoint(config) if config.backend == "openai" else LocalModel(config)


def checked(text: str | None, config: CaptionConfig) -> str:
    """The caption in an answer: one paragraph. Raises BadAnswerError for an empty, refusing, short or endless one."""
    caption = " ".join((text or "").split()).strip('"“” ')
    words = len(caption.split())
    if not caption:
        raise BadAnswerError("the answer is empty")
    if REFUSALS.match(caption):
        raise BadAnswerError(f"the model declines: {caption[:120]}")
    if not config.min_words <= words <= config.max_words:
        raise BadAnswerError(
            f"{words} words, wanted {config.min_words} to {config.max_words}: {caption[:80]}"
        )
    return caption


class Endpoint:
    """A chat-completions endpoint that takes pictures. Waiting, backing off and trying again are the client library's."""

    def __init__(self, config: CaptionConfig) -> None:
        from openai import AsyncOpenAI

        self.config = config
        self.model = config.model
        self._client = AsyncOpenAI(
            base_url=config.base_url,
            api_key=os.environ.get(config.api_key_variable)
            or "none",  # local servers ask for none, the library does
            timeout=config.timeout_s,
            max_retries=config.retries,
        )

    async def describe(self, pictures: Sequence[bytes], prompt: str) -> Description:
        import openai

        urls = [f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
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
                f"the endpoint refuses: {_told(error)}",
                where=self.config.base_url,
                hint=f"check caption.model, caption.base_url and ${self.config.api_key_variable}",
                kind="endpoint-refuses",
            ) from error
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            raise UnreachableError(_told(error)) from error
        except (openai.OpenAIError, ValueError) as error:
            raise BadAnswerError(_told(error)) from error
        choices = getattr(answer, "choices", None)
        if not choices or choices[0].message is None:
            raise BadAnswerError("the answer holds no message")
        usage = getattr(answer, "usage", None)
        return Description(
            checked(choices[0].message.content, self.config), getattr(usage, "total_tokens", 0) or 0
        )


class LocalModel:
    """A transformers image-text-to-text model from a folder or by name; chat models get their own template."""

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
                f"the captioning model cannot be loaded: {_told(error)}",
                where=config.model,
                hint="name a folder with a transformers image-text-to-text model",
                kind="missing-weights",
            ) from error

    async def describe(self, pictures: Sequence[bytes], prompt: str) -> Description:
        return await asyncio.to_thread(self._describe, pictures, prompt)

    def _describe(self, pictures: Sequence[bytes], prompt: str) -> Description:
        import io

        from PIL import Image

        images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
        if getattr(self._processor, "chat_template", None):
            content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
            messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
            inputs = self._processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        else:  # models without a chat, such as BLIP, continue a sentence about one picture
            inputs = self._processor(images=images[len(images) // 2], return_tensors="pt")
        inputs = inputs.to(self.config.device)
        with self._torch.inference_mode():
            made = self._network.generate(**inputs, max_new_tokens=self.config.max_tokens, do_sample=False)
        before = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        text = self._processor.batch_decode(made[:, before:], skip_special_tokens=True)[0]
        return Description(checked(text, self.config), int(before + made.shape[1] - before))


def _told(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
