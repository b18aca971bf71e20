"""YAML of configuration files and `--set` values: UTF-8, no duplicate keys, and only true and false are
booleans.

YAML 1.1 also reads on, off, yes and no as booleans; here they are words, because some settings have the value
`off`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from uniavgen.shards.errors import UserError
from uniavgen.shards.text_files import read_text


class _Loader(yaml.SafeLoader):
    """Safe loader that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = key_node.value
            if key in first:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key} is given twice, first in line {first[key]}",
                    problem_mark=key_node.start_mark,
                )
            first[key] = line
        return super().construct_mapping(node, deep)


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL or letter in "tTfF"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_mapping(path: Path) -> dict[Any, Any]:
    """The content of a configuration file; {} for an empty one. Raises UserError naming file and line."""
    content = parse_value(read_text(path, "the configuration"), path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"the configuration must be a mapping (KEY: VALUE), it is a {_kind(content)}",
            where=path,
            hint="`uniavgen settings` prints an example",
        )
    return content


def parse_value(text: str, where: object) -> Any:
    """The value of a YAML text. Raises UserError with the line for anything that is not valid."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(
            f"not valid YAML: {' '.join(str(problem).split())}",
            where=f"{where}:{mark.line + 1}" if mark and isinstance(where, Path) else where,
            hint="correct it",
        ) from error


def line_of(path: Path, location: Sequence[int | str]) -> str:
    """`:LINE` of the setting at `location` in a file that was read before; "" if it cannot be found."""
    node = yaml.compose(read_text(path, "the configuration"), _Loader)
    line = 0
    for name in location:
        if isinstance(node, yaml.MappingNode):
            matches = [(key, value) for key, value in node.value if key.value == str(name)]
            if not matches:
                break
            line, node = matches[-1][0].start_mark.line + 1, matches[-1][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(name, int) and name < len(node.value):
            node = node.value[name]
            line = node.start_mark.line + 1
        else:
            break
    return f":{line}" if line else ""


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else "single value"
