"""The page: one HTML file with everything in it, for wide and narrow windows, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --soft: #f3f3f1; --line: #d9d9d4; --quiet: #666; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e4; --paper: #191a1b; --soft: #242628; --line: #3a3d40; --quiet: #a0a0a0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 52rem; overflow-wrap: break-word; }
.quiet { color: var(--quiet); font-size: .9rem; }
.answers { list-style: none; padding: 0; }
.answers li { max-width: none; padding: .45rem .7rem; margin: .35rem 0; background: var(--soft); border-radius: .3rem;
  border-left: .35rem solid var(--line); }
.answers .yes { border-left-color: #0072b2; }
.answers .no { border-left-color: #d55e00; }
.answers .undecided { border-left-color: #999; }
.word { font-weight: 600; }
.cost { display: block; color: var(--quiet); font-size: .85rem; }
a { color: inherit; }
.problems { background: var(--soft); border-left: .35rem solid #e69f00; padding: .5rem .8rem; border-radius: .3rem; }
.problems ul { margin: .3rem 0; padding-left: 1.2rem; }
.box { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
th { font-weight: 600; vertical-align: bottom; white-space: normal; }
figure { margin: .8rem 0; overflow-x: auto; }
img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
@media (max-width: 46rem) { img { max-width: none; width: 46rem; } }
pre { overflow-x: auto; background: var(--soft); padding: .6rem; font-size: .82rem; border-radius: .3rem; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def heading(text: str, level: int = 2, name: str = "") -> str:
    """A heading, which `pointer` can lead to by its name."""
    anchor = f' id="{escape(name, quote=True)}"' if name else ""
    return f"<h{level}{anchor}>{escape(text)}</h{level}>"


def pointer(text: str, name: str, more: str) -> str:
    """A paragraph in a box, with a link to the heading of that name."""
    return f'<p class="problems">{escape(text)} <a href="#{escape(name, quote=True)}">{escape(more)}</a></p>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph."""
    said = _unbroken(escape(text))
    return f'<p class="{kind}">{said}</p>' if kind else f"<p>{said}</p>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a box of its own, which scrolls where the window is too narrow."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def picture(png: bytes, what: str) -> str:
    """A picture that is in the page itself."""
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(what, quote=True)}" src="data:image/png;base64,{data}"></figure>'


def answers(given: Iterable[tuple[str, str, str]]) -> str:
    """Verdicts: a word (yes, no, undecided), a sentence, and what it cost."""
    items = "\n".join(
        f'<li class="{word}">{_strong(word, text)}<span class="cost">{_unbroken(escape(cost))}</span></li>'
        for word, text, cost in given
    )
    return f'<ul class="answers">\n{items}\n</ul>'


def _strong(word: str, text: str) -> str:
    """The sentence with its verdict in bold."""
    whole, capital = _unbroken(escape(text)), word.capitalize()
    return whole.replace(f"? {capital}", f'? <span class="word">{capital}</span>', 1)


def _unbroken(text: str) -> str:
    """A text whose numbers no line break takes from their units: 95 %, 2 … 3, n = 5, 0.1 ×."""
    return re.sub(r" (%|×)|(?<=[np]) = | … ", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def problems(lines: Sequence[str], summary: str) -> str:
    """What is missing or odd, in a box that cannot be overlooked; nothing is a plain line."""
    if not lines:
        return paragraph(summary, "quiet")
    items = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<div class="problems">{escape(summary)}<ul>\n{items}\n</ul></div>'


def code(text: str) -> str:
    """Something to be typed."""
    return f"<pre>{escape(text)}</pre>"
