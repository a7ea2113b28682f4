"""Pictures of observations and embeddings: colour composites, PCA colours, and a figure of a tile.

They are for looking at, not for measuring: every picture is stretched. Invalid places are white.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Embeddings, Tile
from anysat.errors import InputError
from anysat.observation import Observation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRETCH_PERCENT = (2.0, 98.0)
"""Percentiles of a band or principal component that become black and full colour."""
_WHITE, _PANEL_INCHES = 255, 3.2
_TITLE = 49
"""Number of characters per line of a panel's title. Longer lines extend beyond the picture."""
_SHOWN = "Title"
"""Text in a PNG file: the name of the output that it shows."""


def picture_of(output: Path) -> Path:
    """Return the path of an output's picture: NAME.png, or NAME.SUFFIX.png if NAME.png shows another output beside it.

    A picture names its output, see `save_picture`.
    """
    from PIL import Image

    path, shown = output.with_suffix(".png"), ""
    with contextlib.suppress(OSError), Image.open(path) as picture:  # there is none, or it is no picture
        shown = picture.info.get(_SHOWN, "")
    is_name = bool(shown) and Path(shown).name == shown  # other programs write any text
    is_other = is_name and shown != output.name and output.with_name(shown).exists()
    return output.with_name(f"{output.name}.png") if is_other else path


def save_picture(figure: Figure, path: Path, output: str) -> None:
    """Write a picture of the output of this name."""
    figure.savefig(path, metadata={_SHOWN: output})


@dataclass(frozen=True, eq=False)
class PcaBasis:
    """Three directions in embedding space and the stretch that turns them into red, green and blue."""

    mean: NDArray[np.float64]
    """(dim)"""
    directions: NDArray[np.float64]
    """(3 dim), unit vectors by decreasing variance; zeros if the vectors vary in fewer directions."""
    low: NDArray[np.float64]
    """(3), component that becomes 0."""
    high: NDArray[np.float64]
    """(3), component that becomes 255."""


def quicklook(observation: Observation) -> NDArray[np.uint8]:
    """Return a colour composite (row col 3) of an observation, with invalid pixels in white.

    Optical imagery shows red, green and blue if it has them, else the first bands with a valid value. Radar shows two
    bands in dB and their difference. A single band is grey. A series shows the median over its valid dates.
    `shown_bands` names the bands.

    >>> from anysat.modalities import MODALITIES
    >>> s1 = np.random.default_rng(0).normal(-10, 2, (1, 2, 4, 5))
    >>> quicklook(Observation.of(MODALITIES["s1"], s1, dates=["2020-06-01"])).shape
    (4, 5, 3)
    """
    shown = _shown(observation) or [0]
    indices = [*shown, shown[-1], shown[-1]][:3]
    channels, valid = observation.values[..., indices, :, :], observation.valid[..., indices, :, :]
    if observation.modality.is_radar:
        channels, valid = _in_db(channels, valid, [observation.units[index] for index in indices])
        if len(shown) == 2:
            valid[..., 2, :, :] &= valid[..., 0, :, :]
            channels[..., 2, :, :] = channels[..., 0, :, :] - channels[..., 1, :, :]
    if observation.modality.is_temporal:
        channels = _median_over_dates(channels, valid)
    else:
        channels = np.where(valid, channels, np.nan)
    image = np.moveaxis(channels, 0, -1)
    seen = image[np.isfinite(image).all(-1)]
    low, high = _percentiles(seen)
    return _stretched(image, low, high)


def shown_bands(observation: Observation) -> str:
    """Describe the bands that `quicklook` shows, for example as `VV, VH, VV-VH as colours`."""
    bands = [observation.modality.bands[index] for index in _shown(observation)]
    names = [band.name for band in bands]
    if len(names) < 2:
        return f"{names[0]} in grey" if names else "nothing seen"
    if observation.modality.is_radar:
        names.append("-".join(names))
    is_true = [band.common_name for band in bands] == ["red", "green", "blue"]
    return "true colours" if is_true else f"{', '.join(names)} as colours"


def dated(observation: Observation) -> str:
    """Describe the dates that `quicklook` shows."""
    if observation.dates is None:
        return "image"
    first, last, count = observation.dates.min(), observation.dates.max(), len(observation.dates)
    return str(first) if count == 1 else f"median of {count} dates, {first} to {last}"


def extent_m(shape: Sequence[float], gsd_m: float) -> tuple[float, float, float, float]:
    """Return the west, east, south and north edges in metres of an image with this shape, as for matplotlib."""
    return 0.0, shape[1] * gsd_m, 0.0, shape[0] * gsd_m


def label(axes: Axes, title: str) -> None:
    """Set the title of a panel of ground in metres, wrapped to about its width, and the names of its axes."""
    wrapped = [line for part in title.split("\n") for line in textwrap.wrap(part, _TITLE, break_on_hyphens=False)]
    axes.set_title("\n".join(wrapped), fontsize="small")
    axes.set_xlabel("east (m)", fontsize="small")
    axes.set_ylabel("north (m)", fontsize="small")
    axes.tick_params(labelsize="small")


def rgb_of(colours: Sequence[str]) -> NDArray[np.uint8]:
    """Return red, green and blue (colour 3) of colours such as `#ff8000`."""
    return np.array([list(bytes.fromhex(colour[1:])) for colour in colours], np.uint8)


def fit_pca(vectors: Sequence[NDArray[np.floating]]) -> PcaBasis:
    """Compute the basis of all finite vectors of some arrays (… dim), so that their colours can be compared.

    Each direction's largest entry is positive, so that the same vectors always get the same colours.

    Raises:
        InputError: There is no array, or their last axes differ.
    """
    dims = sorted({array.shape[-1] for array in vectors})
    if len(dims) != 1:
        raise InputError("vectors for a PCA", "arrays with one and the same last axis", f"dims {dims}")
    dim = dims[0]
    count = max(1, sum(len(_finite(array)) for array in vectors))
    mean = np.sum([_finite(array).sum(0, dtype=np.float64) for array in vectors], axis=0) / count
    covariance = np.zeros((dim, dim))
    for array in vectors:
        centred = (_finite(array) - mean).astype(np.float32)
        covariance += centred.T @ centred
    variances, columns = np.linalg.eigh(covariance / count)
    directions = np.zeros((3, dim))
    found = columns[:, ::-1].T[:3] * (variances[::-1][:3, None] > 0)
    signs = np.sign(np.take_along_axis(found, np.abs(found).argmax(1)[:, None], axis=1))
    directions[: len(found)] = found * signs
    low, high = _percentiles(np.concatenate([(_finite(array) - mean) @ directions.T for array in vectors]))
    return PcaBasis(mean, directions, low, high)


def pca_rgb(vectors: NDArray[np.floating], basis: PcaBasis) -> NDArray[np.uint8]:
    """Return the colours (row col 3) of vectors (row col dim) from three principal components.

    NaN vectors are white.
    """
    return _stretched((vectors - basis.mean) @ basis.directions.T, basis.low, basis.high)


def tile_figure(tile: Tile, embeddings: Embeddings, title: str) -> Figure:
    """Draw every modality of a tile in a row, followed by PCA colours of its patch and dense embeddings.

    The first tile of the embeddings is shown, north up, with axes in metres. Each panel has its own PCA basis, so
    colours cannot be compared between panels.
    """
    from matplotlib.figure import Figure

    grid = embeddings.grid
    ground = extent_m((grid.height_m, grid.width_m), 1.0)
    panels = [
        (f"{key}\n{dated(seen)}", quicklook(seen), extent_m(seen.shape_px, seen.modality.gsd_m))
        for key, seen in tile.observations.items()
    ]
    patch = embeddings.patch[0].detach().float().cpu().numpy()
    panels.append((f"patch embeddings\n{grid.patch_size_m:g} m, PCA", pca_rgb(patch, fit_pca([patch])), ground))
    if embeddings.dense is not None:
        dense = embeddings.dense[0].detach().float().cpu().numpy()
        of = f" of {embeddings.dense_modality.key}" if embeddings.dense_modality is not None else ""
        panels.append((f"dense embeddings\nsub-patches{of}, PCA", pca_rgb(dense, fit_pca([dense])), ground))
    height = _PANEL_INCHES * min(2.0, max(0.35, grid.height_m / grid.width_m)) + 1.3
    figure = Figure(figsize=(_PANEL_INCHES * len(panels), height), layout="constrained", dpi=120)
    figure.suptitle(title)
    for axes, (name, image, extent) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.imshow(image, extent=extent, origin="upper", interpolation="nearest")
        label(axes, name)
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")  # otherwise saving computes the layout twice more
    return figure


def _shown(observation: Observation) -> list[int]:
    """Return the bands for red, green and blue, at most two for radar. Empty if nothing is valid."""
    axes = tuple(axis for axis in range(observation.valid.ndim) if axis != observation.valid.ndim - 3)
    seen = np.flatnonzero(observation.valid.any(axis=axes)).tolist()
    bands = observation.modality.bands
    if observation.modality.is_radar:
        return ([index for index in seen if bands[index].ratio_of is None] or seen)[:2]
    named = {bands[index].common_name: index for index in seen}
    wanted = [named[name] for name in ("red", "green", "blue") if name in named]
    return wanted if len(wanted) == 3 else seen[:3]


def _in_db(
    values: NDArray[np.float32], valid: NDArray[np.bool_], units: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Convert bands to decibels if they are not. Values of 0 or less become invalid."""
    is_power = np.array([unit != "dB" for unit in units])[:, None, None]
    valid = valid & ~(is_power & (values <= 0))
    return np.where(is_power, 10 * np.log10(np.where(valid & is_power, values, 1)), values), valid


def _median_over_dates(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the median of the valid values over the first axis, NaN if there is none."""
    ordered = np.sort(np.where(valid, values, np.inf), axis=0)
    count = valid.sum(axis=0, keepdims=True)
    below, above = (
        np.take_along_axis(ordered, place.clip(0, len(ordered) - 1), axis=0)[0]
        for place in ((count - 1) // 2, count // 2)
    )
    return np.where(count[0] > 0, (below + above) / 2, np.nan)


def _finite(array: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the finite vectors of an array, (vector dim)."""
    flat = array.reshape(-1, array.shape[-1])
    return flat[np.isfinite(flat).all(-1)]


def _percentiles(values: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the limits of the stretch of each column; 0 and 1 if there are no values."""
    if not len(values):
        return np.zeros(3), np.ones(3)
    low, high = np.percentile(values.astype(np.float64), STRETCH_PERCENT, axis=0)
    return low, high


def _stretched(image: NDArray[np.floating], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Stretch low to high into 0 to 255. A band without spread becomes mid-grey, a pixel that is not finite white."""
    spread = high - low
    scaled = np.where(spread > 0, (image - low) / np.where(spread > 0, spread, 1), 0.5)
    seen = np.isfinite(image).all(-1, keepdims=True)
    return np.where(seen, np.rint(255 * scaled.clip(0, 1)), _WHITE).astype(np.uint8)
