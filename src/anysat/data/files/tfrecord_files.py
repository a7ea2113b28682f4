"""Random access to records of TFRecord shards without TensorFlow: an index from the headers, features of a record.

A shard is a sequence of records: length (8 bytes), its checksum (4), a `tf.train.Example` (length bytes), its
checksum (4). Checksums are masked CRC-32C.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.errors import MissingExtraError, MissingFileError, SourceError

_LENGTH_AND_CRC, _UINT32 = struct.Struct("<QI"), struct.Struct("<I")
_HEADER, _FOOTER = _LENGTH_AND_CRC.size, _UINT32.size
_TEXT = "string"
_MOST_BYTES = 1 << 30
"""Largest size to which a feature of a record is unpacked, in bytes."""
_DAMAGED = "check that the file is complete: its size and checksum are on the download page"


@dataclass(frozen=True)
class Feature:
    """How `features.json` describes one feature."""

    dtype: str
    """Type of the numbers; `string` for text."""
    shape: tuple[int, ...] = ()
    """Lengths of the axes; -1 where it varies."""
    encoding: str = "none"
    """`none` for a list of numbers; `bytes` or `zlib` for their raw bytes."""


def index_records(path: Path) -> NDArray[np.int64]:
    """Return the place of every record (record, 2): its first byte and the length of its Example in bytes.

    Only the headers of 12 bytes are read.

    Raises:
        MissingFileError: There is no such shard.
        SourceError: The shard is cut short or not a TFRecord file. The message names the offset.
    """
    places = []
    with _open(path) as file:
        at, size = 0, os.fstat(file.fileno()).st_size
        while at < size:
            length = _length(_bytes(file, at, _HEADER), at, path)
            end = at + _HEADER + length + _FOOTER
            if end > size:
                raise SourceError(path, f"the record at byte {at} ends at byte {end}, the file at {size}", _DAMAGED)
            places.append((at, length))
            at = end
    return np.array(places, np.int64).reshape(-1, 2)


def require_all_shards(paths: Sequence[Path]) -> None:
    """Refuse an incomplete set of shards, by the `NNNNN-of-NNNNN` at the end of their names.

    Raises:
        MissingFileError: A number is missing. The message names the first.
        SourceError: A name has no such end, or two names give different totals.
    """
    found: dict[tuple[Path, str], tuple[str, set[int]]] = {}
    for path in paths:
        match = re.fullmatch(r"(.+)-(\d{5,})-of-(\d{5,})", path.name)
        if match is None:
            raise SourceError(path, "its name is not that of a shard", "expected it to end as in 00000-of-00001")
        total, numbers = found.setdefault((path.parent, match[1]), (match[3], set()))
        if match[3] != total:
            raise SourceError(path, f"another shard is one of {int(total)}", "keep one version of the files")
        numbers.add(int(match[2]))
    for (home, stem), (total, numbers) in found.items():
        gap = next((number for number in range(int(total)) if number not in numbers), None)
        if gap is not None:
            raise MissingFileError(home / f"{stem}-{gap:05d}-of-{total}", f"all {int(total)} shards; get it again")


def read_record(path: Path, at: int, length: int) -> dict[str, Any]:
    """Return the features of a record (`tf.train.Feature`) by name.

    Raises:
        MissingFileError: There is no such shard.
        SourceError: The record is not there, is no Example, or does not fit its checksum. The message names its place.
    """
    with _open(path) as file:
        return _read(file, path, at, length)


def read_texts(path: Path, places: NDArray[np.int64], name: str) -> list[str]:
    """Return a text feature of the records at these places, read in one pass.

    Raises:
        SourceError: A record is damaged, or the feature is not text. The message names the offset.
    """
    with _open(path) as file:
        return [
            text_of(_read(file, path, at, length).get(name), name, f"{path}, record at byte {at}")
            for at, length in places.tolist()
        ]


def text_of(feature: Any, name: str, where: object) -> str:
    """Return the text of a feature; empty if a record has none (None)."""
    kind, values = ("nothing", []) if feature is None else _values(feature)
    if not values:
        return ""
    if kind != "bytes_list" or len(values) != 1:
        raise SourceError(where, f"feature {name!r} is {kind} of {len(values)}", "expected one text")
    try:
        return str(values[0], "utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(where, f"feature {name!r} is not text ({error})", "expected UTF-8") from None


def numbers_of(feature: Any, described: Feature, name: str, where: object) -> NDArray[Any]:
    """Return the array of a feature, with the type and shape given in `features.json`.

    Raises:
        SourceError: The feature does not fit. No more is unpacked than type and shape need.
    """
    kind, values = _values(feature)
    if described.dtype == _TEXT:
        raise SourceError(where, f"feature {name!r} is text", "expected numbers, by features.json")
    if kind == "bytes_list":
        array: NDArray[Any] = _raw_numbers(values, described, name, where)
    else:
        array = np.array(values, np.float32 if kind == "float_list" else np.int64)
    try:
        return array.reshape(described.shape)
    except ValueError:
        raise SourceError(
            where, f"feature {name!r} has {array.size} numbers", f"expected {described.shape}, by features.json"
        ) from None


def _raw_numbers(values: Sequence[bytes], described: Feature, name: str, where: object) -> NDArray[Any]:
    """Unpack numbers that are stored as one string of bytes."""
    dtype = np.dtype(described.dtype).newbyteorder("<")
    limit = _MOST_BYTES
    if all(length >= 0 for length in described.shape):
        limit = min(limit, math.prod(described.shape) * dtype.itemsize)
    try:
        (raw,) = values
        if described.encoding == "zlib":
            unpacker = zlib.decompressobj()
            raw = unpacker.decompress(raw, limit + 1)
            if len(raw) <= limit and not unpacker.eof:
                raise ValueError("it is cut short")
        if len(raw) > limit:
            raise ValueError(f"more than {limit:,} bytes")
        return np.frombuffer(raw, dtype)
    except (ValueError, zlib.error) as error:
        expected = f"expected one {described.dtype} array of shape {described.shape}, by features.json"
        raise SourceError(where, f"feature {name!r} cannot be unpacked ({error})", expected) from None


def read_feature_table(document: Any, path: Path) -> dict[str, Feature]:
    """Return the features described by a `features.json` of TensorFlow Datasets.

    Raises:
        SourceError: It is not such a file, or names a type that is neither text nor numbers.
    """
    try:
        described = document["featuresDict"]["features"]
        return {name: _described(record) for name, record in described.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(path, f"it does not describe features ({error!r})", "expected featuresDict") from None


def read_shard_lengths(document: Any, path: Path) -> dict[str, list[int]]:
    """Return the number of records in each shard of each split, from a `dataset_info.json` of TensorFlow Datasets.

    Raises:
        SourceError: It is not such a file.
    """
    try:
        return {split["name"]: [int(length) for length in split.get("shardLengths", ())]
                for split in document["splits"]}  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(path, f"it does not count records ({error!r})", "expected splits, shardLengths") from None


def _described(record: Mapping[str, Any]) -> Feature:
    tensor = record.get("tensor")
    if tensor is None:
        return Feature(_TEXT)
    if tensor["dtype"] != _TEXT and np.dtype(str(tensor["dtype"])).kind not in "biuf":
        raise ValueError(f"type {tensor['dtype']!r} is no type of numbers")
    lengths = tensor.get("shape", {}).get("dimensions", ())
    return Feature(tensor["dtype"], tuple(int(length) for length in lengths), tensor.get("encoding", "none"))


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write examples, flattened: text as bytes, floating-point numbers as floats, others as integers."""
    writer = _package().TFRecordWriter(str(path))
    try:
        for record in records:
            writer.write({name: _datum(value) for name, value in record.items()})
    finally:
        writer.close()


def _datum(value: Any) -> tuple[Any, str]:
    if isinstance(value, str):
        return value.encode(), "byte"
    array = np.ravel(value)
    return array.tolist(), "float" if array.dtype.kind == "f" else "int"


def _package() -> Any:
    try:
        import tfrecord
    except ImportError as error:
        raise MissingExtraError("tfrecord", "train") from error
    return tfrecord


def _masked_crc(data: Any) -> int:
    import crc32c  # comes with tfrecord

    checksum = crc32c.crc32c(data)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _open(path: Path) -> Any:
    if not path.is_file():
        raise MissingFileError(path, "a TFRecord shard")
    _package()
    return path.open("rb", buffering=0)


def _bytes(file: Any, at: int, length: int) -> bytes:
    file.seek(at)
    return bytes(file.read(length))


def _read(file: Any, path: Path, at: int, length: int) -> dict[str, Any]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tfrecord import example_pb2

    record = _bytes(file, at, _HEADER + length + _FOOTER)
    if _length(record[:_HEADER], at, path) != length or len(record) != _HEADER + length + _FOOTER:
        raise SourceError(path, f"the record at byte {at} is no longer {length} bytes long", _DAMAGED)
    body = record[_HEADER:-_FOOTER]
    if _masked_crc(body) != _UINT32.unpack(record[-_FOOTER:])[0]:
        raise SourceError(path, f"the record at byte {at} does not fit its checksum", _DAMAGED)
    try:
        return dict(example_pb2.Example.FromString(body).features.feature)
    except DecodeError as error:
        raise SourceError(f"{path}, record at byte {at}", f"it is not an Example ({error})", _DAMAGED) from None


def _length(header: bytes, at: int, path: Path) -> int:
    """Return the length of the record with this header."""
    if len(header) < _HEADER:
        raise SourceError(path, f"it ends within the header at byte {at}", _DAMAGED)
    length, checksum = _LENGTH_AND_CRC.unpack(header)
    if _masked_crc(header[:8]) != checksum:
        raise SourceError(path, f"no record begins at byte {at}", _DAMAGED)
    return int(length)


def _values(feature: Any) -> tuple[str, Any]:
    """Return the kind of list that a feature holds, and the list."""
    kind = feature.WhichOneof("kind") or "nothing"
    return kind, getattr(feature, kind).value if kind != "nothing" else []
