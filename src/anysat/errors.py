"""The exceptions that the package raises on purpose; all are subclasses of `AnySatError`.

Their messages say what was expected, what was given, where, and what to do. Each class is also a subclass of a built-in
exception, so `except ValueError` works too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class AnySatError(Exception):
    """Base class of all errors that the package raises on purpose."""

    def __reduce__(self) -> Any:
        return _remake, (type(self), str(self))


def _remake(kind: type[AnySatError], message: str) -> AnySatError:
    """Unpickle an error from another process, with the message that was built there."""
    error = kind.__new__(kind)
    BaseException.__init__(error, message)
    return error


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)


def some(names: Iterable[object], most: int = 5, between: str = ", ") -> str:
    """List the first few names, and say how many more there are.

    >>> some("abcdef", 4)
    'a, b, c, d, and 2 more'
    """
    told = [str(name) for name in names]
    return between.join(told if len(told) <= most else [*told[:most], f"and {len(told) - most} more"])


class UnknownNameError(AnySatError, ValueError):
    """A name, such as that of a modality, band or preset, is not known."""

    def __init__(self, kind: str, name: object, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.3)
        choices = f"closest: {_listed(near)}" if near else f"known: {_listed(known)}"
        super().__init__(f"unknown {kind} {name!r}; {choices}" + (f". {hint}" if hint else ""))


class RecordError(AnySatError, ValueError):
    """A record or a configuration has a value that is not possible."""

    def __init__(self, where: str, got: object, expected: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got!r}")


class InputError(AnySatError, ValueError):
    """Input data has a wrong rank, length, type, date or unit."""

    def __init__(self, where: str, expected: str, got: object, advice: str = "") -> None:
        super().__init__(f"{where}: expected {expected}, got {got}" + (f"; {advice}" if advice else ""))


class OtherWorkError(InputError):
    """A folder of unfinished work was started with other settings, or holds other files."""


class ExtentError(AnySatError, ValueError):
    """The modalities of a tile do not cover the same ground."""

    def __init__(self, extents_m: Mapping[str, tuple[float, float]], advice: str) -> None:
        sides = _listed(f"{key} {h:g} x {w:g} m" for key, (h, w) in extents_m.items())
        super().__init__(f"all modalities of a tile must cover the same ground (height x width), got {sides}; {advice}")


class PatchSizeError(AnySatError, ValueError):
    """A patch size does not divide the tile, or does not hold whole sub-patches."""

    def __init__(self, patch_size_m: object, reason: str, fitting_m: Sequence[float]) -> None:
        way_out = (
            f"sizes that fit here: {_listed(f'{size:g}' for size in fitting_m)} m"
            if fitting_m
            else "no patch size fits this tile: crop it first"
        )
        shown = f"{patch_size_m:g} m" if isinstance(patch_size_m, (int, float)) else repr(patch_size_m)
        super().__init__(f"patch size {shown}: {reason}; {way_out}")


class EmptyTileError(AnySatError, ValueError):
    """A tile has no valid value in any modality."""

    def __init__(self, tiles: Sequence[object]) -> None:
        super().__init__(
            f"no valid value in any modality of tile {_listed(tiles)}: everything is nodata, NaN or masked; "
            "leave such tiles out of the batch"
        )


class StatisticsError(AnySatError, ValueError):
    """Statistics are missing, or do not fit the data that they should standardise."""

    def __init__(self, where: str, problem: str, advice: str) -> None:
        super().__init__(f"statistics of {where}: {problem}; {advice}")


class SourceWarning(UserWarning):
    """What may be a mistake in an input or its description: bands that are not used, or masks that are not applied."""


class MisfitWarning(UserWarning):
    """Values that cannot fit the statistics they are standardised with, or ground unlike what a run was trained on."""


class WeightsError(AnySatError, ValueError):
    """A weight file cannot be read, or its tensors do not fit the model."""

    def __init__(self, source: object, problem: str, advice: str = "") -> None:
        super().__init__(f"weights {source}: {problem}" + (f"; {advice}" if advice else ""))

    @classmethod
    def mismatch(
        cls, source: object, missing: Sequence[str], extra: Sequence[str], misshapen: Sequence[str]
    ) -> WeightsError:
        """Create an error that names the first few missing, extra and misshapen tensors."""
        parts = [
            f"{len(names)} {word} ({some(names, 4)})"
            for word, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
            if names
        ]
        advice = "give the configuration the weights were made with (dim, depth, num_heads, modalities)"
        return cls(source, "tensors do not match the model: " + "; ".join(parts), advice)


class MissingFileError(AnySatError, FileNotFoundError):
    """A given path does not exist."""

    def __init__(self, path: object, expected: str) -> None:
        super().__init__(f"{path}: no such file or folder; expected {expected}")


class MissingExtraError(AnySatError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}: pip install 'anysat[{extra}]'")


class SourceError(AnySatError, ValueError):
    """A raster or cube cannot be read, has no georeference, or lies elsewhere."""

    def __init__(self, path: object, problem: str, advice: str = "") -> None:
        super().__init__(f"{path}: {problem}" + (f"; {advice}" if advice else ""))


class UnreadableError(SourceError):
    """Inputs could not be read, and nothing of the ground was seen."""

    def __init__(self, where: object, problems: Sequence[str]) -> None:
        files = (
            "an input could not be read"
            if len(problems) == 1
            else f"{len(problems)} inputs could not be read, the first"
        )
        super().__init__(
            where, f"nothing was seen, and {files}: {problems[0]}",
            "nothing was written: fix the problem and give the same command again",
        )  # fmt: skip


class EmptySourceError(SourceError):
    """A source exists but is empty: it has no file, or none of the requested dates."""

    problem: str = ""
    """What the source lacks, without its path."""

    def __init__(self, path: object, problem: str, advice: str = "") -> None:
        super().__init__(path, problem, advice)
        self.problem = problem


class LargeGroundError(SourceError):
    """The ground is too large for one tile."""


class MissingKeyError(SourceError):
    """A file has no part of the requested name."""


class WriteError(AnySatError, OSError):
    """An output could not be written. No part of it is left behind."""

    def __init__(self, path: object, problem: object) -> None:
        super().__init__(f"{path}: could not be written ({problem}); nothing was left behind")


class OutputExistsError(WriteError, FileExistsError):
    """An output exists already."""

    def __init__(self, paths: Sequence[object]) -> None:
        exist = "exists" if len(paths) == 1 else "exist"
        OSError.__init__(self, f"{_listed(paths)} {exist}; give another name, or replace it with --overwrite true")


class UnfinishedError(WriteError):
    """Long work stopped before its end. The finished part is kept, and the same command continues it."""

    def __init__(self, kept_in: object, problem: object) -> None:
        OSError.__init__(
            self, f"stopped ({problem}); what is finished is kept in {kept_in}: "
            "fix the problem and give the same command again to continue",
        )  # fmt: skip


class StoreMismatchError(WriteError):
    """An unfinished store was made from other inputs or settings than those given now."""

    def __init__(self, partial: object, differences: Sequence[str]) -> None:
        OSError.__init__(
            self, f"{partial} is unfinished, with other inputs or options: {some(differences, 6, '; ')}; "
            "use those to continue it, give another name, or discard it with --overwrite true",
        )  # fmt: skip


class RunExistsError(OutputExistsError):
    """The folder for a new training run holds a run already."""

    def __init__(self, folder: object) -> None:
        OSError.__init__(self, f"{folder} already holds a run; continue it with --resume, or give another --out")


class RunStoppedError(UnfinishedError):
    """Training stopped because it could not write. Its last checkpoint is kept."""

    def __init__(self, folder: object, step: int, problem: object) -> None:
        OSError.__init__(
            self, f"training stopped at step {step} ({problem}); the last checkpoint is kept in {folder}: "
            "fix the problem and continue with --resume",
        )  # fmt: skip


class DivergedError(AnySatError, ArithmeticError):
    """Training diverged: the loss or a weight is NaN or infinite."""

    def __init__(
        self, folder: object, step: int, got: object, kept: int | None, what: str = "the loss"
    ) -> None:  # fmt: skip
        there = f"no checkpoint is in {folder} yet"
        if kept is not None:
            there = f"the checkpoint of step {kept} is kept in {folder}"
        super().__init__(
            f"{what} was {got} in one of the steps up to {step}; {there}: lower the learning rate, "
            "clip gradients (clip_norm), or check the data of these steps"
        )


class CollapseError(AnySatError, RuntimeError):
    """The embeddings collapsed during training: they no longer tell inputs apart. `problem` says what was measured."""

    def __init__(
        self, problem: str, *, step: int,
        advice: str = "raise the teacher's momentum, lower the learning rate, or give the contrast more weight",
    ) -> None:  # fmt: skip
        super().__init__(f"the embeddings collapsed by step {step}: {problem}; {advice}")
