"""The demo's page: one self-contained HTML file for screen, phone and paper, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

import numpy as np
from numpy.typing import NDArray

from anysat.workflows.page import HEAD, STYLE, img, row, rows


@dataclass(frozen=True, kw_only=True, eq=False)
class PairView:
    """What the page shows of one pair."""

    letter: str
    name: str
    place: str
    labels: Sequence[str]
    pictures: Sequence[tuple[str, NDArray[np.uint8]]]
    """Captions and images (row col 3)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """A patch with half a patch of its surroundings."""

    where: str
    image: NDArray[np.uint8]
    similarity: float | None
    """Cosine similarity to the query; None for the query itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryView:
    """A patch and its nearest patches in the other tiles, nearest first."""

    query: Match
    nearest: Sequence[Match]


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Everything on the page."""

    untrained: bool
    story: str
    """Where the weights come from."""
    patch_sizes_m: Sequence[float]
    pairs: Sequence[PairView]
    similarity: NDArray[np.float32]
    """(pair pair), cosine of tile embeddings."""
    queries: Sequence[QueryView]
    query_size_m: float | None
    """Patch size of the queries in metres; None if there are none, because each pair is one patch."""
    facts: Sequence[tuple[str, str]]
    timings: Sequence[tuple[str, str]]
    command: str


def render(report: Report) -> str:
    """Return the page as text. It loads nothing from elsewhere."""
    sizes = [f"{size:g} m" for size in report.patch_sizes_m]
    return _PAGE.substitute(
        style=STYLE,
        title="AnySat demo",
        banner=_banner(report),
        summary=escape(
            f"{len(report.pairs)} places in Europe, each seen once by Sentinel-2 and once by Sentinel-1, "
            f"embedded together at patches of {' and '.join(sizes)}."
        ),
        pairs="".join(_pair(pair) for pair in report.pairs),
        matrix=_matrix(report.pairs, report.similarity),
        queries=_queries(report),
        tile_size=escape(sizes[0]),
        facts=rows(report.facts),
        timings=rows(report.timings),
        command=escape(report.command),
        num_pairs=len(report.pairs),
        untrained_caveat=_UNTRAINED_CAVEAT if report.untrained else "",
    )


def _banner(report: Report) -> str:
    if not report.untrained:
        return f'<p class="banner trained">{escape(report.story)}</p>'
    story = report.story.removeprefix("UNTRAINED MODEL: ")
    return (
        '<div class="banner untrained" role="alert"><strong>UNTRAINED MODEL</strong>'
        f"<p>{escape(story[:1].upper() + story[1:])}</p></div>"
    )


def _pair(pair: PairView) -> str:
    labels = "".join(f"<li>{escape(label)}</li>" for label in pair.labels)
    return (
        f'<section class="pair"><h3><b>{escape(pair.letter)}</b> {escape(pair.place)} '
        f'<small>{escape(pair.name)}</small></h3><ul class="labels" aria-label="CORINE classes">{labels}</ul>'
        f"{row(pair.letter, pair.pictures)}</section>"
    )


def _matrix(pairs: Sequence[PairView], similarity: NDArray[np.float32]) -> str:
    """Return a table coloured from the least to the most similar of two different places."""
    different = similarity[~np.eye(len(pairs), dtype=bool)]
    low, high = (float(different.min()), float(different.max())) if different.size else (0.0, 1.0)
    heads = [f"{img(pair.pictures[0][1], '')}<br>{escape(pair.letter)}" for pair in pairs]
    lines = ["<tr><th></th>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr>"]
    for number, head in enumerate(heads):
        cells = "".join(
            _cell(float(value), other == number, low, high) for other, value in enumerate(similarity[number])
        )
        lines.append(f'<tr><th scope="row">{head}</th>{cells}</tr>')
    return f'<div class="scroll"><table class="matrix">{"".join(lines)}</table></div>'


def _cell(value: float, is_same: bool, low: float, high: float) -> str:
    if is_same:
        return '<td class="same">–</td>'
    share = (value - low) / (high - low) if high > low else 0.5
    return f'<td style="--share:{100 * share:.0f}%">{value:.3f}</td>'


def _queries(report: Report) -> str:
    """Return the nearest patches of each pair's middle patch, or why there are none."""
    if report.query_size_m is None:
        return (
            '<p class="soft">Nearest patches are not shown, because each pair is a single patch here. Use smaller '
            "patches (<code>--patch-sizes-m</code>) to see them.</p>"
        )
    found = "".join(_query(query) for query in report.queries)
    return f"""<h2>Which patches are alike?</h2>
<p>The middle patch of each pair (not chosen by hand) and the four nearest patches in the <em>other</em> pairs, among
all patches of {report.query_size_m:g} m. The frame marks the patch; half a patch of its surroundings is shown around
it. The number is the cosine similarity of the centred embeddings (as in the maps): 1 is the same direction, 0
unrelated.</p>
{found}"""


def _query(query: QueryView) -> str:
    nearest = "".join(_match(match) for match in query.nearest)
    return f'<div class="query">{_match(query.query)}<span class="arrow" aria-hidden="true">→</span>{nearest}</div>'


def _match(match: Match) -> str:
    score = "query" if match.similarity is None else f"{match.similarity:+.3f}"
    return (
        f'<figure class="{"asked" if match.similarity is None else "found"}"><span class="frame">'
        f"{img(match.image, match.where)}</span>"
        f"<figcaption><b>{score}</b><br>{escape(match.where)}</figcaption></figure>"
    )


_UNTRAINED_CAVEAT = (
    "<li><b>Nothing here was learned.</b> With random weights, colours, similarities and neighbours only show what a "
    "random function keeps of the pixels' statistics and of their place in the tile. The stripes in the patch "
    "maps are the position code of each patch; the dense maps follow the fields because neighbouring pixels are alike. "
    "This shows that the pipeline runs from files to embeddings. It says nothing about how good AnySat is.</li>"
)

_PAGE = Template(
    HEAD
    + """.matrix th { text-align: center; padding: .2rem; font-size: .85rem; }
.matrix img { width: 3rem; display: inline-block; }
.matrix td { width: 4.5rem; text-align: center; font-variant-numeric: tabular-nums; border: 1px solid var(--line);
  background: color-mix(in srgb, color-mix(in srgb, var(--accent) 65%, var(--card)) var(--share, 0%), var(--card)); }
.matrix .same { background: none; color: var(--soft); }
.query { display: flex; align-items: flex-start; gap: .7rem; padding: .7rem 0; border-bottom: 1px solid var(--line);
  break-inside: avoid; }
.query figure { flex: 1 1 0; min-width: 0; max-width: 9rem; } .arrow { align-self: center; color: var(--soft); }
.frame { position: relative; display: block; } .frame::after { content: ""; position: absolute; inset: 25%;
  border: 2px solid #fff; outline: 1px solid #000; }
.asked .frame::after { border-color: #ffd400; }
@media (max-width: 40rem) { .row { grid-template-columns: 1fr 1fr; } .query { gap: .3rem; } .arrow { display: none; }
  .query figcaption { font-size: .65rem; } .facts th { width: 7rem; } .matrix td { width: 3.2rem; font-size: .85rem; }
  .matrix img { width: 2rem; } }
</style>
</head>
<body>
<header>
<h1>AnySat on real imagery</h1>
<p>$summary</p>
$banner
</header>

<h2>How to read this page</h2>
<ul class="notes">
<li>A <b>tile</b> is one place. The model cuts it into square <b>patches</b>, looks at both sensors at once, and gives
one vector per tile, one per patch, and one per 10 m pixel of Sentinel-2 (<b>dense</b>).</li>
<li>Vectors are shown as colours: three principal components as red, green and blue. Maps of one kind share one PCA
basis over all pairs and patch sizes, so <b>within a kind the same colour means similar vectors, in any pair</b>. The
kinds are dense and patches, each shown twice. Colours have no further meaning.</li>
<li><b>Original</b> shows the vectors themselves, which also contain the dates of the pair and the place in the tile.
<b>Centred</b> shows them without the mean of the pair and without the mean of the same spot over all pairs: what makes
a spot differ from its surroundings.</li>
<li>Sentinel-2 is shown in natural colours; Sentinel-1 as VV, VH and their difference in dB. Each picture is stretched
on its own, so brightness does not compare between places. North is up.</li>
</ul>

<h2>The pairs</h2>
<p class="soft">The labels are the CORINE land-cover classes that came with the imagery. The model never sees them.</p>
$pairs

<h2>Which places are alike?</h2>
<p>Cosine similarity of the tile embeddings ($tile_size patches). Colours run from the least to the most similar of two
different places, so they exaggerate small differences: read the numbers.</p>
$matrix

$queries

<h2>What to keep in mind</h2>
<ul class="notes">
$untrained_caveat
<li>$num_pairs places are an illustration, not an evaluation: nothing on this page measures quality.</li>
<li>Each sensor has one date here. The model is made for time series; one date leaves out much of what it uses.</li>
<li>The statistics that standardise the bands were computed from these $num_pairs pairs.</li>
<li>The 20 m bands of Sentinel-2 were resampled to 10 m (bilinear); its two 60 m bands are not part of the model.</li>
</ul>

<h2>The run</h2>
<table class="facts">$facts$timings</table>
<p>Made with <code>$command</code></p>
<p class="soft">Model: AnySat, Astruc et al., CVPR 2025 (arXiv 2412.14123). Imagery: example patches of BigEarthNet
(Sumbul et al. 2019, 2021; CDLA-Permissive-1.0) as shipped by the Python package bigearthnet-common; contains modified
Copernicus Sentinel data 2017 and 2018.</p>
</body>
</html>
"""
)
