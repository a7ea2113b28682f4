"""Parts of an area run to the end: store, work, formats, and what is to be said."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from anysat.areas.job import Found
from anysat.areas.run import Seconds, Tick, Work, run_here, run_on
from anysat.errors import OutputExistsError
from anysat.geo.area import Area
from anysat.geo.catalog import ModelFacts, RunFacts, write_catalog
from anysat.geo.exports import export, num_steps
from anysat.geo.layout import Layout
from anysat.geo.periods import Period
from anysat.geo.store import AreaStore
from anysat.geo.stored import open_stored
from anysat.geo.writers import staged
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.picture_areas import area_figure, num_shards
from anysat.workflows.area_options import AreaOptions
from anysat.workflows.probe import Scored

_SHOWN = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """The ground of one reference system, and what is made of it."""

    area: Area
    output: Path
    """NAME.zarr, or what is made from one."""
    layouts: Sequence[Layout]
    periods: Sequence[Period]
    made_from: Mapping[str, Any]
    work: Callable[[Path], Work]
    """Makes the work, given a folder for what lies between its steps."""
    model: ModelFacts
    """What is told of the model in a catalog."""

    @property
    def store(self) -> Path:
        """Where the store will be: the output, or beside it until that is made."""
        return self.output if self.output.suffix == ".zarr" else self.output.with_name(f".{self.output.name}.zarr")


def output_of(out: str, area: Area, default: str) -> Path:
    """Where the output of an area lies: the name given, with what tells it from other parts."""
    path = Path(out).absolute()
    return path.with_name((f"{path.stem}-{area.name}" if area.name else path.stem) + (path.suffix or default))


def run_parts(parts: Sequence[Part], options: AreaOptions, said: Sequence[str], *, overwrite: bool) -> Scored:
    """Do all parts, one after the other, and report.

    Raises:
        OutputExistsError: an output is there, and is not to be replaced.
        UnfinishedError: it cannot be written; what is done is kept, and gone on with.
    """
    started, lines = time.perf_counter(), list(said)
    problems: list[str] = []
    if taken := [part.output for part in parts if part.output.exists() and not overwrite]:
        raise OutputExistsError(taken)
    for part in parts:
        written, found, seconds = _run_part(part, options, overwrite)
        lines += [*_told(part, found, seconds), *(f"wrote {path}" for path in written)]
        problems += found.unreadable
    lines += [f"could not be read, nodata in its place: {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN} more")
    lines.append(f"{time.perf_counter() - started:.1f} s")
    return Scored(text="\n".join(lines), exit_status=1 if problems else 0)


def _run_part(part: Part, options: AreaOptions, overwrite: bool) -> tuple[list[Path], Found, Seconds]:
    """What was written, what is to be said of it, and where the time went."""
    store = AreaStore.open(part.store, part.layouts, part.periods, part.made_from, overwrite=overwrite)
    try:
        with progress(f"computing {part.output.stem}") as tick:
            seconds = _run(part.work(store.partial / "between"), store, options, tick)
        found = sum((Found.from_dict(notes) for _, notes in store.notes()), Found())
        summary = {
            "seam_score": found.seams.score, "patches_seen": found.num_patches, "unreadable": list(found.unreadable),
            "last_run_s": {name: round(value, 3) for name, value in asdict(seconds).items()},
        }  # fmt: skip
        store.finish(summary)
    finally:
        store.close()
    is_store = part.store == part.output
    suffixes = options.formats if is_store else [part.output.suffix]
    with progress("writing") as tick:
        exported = _exported(part, suffixes, overwrite, tick)
    written = [*([part.store] if is_store else []), *(path for paths in exported.values() for path in paths)]
    with progress("drawing") as tick:
        written.append(_drawn(part, tick))
    if is_store:
        written.append(write_catalog(part.store, RunFacts.of(part.store, part.model), exports=exported, overwrite=True))
    else:
        shutil.rmtree(part.store)
    return written, found, seconds


def _run(work: Work, store: AreaStore, options: AreaOptions, tick: Tick) -> Seconds:
    if options.scheduler is None:
        return run_here(work, store, tick, readers=options.readers)
    from distributed import Client

    with Client(options.scheduler) as client:  # type: ignore[no-untyped-call]
        return run_on(client, work, store, tick)


def _exported(part: Part, suffixes: Sequence[str], overwrite: bool, tick: Tick) -> dict[str, list[Path]]:
    """The groups of a store in other formats: the first under the output's name, others as NAME_GROUP."""
    groups = list(open_stored(part.store))
    first = part.layouts[0].name
    total, done = len(suffixes) * sum(num_steps(part.store, group) for group in groups), 0

    def advance(_: object) -> None:
        nonlocal done
        done += 1
        tick(done, total)

    written: dict[str, list[Path]] = {}
    for group in groups:
        for suffix in suffixes:
            out = part.output.with_suffix(suffix)
            out = out if group == first else out.with_stem(f"{out.stem}_{group}")
            made = export(part.store, out, group=group, overwrite=overwrite, advance=advance)
            written.setdefault(group, []).extend(made)
    return written


def _drawn(part: Part, tick: Tick) -> Path:
    """A picture of all of it, beside it."""
    total, done = num_shards(part.store), 0

    def advance() -> None:
        nonlocal done
        done += 1
        tick(done, total)

    picture = part.output.with_suffix(".png")
    title = f"{part.output.name}, {part.area.patch_size_m:g} m patches"
    with staged([picture], overwrite=True) as folder:
        area_figure(part.store, title, advance).savefig(folder / picture.name)
    return picture


def _told(part: Part, found: Found, seconds: Seconds) -> list[str]:
    (rows, cols), size = part.area.span.shape, part.area.patch_size_m
    km2, count = rows * cols * size**2 / 1e6, rows * cols * len(part.periods)
    seams = "" if found.seams.score is None else f", seam score {found.seams.score:.3f}"
    speed = f", {km2 * len(part.periods) / seconds.wall:.3g} km2/s" if seconds.wall > 0 else ""
    return [
        f"area: {rows} x {cols} patches of {size:g} m, {km2:.4g} km2, in {part.area.geobox.crs} "
        f"({part.area.crs_reason})",
        f"seen: {found.num_patches} of {count} patches{seams}",
        f"read {seconds.read:.1f} s, encoded {seconds.encode:.1f} s, finished {seconds.finish:.1f} s, wrote "
        f"{seconds.write:.1f} s, all in {seconds.wall:.1f} s{speed}",
    ]


@contextmanager
def progress(what: str) -> Iterator[Tick]:
    """A bar on stderr, only where someone watches, gone when done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def model_facts(name: str, encoder: AnySat, *tasks: str) -> ModelFacts:
    """What a catalog tells of an encoder."""
    statistics = "" if encoder.normaliser is None else encoder.normaliser.source
    return ModelFacts(
        name=name, digest=digest(encoder), num_parameters=sum(p.numel() for p in encoder.parameters()),
        dim=encoder.config.dim, modalities=encoder.config.modalities, statistics=statistics,
        licence=encoder.provenance.get("licence", ""), **({"tasks": tasks} if tasks else {}),
    )  # fmt: skip
