"""Files of `torch.save` with tensors, numpy arrays, dates and plain containers; nothing in them runs.

A pickle rebuilds numpy arrays by calling functions of numpy with arbitrary state, which could corrupt memory. Here
their names stand for `_Array` and `_Type`, which only hold plain values.
"""

from __future__ import annotations

import datetime
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anysat.data.files.numpy_files import begins, refuse_giant
from anysat.errors import SourceError

_KINDS = "biufcSUM?"
_LEAVES = (datetime.date, datetime.timedelta, str, bytes, int, float, type(None))
_COULD_RUN = "such a file could run code, so it is not read; have it saved as tensors"


def read_tensors(path: Path) -> Any:
    """Read a file of `torch.save`, with tensors as arrays.

    Raises:
        SourceError: The file asks for more than tensors, arrays and dates, or is damaged.
    """
    import torch

    _refuse_unsound(path)
    try:
        with torch.serialization.safe_globals(_stand_ins()), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about a newer pickle, which is refused with our own message
            content = torch.load(path, map_location="cpu", weights_only=True)
        return _plain(content, path)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
        raise SourceError(path, "it is a TorchScript program", _COULD_RUN) from error


def _refuse_unsound(path: Path) -> None:
    """Check what torch does not: checksums, and compressed members, which could unpack to any size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > path.stat().st_size:
                raise SourceError(path, f"its member {member.filename!r} would unpack to {member.file_size} bytes",
                                  "torch.save does not compress; have it saved again")  # fmt: skip
        damaged = archive.testzip()
    if damaged is not None:
        raise SourceError(path, f"its member {damaged!r} does not fit its checksum",
                          "check that the file is complete, and saved with its checksums")  # fmt: skip


def _refused(path: Path, message: str) -> SourceError:
    lines = [line.strip() for line in message.splitlines()]
    asked = next((line for line in lines if "GLOBAL" in line), None)
    if asked is not None:
        asked = asked.split("Please use")[0].strip().rstrip(".")
        return SourceError(path, f"it asks for more than tensors and dates ({asked})", _COULD_RUN)
    reason = message.partition("WeightsUnpickler error:")[2].strip().split("\n")[0] or lines[0]
    advice = f"{_COULD_RUN}, or check that the file is complete"
    return SourceError(path, f"it holds something other than tensors {begins(path)}: {reason}", advice)


class _Type:
    """Stand-in for `numpy.dtype`: a plain type whose state can only give byte order and unit of dates."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(object) if code == "O8" else np.dtype(str(code))
        if self.dtype.kind not in _KINDS + "O":
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype {code!r} is no plain type")

    def __setstate__(self, state: Any) -> None:
        order, unit = state[1], state[8][1] if len(state) > 8 else None
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("GLOBAL numpy.dtype with fields is no plain type")
        if unit is not None:
            name = unit[0].decode() if isinstance(unit[0], bytes) else str(unit[0])
            self.dtype = np.dtype(f"{self.dtype.kind}8[{int(unit[1])}{name}]")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stand-in for `numpy.ndarray`: a shape and values that fit each other."""

    array: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, values = state
        if not isinstance(kind, _Type):
            raise pickle.UnpicklingError("GLOBAL numpy.ndarray without a type")
        if kind.dtype.hasobject:
            self.array = _objects(values, shape)
            return
        flat = np.frombuffer(_as_bytes(values, math.prod(shape) * kind.dtype.itemsize), kind.dtype)
        self.array = flat.reshape(shape, order="F" if is_fortran else "C").copy()


def _objects(values: Any, shape: Any) -> Any:
    """Build an array of dates or names, as pandas makes them; any other objects are refused."""
    if not isinstance(values, list) or not all(isinstance(value, _LEAVES) for value in values):
        raise pickle.UnpicklingError("GLOBAL numpy.ndarray holds objects other than dates, names and numbers")
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def _reconstruct(_kind: Any, _shape: Any, _code: Any) -> _Array:
    return _Array()


def _scalar(kind: _Type, value: Any = b"") -> Any:
    if not isinstance(kind, _Type) or kind.dtype.hasobject:
        raise pickle.UnpicklingError("GLOBAL numpy scalar that is no plain value")
    return np.frombuffer(_as_bytes(value, kind.dtype.itemsize), kind.dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand-in for `_codecs.encode`, with which old pickles write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"GLOBAL _codecs.encode with {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Stand-in for `bytes()`, with which old pickles write empty bytes."""
    return b""


def _as_bytes(values: Any, size: int) -> bytes:
    """Return bytes as pickles hold them, checking their number. A number is refused: `bytes` would make that many."""
    if not isinstance(values, (bytes, bytearray, str)):
        raise pickle.UnpicklingError(f"GLOBAL numpy.ndarray whose content is a {type(values).__name__}, not bytes")
    if len(values) != size:
        raise pickle.UnpicklingError(f"GLOBAL numpy.ndarray of {len(values)} bytes, {size} expected")
    return values.encode("latin1") if isinstance(values, str) else bytes(values)


def _stand_ins() -> list[Any]:
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # the names of numpy 1 and of numpy 2
    return [
        *((made, f"{module}.{name}") for module in modules
          for name, made in (("_reconstruct", _reconstruct), ("scalar", _scalar))),
        (_Array, "numpy.ndarray"), (_Type, "numpy.dtype"), (_encode, "_codecs.encode"),
        (_no_bytes, "builtins.bytes"), (_no_bytes, "__builtin__.bytes"),
        datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone,
    ]  # fmt: skip


def _plain(content: Any, path: Path) -> Any:
    """Return the content with arrays in place of tensors and stand-ins."""
    import torch

    if isinstance(content, torch.Tensor):
        refuse_giant(path, "a tensor", content.nelement() * content.element_size())
        return content.detach().numpy()
    if isinstance(content, _Array):
        return content.array
    if isinstance(content, Mapping):
        return {key: _plain(value, path) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(_plain(value, path) for value in content)
    return content
