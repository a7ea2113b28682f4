"""Reading of YAML that people write. A key that is given twice is an error, because one of its values would be lost."""

from __future__ import annotations

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


def parse_yaml(text: str) -> Any:
    """Return the plain values of a YAML document, like `yaml.safe_load`.

    Raises:
        yaml.YAMLError: It is not valid YAML, or a key is given twice in a mapping.
        ValueError, RecursionError: A date or number is not possible, or the nesting is too deep.

    Examples:
        >>> parse_yaml("{first: &first {a: 1}, second: {<<: *first, a: 2}}")["second"]
        {'a': 2}
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Checks keys before `<<` merges other mappings into theirs."""

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
