"""Every setting with its value and its meaning, as YAML that `--config` takes back.

Goes in: a configuration, and the part of it that is asked for. Comes out: lines of YAML with a comment over each setting.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from uniavgen.orchestration.config import Config, known_keys
from uniavgen.shards.errors import UsageError

WIDTH = 120
"""Columns of a comment."""


def commented(config: Config, part: str = "") -> str:
    """The settings below `part` (a dotted name; empty: all) as a YAML document. Raises UsageError for an unknown part."""
    known = known_keys(Config)
    if part and part not in known:
        near = difflib.get_close_matches(part, known, n=1, cutoff=0.4)
        raise UsageError(
            f"unknown setting {part}",
            hint=f"did you mean {near[0]}?" if near else "ask without a name for all",
        )
    return "\n".join(_section(config, part, "")) + "\n"


def values(config: Config, part: str = "") -> Any:
    """The value below a known `part`, as JSON has it."""
    found: Any = config.model_dump(mode="json")
    for name in part.split(".") if part else ():
        found = found[name]
    return found


def _section(model: BaseModel, part: str, prefix: str, comments: bool = True) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        key, value = f"{prefix}{name}", getattr(model, name)
        if part and not f"{part}.".startswith(f"{key}.") and not key.startswith(f"{part}."):
            continue
        if comments:
            yield from _comment(field, value)
        if isinstance(value, BaseModel):
            yield f"{name}:"
            yield from (f"  {line}" for line in _section(value, part, f"{key}.", comments))
        elif _is_plan(value):
            yield f"{name}:"
            for number, item in enumerate(value):
                yield "  -"
                yield from (f"    {line}" for line in _section(item, "", "", comments and not number))
        else:
            yield f"{name}: {_written(value)}"


def _comment(field: FieldInfo, value: Any) -> Iterator[str]:
    """What a setting means, what it may be, and its default in code where the value is another one."""
    said = field.description or ""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if any(str(choice) not in said for choice in choices):
        said += f" [{' | '.join(map(str, choices))}]"
    if isinstance(value, BaseModel):
        said = (type(value).__doc__ or "").strip().split("\n\n")[0]
    elif not field.is_required() and not _is_plan(value):
        default = field.get_default(call_default_factory=True)
        said += f" (default: {_written(default)})" if default != value else ""
    for line in textwrap.wrap(" ".join(said.split()), WIDTH, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def _is_plan(value: Any) -> bool:
    """Whether it is a list of sections, as the stages are."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], BaseModel)


def _written(value: Any) -> str:
    """A value in one line of YAML."""
    import yaml
    from pydantic_core import to_jsonable_python

    in_brackets = yaml.safe_dump(
        [to_jsonable_python(value)], default_flow_style=True, width=10**6, allow_unicode=True
    )
    return in_brackets.strip()[1:-1]
