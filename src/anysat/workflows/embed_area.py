"""The work of `anysat embed` where the ground is larger than a tile."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import anysat
from anysat.areas.job import Job
from anysat.areas.sample import NOTHING_SEEN, measure_places, sample_tiles, sample_vectors
from anysat.areas.sizes import Load, Sizes, choose_sizes
from anysat.areas.tokens import Floats
from anysat.areas.units import UnitFiles
from anysat.areas.windows import Windowing
from anysat.batch import Batch
from anysat.errors import InputError, SourceError, UnknownNameError
from anysat.geo.area import Area, plan_areas
from anysat.geo.conventions import embedding_attributes
from anysat.geo.descriptions import describe_sources
from anysat.geo.layout import Kind, Layout
from anysat.geo.quantise import fit_scale, quantisation
from anysat.geo.writers import check_apart
from anysat.modalities import Modality, read_modalities
from anysat.model.checkpoint import load
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.model.precision import find_precision
from anysat.normalise import Normaliser
from anysat.workflows.area_inputs import AreaInputs, open_inputs
from anysat.workflows.area_run import Part, model_facts, output_of, run_parts
from anysat.workflows.embed import AREA_SUFFIXES, FIRST, SUFFIXES, EmbedConfig
from anysat.workflows.embed_tile import check_device
from anysat.workflows.probe import Scored


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """Everything that is known before anything is computed."""

    config: EmbedConfig
    model: AnySat
    inputs: AreaInputs
    jobs: tuple[Job, ...]
    """One for each part of the area; most often one."""
    sizes: Sizes
    load: Load

    def part(self, job: Job) -> Part:
        """A job with its store; steps of quantisation are measured on windows of the area."""
        return Part(
            area=job.area, output=output_of(self.config.out, job.area, SUFFIXES[0]), layouts=self._layouts(job),
            periods=self.inputs.periods, made_from=self._made_from(job),
            work=lambda folder: replace(job, kept=UnitFiles(folder)),
            model=model_facts(self.config.weights, self.model),
        )  # fmt: skip

    def _layouts(self, job: Job) -> list[Layout]:
        dense = {} if job.dense is None else {"dense": job.sources[job.dense].modality}
        seen = sample_vectors(job) if self.config.store == "int8-scale" else {}
        return [self._layout(job, name, one, seen.get(name)) for name, one in {"patch": None, **dense}.items()]

    def _layout(self, job: Job, name: str, dense: Modality | None, seen: Floats | None) -> Layout:
        tiling = [s for s in job.sources.values() if not s.modality.covers_tile] or list(job.sources.values())
        kind: Kind = self.config.store  # type: ignore[assignment]
        pixel_m = job.area.patch_size_m if dense is None else dense.subpatch_m
        gsd_m = min(source.modality.gsd_m for source in tiling) if dense is None else pixel_m
        dim, side = self.model.config.dim * (1 if dense is None else 2), round(job.area.patch_size_m / gsd_m)
        attributes = embedding_attributes(
            kind="chip" if dense is None else "pixel", dim=dim, model=self.config.weights,
            sources=[source.name for source in job.sources.values()], gsd_m=gsd_m,
            dtype="int8" if kind.startswith("int8") else kind, version=anysat.__version__,
            chip_px=(side, side) if dense is None else None, quantisation=quantisation(kind),
        )  # fmt: skip
        scale = None if seen is None else _rounded(fit_scale(seen))
        return layout_of(job.area, name, pixel_m, dim=dim, kind=kind, attributes=attributes, scale=scale)

    def _made_from(self, job: Job) -> dict[str, Any]:
        return {
            "version": anysat.__version__,
            "weights": dict(self.model.provenance) | {"digest": digest(self.model)},
            "statistics": statistics_facts(self.model.normaliser),
            "inputs": self.inputs.facts(),
            "options": {
                "patch_size_m": job.area.patch_size_m, "dense": job.dense, "window": job.windowing.side,
                "overlap": job.windowing.overlap, "places": self.config.places, "block": job.block,
                "dataset": job.dataset, "precision": job.precision, "area": self.config.area,
                "ground": self.inputs.ground_digest,
            },
        }  # fmt: skip


def embed_area(config: EmbedConfig, data: Mapping[str, Any] | None = None) -> Scored:
    """See `anysat.workflows.embed.embed`; `data` are cubes in memory, in place of the config's inputs."""
    if data is None:
        given = [source.file for source in describe_sources(config.inputs).values()]
        check_apart([Path(config.out).with_suffix(s) for s in ("", *AREA_SUFFIXES)], [*given, config.weights])
    prepared = prepare(config, data)
    said = [*prepared.inputs.told(), f"statistics: {measure_statistics(prepared.jobs, prepared.model)}"]
    parts = [prepared.part(levelled(job, config)) for job in prepared.jobs]
    return run_parts(parts, config, said, overwrite=config.overwrite)


def levelled(job: Job, config: EmbedConfig) -> Job:
    """The job with what places add measured, where that is to be taken away and there are several windows."""
    if config.places == "kept" or job.windowing.shape(job.area) == job.area.span.shape:
        return job
    return replace(job, places=measure_places(job))


def prepare(
    config: EmbedConfig, data: Mapping[str, Any] | None = None, weights: str | Path | AnySat | None = None
) -> Prepared:
    """Load the model, open the inputs, cut the area and choose what is held at once.

    Args:
        config: what is asked for.
        data: cubes in memory, in place of the config's inputs.
        weights: others than the config's, or a model.
    """
    model = _model(config, weights or config.weights)
    inputs = open_inputs(config, data or config.inputs, config.units, _records(config, model))
    dense, windowing = _dense(config, inputs), Windowing(side=config.window, overlap=config.overlap)
    loads = [Load.of(inputs.sources, config.patch_size_m, model.config.dim, dense, days) for days in inputs.days]
    load_of = max(loads, key=lambda one: one.values)
    sizes = choose_sizes(load_of, windowing, model.config, memory_gb=config.memory_gb, readers=config.readers)
    areas = plan_areas(
        [source.footprint for source in inputs.sources.values()], config.patch_size_m, model.config.subpatch_order,
        shard=sizes.shard, wanted=inputs.ground,
    )  # fmt: skip
    jobs = tuple(_job(config, model, inputs, area, windowing, dense, sizes) for area in areas)
    return Prepared(config=config, model=model, inputs=inputs, jobs=jobs, sizes=sizes, load=load_of)


def _model(config: EmbedConfig, weights: str | Path | AnySat) -> AnySat:
    if not isinstance(weights, AnySat):
        check_device(config.device)
        return load(weights, statistics=config.statistics, device=config.device)
    if config.statistics is not None:
        raise InputError("statistics", "none beside a model, which has its own", config.statistics)
    return copy(weights).eval()  # so that statistics measured here stay here


def _job(
    config: EmbedConfig, model: AnySat, inputs: AreaInputs, area: Area, windowing: Windowing, dense: Modality | None,
    sizes: Sizes,
) -> Job:  # fmt: skip
    return Job(
        model=model, sources=inputs.sources, area=area, periods=inputs.days, windowing=windowing, block=sizes.block,
        dense=None if dense is None else dense.key, kept=UnitFiles(Path()), dataset=config.dataset,
        precision=find_precision(config.precision, model.device),
    )  # fmt: skip


def layout_of(area: Area, name: str, pixel_m: float, **options: Any) -> Layout:
    """A layout over an area whose shards are the area's."""
    shard_px = round(area.shard * area.patch_size_m / pixel_m)
    chunk_px = next(side for side in (32, 16, 8, 4, 2, 1) if shard_px % side == 0)
    return Layout(
        name=name, geobox=area.pixels(area.span, pixel_m), shard_px=shard_px, chunk_px=chunk_px, **options
    )  # fmt: skip


def measure_statistics(jobs: Sequence[Job], model: AnySat) -> str:
    """What values are standardised with; measured on windows from all over the area where nothing is given."""
    if model.normaliser is not None:
        return model.normaliser.source
    tiles = [tile for job in jobs for tile in sample_tiles(job)]
    if not tiles:
        raise SourceError("the area", NOTHING_SEEN,
                          "give statistics= a file, or check area and dates")  # fmt: skip
    model.normaliser = Normaliser.from_batch(Batch.of(tiles))
    return f"computed from {len(tiles)} windows of this area: its embeddings do not compare with those of other runs"


def statistics_facts(normaliser: Normaliser | None) -> dict[str, str] | None:
    """What tells statistics from others."""
    if normaliser is None:
        return None
    content = repr(normaliser.to_dict()["statistics"])
    return {"source": normaliser.source, "digest": hashlib.sha256(content.encode()).hexdigest()[:16]}


def _records(config: EmbedConfig, model: AnySat) -> dict[str, Modality]:
    """The model's modalities, or the user's own records of them, which must be the same to it."""
    records = {modality.key: modality for modality in model.config.modalities}
    for own in read_modalities(config.modalities) if config.modalities else ():
        model.config.modality(own.key).check_same(own)
        records[own.key] = own
    return records


def _dense(config: EmbedConfig, inputs: AreaInputs) -> Modality | None:
    """Of an area, dense embeddings are made where they are asked for by name."""
    if config.dense in (None, FIRST):
        return None
    having = {key: source.modality for key, source in inputs.sources.items() if not source.modality.covers_tile}
    if config.dense not in having:
        raise UnknownNameError("dense modality", str(config.dense), having, "It must be an input that lies in patches")
    return having[config.dense]


def _rounded(steps: np.ndarray) -> np.ndarray:
    """To three digits, so that they are the same when they are measured again."""
    return np.array([float(f"{step:.2e}") for step in steps], np.float32)
