"""YAML that people write, as plain values; a key that is given twice is refused, as one of the two would be lost."""

from __future__ import annotations

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML document, as `yaml.safe_load` has them.

    Raises:
        yaml.YAMLError: it is no YAML, or a key is given twice in one mapping.
        ValueError, RecursionError: a date or number cannot be, or it is nested too deeply.

    Examples:
        >>> parse_yaml("{first: &first {a: 1}, second: {<<: *first, a: 2}}")["second"]
        {'a': 2}
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Looks at keys before `<<` merges other mappings into theirs."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                where = f"line {line}" if lines[name] == line else f"lines {lines[name]} and {line}"
                raise yaml.YAMLError(f"key {key.value!r} is given twice, in {where}")
            lines[name] = line
        return node
