"""One tile as bytes in the safetensors format: lossless, small, quick to read, without pickles.

Values have the narrowest type that keeps every bit, and valid masks lack the axes along which they do not vary.
Absent bands, and ratio bands that follow from others, are left out. The arrays of a tile are stored modality by
modality, so that one can be read without the others.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.batch import Tile
from anysat.data.absent import nothing_of
from anysat.data.files.numpy_files import refuse_giant
from anysat.errors import AnySatError, InputError, SourceError
from anysat.modalities import MODALITIES, Modality
from anysat.observation import Observation, make_ratio

Read = Callable[[int, int], bytes | memoryview]
"""Takes a first byte in the member and a number of bytes, and reads them."""
_TYPES = {
    "BOOL": "?", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4", "I32": "<i4",
    "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}
_NARROW = ("uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32")
_TARGETS = ""
"""Name of the part that holds the targets; other parts are named after their modality."""
Arrays = dict[str, NDArray[Any]]


def encode_tile(tile: Tile) -> tuple[bytes, int]:
    """Encode a tile as bytes, and return them with the number of bytes of header and targets.

    Raises:
        InputError: A target is not an array of numbers, or the georeference cannot be restored exactly.
    """
    parts: dict[str, Arrays] = {_TARGETS: {}}
    facts: dict[str, Any] = {"id": tile.id, "dataset": tile.dataset, "targets": {}, "parts": {}}
    if tile.geobox is not None:
        facts["geobox"] = geobox_facts(tile)
    for name, target in tile.targets.items():
        array = np.asarray(target)
        if array.dtype.newbyteorder("<") not in _NAMES:
            raise InputError(f"tile {tile.id!r}, target {name!r}", "an array of numbers", f"type {array.dtype}")
        parts[_TARGETS][f"target.{name}"] = narrow(array)
        facts["targets"][name] = array.dtype.name
    for key, observation in tile.observations.items():
        parts[key], facts["parts"][key] = _encode(observation)
    header: dict[str, Any] = {}
    bodies = {name: _body(arrays, header) for name, arrays in parts.items()}
    for name, body in bodies.items():
        if name != _TARGETS:
            facts["parts"][name]["crc"] = zlib.crc32(body)
    header = {"__metadata__": {"anysat": json.dumps(facts, separators=(",", ":"))}, **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    content = b"".join((struct.pack("<Q", len(text)), text, *bodies.values()))
    return content, 8 + len(text) + len(bodies[_TARGETS])


def _body(arrays: Arrays, header: dict[str, Any]) -> bytes:
    """Return the bytes of a part, and add its arrays to the header after those already there."""
    start = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    made = []
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):  # so that all are aligned
        content = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
        kind = _NAMES[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, start + len(content)]}
        start += len(content)
        made.append(content)
    return b"".join(made)


def narrow(array: NDArray[Any]) -> NDArray[Any]:
    """Return the numbers in the narrowest type that keeps every bit.

    >>> narrow(np.array([0.0, 70.0, 255.0], np.float32)).dtype, narrow(np.array([0.5, 1e-9])).dtype
    (dtype('uint8'), dtype('float64'))
    """
    if array.dtype.kind not in "iuf" or not array.size:
        return array
    least, greatest = array.min(), array.max()
    is_whole = array.dtype.kind != "f" or bool((array == np.rint(array)).all())
    for name in _NARROW:
        kind = np.dtype(name)
        if kind.itemsize >= array.dtype.itemsize:
            break
        if kind.kind == "f":
            could_fit = array.dtype.kind == "f"
        else:
            could_fit = is_whole and np.iinfo(kind).min <= least and greatest <= np.iinfo(kind).max
        if not could_fit:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            small = array.astype(kind)
        if small.astype(array.dtype).tobytes() == array.tobytes():
            return small
    return array


def _encode(observation: Observation) -> tuple[Arrays, dict[str, Any]]:
    modality, values, valid = observation.modality, observation.values, observation.valid
    key, bands = modality.key, list(range(len(modality.bands)))
    ratios = [index for index in bands if _follows(observation, index)]
    absent = [i for i in bands if not valid[..., i, :, :].any() and not _bits(values[..., i, :, :]).any()]
    stored = [index for index in bands if index not in ratios and index not in absent]
    arrays: Arrays = {}
    groups: dict[str, list[int]] = {}
    for index in stored:
        groups.setdefault(narrow(values[..., index, :, :]).dtype.name, []).append(index)
    for number, (kind, members) in enumerate(groups.items()):
        arrays[f"{key}.values.{number}"] = values[..., members, :, :].astype(kind)
    facts: dict[str, Any] = {"shape": list(values.shape), "groups": list(groups.values()), "ratios": ratios}
    mask = _reduced(valid[..., stored, :, :])
    if not mask.all():
        arrays[f"{key}.valid"] = np.packbits(mask)
        facts["mask"] = list(mask.shape)
    if observation.dates is not None:
        arrays[f"{key}.days"] = observation.dates.astype("datetime64[D]").astype(np.int64).astype(np.int32)
    if observation.units != modality.units:
        facts["units"] = list(observation.units)
    return arrays, facts


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(values).view(np.uint32)


def _follows(observation: Observation, index: int) -> bool:
    """Whether a band equals the ratio of two others to the last bit."""
    if observation.modality.bands[index].ratio_of is None:
        return False
    values, valid = observation.values.copy(), observation.valid.copy()
    make_ratio(observation.modality, index, values, valid)
    return bool(
        (valid[..., index, :, :] == observation.valid[..., index, :, :]).all()
        and (_bits(values[..., index, :, :]) == _bits(observation.values[..., index, :, :])).all()
    )


def _reduced(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Reduce a mask to length 1 along the axes on which it does not vary."""
    for axis in range(mask.ndim):
        first = mask.take([0], axis) if mask.shape[axis] else mask
        if mask.shape[axis] > 1 and (mask == first).all():
            mask = first
    return mask


def decode_tile(
    content: bytes | bytearray | memoryview, *, modalities: Sequence[str] | None = None,
    records: Mapping[str, Modality] = MODALITIES,
) -> Tile:  # fmt: skip
    """Decode the bytes made by `encode_tile`; for readers of the shards other than `Pack`.

    Args:
        content: One `tile.safetensors` member of a shard.
        modalities: Keys to read; None for all.
        records: Modalities by key.

    Raises:
        SourceError: The bytes are damaged or are something else.
    """
    whole = bytes(content)
    return build_tile(whole, lambda start, size: whole[start : start + size], modalities, None, records)


def read_header(head: bytes) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return the header of a member, our facts in it, and its number of bytes.

    Raises:
        SourceError: They are not what this package writes.
    """
    try:
        (length,) = struct.unpack("<Q", head[:8])
        header = json.loads(head[8 : 8 + length])
        facts = json.loads(header.pop("__metadata__")["anysat"])
        tables = (header, facts["targets"], facts["parts"], *facts["parts"].values())
        if not all(isinstance(part, dict) for part in tables):
            raise TypeError("lists for tables")
        return header, facts, 8 + length
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise SourceError("packed tile", f"no header of a packed tile ({error})") from error


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (SourceError, FileNotFoundError):
        raise
    except (AnySatError, KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise SourceError("packed tile", f"its header does not describe its bytes ({error!r})") from error


@_understood()
def build_tile(
    head: bytes, read: Read, modalities: Sequence[str] | None, wanted: Sequence[str] | None,
    records: Mapping[str, Modality], as_stored: bool = False, extent_m: float | None = None,
) -> Tile:  # fmt: skip
    """Build a tile; only the modalities asked for are read and checked.

    Args:
        head: Bytes of header and targets; more may follow.
        read: Reads other bytes.
        modalities: Keys of the modalities; None for all.
        wanted: Names of the targets; None for all.
        records: Modalities by key.
        as_stored: Keep values in their stored type where possible, with masks that are views. This suits copying only.
        extent_m: Side of the all-invalid observation of the first modality that a tile without any of them gets.

    Raises:
        SourceError: The bytes are damaged, the header does not describe them, or the tile has none of the modalities
            and `extent_m` is not given.
    """
    header, facts, start = read_header(head)
    modalities = list(facts["parts"]) if modalities is None else modalities
    found = {}
    for name, kind in facts["targets"].items():
        if wanted is None or name in wanted:
            found[name] = _array(header[f"target.{name}"], head, -start).astype(kind)
    observations = {}
    for key in facts["parts"]:
        if key in modalities:
            first, size = _span(header, key, facts)
            content = read(start + first, size)
            if len(content) < size or zlib.crc32(content) != facts["parts"][key]["crc"]:
                raise SourceError("packed tile", f"{key} of sample {facts['id']} is damaged: its checksum differs")
            observations[key] = _decode(records[key], facts["parts"][key], header, content, first, as_stored)
    if not observations and modalities:
        if extent_m is None:
            problem = f"sample {facts['id']} has none of {', '.join(modalities)}, only {', '.join(facts['parts'])}"
            raise SourceError("packed tile", problem, "ask for one of these, or leave it out")
        observations[modalities[0]] = nothing_of(records[modalities[0]], extent_m)
    return Tile(observations=observations, id=facts["id"], dataset=facts["dataset"], targets=found,
                geobox=geobox_of(facts.get("geobox")))  # fmt: skip


def parts_are_sound(content: bytes) -> bool:
    """Whether the checksums of all modalities in a member are right."""
    header, facts, start = read_header(content)
    for key, part in facts["parts"].items():
        try:
            first, size = _span(header, key, facts)
        except (KeyError, ValueError, TypeError):
            return False
        if zlib.crc32(content[start + first : start + first + size]) != part["crc"]:
            return False
    return True


def _span(header: Mapping[str, Any], key: str, facts: Mapping[str, Any]) -> tuple[int, int]:
    """Return the first byte of a modality, counted from the end of the header, and its number of bytes."""
    part = facts["parts"][key]
    names = [f"{key}.values.{number}" for number in range(len(part["groups"]))]
    names += [f"{key}.valid"] * ("mask" in part) + [f"{key}.days"] * (len(part["shape"]) == 4)
    offsets = [header[name]["data_offsets"] for name in names]
    first = min((begin for begin, _ in offsets), default=0)
    return first, max((end for _, end in offsets), default=first) - first


def _array(entry: Mapping[str, Any], content: bytes | memoryview, first: int) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    kind = np.dtype(_TYPES[entry["dtype"]])
    return np.frombuffer(content, kind, (end - begin) // kind.itemsize, begin - first).reshape(entry["shape"])


def _decode(
    modality: Modality, part: Mapping[str, Any], header: Mapping[str, Any], content: bytes | memoryview, first: int,
    as_stored: bool,
) -> Observation:  # fmt: skip
    key, shape = modality.key, part["shape"]
    if len(shape) not in (3, 4) or min(shape) < 0 or shape[-3] != len(modality.bands):
        raise SourceError("packed tile", f"{key} claims the impossible shape {shape}")
    refuse_giant(Path("packed tile"), key, math.prod(shape) * 4)
    groups, num_bands = part["groups"], part["shape"][-3]
    stored = [index for group in groups for index in group]
    is_whole = len(groups) == 1 and stored == list(range(num_bands))
    mask: Any = True
    if "mask" in part:
        bits = _array(header[f"{key}.valid"], content, first)
        if math.prod(part["mask"]) > 8 * bits.size:
            raise SourceError("packed tile", f"the mask of {key} claims more values than it has")
        mask = np.unpackbits(bits, count=int(np.prod(part["mask"]))).view(bool).reshape(part["mask"])
    if as_stored and is_whole:
        values: NDArray[Any] = _array(header[f"{key}.values.0"], content, first)
        valid = np.broadcast_to(mask, shape)
    else:
        values = np.empty(shape, np.float32) if is_whole else np.zeros(shape, np.float32)
        valid = np.zeros(shape, bool)
        for number, group in enumerate(groups):
            values[..., _run(group), :, :] = _array(header[f"{key}.values.{number}"], content, first)
        valid[..., _run(sorted(stored)), :, :] = mask
    for index in part["ratios"]:
        make_ratio(modality, index, values, valid)
    days = _array(header[f"{key}.days"], content, first).astype("datetime64[D]") if len(shape) == 4 else None
    units = tuple(part["units"]) if "units" in part else modality.units
    return Observation(modality=modality, values=values, valid=valid, units=units, dates=days)


def _run(indices: list[int]) -> slice | list[int]:
    """Return neighbouring indices as a slice, which is faster."""
    if indices and indices == list(range(indices[0], indices[-1] + 1)):
        return slice(indices[0], indices[-1] + 1)
    return indices


def geobox_facts(tile: Tile) -> list[Any] | None:
    """Return the georeference of a tile as plain values, or None; `geobox_of` reverses this.

    Raises:
        InputError: It cannot be written this way.
    """
    box = tile.geobox
    if box is None:
        return None
    facts = [list(box.shape), list(box.affine)[:6], str(box.crs) if box.crs is not None else None]
    if geobox_of(json.loads(json.dumps(facts))) != box:
        raise InputError(f"tile {tile.id!r}, geobox", "shape, affine and reference system that can be written", box)
    return facts


def geobox_of(facts: Sequence[Any] | None) -> Any:
    """Return the georeference from the plain values of `geobox_facts`."""
    if facts is None:
        return None
    shape, affine, crs = facts
    return GeoBox(tuple(shape), Affine(*affine), crs)
