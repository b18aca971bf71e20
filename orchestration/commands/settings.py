"""`uniavgen settings`: print every setting with its value and meaning, as YAML that `--config` accepts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from uniavgen.orchestration.commands.common import command

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from uniavgen.orchestration.config import Config

COMMENT_WIDTH = 120
"""Columns of a comment, without its indentation."""


@command
def settings(
    settings: Config,
    json_: bool,
    section: Annotated[
        str,
        typer.Argument(help="A section or a setting, as train.deepspeed; default: all.", metavar="SECTION"),
    ] = "",
) -> dict[str, Any]:
    """Print every setting with its value and meaning, as YAML.

    The values are those after preset, --config and --set. The output is a file for --config.

    Example: uniavgen settings train.deepspeed --preset paper
    """
    text = settings_as_yaml(settings, section)
    if not json_:
        typer.echo(text, nl=False)
    return {section or "settings": setting_value(settings, section)}


def settings_as_yaml(config: Config, section: str = "") -> str:
    """Settings below `section` ("" for all) as commented YAML. Raises UsageError for an unknown section."""
    from uniavgen.orchestration.config import known_keys, nearest_key
    from uniavgen.shards.errors import UsageError

    if section and section not in known_keys():
        raise UsageError(
            f"unknown setting {section}",
            hint=nearest_key(section) or "without a name all settings are printed",
        )
    return "\n".join(_section_lines(config, section, "")) + "\n"


def setting_value(config: Config, section: str = "") -> Any:
    """The value of a known `section`, as JSON types."""
    value: Any = config.model_dump(mode="json")
    for name in section.split(".") if section else ():
        value = value[name]
    return value


def _section_lines(model: BaseModel, section: str, prefix: str, comments: bool = True) -> Iterator[str]:
    from pydantic import BaseModel

    for name, field in type(model).model_fields.items():
        key, value = f"{prefix}{name}", getattr(model, name)
        if section and not f"{section}.".startswith(f"{key}.") and not key.startswith(f"{section}."):
            continue
        if comments:
            yield from _comment_lines(field, value)
        if isinstance(value, BaseModel):
            yield f"{name}:"
            yield from (f"  {line}" for line in _section_lines(value, section, f"{key}.", comments))
        elif _is_list_of_sections(value):
            yield f"{name}:"
            for number, item in enumerate(value):
                yield "  -"
                # only the first one has comments
                yield from (f"    {line}" for line in _section_lines(item, "", "", comments and not number))
        else:
            yield f"{name}: {_as_yaml(value)}"


def _comment_lines(field: FieldInfo, value: Any) -> Iterator[str]:
    """Meaning and choices of a setting, and its default in code if the value is another one."""
    from pydantic import BaseModel

    text = field.description or ""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if any(str(choice) not in text for choice in choices):
        text += f" [{' | '.join(map(str, choices))}]"
    if isinstance(value, BaseModel):
        text = (type(value).__doc__ or "").strip().split("\n\n")[0]
    elif not field.is_required() and not _is_list_of_sections(value):
        default = field.get_default(call_default_factory=True)
        text += f" (default: {_as_yaml(default)})" if default != value else ""
    words = " ".join(text.split())
    for line in textwrap.wrap(words, COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"


def _is_list_of_sections(value: Any) -> bool:
    """Whether it is a list of sections, as `train.stages` is."""
    from pydantic import BaseModel

    return isinstance(value, list) and bool(value) and isinstance(value[0], BaseModel)


def _as_yaml(value: Any) -> str:
    """A value as one line of YAML."""
    import yaml
    from pydantic_core import to_jsonable_python

    in_brackets = yaml.safe_dump(
        [to_jsonable_python(value)], default_flow_style=True, width=10**6, allow_unicode=True
    )
    return in_brackets.strip()[1:-1]
