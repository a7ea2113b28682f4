"""The check of what was written: stores of areas and tiles, and the STAC documents beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anysat.geo.validate import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True)
class Report:
    """What a command prints, and its exit status."""

    content: Any
    """Anything rich prints."""
    exit_status: int = 0

    def __rich__(self) -> Any:
        return self.content


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Check stores: conventions, place, nodata, gaps, checksums, documents, one model. Exit status 1 on an error."""

    paths: list[str] = field(
        metadata={
            "positional": "PATH",
            "help": "Stores NAME.zarr, or their documents NAME.stac or an item of them. Of several stores, all must be "
            "made by one model.",
        }
    )
    quick: bool = False
    """Leave out what reads every byte: checksums, and values against validity."""
    json: bool = False
    """Print JSON, for scripts."""


def validate(config: ValidateConfig) -> Report:
    """Look at each store and its documents; changes nothing.

    Raises:
        MissingFileError, SourceError: a path is no store.
    """
    from anysat.geo.validate import num_steps, validate_models, validate_store
    from anysat.geo.validate_documents import store_of, validate_documents
    from anysat.workflows.progress import progress_bar

    stores = [store_of(Path(path)) for path in config.paths]
    found: list[Finding] = []
    for store in stores:
        total = 0 if config.quick or not store.exists() else num_steps(store)
        with progress_bar(f"reading {store.name}", total) as advance:
            found += validate_store(store, reads_all=not config.quick, advance=advance)
        if store.exists() and not store.name.endswith(".partial"):
            found += validate_documents(store)
    found += validate_models(stores)
    num_errors = sum(finding.level == "error" for finding in found)
    content = _as_json(found) if config.json else _as_text(found, num_errors)
    return Report(content, 1 if num_errors else 0)


def _as_text(findings: Sequence[Finding], num_errors: int) -> Any:
    from rich.text import Text

    text = Text()
    for finding in findings:
        text.append(f"{finding.level:8}", _COLOURS[finding.level])
        text.append(f"{finding.where}  {finding.check}: {finding.text}\n")
    num_warnings = sum(finding.level == "warning" for finding in findings)
    text.append(f"{num_errors} errors, {num_warnings} warnings in {len(findings)} checks")
    return text


def _as_json(findings: Sequence[Finding]) -> Any:
    import dataclasses
    import json

    from rich.text import Text

    return Text(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
