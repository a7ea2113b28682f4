"""Shared parts of the HTML pages: one style for screen, phone and paper, embedded pictures, and tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

import numpy as np
from numpy.typing import NDArray

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style
"""
"""Start of every page: title and style. A page may add its own rules after it."""


def rows(pairs: Iterable[tuple[str, str]]) -> str:
    """Return table rows with names and values."""
    return "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in pairs)


def table(lines: Iterable[str]) -> str:
    """Return a table of figures, which scrolls if it is too wide."""
    return f'<div class="scroll"><table class="figures">{"".join(lines)}</table></div>'


def img(image: NDArray[np.uint8], alt: str) -> str:
    """Return an image (row col 3) embedded in the page, with sharp pixels at any width."""
    from matplotlib.image import imsave

    png = io.BytesIO()
    imsave(png, np.ascontiguousarray(image), format="png")
    return png_tag(png.getvalue(), alt)


def row(name: str, pictures: Iterable[tuple[str, NDArray[np.uint8]]]) -> str:
    """Return captions and images (row col 3) of a tile side by side."""
    shown = "".join(
        f"<figure>{img(image, f'{name}: {caption}')}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, image in pictures
    )
    return f'<div class="row">{shown}</div>'


def png_tag(png: bytes, alt: str, kind: str = "") -> str:
    """Return a PNG embedded in the page, with a class of the style if given."""
    data = base64.b64encode(png).decode()
    of_class = f' class="{kind}"' if kind else ""
    return f'<img{of_class} src="data:image/png;base64,{data}" alt="{escape(alt, quote=True)}">'


STYLE = """\
:root { color-scheme: light dark; --ink: #1c2321; --soft: #5c6864; --paper: #fbfbf9; --card: #fff; --line: #dfe3df;
  --accent: #1f7a5c; --warn: #b3261e; --warn-paper: #fdecea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ece9; --soft: #a3aeaa; --paper: #141816; --card: #1c211f;
  --line: #343b38; --accent: #4fb892; --warn: #ff8a80; --warn-paper: #3a1512; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; } h2 { margin: 2.5rem 0 .4rem; font-size: 1.3rem; }
h3 { margin: 0 0 .3rem; font-size: 1rem; } h3 b { color: var(--accent); font-size: 1.2rem; margin-right: .4rem; }
p, .notes li { max-width: 46rem; } p { margin: .4rem 0; } small, figcaption, .soft { color: var(--soft); }
small { font-weight: normal; overflow-wrap: anywhere; }
img { display: block; width: 100%; image-rendering: pixelated; background: #fff; }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.3; padding-top: .25rem; }
code { background: var(--card); border: 1px solid var(--line); border-radius: .25rem; padding: .1rem .4rem;
  overflow-wrap: anywhere; }
.banner { margin: 1rem 0; padding: .8rem 1rem; border-radius: .5rem; max-width: none; }
.trained { border: 2px solid var(--accent); }
.untrained { border: 3px solid var(--warn); background: var(--warn-paper); }
.untrained strong { color: var(--warn); font-size: clamp(1.8rem, 6vw, 3.2rem); line-height: 1.1; }
.pair { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; margin: .8rem 0;
  break-inside: avoid; }
.labels { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem; padding: 0; margin: 0 0 .6rem; }
.labels li { border: 1px solid var(--line); border-radius: 1rem; padding: 0 .6rem; font-size: .8rem; }
.row { display: grid; gap: .7rem; grid-template-columns: repeat(4, 1fr); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } th { text-align: left; font-weight: 600; vertical-align: top; }
.facts { width: 100%; } .facts th, .facts td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
.facts th { width: 13rem; color: var(--soft); font-weight: normal; }
.facts td { overflow-wrap: anywhere; }
.figures th, .figures td { padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--line); }
.figures td { text-align: right; font-variant-numeric: tabular-nums; } .figures th { font-weight: normal; }
@media print { body { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }"""
