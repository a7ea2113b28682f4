"""Facts about what a store is made from, as plain values, and a comparison of facts by their names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from anysat.geo.periods import Period
from anysat.geo.stores.layout import Layout


def facts_of(layouts: Sequence[Layout], periods: Sequence[Period], made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that must be the same for an unfinished store to be continued."""
    days = [[str(first), str(last)] for first, last in periods]
    given = {"made_from": made_from, "periods": days, "layouts": {layout.name: layout.facts() for layout in layouts}}
    as_kept: dict[str, Any] = json.loads(json.dumps(given, default=str))
    return as_kept


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """Return a short hash of facts."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()


def differences(kept: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """List the entries that differ, in words."""
    return [
        f"{name.removeprefix('made_from.')} was {json.dumps(was)}, now {json.dumps(now)}"
        for name, (was, now) in differing(kept, given).items()
    ]


def differing(
    old: Mapping[str, Any], new: Mapping[str, Any], may_change: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return both values of the entries that differ, by dotted names; "absent" where there is none.

    Args:
        may_change: Names of entries, at any place, that are not compared.

    >>> differing({"a": {"b": 1}, "c": [{"d": 2}]}, {"a": {"b": 3}, "c": [{"d": 2}, {"d": 4}]})
    {'a.b': (1, 3), 'c.1.d': ('absent', 4)}
    """
    was, now = _leaves(old), _leaves(new)
    pairs = {name: (was.get(name, "absent"), now.get(name, "absent")) for name in {**was, **now}}
    return {name: pair for name, pair in pairs.items()
            if pair[0] != pair[1] and not set(name.split(".")) & set(may_change)}  # fmt: skip


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Return values by their dotted names. The tables of a list are named by their numbers."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _leaves(part, f"{name}.{key}".strip(".")).items()}
