"""The page's frame: one self-contained HTML document, light or dark as the reader's system is."""

from __future__ import annotations

from html import escape

from ali_dist.report import chart_hover

STYLE = (
    """
:root { --paper: #fbfbfa; --card: #ffffff; --ink: #1f2630; --soft: #647080; --rule: #e3e6ea; --mark: #eef3f9;
  --c0: #2f6fb0; --c1: #d0692a; --c2: #3b8f5f; --c3: #8a5bb5; --c4: #b08a1f; --c5: #8b95a3; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --card: #1b1f26; --ink: #e4e8ee; --soft: #97a2b1; --rule: #2c323c; --mark: #222a35;
    --c0: #6ba6e3; --c1: #ee9a63; --c2: #6cc393; --c3: #bb95e0; --c4: #d9b84f; --c5: #77828f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: 26px; margin: 0; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 38px 0 12px; }
p { margin: 6px 0; } .soft, figcaption { color: var(--soft); font-size: 13px; }
.status { display: inline-block; margin-left: 10px; padding: 2px 10px; border-radius: 99px; background: var(--mark);
  font-size: 13px; font-weight: 500; vertical-align: 4px; }
.facts { display: flex; flex-wrap: wrap; gap: 1px; margin: 20px 0 12px;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 8px; overflow: hidden; }
.facts div { flex: 1 1 150px; background: var(--card); padding: 9px 13px; }
.facts dt { color: var(--soft); font-size: 12.5px; }
.facts dd { margin: 0; font-size: 17px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.judged dd { font-size: 24px; font-weight: 600; } .judged dd.soft { font-size: 12.5px; font-weight: 400; }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 8px; background: var(--card); }
table { border-collapse: collapse; width: 100%; } tr + tr > * { border-top: 1px solid var(--rule); }
th, td { text-align: left; padding: 7px 13px; vertical-align: top; font-weight: 400; }
thead th { color: var(--soft); font-size: 12.5px; border-bottom: 1px solid var(--rule); }
td.number { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap; }
td.number .soft { font-weight: 400; }
td.soft { min-width: 150px; } tr.changed { background: var(--mark); }
.config td, .config th { padding: 4px 13px; font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px;
  overflow-wrap: anywhere; }
.config th { white-space: nowrap; width: 1%; } .config td:nth-child(2) { min-width: 160px; }
.starts td { overflow-wrap: anywhere; } code { font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: 12.5px; }
.images { align-items: start; }
.images, .charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
figure { margin: 0; padding: 12px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
figure img { display: block; max-width: 100%; margin: 0 auto; border-radius: 4px; }
figure.wide { grid-column: 1 / -1; }
figcaption { margin-top: 8px; } .chart figcaption { margin: 0 0 6px; color: var(--ink); font-size: 14px; }
.choices { display: flex; flex-wrap: wrap; gap: 4px; align-items: baseline; color: var(--soft); font-size: 13px; }
.choices label { padding: 2px 9px; border: 1px solid var(--rule); border-radius: 99px; cursor: pointer;
  font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 10.5px; }
svg .axis { font-size: 11px; } svg .grid { stroke: var(--rule); }
svg .guide { stroke: var(--soft); stroke-dasharray: 4 3; }
svg .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; } svg circle.line { stroke: none; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 12px; color: var(--soft); min-height: 18px; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 5px; vertical-align: 3px;
  border-radius: 2px; background: currentColor; }
h1.compared > span:not(.key) { color: var(--soft); font-weight: 400; }
h1 .key::before { width: 18px; height: 6px; vertical-align: 5px; }
.across th { white-space: nowrap; } .across td { overflow-wrap: anywhere; min-width: 90px; }
.across td.best { font-weight: 700; } .across td.best .soft { font-weight: 400; } .across .remark { min-width: 260px; }
.across tbody td { font-variant-numeric: tabular-nums; }
.pairs { grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); margin-bottom: 22px; }
.pairs figcaption { margin: 0 0 8px; }
.parts { display: flex; height: 18px; gap: 1px; border-radius: 5px; overflow: hidden; margin: 0 0 8px; }
.parts span { flex: 0 0 0; background: currentColor; }
@media (max-width: 640px) {
  .across .remark { display: none; } .across th { white-space: normal; overflow-wrap: anywhere; }
  .across th, .across td { padding: 6px 8px; font-size: 13px; min-width: 0; }
  .metrics thead { display: none; } .metrics tr { display: grid; grid-template-columns: 1fr auto; padding: 8px 13px; }
  .metrics tr > * { padding: 0; border: 0; } .metrics td.number { text-align: right; }
  .metrics tr + tr { border-top: 1px solid var(--rule); }
  .metrics td:nth-child(3), .metrics td:nth-child(4) { grid-column: 1 / -1; font-size: 13px; }
  .metrics td:nth-child(3):not(:empty)::before { content: "reference "; color: var(--soft); }
  .config .soft { display: none; } .config td, .config th { padding: 4px 8px; }
  .config td:nth-child(2) { min-width: 112px; }
  svg text, svg .axis { font-size: 14px; } svg .band text { font-size: 11.5px; } }
"""
    + chart_hover.STYLE
    + "".join(
        f".c{i} {{ stroke: var(--c{i}); }} circle.c{i} {{ fill: var(--c{i}); }} "
        f".key.c{i}::before {{ background: var(--c{i}); }} .parts .c{i} {{ color: var(--c{i}); }}\n"
        for i in range(6)
    )
)
"""The style sheet of every page."""


def page_html(title: str, body: str) -> str:
    """Put `body` (HTML) into a whole HTML page; `title` is text. The page loads nothing from the network."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def section_html(heading: str, body: str) -> str:
    """Put a heading (text) above a part of the page; `body` is HTML."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def note_html(text: str) -> str:
    """A line of subdued text, e.g. to say what is missing."""
    return f'<p class="soft">{escape(text)}</p>'
