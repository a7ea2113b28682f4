"""The page of a run over folds and repeats: scores over all and of each, with links to their pages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from anysat.whole_files import write_output
from anysat.workflows.page import HEAD, STYLE, rows, table
from anysat.workflows.supervised.text import FIGURES, runs_told, with_interval

REPORT = "report.html"


def write_folds_report(run: Path, content: Mapping[str, Any]) -> Path:
    """Write the page into the folder of all folds. A failed write leaves no partial file.

    Args:
        run: The folder.
        content: Content of `folds.json`.

    Raises:
        WriteError: The page cannot be written.
    """
    title = f"{content['target']}: {runs_told(content)}"
    facts = [("Command", content["command"]), ("Data", content["config"]["data"]["dataset"]),
             ("Weights", str(content["config"]["weights"])), ("Seed", str(content["seed"]))]  # fmt: skip
    page = _PAGE.substitute(style=STYLE, title=escape(title), scores=_scores(run, content), facts=rows(facts),
                            chosen=escape(content["selected_on"]))  # fmt: skip
    write_output(run / REPORT, page)
    return run / REPORT


def _scores(run: Path, content: Mapping[str, Any]) -> str:
    names = "".join(f"<th>{_linked(run, name)}</th>" for name in content["folds"])
    lines = [f"<tr><th>score</th><th>mean ± deviation</th><th>95 % interval of the mean</th>{names}</tr>"]
    for name, title in FIGURES.items():
        if (one := content["figures"].get(name)) is None:
            continue
        spread = "" if one["deviation"] is None else f" ± {one['deviation']:.3f}"
        cells = "".join(f"<td>{with_interval(fold, name)}</td>" for fold in content["folds"].values())
        interval = "{:.3f} to {:.3f}".format(*content["intervals"][name]) if spread else "–"
        lines.append(f'<tr><th scope="row">{escape(title)}</th><td><b>{one["mean"]:.3f}</b>{spread}</td>'
                     f"<td>{interval}</td>{cells}</tr>")  # fmt: skip
    return table(lines)


def _linked(run: Path, fold: str) -> str:
    page = f"{fold}/{REPORT}"
    return f'<a href="{escape(page, quote=True)}">{escape(fold)}</a>' if (run / page).is_file() else escape(fold)


_PAGE = Template(
    HEAD
    + """</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>Each fold is scored once, by a run whose settings were chosen on $chosen. The interval of the mean is over the runs;
 those of single runs (95 %) are over their tiles.</p>
</header>
<h2>Scores</h2>
$scores
<h2>The run</h2>
<table class="facts">$facts</table>
</body>
</html>
"""
)
