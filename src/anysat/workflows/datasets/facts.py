"""Descriptions of a dataset's record and of a check's report, for the screen, scripts and documentation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from anysat.data.base import DatasetRecord, Target
from anysat.data.check import Report
from anysat.data.layout import Entry, Layout

NOT_CHECKED = "layout not checked against a real file"


def facts(record: DatasetRecord) -> dict[str, Any]:
    """Return a record as plain values, without its functions."""
    plain = ("name", "title", "about", "tile_m", "split_rule", "date_rule", "has_real_dates", "day_convention",
             "licence", "size", "homepage", "citation")  # fmt: skip
    return {
        **{name: getattr(record, name) for name in plain},
        "modalities": list(record.modalities),
        "patch_sizes_m": list(record.patch_sizes_m),
        "splits": {name: list(members) for name, members in record.splits.items()},
        "targets": [asdict(target) for target in record.targets],
        "layouts": [asdict(layout) for layout in record.layouts],
        "notes": list(record.notes),
    }


def patch_sizes(record: DatasetRecord) -> str:
    """Return the patch sizes in metres, and which is the default if it is not the smallest."""
    sizes = sorted(record.patch_sizes_m)
    told = " ".join(f"{size:g}" for size in sizes)
    return told if sizes[:1] == list(record.patch_sizes_m[:1]) else f"{told} (default {record.patch_sizes_m[0]:g})"


def description(record: DatasetRecord) -> list[RenderableType]:
    """Return the content of a record as tables and lines."""
    told = Table(*_folded("fact", "value"), show_header=False, title=f"{record.title} ({record.name})")
    for fact, value in {
        "what": record.about,
        "modalities": ", ".join(record.modalities),
        "tile": f"{record.tile_m:g} m, patches of {patch_sizes(record)} m",
        "size": record.size,
        "splits": record.split_rule,
        "dates": ("" if record.has_real_dates else "not real: ") + f"{record.date_rule}; day number: "
        f"{record.day_convention}",
        "licence": record.licence,
        "get it from": record.homepage,
        "cite": record.citation,
    }.items():
        told.add_row(fact, Text(value))
    targets = Table(*_folded("target", "of", "classes or values"), title="Targets")
    for target in record.targets:
        values = ", ".join(target.classes) or f"{target.unit} {target.limits or ''}".strip()
        ignored = f" ({target.ignore}: no label)" if target.ignore is not None else ""
        targets.add_row(
            target.name, _kind(target), Text(f"{values}{ignored}" + (f". {target.about}" if target.about else ""))
        )
    parts: list[RenderableType] = [told, targets]
    for layout in record.layouts:
        parts.append(_layout_table(layout))
    return [*parts, *(Text(f"- {note}") for note in record.notes)]


def _folded(*names: str) -> list[Column]:
    """Return columns that wrap long words."""
    return [Column(name, overflow="fold") for name in names]


def _kind(target: Target) -> str:
    return f"{target.level}, {target.kind}" + (f", {target.gsd_m:g} m" if target.gsd_m else "")


def _layout_table(layout: Layout) -> Table:
    checked = layout.checked_against and f"checked against {layout.checked_against}"
    title = Text(f"Layout {layout.name!r}: {checked or NOT_CHECKED}")
    table = Table(*_folded("entry", "file", "type", "holds"), title=title)
    for entry in layout.entries:
        table.add_row(Text(entry.name), Text(entry.path + (f" [{entry.key}]" if entry.key else "")),
                      Text(stored(entry)), Text(holds(entry)))  # fmt: skip
    return table


def stored(entry: Entry) -> str:
    """Return type and shape of an entry."""
    return entry.dtype + (f" ({' '.join(map(str, entry.shape))})" if entry.shape else "")


def holds(entry: Entry) -> str:
    """Return bands, unit, nodata and remarks of an entry in a line."""
    unit = entry.unit if isinstance(entry.unit, str) else " ".join(entry.unit)
    parts = (
        f"{entry.modality}: {' '.join(entry.bands)}" if entry.modality else "",
        unit,
        f"nodata {entry.nodata:g}" if entry.nodata is not None else "",
        entry.about,
        "may be missing" if entry.is_optional else "",
    )
    return "; ".join(part for part in parts if part)


def findings(report: Report) -> Group:
    """Return the text of a report, with a paragraph for each finding."""
    head = (f"{report.dataset} in {report.root}: {report.num_read} of {report.num_samples} tiles read, layout "
            f"{report.layout!r} ({report.checked_against or NOT_CHECKED}); presence of files "
            f"checked for {report.num_looked_up} tiles")  # fmt: skip
    parts: list[RenderableType] = [Text(head)]
    for finding in report.findings:
        times = f" ({finding.count} times)" if finding.count > 1 else ""
        style = "bold red" if finding.severity == "error" else "yellow"
        parts.append(Text.assemble((f"{finding.severity} {finding.kind}", style), f"  {finding.where}{times}"))
        parts.append(Text(f"    {finding.message}"))
    parts += [Text(f"note  {note}") for note in report.notes]
    parts.append(Text(f"{report.count('error')} errors, {report.count('warning')} warnings" if report.findings
                      else "no problems found"))  # fmt: skip
    return Group(*parts)
