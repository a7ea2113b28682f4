"""Facts about what a store is made from, as plain values that can be compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
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
    """List the entries that differ, by dotted names."""
    old, new = _leaves(kept), _leaves(given)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} was {old.get(name)}, now {new.get(name)}" for name in names]


def _leaves(value: Any, name: str = "") -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        return {name.removeprefix("made_from."): json.dumps(value)}
    return {k: v for key, part in value.items() for k, v in _leaves(part, f"{name}.{key}" if name else key).items()}
