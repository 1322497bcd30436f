"""HTML of the report: text is escaped wherever it enters, the page loads nothing and runs nothing.

``Markup`` is HTML that may stand as it is; plain strings become it through ``text`` alone. The page adapts to a dark
screen and to paper. Its content policy forbids scripts and everything from outside, should an escape ever be missed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from string import Template
from typing import NewType

from megatron.ltd.reports.figures.draw import COLOURS, INK

Markup = NewType("Markup", str)

_DARK_COLOURS = ("#58A9DE", "#F08A3C", "#35C495", "#E3A3C4", "#F2BC4B", "#8CCBF0")

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: $ink; --paper: #ffffff; --faint: #5f6368; --rule: #dadce0; --note: #fff4ce;
  $light }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #17181a; --faint: #a5abb3; --rule: #3c4043; --note: #4a3d12; $dark }
}
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; max-width: 68rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--rule); }
p { margin: .4rem 0; }
.faint { color: var(--faint); font-size: .9em; text-align: left; }
.notes { background: var(--note); border-radius: 6px; padding: .6rem 1rem .6rem 2rem; margin: 1rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
td { white-space: nowrap; }
.words td { white-space: normal; overflow-wrap: anywhere; }
code, .words td:first-child { font-family: ui-monospace, monospace; font-size: .92em; }
summary { cursor: pointer; margin-top: .8rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr)); gap: .9rem 1rem; margin: .8rem 0; }
dt { color: var(--faint); font-size: .85em; }
dd { margin: 0; font-size: 1.15em; }
svg { width: 100%; height: auto; }
@page { margin: 14mm; }
@media print { body { max-width: none; padding: 0; font-size: 9pt; } h2 { break-after: avoid; margin-top: 1.4rem; }
  svg, tr { break-inside: avoid; } table { font-size: 7.5pt; } th, td { padding-right: .5rem; }
  .wide { overflow: visible; } }
</style>
</head>
<body>
$body
</body>
</html>
""")


def text(value: object) -> Markup:
    """Any text as HTML that shows it."""
    return Markup(html.escape(str(value)))


def element(name: str, *content: Markup, of_class: str = "") -> Markup:
    """``content`` inside one element."""
    opening = f'{name} class="{of_class}"' if of_class else name
    return Markup(f"<{opening}>{''.join(content)}</{name}>")


def joined(parts: Iterable[Markup]) -> Markup:
    """One after another."""
    return Markup("\n".join(parts))


def section(title: str, *content: Markup) -> Markup:
    """A heading with what belongs to it."""
    return element("section", element("h2", text(title)), *content)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: bool = False) -> Markup:
    """A table of texts; numbers stand to the right, or with ``words`` everything to the left."""
    head = element("tr", *(element("th", text(cell)) for cell in header))
    body = (element("tr", *(element("td", text(cell)) for cell in row)) for row in rows)
    whole = element("table", element("thead", head), element("tbody", *body), of_class="words" if words else "")
    return element("div", whole, of_class="wide")


def figures(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Figures with their names, in a grid."""
    return element(
        "dl", *(element("div", element("dt", text(name)), element("dd", text(value))) for name, value in pairs)
    )


def folded(title: str, content: Markup) -> Markup:
    """``content`` behind a title that opens it."""
    return element("details", element("summary", text(title)), content)


def inline_svg(file: bytes, label: str) -> Markup:
    """matplotlib's SVG as part of a page: colours follow the page's, and nothing of the file around it is left."""
    drawing = file.decode("utf-8")
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = drawing.replace(INK.lower(), "currentColor")
    for number, colour in enumerate(COLOURS):
        drawing = drawing.replace(colour.lower(), f"var(--run-{number})")
    return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1))


def page(title: str, parts: Iterable[Markup]) -> str:
    """The whole document."""
    light, dark = (
        " ".join(f"--run-{number}: {colour};" for number, colour in enumerate(colours))
        for colours in (COLOURS, _DARK_COLOURS)
    )
    return _PAGE.substitute(title=text(title), body=joined(parts), ink=INK, light=light, dark=dark)
