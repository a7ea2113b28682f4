"""The steps of the demo: choice of weights, embedding, colours, neighbours, and the content of its page."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

import anysat
from anysat.batch import Batch
from anysat.data.work import Advance
from anysat.geo.degrees import place_deg
from anysat.model.checkpoint import PUBLISHED_REPO
from anysat.model.encoder import AnySat
from anysat.model.load import load
from anysat.observation import Observation
from anysat.patches import PatchGrid
from anysat.pictures import fit_pca, pca_rgb, quicklook
from anysat.workflows.demo.data import Pair
from anysat.workflows.demo.page import Match, PairView, QueryView, Report
from anysat.workflows.progress import progress_bar

DENSE = "s2"
"""Modality with dense embeddings."""
NANO = "nano"
STORY = (
    f"Weights: {NANO}, the small model that ships, trained on a generated world and on five of these pairs. "
    f"To use others, such as the published {PUBLISHED_REPO}, give --weights, or WEIGHTS= to make."
)
LARGE_PARAMETERS, LARGE_CROP_M = 50_000_000, 600.0
"""Without a GPU, models with more parameters get only the middle of each pair, so that the demo takes under 3
minutes."""
NUM_NEIGHBOURS = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class SizeResult:
    """Embeddings of all pairs at one patch size."""

    patch_size_m: float
    tile: NDArray[np.float32]
    """(pair dim)"""
    patch: NDArray[np.float32]
    """(pair patch_row patch_col dim)"""
    dense: NDArray[np.float32] | None
    """(pair row col 2*dim)"""
    seconds: float

    @property
    def num_patches(self) -> int:
        """Number of patches of all pairs together."""
        return math.prod(self.patch.shape[:3])

    @property
    def speed(self) -> str:
        """Time, patches and patches per second, in words."""
        rate = self.num_patches / max(self.seconds, 1e-9)
        return f"{self.seconds:.1f} s for {self.num_patches} patches, {rate:,.0f} patches/s"


@dataclass(frozen=True, eq=False, kw_only=True)
class ChosenModel:
    """An encoder, and where its weights come from."""

    model: AnySat
    story: str
    """Description for readers."""
    untrained: bool


def choose_model(weights: str | None) -> ChosenModel:
    """Return the encoder to show: the given weights, or the small model that ships."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if weights is not None:
        model = load(weights, device=device)
        if model.provenance.get("weights") != "untrained":
            return ChosenModel(model=model, story=f"Weights: {weights}.", untrained=False)
        story = f"UNTRAINED MODEL: {weights} holds weights that were never trained."
        return ChosenModel(model=model, story=story, untrained=True)
    return ChosenModel(model=load(NANO, device=device), story=STORY, untrained=False)


def affordable_m(model: AnySat) -> float | None:
    """Return the side of the ground in metres that keeps the demo short, or None for all of it."""
    large = sum(parameter.numel() for parameter in model.parameters()) > LARGE_PARAMETERS
    return LARGE_CROP_M if large and model.device.type == "cpu" else None


def embed_pairs(model: AnySat, pairs: Sequence[Pair], patch_sizes_m: Sequence[float]) -> list[SizeResult]:
    """Embed every pair at every patch size, with dense embeddings at the first. Progress goes to stderr."""
    shapes = {observation.modality: observation.shape_px for observation in pairs[0].tile.observations.values()}
    for size in patch_sizes_m:
        PatchGrid.fit(shapes, size, model.config.subpatch_order)  # raises if a size does not fit
    results = []
    for index, size in enumerate(patch_sizes_m):
        with progress_bar(f"patches of {size:g} m", len(pairs)) as advance:
            results.append(_embed_at(model, pairs, size, DENSE if index == 0 else None, advance))
    return results


def _embed_at(model: AnySat, pairs: Sequence[Pair], size: float, dense: str | None, advance: Advance) -> SizeResult:
    started = time.perf_counter()
    found = []
    for pair in pairs:
        with torch.inference_mode():
            found.append(model.encode(Batch.of([pair.tile]), size, dense=dense))
        advance(1)

    def stacked(parts: list[torch.Tensor]) -> NDArray[np.float32]:
        return torch.cat(parts).float().cpu().numpy()

    dense_parts = [made.dense for made in found if made.dense is not None]
    return SizeResult(
        patch_size_m=size,
        tile=stacked([made.tile for made in found]),
        patch=stacked([made.patch for made in found]),
        dense=stacked(dense_parts) if dense_parts else None,
        seconds=time.perf_counter() - started,
    )


def cosine(rows: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine similarity of every row vector with every column vector; NaN vectors give NaN."""
    left, right = (v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12) for v in (rows, columns))
    return left @ right.T


def apart(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Subtract from vectors (pair row col dim) the mean of their pair and the mean of their position.

    The mean of a pair reflects its dates, that of a position the position code. Without training, both outweigh what is
    on the ground.
    """
    of_pair = vectors.mean((1, 2), keepdims=True)
    of_position = vectors.mean(0, keepdims=True)
    return vectors - of_pair - of_position + of_pair.mean(0, keepdims=True)


def _pair_views(pairs: Sequence[Pair], results: Sequence[SizeResult]) -> list[PairView]:
    maps: list[tuple[str, list[NDArray[np.uint8]]]] = []
    dense = results[0].dense
    if dense is not None:
        maps += maps_of("dense, 10 m", [dense])
    maps += maps_of("patches", [r.patch for r in results], [f", {r.patch_size_m:g} m" for r in results])
    views = []
    for index, pair in enumerate(pairs):
        inputs = [
            (f"{observation.modality.sensor}, {_dates(observation)}", quicklook(observation))
            for observation in pair.tile.observations.values()
        ]
        pictures = [*inputs, *((caption, images[index]) for caption, images in maps)]
        views.append(PairView(letter=_letter(index), name=pair.tile.id, place=_place(pair), labels=pair.labels,
                              pictures=pictures))  # fmt: skip
    return views


def maps_of(
    name: str, stacks: Sequence[NDArray[np.float32]], suffixes: Sequence[str] = ("",)
) -> list[tuple[str, list[NDArray[np.uint8]]]]:
    """Return, for each stack (pair row col dim), captions and pictures of the original and the centred vectors.

    There is one picture per pair, and one PCA basis for all originals and one for all centred maps. If a pair has only
    one place, there are no centred maps.
    """
    others = [apart(stack) if stack[0, ..., 0].size > 1 else None for stack in stacks]
    whole, differing = (
        fit_pca(tiles) if (tiles := [tile for stack in kind if stack is not None for tile in stack]) else None
        for kind in (stacks, others)
    )
    made = []
    for stack, other, suffix in zip(stacks, others, suffixes, strict=True):
        assert whole is not None, stacks
        made.append((f"{name}{suffix}: original", [pca_rgb(tile, whole) for tile in stack]))
        if other is not None and differing is not None:
            made.append((f"{name}{suffix}: centred", [pca_rgb(tile, differing) for tile in other]))
    return made


def size_for_queries(results: Sequence[SizeResult]) -> SizeResult | None:
    """Return the largest patches of which a pair has several, or None if each pair is one patch."""
    return next((result for result in reversed(results) if result.num_patches > len(result.patch)), None)


def _query_views(pairs: Sequence[Pair], result: SizeResult) -> list[QueryView]:
    """Return the middle patch of each pair and its nearest patches in the other pairs."""
    num_pairs, rows, cols, dim = result.patch.shape
    centred = apart(result.patch).reshape(-1, dim)
    images = [quicklook(pair.tile.observations[DENSE]) for pair in pairs]

    def match(place: int, similarity: float | None) -> Match:
        pair, row, col = (int(i) for i in np.unravel_index(place, (num_pairs, rows, cols)))
        where = f"{_letter(pair)}, row {row + 1}, column {col + 1}"
        side_px = images[pair].shape[0] // rows
        return Match(where=where, image=_crop(images[pair], row, col, side_px), similarity=similarity)

    views = []
    for pair in range(num_pairs):
        query = int(np.ravel_multi_index((pair, rows // 2, cols // 2), (num_pairs, rows, cols)))
        similarity = cosine(centred[query][None], centred)[0]
        own = np.arange(len(centred)) // (rows * cols) == pair
        order = np.argsort(-np.where(own | np.isnan(similarity), -np.inf, similarity), kind="stable")
        nearest = [match(int(place), float(similarity[place])) for place in order[:NUM_NEIGHBOURS]]
        views.append(QueryView(query=match(query, None), nearest=nearest))
    return views


def _crop(image: NDArray[np.uint8], row: int, col: int, side_px: int) -> NDArray[np.uint8]:
    """Return a patch with half a patch of its surroundings on each side, white beyond the tile."""
    margin = side_px // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)
    top, left = row * side_px, col * side_px
    return padded[top : top + side_px + 2 * margin, left : left + side_px + 2 * margin]


def make_report(
    chosen: ChosenModel,
    pairs: Sequence[Pair],
    results: Sequence[SizeResult],
    timings: Sequence[tuple[str, str]],
    command: str,
) -> Report:
    """Return the content of the page. `timings` are those of the steps before the embedding."""
    started = time.perf_counter()
    views, asked = _pair_views(pairs, results), size_for_queries(results)
    queries = [] if asked is None else _query_views(pairs, asked)
    return Report(
        untrained=chosen.untrained,
        story=chosen.story,
        patch_sizes_m=[result.patch_size_m for result in results],
        pairs=views,
        similarity=cosine(results[0].tile, results[0].tile),
        queries=queries,
        query_size_m=None if asked is None else asked.patch_size_m,
        facts=_facts(chosen, pairs),
        timings=[
            *timings,
            *((f"embedded at {r.patch_size_m:g} m", r.speed) for r in results),
            ("colours and neighbours", f"{time.perf_counter() - started:.1f} s"),
        ],
        command=command,
    )


def _facts(chosen: ChosenModel, pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    model, story = chosen.model, chosen.story
    rows, cols = pairs[0].tile.observations[DENSE].shape_px
    shape = model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return [
        ("model", f"AnySat, {num_parameters / 1e6:.1f} M parameters: dim {shape.dim}, depth {shape.depth}, "
                  f"{shape.num_heads} heads, one projector for each of {len(shape.modalities)} modalities"),
        ("weights", story),
        ("ground", f"{len(pairs)} pairs of {rows * 10} m x {cols * 10} m"
                   + (" (the middle of 1200 m)" if rows * 10 < 1200 else "")),
        ("standardised with", f"mean and deviation of each band over these {len(pairs)} pairs together"),
        ("ran on", f"{model.device.type}, {torch.get_num_threads()} threads, {platform.machine()}, float32"),
        ("versions", f"anysat {anysat.__version__}, torch {torch.__version__}, numpy {np.__version__}, "
                     f"rasterio {rasterio.__version__}, Python {platform.python_version()}"),
    ]  # fmt: skip


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _place(pair: Pair) -> str:
    longitude, latitude = place_deg(pair.tile.geobox)
    return f"{abs(latitude):.2f}° {'NS'[latitude < 0]}, {abs(longitude):.2f}° {'EW'[longitude < 0]}"


def _dates(observation: Observation) -> str:
    return ", ".join(str(date) for date in ([] if observation.dates is None else observation.dates))
