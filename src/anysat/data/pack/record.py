"""The facts that a packed dataset was made from, kept in its index and compared with the dataset's record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anysat.data.base import DatasetRecord
from anysat.geo.stores.fingerprints import differing

_WORDS = ("name", "title", "about", "licence", "homepage", "citation", "patch_sizes_m")
"""Keys of a description that do not affect what is packed."""
_PARTS = ("modalities", "targets")
"""Keys whose parts may be packed without the others."""


def record_facts(record: DatasetRecord, modalities: Collection[str], targets: Collection[str]) -> dict[str, Any]:
    """Return the facts that determine the tiles of a pack with these modalities and targets, as plain values."""
    return {
        "targets": [facts for facts in target_facts(record) if facts["name"] in targets],
        "targets_left_out": [target.name for target in record.targets if target.name not in targets],
        "tile_m": record.tile_m,
        "split_names": _split_names(record),
        "description": _description(record, {*modalities, *targets}),
    }


def target_facts(record: DatasetRecord) -> list[dict[str, Any]]:
    """Return what the numbers of the targets mean, as plain values."""
    return [
        {name: list(fact) if isinstance(fact, tuple) else fact for name, fact in asdict(target).items()
         if name not in ("about", "colours", "codes")}
        for target in record.targets
    ]  # fmt: skip


def changes(record: DatasetRecord, packed: Mapping[str, Any]) -> list[str]:
    """Say in which facts a record differs from the index of a pack."""
    found = _target_changes(record, packed) + _sensor_changes(record, packed)
    found += [f"the record has no modality {key}" for key in packed["records"] if key not in record.modalities]
    if packed["description"] is not None:
        names = {*packed["modalities"], *(target["name"] for target in packed["targets"])}
        keys = differing(packed["description"], _description(record, names) or {})
        return found + [f"{', '.join(keys)} of {record.found_as}"] * bool(keys)
    if packed["tile_m"] != record.tile_m:
        found.append(f"tile_m was {packed['tile_m']:g} and is {record.tile_m:g} now")
    if packed["split_names"] != _split_names(record):
        found.append(f"splits were {', '.join(packed['split_names'])} and are {', '.join(_split_names(record))} now")
    return found


def _target_changes(record: DatasetRecord, packed: Mapping[str, Any]) -> list[str]:
    old = {target["name"]: target for target in packed["targets"]}
    new = {facts["name"]: facts for facts in target_facts(record) if facts["name"] not in packed["targets_left_out"]}
    found = [
        f"target {name!r} is only {'in the record' if name in new else 'in the pack'}"
        for name in sorted(old.keys() ^ new.keys())
    ]
    for name in old.keys() & new.keys():
        found += [f"{fact} of target {name!r} were {was!r} and are {now!r} now"
                  for fact, (was, now) in differing(old[name], new[name]).items()]  # fmt: skip
    return found


def _sensor_changes(record: DatasetRecord, packed: Mapping[str, Any]) -> list[str]:
    """Return changes of a user's own sensors, whatever their names in words."""
    found = []
    for key in record.sensors.keys() & packed["records"].keys():
        old, new = packed["records"][key], json.loads(json.dumps(asdict(record.sensors[key])))
        fields = [name for name in new if name != "sensor" and old.get(name) != new[name]]
        found += [f"{', '.join(fields)} of the modality record of {key}"] * bool(fields)
    return found


def _split_names(record: DatasetRecord) -> list[str]:
    """Return the values of the column `split`; which make up a split is decided when the pack is opened."""
    return sorted(member for members in record.splits.values() for member in members)


def _description(record: DatasetRecord, packed: Collection[str]) -> dict[str, str] | None:
    """Return a checksum of each key in the YAML file of own data; None for other datasets."""
    path = Path(record.found_as)
    if not record.is_own or not path.is_file():
        return None
    from anysat.yaml_files import parse_yaml

    found: dict[str, str] = {}
    for key, content in parse_yaml(path.read_text("utf-8")).items():
        if key in _PARTS and isinstance(content, Mapping):
            found |= {f"{key}.{name}": _checksum(part) for name, part in content.items() if name in packed}
        elif key not in _WORDS:
            found[key] = _checksum(content)
    return found


def _checksum(content: Any) -> str:
    if isinstance(content, Mapping):
        content = {key: part for key, part in content.items() if key not in ("about", "colours")}
    return hashlib.sha256(json.dumps(_textual(content), sort_keys=True, default=str).encode()).hexdigest()[:16]


def _textual(content: Any) -> Any:
    """Turn all keys into text, so that they can be sorted."""
    if isinstance(content, Mapping):
        return {str(key): _textual(part) for key, part in content.items()}
    return [_textual(part) for part in content] if isinstance(content, list) else content
