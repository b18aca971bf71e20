"""From plain data to a page: the templates of this package, and how numbers and times are written in them."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **facts: Any) -> str:
    """A template of `curation/templates` with these facts, escaped for HTML; a name that is missing raises."""
    return _environment().get_template(template).render(**facts)


@cache
def _environment() -> Environment:
    """Made once: it keeps the templates that it compiled."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("uniavgen.curation.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"span": span, "clock": clock, "number": number}
    environment.filters |= {"count": lambda n: f"{n:,}", "name": lambda uri: uri.rsplit("/", 1)[-1]}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    return environment


def span(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def clock(seconds: float) -> str:
    """A place in a source: 4:07.3, or 1:02:07.3 from an hour on."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def number(value: float | None) -> str:
    """A measurement in at most four digits, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    digits = 0 if abs(value) >= 100 or value == round(value) else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}".replace("-", "−")
