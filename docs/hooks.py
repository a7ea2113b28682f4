"""Pages and tables made from the code when the documentation is built."""

from typing import Any

import torch

from anysat.data.base import DatasetRecord
from anysat.data.check import CHECKS
from anysat.data.layout import Layout
from anysat.data.open import dataset_names, find_dataset
from anysat.modalities import MODALITIES, RELEASED
from anysat.model.config import SIZES
from anysat.model.encoder import AnySat
from anysat.workflows.datasets.facts import NOT_CHECKED, holds, stored
from anysat.workflows.finetune.presets import PRESETS as FINETUNES
from anysat.workflows.probe.presets import PRESETS as PROBES
from anysat.workflows.supervised.experiments import PAPER
from anysat.workflows.supervised.text import FIGURES


def modalities_table() -> str:
    """One row per modality."""
    rows = [
        "| key | sensor | bands, in order | pixel | sub-patch | kind | published weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in MODALITIES.values():
        kind = f"{'radar' if m.is_radar else 'optical'} {'series' if m.is_temporal else 'image'}"
        context = ", context of the tile" if m.covers_tile else ""
        units = dict.fromkeys(m.units)
        bands = "; ".join(f"{' '.join(b.name for b in m.bands if b.unit == unit)} ({unit})" for unit in units)
        released = "yes" if m in RELEASED else "no"
        rows.append(
            f"| `{m.key}` | {m.sensor} | {bands} | {m.gsd_m:g} m | {m.subpatch_m:g} m | {kind}{context} | {released} |"
        )
    return "\n".join(rows)


def sizes_table() -> str:
    """One row per named size."""
    rows = ["| size | width | depth | heads | parameters | tensors |", "|---|---|---|---|---|---|"]
    for name, make in SIZES.items():
        config = make()
        with torch.device("meta"):
            model = AnySat(config)
        count = sum(p.numel() for p in model.parameters())
        tensors = len(model.state_dict())
        rows.append(f"| {name} | {config.dim} | {config.depth} | {config.num_heads} | {count:,} | {tensors} |")
    return "\n".join(rows)


def datasets_table() -> str:
    """One row per dataset."""
    rows = [
        "| name | modalities | tile | patches | targets | splits | licence | size | get it from | layouts |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in map(find_dataset, dataset_names()):
        targets = "; ".join(f"{t.name} ({t.level}, {t.kind})" for t in record.targets) or "none"
        checked = "; ".join(f"{layout.name}: {_checked(layout)}" for layout in record.layouts)
        cells = (
            f"[`{record.name}`](#{record.name})", " ".join(record.modalities), f"{record.tile_m:g} m",
            ", ".join(f"{size:g}" for size in record.patch_sizes_m) + " m", targets, record.split_rule, record.licence,
            record.size, f"<{record.homepage}>" if record.homepage.startswith("https://") else record.homepage, checked,
        )  # fmt: skip
        rows.append(_row(*cells))
    return "\n".join(rows)


def dataset_layouts() -> str:
    """A section per dataset: targets, layouts entry by entry, notes."""
    return "\n\n".join(_dataset_section(find_dataset(name)) for name in dataset_names())


def _dataset_section(record: DatasetRecord) -> str:
    parts = [
        f"## {record.title} {{ #{record.name} }}",
        f"{record.about}. Dates: {record.date_rule}. Cite: {record.citation}.",
        *(f"- target `{t.name}`: {', '.join(t.classes) or t.unit}" + (f"; {t.about}" if t.about else "")
          for t in record.targets),
    ]  # fmt: skip
    for layout in record.layouts:
        rows = ["| entry | file | type | holds |", "|---|---|---|---|"]
        for entry in layout.entries:
            file = f"`{entry.path}`" + (f" `{entry.key}`" if entry.key else "")
            rows.append(_row(f"`{entry.name}`", file, stored(entry), holds(entry)))
        parts += [f"Layout `{layout.name}`: {_checked(layout)}.", "\n".join(rows)]
    if record.notes:
        parts.append("\n".join(f"- {note}" for note in record.notes))
    return "\n\n".join(parts)


def _checked(layout: Layout) -> str:
    return f"checked against {layout.checked_against}" if layout.checked_against else NOT_CHECKED


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def checks_table() -> str:
    """One row per kind of finding."""
    rows = ["| finding | severity | what it finds |", "|---|---|---|"]
    rows += [_row(f"`{kind}`", check.severity, check.about) for kind, check in CHECKS.items()]
    return "\n".join(rows)


def presets_table() -> str:
    """One row per published experiment."""
    rows = ["| command | preset | modalities | patch | batch | rate, decay | schedule, epochs | paper |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for (command, name), paper in PAPER.items():
        config: Any = (PROBES if command == "probe" else FINETUNES)[name]()
        if config.data.folds is not None:
            continue
        how = config if command == "probe" else config.optimiser
        rate, decay = ((how.learning_rates[0], how.weight_decays[0]) if command == "probe"
                       else (how.learning_rate, how.weight_decay))  # fmt: skip
        warm = f", {config.warmup_epochs} warm up" if config.warmup_epochs else ""
        rows.append(_row(command, f"`{name}`", " ".join(config.data.modalities), f"{config.patch_sizes_m[0]:g} m",
                         str(config.batch_size), f"{rate:g}, {decay:g}", f"{how.schedule}, {config.epochs}{warm}",
                         f"{FIGURES[paper.score]} {paper.value:.3f}, {paper.where}"))  # fmt: skip
    return "\n".join(rows)


TABLES = {
    "modalities": modalities_table,
    "sizes": sizes_table,
    "datasets": datasets_table,
    "dataset layouts": dataset_layouts,
    "checks": checks_table,
    "presets": presets_table,
}
"""What fills a comment of this name in a page."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in the tables."""
    for name, make in TABLES.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", make())
    return markdown
