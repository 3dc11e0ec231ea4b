"""The frame of an offline HTML page: one file that loads nothing, with tables that sort and filter."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

# Nothing but what is in the file may load, whatever a label or a file name says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 75rem; padding: 1rem; color: #1a1a1a; background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
a { color: #004f80; }
.wide { overflow-x: auto; } .wide:focus { outline: 3px solid #0072b2; }
table { border-collapse: collapse; font-size: .875rem; margin: .5rem 0; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th[scope=row], thead th:first-child { text-align: left; }
thead th { border-bottom: 2px solid #777; background: #fff; }
tbody th[scope=rowgroup] { text-align: left; padding-top: .9rem; border-bottom: 1px solid #777; }
button { font: inherit; font-weight: 600; color: #004f80; background: none; border: 0; padding: 0; cursor: pointer;
  text-decoration: underline; text-align: inherit; }
th[aria-sort=ascending] button::after { content: " \\25B2"; content: " \\25B2" / ""; }
th[aria-sort=descending] button::after { content: " \\25BC"; content: " \\25BC" / ""; }
button:focus-visible, summary:focus-visible, input:focus-visible, a:focus-visible { outline: 3px solid #0072b2; }
input { font: inherit; padding: .25rem .5rem; border: 1px solid #777; border-radius: .2rem; }
small { color: #4a4a4a; } td small { display: block; max-width: 11rem; white-space: normal; margin-left: auto; }
img { max-width: 100%; height: auto; } figure { margin: 0; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { display: block; } body { padding: .6rem; } }
"""

SCRIPT = """
document.querySelectorAll('table.sortable').forEach(function (table) {
  var body = table.tBodies[0];
  table.querySelectorAll('thead button').forEach(function (button) {
    button.addEventListener('click', function () {
      var head = button.closest('th'), column = Array.prototype.indexOf.call(head.parentNode.children, head);
      var rows = Array.prototype.slice.call(body.rows);
      var of = function (row) { return row.cells[column].dataset.value; };
      var text = rows.some(function (row) { return of(row) !== undefined && isNaN(of(row)); });
      var was = head.getAttribute('aria-sort');
      // The first click brings up what is looked for: the highest number, or the first name.
      var up = was ? was === 'descending' : text;
      table.querySelectorAll('thead th').forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      rows.sort(function (a, b) {
        var x = of(a), y = of(b);
        if (x === undefined || y === undefined) { return (x === undefined) - (y === undefined); }
        var order = text ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
        return up ? order : -order;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
});
document.querySelectorAll('p.filter').forEach(function (line) {
  var input = line.querySelector('input'), said = line.querySelector('output');
  var rows = document.getElementById(input.dataset.table).tBodies[0].rows;
  line.hidden = false;
  input.addEventListener('input', function () {
    var wanted = input.value.toLowerCase(), shown = 0;
    Array.prototype.forEach.call(rows, function (row) {
      row.hidden = row.textContent.toLowerCase().indexOf(wanted) < 0;
      shown += row.hidden ? 0 : 1;
    });
    said.textContent = shown + ' of ' + rows.length;
  });
});
"""


def write_page(path: Path, text: str) -> None:
    """Writes a page, which appears under its name only when it is complete.

    Raises:
        OSError: it cannot be written; nothing is left then.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        # Names of files need not be text in any encoding.
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def make_page(title: str, parts: Iterable[str], style: str = "") -> str:
    """The whole file.

    Args:
        title: any text; it is escaped here, and stands above the parts.
        parts: HTML, escaped by whoever made it.
        style: further rules of CSS.
    """
    lines = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head><body><main>",
        f"<h1>{escape(title)}</h1>",
        *parts,
        f"</main><script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(lines)


def facts(pairs: Mapping[str, str]) -> str:
    """A list of names and what they are; both are escaped here."""
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs.items())
    return f"<dl>{rows}</dl>"


def heading(text: str, note: str = "", sorts: bool = True) -> str:
    """The heading of a column.

    Args:
        text: its name, escaped here.
        note: what stands below it, as HTML.
        sorts: make it a button; the cells then have a `data-value`.
    """
    name = f'<button type="button">{escape(text)}</button>' if sorts else escape(text)
    return f'<th scope="col">{name}{note}</th>'


def table(caption: str, head: str, lines: Sequence[str], sortable: bool = False, identifier: str = "") -> str:
    """A table that scrolls by itself where the window is narrow.

    Args:
        caption: escaped here.
        head: cells of `heading`.
        lines: rows, as HTML.
        sortable: its headings are buttons that sort by the cells' `data-value`; cells without one come last.
        identifier: see `text_filter`.
    """
    kind = ' class="sortable"' if sortable else ""
    name = f' id="{escape(identifier, quote=True)}"' if identifier else ""
    label = escape(caption, quote=True)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{label}"><table{kind}{name}>'
        f"<caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def text_filter(label: str, identifier: str) -> str:
    """A field that hides the rows of a table that lack its text; not shown where no script runs.

    Args:
        label: of the field, escaped here.
        identifier: of the table, which stands anywhere on the page.
    """
    name = escape(identifier, quote=True)
    return (
        f'<p class="filter" hidden><label>{escape(label)} <input type="search" data-table="{name}"></label> '
        '<output aria-live="polite"></output></p>'
    )


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as an address that holds them, e.g. of kind image/png."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
