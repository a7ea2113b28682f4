"""The command that checks stores of areas and tiles, and the STAC documents beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysat.errors import AnySatError, MissingFileError, SourceError
from anysat.workflows.answer import Answer, as_json

if TYPE_CHECKING:
    from anysat.geo.validate import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """Check stores and their STAC documents: conventions, place, nodata, gaps, checksums. Exit status 1 on an error."""

    paths: list[str] = field(
        metadata={
            "positional": "PATH",
            "help": "Stores (NAME.zarr), or their STAC documents (NAME.stac or one of its items). Several stores must "
            "all be made by the same model.",
        }
    )
    quick: bool = False
    """Skip the checks that read every byte: checksums, and values against validity."""
    json: bool = False
    """Print JSON."""


def validate(config: ValidateConfig) -> Answer:
    """Check each store and its documents, without changing anything.

    Raises:
        MissingFileError, SourceError: None of the paths is a store. If only some are not, this is among the findings.
    """
    from anysat.geo.validate import Finding, validate_models
    from anysat.geo.validate.documents import store_of

    found: list[Finding] = []
    stores: list[Path] = []
    failed: list[AnySatError] = []
    for path in config.paths:
        try:
            store = store_of(Path(path))
            found += _findings(store, config.quick)
            stores.append(store)
        except (MissingFileError, SourceError) as error:
            failed.append(error)
            found.append(Finding(level="error", where=Path(path).name, check="opened", text=str(error)))
    if failed and not stores:
        raise failed[0]
    found += validate_models(stores)
    num_errors = sum(finding.level == "error" for finding in found)
    content = as_json([asdict(finding) for finding in found]) if config.json else _as_text(found, num_errors)
    return Answer(content, 1 if num_errors else 0)


def _findings(store: Path, quick: bool) -> list[Finding]:
    """Return the findings for a store and the documents beside it."""
    from anysat.geo.validate import num_steps, validate_store
    from anysat.geo.validate.documents import validate_documents
    from anysat.workflows.progress import progress_bar

    with progress_bar(f"reading {store.name}", 0 if quick or not store.exists() else num_steps(store)) as advance:
        found = validate_store(store, reads_all=not quick, advance=advance)
    if store.exists() and not store.name.endswith(".partial"):
        found += validate_documents(store)
    return found


def _as_text(findings: Sequence[Finding], num_errors: int) -> Any:
    from rich.text import Text

    text = Text()
    for finding in findings:
        text.append(f"{finding.level:8}", _COLOURS[finding.level])
        text.append(f"{finding.where}  {finding.check}: {finding.text}\n")
    num_warnings = sum(finding.level == "warning" for finding in findings)
    text.append(f"{num_errors} errors, {num_warnings} warnings in {len(findings)} checks")
    return text
