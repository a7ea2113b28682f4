"""Running the parts of an area: computing stores, exporting them, drawing pictures, and reporting."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from anysat.areas.job import Found
from anysat.areas.meter import Meter
from anysat.areas.run import Tick, Timing, Work, run_here, run_on
from anysat.areas.sizes import Load
from anysat.errors import OutputExistsError, RecordError, SourceError, UnreadableError
from anysat.geo.area import Area
from anysat.geo.periods import Period
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.store import AreaStore, partial_of
from anysat.geo.stores.stored import find_group, open_stored, provenance_of
from anysat.geo.write.catalog import ModelFacts, RunFacts, catalog_of, recorded_files, write_catalog
from anysat.geo.write.exports import Content, export, find_export, num_steps
from anysat.geo.write.outputs import STORE
from anysat.geo.write.writers import check_apart, staged
from anysat.geo.zones import system_name
from anysat.model.checkpoint import address_of
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.picture_areas import area_figure, num_shards
from anysat.pictures import picture_of, save_picture
from anysat.workflows.answer import Answer
from anysat.workflows.areas.disk import DiskSpace, told_short
from anysat.workflows.areas.options import AreaOptions
from anysat.workflows.progress import counted, tick_bar

_SHOWN = 5
_BY_EARLIER = "computed by an earlier run"


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """The ground in one reference system, and what is made of it."""

    area: Area
    output: Path
    """NAME.zarr, or a file in another format."""
    layouts: Sequence[Layout]
    periods: Sequence[Period]
    made_from: Mapping[str, Any]
    work: Callable[[Path], Work]
    """Creates the work, given a folder for intermediate results."""
    model: ModelFacts
    """What catalogs say about the model."""
    grows: bool = False
    """Whether it replaces a store by one with added dates."""
    load: Load | None = None
    """The amount of data per patch, for the size of tokens on disk; None if there are none."""
    notes: Sequence[str] = ()
    """Lines for the report. `work` may add some."""
    at_end: Callable[[], None] = lambda: None
    """Called when the store is finished."""

    @property
    def is_store(self) -> bool:
        """Whether the output is the store itself."""
        return self.output.suffix == STORE

    @property
    def store(self) -> Path:
        """Path of the store: the output, or a temporary path beside an output in another format."""
        return self.output if self.is_store else self.output.with_name(f".{self.output.name}{STORE}")

    @property
    def picture(self) -> Path:
        """Path of the picture of the whole part."""
        return picture_of(self.output)

    def suffixes(self, options: AreaOptions) -> list[str]:
        """Return the suffixes of the formats that the store is exported to."""
        return options.formats if self.is_store else [self.output.suffix]

    def formats(self, options: AreaOptions) -> dict[tuple[str, str], Path]:
        """Return files exported from the store, by group and suffix.

        Those of other groups than the first have its name added.
        """
        found = {}
        for layout in self.layouts:
            for suffix in self.suffixes(options):
                out = self.output.with_suffix(suffix)
                out = out if layout is self.layouts[0] else out.with_stem(f"{out.stem}_{layout.name}")
                if find_export(suffix).files(Content.planned(layout, self.periods), out):
                    found[layout.name, suffix] = out
        return found

    def finals(self, options: AreaOptions) -> list[Path]:
        """Return all paths that remain at the end."""
        layouts = {layout.name: layout for layout in self.layouts}
        found = [self.store, catalog_of(self.store)] if self.is_store else []
        for (name, suffix), out in self.formats(options).items():
            found += find_export(suffix).files(Content.planned(layouts[name], self.periods), out)
        return [*found, self.picture]

    def is_computed(self) -> bool:
        """Whether the store is finished, even if the run that did it stopped later."""
        return AreaStore.is_made(self.store, self.layouts, self.periods, self.made_from)

    def is_complete(self, options: AreaOptions) -> bool:
        """Whether everything has been made."""
        last = [catalog_of(self.store) / "catalog.json", *self.finals(options)]
        return self.is_store and self.is_computed() and all(path.exists() for path in last)


def output_of(out: str, area: Area, default: str) -> Path:
    """Return the output path of a part of an area: the given name, with the part's name added."""
    path = Path(out).absolute()
    return path.with_name((f"{path.stem}-{area.name}" if area.name else path.stem) + (path.suffix or default))


def run_parts(
    parts: Sequence[Part], options: AreaOptions, said: Sequence[str], *, overwrite: bool, inputs: Sequence[str] = ()
) -> Answer:
    """Run all parts one after the other, and report.

    Args:
        said: Lines to report first.
        inputs: Files and folders that must not be written to.

    Raises:
        RecordError: An output would be written to an input.
        OutputExistsError: An output exists, and `overwrite` is False.
        UnreadableError: Inputs cannot be read, and nothing was seen. Nothing is left behind of that part.
        UnfinishedError: Something cannot be written. What is done is kept, and the same command continues it.
    """
    started, lines = time.perf_counter(), list(said)
    problems: list[str] = []
    check_apart([path for part in parts for path in part.finals(options)], inputs)
    if not overwrite:
        _check_free(parts, options)
    for part in parts:
        if not part.is_computed() and not partial_of(part.store).exists():
            space = DiskSpace.of(part.area, part.layouts, len(part.periods), part.suffixes(options), part.load)
            if short := told_short(part.area, space, part.output):
                tell_first(short)
    for part in parts:
        told, found = _run_part(part, options, overwrite)
        lines += told
        problems += found.unreadable
    for part in parts:
        if not part.is_store:
            shutil.rmtree(part.store)
    lines += [f"could not be read, left as nodata: {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"and {len(problems) - _SHOWN} more")
    lines.append(f"{time.perf_counter() - started:.1f} s")
    return Answer("\n".join(lines), exit_status=1 if problems else 0)


def _check_free(parts: Sequence[Part], options: AreaOptions) -> None:
    """Check that nothing exists except what an unfinished run with the same options wrote.

    Raises:
        OutputExistsError: An output exists. The message names it.
        StoreMismatchError: The store is of a run with other options, which stopped before its output was written.
    """
    if all(part.is_complete(options) for part in parts):
        raise OutputExistsError([part.output for part in parts])
    for part in parts:
        if not part.is_computed() and (taken := [path for path in part.finals(options) if path.exists()]):
            raise OutputExistsError(taken)
        if not part.is_store and not partial_of(part.store).exists():
            AreaStore.check_same(part.store, part.layouts, part.periods, part.made_from)


def _run_part(part: Part, options: AreaOptions, overwrite: bool) -> tuple[list[str], Found]:
    """Run a part, and return lines for the report and the findings."""
    if part.grows and part.is_complete(options):
        found, speed = _computed(part, options, overwrite, [])
        left = f"nothing new: {part.output} and the files made from it are unchanged"
        return [*_told(part, found, speed), left], found
    older = _older(part, options) if overwrite else []
    found, speed = _computed(part, options, overwrite, older)
    with tick_bar("writing") as tick:
        exported = _exported(part, options, overwrite, tick)
    written = [*([part.store] if part.is_store else []), *(path for paths in exported.values() for path in paths)]
    with tick_bar("drawing") as tick:
        written.append(_drawn(part, tick))
    if part.is_store:
        written.append(write_catalog(part.store, RunFacts.of(part.store, part.model), exports=exported, overwrite=True))
    gone = [f"removed {path}, made from the store as it was before" for path in older if not path.exists()]
    return [*_told(part, found, speed), *(f"wrote {path}" for path in written), *gone], found


def _older(part: Part, options: AreaOptions) -> list[Path]:
    """Return existing paths that would not match the new store."""
    if not part.is_store:
        found = part.finals(options)
    elif part.store.exists():
        found = [*recorded_files(part.store), *_files(part, options), part.picture, catalog_of(part.store)]
    else:
        found = []
    return [path for path in dict.fromkeys(found) if path.exists()]


def _computed(
    part: Part, options: AreaOptions, overwrite: bool, older: Sequence[Path]
) -> tuple[Found, list[str]]:  # fmt: skip
    """Finish the store unless an earlier run did, and return findings and lines about the speed.

    Seconds and energy are recorded only if all of the work was done in this session. Files made from an older store are
    removed first, so that an interrupted run never leaves a mixture of both.
    """
    if part.is_computed() and (part.grows or not (overwrite and part.is_store)):
        shutil.rmtree(partial_of(part.store), ignore_errors=True)  # of a run that stopped at the very end
        part.at_end()
        told = provenance_of(part.store)["summary"]
        return Found(unreadable=tuple(told["unreadable"]), num_patches=told["patches_seen"]), [_BY_EARLIER]
    store = AreaStore.open(part.store, part.layouts, part.periods, part.made_from, overwrite=overwrite)
    waiting = store.unwritten()
    if store.begun_anew:
        tell_first(store.begun_anew)
    try:
        try:
            work = part.work(store.partial / "between")
        except UnreadableError:
            if waiting.all():
                store.discard()
            raise
        with tick_bar(f"computing {part.output.stem}") as tick:
            timing, joules = _run(work, store, options, tick)
        found = sum((Found.from_dict(notes) for _, notes in store.notes()), Found())
        if found.unreadable and not found.num_patches:
            store.discard()  # else its units would count as done and not be read again
            raise UnreadableError(part.output, found.unreadable)
        summary: dict[str, Any] = {
            "seam_score": found.seams.score, "patches_seen": found.num_patches, "unreadable": list(found.unreadable),
        }  # fmt: skip
        if store.is_continued:
            done, total = waiting.size - int(waiting.sum()), waiting.size
            speed = [f"continued: {done} of {total} shards were there; the others took {timing.wall:.1f} s"]
        else:
            speed = _throughput(timing, timing.num_patches * part.area.patch_size_m**2 / 1e6)
            run = {name: round(value, 3) for name, value in asdict(timing).items()}
            summary["last_run"] = run | {"joules": joules}
        for path in older:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        store.finish(summary)
        part.at_end()
    finally:
        store.close()
    return found, speed


def _run(work: Work, store: AreaStore, options: AreaOptions, tick: Tick) -> tuple[Timing, float | None]:
    """Run the work, and return timing and the energy used in joules.

    The energy is None unless this machine's CPUs did all the work and can be metered.
    """
    if options.scheduler is None:
        meter = Meter.find() if work.model.device.type == "cpu" else None

        def metered(done: int, total: int) -> None:
            if meter is not None:
                meter.read()
            tick(done, total)

        timing = run_here(work, store, metered, readers=options.readers)
        return timing, None if meter is None else meter.read()
    with _client(options.scheduler) as client:
        return run_on(client, work, store, tick), None


def check_scheduler(options: AreaOptions) -> None:
    """Check that the Dask scheduler answers, if there is one, before anything is measured or written.

    Raises:
        RecordError: It does not answer.
    """
    if options.scheduler is not None:
        _client(options.scheduler, set_as_default=False).close()


def _client(address: str, *, set_as_default: bool = True) -> Any:
    from distributed import Client

    try:
        return Client(address, set_as_default=set_as_default)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise RecordError("--scheduler", address, f"a Dask scheduler that answers ({error})") from error


def _exported(part: Part, options: AreaOptions, overwrite: bool, tick: Tick) -> dict[str, list[Path]]:
    """Export the groups of a store to other formats, and return all files by group. Existing ones are kept."""
    wanted = part.formats(options)
    advance = counted(tick, sum(num_steps(part.store, group) for group, _ in wanted))
    written: dict[str, list[Path]] = {}
    for (group, suffix), out in wanted.items():
        files = find_export(suffix).files(Content.of(find_group(part.store, group)), out)
        if overwrite or not all(file.exists() for file in files):
            export(part.store, out, group=group, overwrite=overwrite, advance=advance)
        written.setdefault(group, []).extend(files)
    return written


def _files(part: Part, options: AreaOptions) -> list[Path]:
    """Return what was exported from the existing store."""
    try:
        groups = open_stored(part.store)
    except SourceError:  # not a store
        return []
    wanted = [(suffix, groups[name], out) for (name, suffix), out in part.formats(options).items() if name in groups]
    return [file for suffix, group, out in wanted for file in find_export(suffix).files(Content.of(group), out)]


def _drawn(part: Part, tick: Tick) -> Path:
    """Draw a picture of the whole part, and return its path."""
    advance = counted(tick, num_shards(part.store))
    title = f"{part.output.name}, {part.area.patch_size_m:g} m patches"
    picture = part.picture
    with staged([picture], overwrite=True) as folder:
        save_picture(area_figure(part.store, title, lambda: advance(1)), folder / picture.name, part.output.name)
    return picture


def area_line(area: Area) -> str:
    """Describe an area in a line: its patches, size and reference system."""
    (rows, cols), size = area.span.shape, area.patch_size_m
    return (
        f"area: {rows} x {cols} patches of {size:g} m, {rows * cols * size**2 / 1e6:.4g} km2, in "
        f"{system_name(area.geobox.crs)} ({area.crs_reason}); patches at its edge may be partly outside the inputs"
    )


def _told(part: Part, found: Found, speed: Sequence[str]) -> list[str]:
    rows, cols = part.area.span.shape
    count = rows * cols * len(part.periods)
    seams = "" if found.seams.score is None else f", seam score {found.seams.score:.3f}"
    return [
        area_line(part.area),
        f"seen: {found.num_patches} of {count} patches{seams}",
        *part.notes,
        *speed,
    ]


def _throughput(timing: Timing, km2: float) -> list[str]:
    """Describe the speed of each step, of all together, and how near that is to the slowest step's."""

    def rates(seconds: float) -> str:
        return f"{km2 / seconds:.3g} km2/s" + (f" ({timing.num_blocks / seconds:.3g} blocks/s)" if timing.cpu else "")

    together = f"all in {timing.wall:.1f} s: {rates(timing.wall)}"
    if not timing.cpu:
        return [together]
    parts = {"read": timing.read / timing.readers, "encoded": timing.encode, "fused or blended": timing.finish,
             "wrote": timing.write}  # fmt: skip
    told = [f"{name} in {seconds:.1f} s: {rates(seconds)}" for name, seconds in parts.items() if seconds]
    return [*told, f"{together}, {timing.bound / timing.wall:.0%} of the rate of the slowest part"]


def tell_first(line: str) -> None:
    """Print a line on stderr before long work."""
    Console(stderr=True, soft_wrap=True, markup=False, emoji=False).print(line, highlight=False)


def model_facts(name: str, encoder: AnySat, *tasks: str, dataset: str | None = None) -> ModelFacts:
    """Return what catalogs say about an encoder."""
    statistics = "" if encoder.normaliser is None else encoder.normaliser.source_of(dataset)
    return ModelFacts(
        name=name, digest=digest(encoder), num_parameters=sum(p.numel() for p in encoder.parameters()),
        dim=encoder.config.dim, modalities=encoder.config.modalities, statistics=statistics,
        licence=encoder.provenance.get("licence", ""), address=address_of(name), **({"tasks": tasks} if tasks else {}),
    )  # fmt: skip
