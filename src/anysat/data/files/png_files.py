"""A check that PNG files are complete, because GDAL returns arbitrary rows for damaged ones, without an error."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from anysat.errors import SourceError

_SIGNATURE_SIZE, _FRAME_SIZE = 8, 12
_ADVICE = "check that the file is complete"


def require_whole_png(path: Path) -> None:
    """Check all chunks of a PNG file against their checksums, up to the end.

    Raises:
        SourceError: A chunk does not fit its checksum or length, or the end is missing.
    """
    content = memoryview(path.read_bytes())
    at = _SIGNATURE_SIZE
    while at + _FRAME_SIZE <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind = bytes(content[at + 4 : at + 8])
        name = kind.decode("latin1") if kind.isalpha() else repr(kind)
        end = at + _FRAME_SIZE + length
        if end > len(content):
            raise SourceError(path, f"its end is missing: chunk {name} at byte {at} is longer than the file", _ADVICE)
        if zlib.crc32(content[at + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]:
            raise SourceError(path, f"its chunk {name} at byte {at} does not fit its checksum", _ADVICE)
        if kind == b"IEND":
            return
        at = end
    raise SourceError(path, "its end is missing", _ADVICE)
