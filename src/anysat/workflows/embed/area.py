"""The run of `anysat embed` for ground larger than a tile."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import anysat
from anysat.areas.job import Job
from anysat.areas.sample import REMOVED, measure_places, nothing_seen, sample_reads, sample_vectors
from anysat.areas.sizes import Load, Sizes, choose_sizes, num_dates
from anysat.areas.tokens import Floats
from anysat.areas.units import UnitFiles
from anysat.areas.windows import SIDE, Windowing
from anysat.batch import Batch
from anysat.errors import InputError, UnknownNameError, WeightsError, WriteError
from anysat.geo.area import Area, plan_areas
from anysat.geo.ground import area_files
from anysat.geo.read.descriptions import describe_sources
from anysat.geo.read.source import Source
from anysat.geo.stores.conventions import embedding_attributes
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.quantise import fit_scale, quantisation
from anysat.geo.stores.store import AreaStore
from anysat.geo.write.outputs import STORE
from anysat.geo.write.writers import check_apart
from anysat.modalities import Modality
from anysat.model.checkpoint import address_of
from anysat.model.digest import digest, made_by
from anysat.model.encoder import AnySat
from anysat.model.growth import num_bytes
from anysat.model.load import load
from anysat.model.modes import in_eval
from anysat.model.precision import find_device, find_precision
from anysat.normalise import Normaliser
from anysat.workflows.answer import Answer
from anysat.workflows.areas.inputs import AreaInputs, open_inputs, records_of
from anysat.workflows.areas.run import Part, check_scheduler, model_facts, output_of, run_parts, tell_first
from anysat.workflows.embed import FIRST, EmbedConfig, UpdateConfig
from anysat.workflows.embed.growing import Earlier, added_dates, growing_of, grown_inputs, keep_about, series_of, sweep
from anysat.workflows.kept import kept_sources
from anysat.workflows.progress import tick_bar

_TRAINED = "trained"
"""Name under which a store records the description of the training files."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """Everything that is known before anything is computed."""

    config: EmbedConfig
    model: AnySat
    inputs: AreaInputs
    jobs: tuple[Job, ...]
    """One job for each part of the area; usually one."""
    sizes: Sizes
    load: Load
    trained: Mapping[str, Any]
    """Description of the files that the weights were trained on, by modality key; see `open_sources`."""
    earlier: Earlier | None = None
    """What an earlier run kept, if dates are added to its store."""

    def part(self, job: Job) -> Part:
        """Return a job with its store.

        Steps of quantisation are measured here, on windows of the area; what places add, when the work starts.
        """
        output, layouts = output_of(self.config.out, job.area, STORE), self.layouts(job, self._scales(job))
        made_from, periods, keep = self._made_from(job), self.inputs.periods, self.config.keep
        fingerprint = AreaStore.fingerprint(layouts, periods, made_from)
        folder = series_of(output) / fingerprint

        def tell() -> None:
            keep_about(folder, self.config, job, periods, self.inputs.ground, self.model.normaliser)

        def at_end() -> None:
            if keep is not None:
                tell()  # again, for options given anew if nothing was computed
            sweep(output, None if keep is None else fingerprint)

        notes: list[str] = []

        def work(between: Path) -> Job:
            nonlocal job
            job, told = levelled(job, self.config)
            notes.extend(told)
            plain = replace(job, kept=UnitFiles(between))
            if keep is None:
                return plain
            tell()
            return replace(plain, growing=growing_of(folder, keep, self.earlier, periods, self.new))

        return Part(
            area=job.area, output=output, layouts=layouts, periods=periods, made_from=made_from, work=work,
            model=model_facts(self.config.weights, self.model, dataset=job.dataset), at_end=at_end,
            grows=self.earlier is not None and not self.earlier.has_unreadable, notes=notes, load=self.load,
        )  # fmt: skip

    @property
    def new(self) -> dict[int, dict[str, Source]]:
        """For each period, the inputs with the dates that are added."""
        return {} if self.earlier is None else self.earlier.new(self.inputs.sources, self.inputs.periods)

    def layouts(self, job: Job, scales: Mapping[str, Floats | None] | None = None) -> list[Layout]:
        """Return the groups of a job's store. Steps of quantisation that are not given are 1."""
        names: dict[str, Modality | None] = {"patch": None}
        if job.dense is not None:
            names["dense"] = job.sources[job.dense].modality
        if scales is None and self.config.store == "int8-scale":
            sides = {name: 1 if one is None else 2 for name, one in names.items()}
            scales = {name: np.ones(self.model.config.dim * side, np.float32) for name, side in sides.items()}
        return [self._layout(job, name, one, (scales or {}).get(name)) for name, one in names.items()]

    def _scales(self, job: Job) -> dict[str, Floats | None]:
        """Return steps of quantisation by group, if they are measured or those of the earlier run."""
        if self.earlier is not None:
            return {name: self.earlier.scale(name) for name in ("patch", *(["dense"] if job.dense else []))}
        if self.config.store == "int8-scale":
            return {name: _rounded(fit_scale(seen)) for name, seen in sample_vectors(job).items()}
        return {}

    def _layout(self, job: Job, name: str, dense: Modality | None, scale: Floats | None) -> Layout:
        tiling = [s for s in job.sources.values() if not s.modality.covers_tile] or list(job.sources.values())
        kind = self.config.store
        pixel_m = job.area.patch_size_m if dense is None else dense.subpatch_m
        gsd_m = min(source.modality.gsd_m for source in tiling) if dense is None else pixel_m
        dim, side = self.model.config.dim * (1 if dense is None else 2), round(job.area.patch_size_m / gsd_m)
        attributes = embedding_attributes(
            kind="chip" if dense is None else "pixel", dim=dim, model=address_of(self.config.weights),
            sources=[source.name for source in job.sources.values()], gsd_m=gsd_m,
            dtype="int8" if kind.startswith("int8") else kind, version=anysat.__version__,
            chip_px=(side, side) if dense is None else None, quantisation=quantisation(kind),
        )  # fmt: skip
        return layout_of(job.area, name, pixel_m, dim=dim, kind=kind, attributes=attributes, scale=scale)

    def _made_from(self, job: Job) -> dict[str, Any]:
        inputs, places = self.inputs.facts(), REMOVED if _needs_levelling(job, self.config) else "kept"
        if self.earlier is not None:
            places = self.earlier.made_from["options"]["places"]  # they were measured then
            inputs = grown_inputs(self.earlier, inputs, self.new)
            if inputs == self.earlier.made_from["inputs"]:
                return dict(self.earlier.made_from)
        return {
            **made_by(self.model),
            "statistics": statistics_facts(self.model.normaliser, job.dataset),
            "inputs": inputs,
            **({_TRAINED: dict(self.trained)} if self.trained else {}),
            "options": {
                "patch_size_m": job.area.patch_size_m, "dense": job.dense, "window": job.windowing.side,
                "overlap": job.windowing.overlap, "places": places, "block": job.block,
                "dataset": job.dataset, "precision": job.precision, "area": self.config.area,
                "ground": self.inputs.ground_digest,
            } | ({} if self.config.keep is None else {"keep": self.config.keep}),
        }  # fmt: skip


def embed_area(config: EmbedConfig, data: Mapping[str, Any] | None = None) -> Answer:
    """Embed an area, see `anysat.workflows.embed.embed`. `data` are cubes in memory instead of the config's inputs."""
    check_scheduler(config)
    prepared = prepare(config, data)
    said = [config.told_as_area(config.out), *_told(prepared)]
    return _run(prepared, said, overwrite=config.overwrite, is_in_memory=data is not None)


def update_area(config: UpdateConfig) -> Answer:
    """Add dates to a store, see `anysat.workflows.embed.update`."""
    prepared = prepare_update(config)
    return _run(prepared, [*_told(prepared), *_added(prepared)], overwrite=True)


def _told(prepared: Prepared) -> list[str]:
    return [*prepared.inputs.told(), f"statistics: {measure_statistics(prepared.jobs, prepared.model)}"]


def _run(prepared: Prepared, said: list[str], *, overwrite: bool, is_in_memory: bool = False) -> Answer:
    """Compute and write. What is said comes first in the report."""
    config, given = prepared.config, area_files(prepared.config.area)
    if not is_in_memory:
        given += [*(source.file for source in describe_sources(config.inputs).values()), *config.weights_file]
        written = [Path(config.out).suffix or STORE, *config.formats, ".png", ".stac"]
        check_apart([Path(config.out).with_suffix(suffix) for suffix in written], given)
    jobs = list(prepared.jobs)
    if config.store == "int8-scale":  # stored steps of quantisation identify the store, so they need levelled jobs
        for number, job in enumerate(jobs):
            jobs[number], told = levelled(job, config)
            said += told
    parts = [prepared.part(job) for job in jobs]
    if config.keep is not None:
        tell_kept(prepared, parts)
    return run_parts(parts, config, said, overwrite=overwrite, inputs=given)


def tell_kept(prepared: Prepared, parts: Sequence[Part]) -> None:
    """Report how much will be kept for adding dates, before anything is.

    Raises:
        WriteError: There is not enough space on the disk.
    """
    for part in parts:
        if part.is_computed():
            continue
        rows, cols = part.area.span.shape
        size, folder = rows * cols * len(part.periods) * prepared.load.kept_bytes, series_of(part.store)
        begun = folder / AreaStore.fingerprint(part.layouts, part.periods, part.made_from)  # by an interrupted session
        size = max(0, size - sum(file.stat().st_size for file in begun.rglob("*") if file.is_file()))
        tell_first(f"keeping up to {size / 1e9:.2g} GB in {folder}, for adding dates later")
        free = shutil.disk_usage(next(path for path in folder.parents if path.exists())).free
        if size > free:
            raise WriteError(folder, f"it needs up to {size / 1e9:.2g} GB, but {free / 1e9:.2g} GB are free")


def _added(prepared: Prepared) -> list[str]:
    """Return lines about what an update adds."""
    lines, new = [], prepared.new
    for key in prepared.inputs.sources:
        days = added_dates(new, key)
        told = f"{len(days)} dates, {days[0]} to {days[-1]}" if days else "nothing"
        lines.append(f"added to {key}: {told}")
    return lines


def levelled(job: Job, config: EmbedConfig) -> tuple[Job, list[str]]:
    """Measure what places add, if it is to be subtracted and there are several windows.

    Returns:
        The job with the place corrections, and a line for the report if they were measured.

    Raises:
        SourceError: Nothing was seen in the sampled windows.
    """
    if job.places is not None or not _needs_levelling(job, config):
        return job, []
    with tick_bar("measuring places"):
        found = measure_places(job)
    line = f"place corrections: measured on {found.num_windows} windows with data"
    if found.num_missing:
        line += f", {found.num_missing} fewer than wanted, because no others were found: they may fit those too closely"
        tell_first(line)
    return replace(job, places=found.corrections), [line]


def _needs_levelling(job: Job, config: EmbedConfig) -> bool:
    """Return whether what places add is to be removed: there are several windows, and inputs that lie in patches."""
    is_one_window = job.windowing.shape(job.area) == job.area.span.shape
    return config.places == "removed" and not is_one_window and job.context.keys() != job.sources.keys()


def prepare(
    config: EmbedConfig, data: Mapping[str, Any] | None = None, weights: str | Path | AnySat | None = None,
    ground: Any = None,
) -> Prepared:  # fmt: skip
    """Load the model, open the inputs, cut the area and choose how much is held in memory at once.

    Args:
        data: Cubes in memory, instead of the config's inputs.
        weights: Weights or a model, instead of the config's.
        ground: The ground (see `read_ground`), if the config has no area.
    """
    model, trained = _model(config, weights or config.weights), kept_sources(weights or config.weights)
    given = data or config.inputs
    records = records_of(model, describe_sources(given), config.sensors)
    inputs = open_inputs(config, given, config.units, records, known_ground=ground, trained=trained)
    return _prepared(config, model, inputs, trained)


def prepare_update(given: UpdateConfig) -> Prepared:
    """Prepare adding dates to a store, on the same ground and with the same model and options.

    Raises:
        WeightsError: The weights differ from those of the store.
    """
    earlier = Earlier.read(Path(given.update).absolute())
    config = earlier.config(given)
    check_scheduler(config)
    model = _model(replace(config, statistics=None), config.weights)
    model.normaliser = earlier.statistics
    if (found := digest(model)) != (wanted := earlier.made_from["weights"]["digest"]):
        raise WeightsError(config.weights, f"not those of the store: digest {found[:12]}…, expected {wanted[:12]}…")
    whole = min(first for first, _ in earlier.periods), max(last for _, last in earlier.periods)
    records = records_of(model, describe_sources(config.inputs), config.sensors)
    trained = earlier.made_from.get(_TRAINED, {})
    inputs = open_inputs(
        config, config.inputs, config.units, records, known=whole, known_ground=earlier.ground, trained=trained
    )
    earlier.check_inputs(inputs.sources, inputs.facts())
    earlier.was(inputs.periods)
    return _prepared(config, model, inputs, trained, earlier)


def _prepared(
    config: EmbedConfig, model: AnySat, inputs: AreaInputs, trained: Mapping[str, Any], earlier: Earlier | None = None
) -> Prepared:
    """Cut the area, or take that of the earlier run, and choose the sizes."""
    dense, windowing = _dense(config, inputs), Windowing(side=config.window or SIDE, overlap=config.overlap)
    load_of = _load(config, model, inputs, dense, earlier)
    sizes = choose_sizes(
        load_of, windowing, model.config, memory_gb=config.memory_gb, readers=config.readers,
        blocks=None if earlier is None else [earlier.block], shard=None if earlier is None else earlier.area.shard,
    )  # fmt: skip
    areas = [earlier.area] if earlier is not None else plan_areas(
        [source.footprint for source in inputs.sources.values()], config.patch_size_m, model.config.subpatch_order,
        shard=sizes.shard, wanted=inputs.ground,
    )  # fmt: skip
    jobs = tuple(
        Job(
            model=model, sources=inputs.sources, area=area, periods=inputs.days, windowing=windowing, block=sizes.block,
            dense=None if dense is None else dense.key, kept=UnitFiles(Path()), dataset=config.dataset,
            precision="float32" if config.keep else find_precision(config.precision, model.device),
            places=None if earlier is None else earlier.places,
        )
        for area in areas
    )  # fmt: skip
    return Prepared(config=config, model=model, inputs=inputs, jobs=jobs, sizes=sizes, load=load_of, trained=trained,
                    earlier=earlier)  # fmt: skip


def _load(
    config: EmbedConfig, model: AnySat, inputs: AreaInputs, dense: Modality | None, earlier: Earlier | None
) -> Load:
    """Return the load of the sources on each patch in the fullest period."""
    loads = [Load.of(inputs.sources, config.patch_size_m, model.config.dim, dense, days) for days in inputs.days]
    fullest = max(range(len(loads)), key=lambda number: loads[number].values)
    if config.keep is None:
        return loads[fullest]
    tokens = 4.0 * model.config.dim * (loads[fullest].modalities + loads[fullest].dense_side ** 2)
    most = 0.0
    for days in inputs.days:
        kept = tokens
        for key, source in inputs.sources.items():
            if source.modality.is_temporal and not source.modality.covers_tile:
                pixels = (config.patch_size_m / source.modality.gsd_m) ** 2
                projector: Any = model.projectors[key]
                dates = np.array([]) if source.dates is None else source.dates
                known = dates if earlier is None else np.union1d(dates, earlier.dates(key))
                kept += pixels * num_bytes(projector, config.keep, num_dates(replace(source, dates=known), days))
        most = max(most, kept)
    return replace(loads[fullest], kept_bytes=most)


def _model(config: EmbedConfig, weights: str | Path | AnySat) -> AnySat:
    if not isinstance(weights, AnySat):
        return load(weights, statistics=config.statistics, device=find_device(config.device))
    if config.statistics is not None:
        raise InputError("statistics", "none with a model, which has its own", config.statistics)
    return in_eval(weights)  # type: ignore[return-value]  # so that `weights` get no statistics


def layout_of(area: Area, name: str, pixel_m: float, **options: Any) -> Layout:
    """Return a layout for an area, with the same shards."""
    shard_px = round(area.shard * area.patch_size_m / pixel_m)
    chunk_px = next(side for side in (32, 16, 8, 4, 2, 1) if shard_px % side == 0)
    return Layout(name=name, geobox=area.pixels(area.span, pixel_m), shard_px=shard_px, chunk_px=chunk_px, **options)


def measure_statistics(jobs: Sequence[Job], model: AnySat) -> str:
    """Return the source of the statistics. If none are given, compute them from windows all over the area."""
    if model.normaliser is not None:
        return model.normaliser.source_of(jobs[0].dataset)
    with tick_bar("measuring statistics"):
        found = [sample_reads(job) for job in jobs]
    tiles = [read.tile for one in found for read in one.reads if read.tile is not None]
    if not tiles:
        problems = [problem for one in found for problem in one.unreadable]
        raise nothing_seen(problems, "give a file of statistics, or check area and dates")
    model.normaliser = Normaliser.from_batch(Batch.of(tiles))
    line = f"computed from {len(tiles)} windows of this area"
    if missing := sum(one.num_missing for one in found):
        line += f", {missing} fewer than wanted, because no others with data were found"
        tell_first(f"statistics {line}: give a file of statistics instead")
    return f"{line}; embeddings cannot be compared with those of other runs"


def statistics_facts(normaliser: Normaliser | None, dataset: str | None = None) -> dict[str, str] | None:
    """Return what identifies statistics."""
    if normaliser is None:
        return None
    content = repr(normaliser.to_dict()["statistics"])
    return {"source": normaliser.source_of(dataset), "digest": hashlib.sha256(content.encode()).hexdigest()[:16]}


def _dense(config: EmbedConfig, inputs: AreaInputs) -> Modality | None:
    """Return the modality of dense embeddings. For an area they are made only if it is given by key."""
    if config.dense in (None, FIRST):
        return None
    having = {key: source.modality for key, source in inputs.sources.items() if not source.modality.covers_tile}
    if config.dense not in having:
        raise UnknownNameError("dense modality", str(config.dense), having, "It must be an input that lies in patches")
    return having[config.dense]


def _rounded(steps: np.ndarray) -> np.ndarray:
    """Round to three digits, so that measuring again gives the same."""
    return np.array([float(f"{step:.2e}") for step in steps], np.float32)
