"""Render the report's HTML templates; format numbers and times in them."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

UNIT_WORDS = {
    "s": "seconds",
    "ms": "milliseconds",
    "px": "pixels",
    "deg": "degrees",
    "dB": "decibels",
    "dBFS": "decibels below full scale",
    "Hz": "hertz",
    "bit": "bits",
    "frames/s": "frames per second",
    "words/s": "words per second",
    "1/s": "per second",
    "0..1": "share from 0 to 1",
    "-1..1": "value from −1 to 1",
    "0..255": "level from 0 to 255",
    "1..5": "rating from 1 to 5",
}
"""Units as words on axes; other units are words already."""

PLAIN_UNITS = ("", "0 or 1", "ratio", "score", "variance")
"""Units that are not written after a number, as ranges such as `0..1` are not."""

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """A template of `curation/report/templates` as HTML, values escaped. An undefined name raises."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("uniavgen.curation.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"span": format_span, "clock": format_clock, "number": format_number}
    environment.filters["unit"] = lambda unit: UNIT_WORDS.get(unit, unit)
    environment.filters |= {"count": lambda n: f"{n:,}", "name": lambda uri: uri.rsplit("/", 1)[-1]}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    return environment


def unit_after(unit: str, value: Any = None) -> str:
    """The unit in words as it follows a number: ` pixels`, ` pixel` after 1; empty for a range."""
    if ".." in unit or unit in PLAIN_UNITS:
        return ""
    word = UNIT_WORDS.get(unit, unit)
    return f" {word[:-1] if value == 1 and word.endswith('s') else word}"


def format_span(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def format_clock(seconds: float) -> str:
    """A time in a source: 4:07.3, or 1:02:07.3 from an hour on."""
    minutes, seconds = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{seconds:04.1f}" if hours else f"{minutes}:{seconds:04.1f}"


def format_number(value: float | None) -> str:
    """A measurement with at most four digits; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    digits = 0 if abs(value) >= 100 or value == round(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")
