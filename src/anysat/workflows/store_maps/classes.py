"""The run of `anysat classify`: labels to samples of stores, a model scored over blocks of ground, and its map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.geo.claims import alone_at
from anysat.geo.stores.classes import counted_lines
from anysat.geo.write.maps import class_layer
from anysat.picture_samples import class_colours
from anysat.tasks.shallow import NUM_FOLDS, Checked, check, fit, told
from anysat.workflows.ground_blocks import unit_of
from anysat.workflows.store_maps import check_column, check_options
from anysat.workflows.store_maps.labels import Labelled, read_labelled
from anysat.workflows.store_maps.maps import Bar, Mapped, MapPlan, Stores, no_bar, write_maps
from anysat.workflows.supervised.config import BLOCK_KM
from anysat.workflows.supervised.parts import described
from anysat.workflows.supervised.sheets import class_lines, class_table, class_table_of
from anysat.workflows.supervised.text import FIGURES, intervals_told, with_interval

_SHOWN = ("balanced_accuracy", "accuracy", "f1_macro", "rmse", "mae", "bias", "r2")
_MISTAKES = 5
"""Most mistakes that are told."""


def classify(
    store: Path | str | Sequence[Path | str], samples: Any, column: str | None, out: Path | str, *,
    values: bool = False, probabilities: bool = False, dates: str | None = None, block_km: float | None = None,
    group: str | None = None, also: Sequence[str] = (), overwrite: bool = False, bar: Bar = no_bar,
) -> Mapped:  # fmt: skip
    """Fit a simple model to labelled points or polygons on a store, score it over blocks of ground, and write a map.

    The model is standardisation and logistic regression, in which all classes have the same total weight, or ridge
    regression for values. Scores are of blocks of ground that the model was not fitted to, because neighbouring patches
    are alike.

    Args:
        store: NAME.zarr, written by `anysat embed`; the NAME given to an area in several UTM zones; or several stores
            of one kind. For several stores, there is a map for each, whose name ends in that of the zone or store.
        samples: A vector file or GeoDataFrame of points and polygons, in any reference system. A point takes the patch
            in which it lies, a polygon the patches mostly inside it, weighted by their share in it. Or a GeoTIFF with
            one band in any reference system: a patch has the label of the pixel in its middle.
        column: Its column with the class, or the value; None for a GeoTIFF.
        out: NAME.tif, NAME.zarr, NAME.parquet or, for classes, NAME.gpkg.
        values: Map numbers by ridge regression instead of classes.
        probabilities: Also write the probability of every class.
        dates: Days in which the labels hold, FIRST/LAST; None if they hold in all periods.
        block_km: Side of the blocks; None chooses the largest, up to 10, with which every class lies in enough blocks.
        group: Name of the group; None for the embeddings of patches.
        also: Suffixes of the formats to write besides NAME.zarr, such as [".tif", ".gpkg"].
        overwrite: Replace existing files.
        bar: Shows progress.

    Returns:
        The files and the report. Its facts are classes, penalty, block size, and scores with intervals; None if there
        is only one block, or fewer than two classes lie in several. The scores of each class and the confusion matrix
        are also in NAME_scores.csv.

    Raises:
        MissingFileError, SourceError, UnknownNameError, InputError, RecordError: A store or the samples cannot be used.
        WriteError: An output exists or cannot be written. Nothing is left behind.
    """
    check_column(samples, column)
    check_options(str(out), ",".join(also) or None, values=values, probabilities=probabilities)
    with alone_at(Path(out)):
        stores = Stores.open(store, group)

        def plan(classes: Sequence[str]) -> MapPlan:
            layers = _layers(column or str(samples), classes, values, probabilities)
            beside = () if values else (class_table_of(Path(out)),)
            return MapPlan(stores=stores, out=Path(out), layers=layers, also=also, beside=beside)

        plan(()).check([samples], overwrite=overwrite)
        labelled = read_labelled(stores, samples, column, values=values, dates=dates, block_km=block_km)
        planned, checked = plan(labelled.classes), check(labelled.samples)
        model = fit(labelled.samples, checked.penalty)
        scores = None if checked.scores is None else described(checked.scores, unit_of(labelled.block_km))
        name = str(samples) if isinstance(samples, str | Path) else "samples"
        facts = {"samples": name, "column": column, "classes": list(labelled.classes),
                 "num_samples": len(labelled.samples.truth), "penalty": checked.penalty,
                 "block_km": labelled.block_km, "scores": scores}  # fmt: skip
        counts = np.zeros(max(1, len(labelled.classes)), np.int64)
        compute = _compute(model, counts, probabilities=probabilities, is_values=values)
        table = class_table(scores, labelled.classes)
        files = write_maps(planned, compute, facts, overwrite=overwrite, bar=bar,
                           texts={} if table is None else {class_table_of(Path(out)): table})  # fmt: skip
    lines = [
        f"{stores.groups[0].name} of {stores.name}: {labelled.lines[0]}", *labelled.lines[1:],
        *counted_lines(labelled.classes),
        *_score_lines(checked, scores, labelled), *_map_lines(counts, labelled.classes),
        *(f"wrote {file}" for file in files),
    ]  # fmt: skip
    return Mapped(files=files, report="\n".join(lines), facts=facts)


def _layers(column: str, classes: Sequence[str], values: bool, probabilities: bool) -> dict[str, dict[str, Any]]:
    """Return the layers of the map."""
    if values:
        return {"value": {"variable_attributes": {"long_name": column}}}
    layers = {"class": class_layer(classes, class_colours(len(classes)))}
    return layers | ({"probability": {"dim": len(classes) or 1, "bands": classes}} if probabilities else {})


def _compute(
    model: Any, counts: NDArray[np.int64], *, probabilities: bool, is_values: bool
) -> Callable[[int, NDArray[np.float32]], Mapping[str, NDArray[Any]]]:
    """Return what computes the layers; it counts the patches of each class."""

    def compute(_: int, vectors: NDArray[np.float32]) -> Mapping[str, NDArray[Any]]:
        found = told(model, vectors, 0 if is_values else len(counts))
        if is_values:
            counts[0] += len(found)
            return {"value": found}
        best = found.argmax(1)
        counts[:] += np.bincount(best, minlength=len(counts))
        return {"class": best, "probability": found} if probabilities else {"class": best}

    return compute


def _score_lines(checked: Checked, scores: Mapping[str, Any] | None, labelled: Labelled) -> list[str]:
    """Return how the model was scored, its scores, and its most frequent mistakes."""
    kind, km = "logistic regression" if labelled.classes else "ridge regression", labelled.block_km
    if scores is None:
        needed = "two classes in two blocks" if labelled.classes else "samples in two blocks"
        needed += f" of {km:g} km or more" + (" that share no patch" if labelled.is_joined else "")
        todo = "correct points and polygons that overlap" if labelled.is_joined else "give a smaller --block-km"
        return [f"{kind}; not scored, because that needs {needed}: {todo}, or add samples elsewhere (a polygon lies in "
                "one block as a whole)"]  # fmt: skip
    chosen = (
        "chosen on them" if checked.num_folds > 2 else f"not chosen, because that needs 3 blocks (best {NUM_FOLDS})"
    )
    lines = [f"{kind}, scored on {checked.num_folds} folds over {intervals_told(scores)} (penalty "
             f"{checked.penalty:g}, {chosen}); 95 % intervals:"]  # fmt: skip
    lines += [f"  {FIGURES[name]:18} {with_interval(scores, name)}" for name in _SHOWN if name in scores["figures"]]
    if labelled.classes:
        lines += class_lines(scores, labelled.classes)
        lines.append(_mistakes(np.array(scores["confusion"])[:, :-1], labelled.classes))
    if km < BLOCK_KM:
        lines.append(f"blocks of {km:g} km are small, because labels lie close together: further away, scores may be "
                     "lower")  # fmt: skip
    return lines


def _mistakes(table: NDArray[np.int64], names: Sequence[str]) -> str:
    """Return the largest entries of a confusion (true predicted) off its diagonal."""
    wrong = table - np.diag(np.diag(table))
    pairs = [divmod(int(place), len(names)) for place in np.argsort(-wrong, axis=None, kind="stable")[:_MISTAKES]]
    told = [f"{names[a]} as {names[b]} ({wrong[a, b]} of {table[a].sum()})" for a, b in pairs if wrong[a, b]]
    return f"most frequent mistakes, in samples: {', '.join(told) or 'none'}"


def _map_lines(counts: NDArray[np.int64], names: Sequence[str]) -> list[str]:
    total = int(counts.sum())
    shares = "" if not names or not total else ": " + ", ".join(
        f"{name} {100 * count / total:.3g} %" for name, count in zip(names, counts, strict=True)
    )  # fmt: skip
    return [f"map: {total} patches{shares}"]
