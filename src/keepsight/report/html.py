"""The report as one HTML page without scripts or outside files. All text is escaped: labels and names are a user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from keepsight.core import Result
from keepsight.core.files import write_text
from keepsight.report.summary import (
    Row,
    caption,
    cells,
    headings,
    is_of_class,
    main_metric,
    main_name,
    percent,
    rows,
)

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0; --mark: #0b6bcb; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaef; --soft: #9aa5b1; --line: #3a424c; --mark: #6cb2ff; --page: #15191e; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
p, figcaption { color: var(--soft); }
p.main { color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: .85rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
tr.chosen td { font-weight: 600; }
tr.chosen td:first-child { color: var(--mark); }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); padding: .8rem; }
figure { margin: 1rem 0; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
"""
"""Of every page: light or dark as the reader's system."""


def _picture(table: Sequence[Row], recommended: str | None, name: str) -> str:
    """Test error (or mAP) with its interval, one line a method, as SVG."""
    shown = [
        (r, r.value, r.low, r.high) for r in table if r.value is not None and r.low is not None and r.high is not None
    ]
    if not shown:
        return ""
    left, width, height = 170, 560, 30
    top = max(high for _, _, _, high in shown) * 1.05 or 0.01
    step = next(s for s in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if top / s <= 8)

    def x(value: float) -> float:
        return left + width * value / top

    parts = []
    for i in range(int(top / step) + 1):
        parts.append(
            f'<line x1="{x(i * step):.1f}" x2="{x(i * step):.1f}" y1="0" y2="{height * len(shown)}" stroke="var(--line)"/>'
            f'<text x="{x(i * step):.1f}" y="{height * len(shown) + 18}" text-anchor="middle">{100 * i * step:g}</text>'
        )
    for i, (row, value, low, high) in enumerate(shown):
        y, colour = height * (i + 0.5), "var(--mark)" if row.method == recommended else "var(--ink)"
        parts.append(
            f'<text x="{left - 10}" y="{y + 4:.0f}" text-anchor="end">{escape(row.method)}</text>'
            f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x(value):.1f}" cy="{y}" r="4.5" fill="{colour}"/>'
        )
    return (
        f'<figure><svg viewBox="0 0 {left + width + 30} {height * len(shown) + 26}" role="img" '
        f'aria-label="Test {name} and interval by method">{"".join(parts)}</svg>'
        f"<figcaption>Test {name} in per cent ({'lower' if name == 'error' else 'higher'} is better) with its 95 % interval; the "
        "recommended method in blue."
        "</figcaption></figure>"
    )


def _metrics(results: Sequence[Result]) -> str:
    """Table of all test metrics, one row a method."""
    tests = [r for r in results if r.split == "test" and r.seed is None and r.metric != main_metric(results)]
    summaries = [r for r in tests if not is_of_class(r.metric)]
    if not summaries:
        return ""
    names = list(dict.fromkeys(r.metric for r in summaries))
    head = "".join(f"<th>{escape(n.replace('_', ' '))} %</th>" for n in names)
    body = ""
    for method in dict.fromkeys(r.method for r in summaries):
        of = {r.metric: r for r in summaries if r.method == method}
        texts = [f"{percent(of[n].value)} [{percent(of[n].ci_low)}, {percent(of[n].ci_high)}]" for n in names]
        body += f"<tr><td>{escape(method)}</td>{''.join(f'<td>{t}</td>' for t in texts)}</tr>"
    return f'<h2>Other metrics on the test images</h2><div class="scroll"><table><tr><th>method</th>{head}</tr>{body}</table></div>'


def _classes(results: Sequence[Result]) -> str:
    """Table of the average precision of every class, one column a method; multi-label data alone has it."""
    of = {(r.metric, r.method): r for r in results if r.split == "test" and r.seed is None and is_of_class(r.metric)}
    if not of:
        return ""
    metrics, methods = (list(dict.fromkeys(key[i] for key in of)) for i in (0, 1))
    body = ""
    for metric in metrics:
        found = [of.get((metric, method)) for method in methods]
        texts = [f"{percent(r.value)} [{percent(r.ci_low)}, {percent(r.ci_high)}]" if r else "-" for r in found]
        body += f"<tr><td>{escape(metric[3:-1])}</td>{''.join(f'<td>{t}</td>' for t in texts)}</tr>"
    head = "".join(f"<th>{escape(m)} %</th>" for m in methods)
    return f'<h2>Average precision of each class</h2><div class="scroll"><table><tr><th>class</th>{head}</tr>{body}</table></div>'


def write_html(
    path: Path, title: str, results: Sequence[Result], recommended: str | None, why: str, notes: Mapping[str, str]
) -> None:
    """Write the page.

    Args:
        path: Where to.
        title: Name of the data set.
        results: All records of the run.
        recommended: The recommended method, marked in table and picture.
        why: The sentence that says why.
        notes: Heading -> preformatted text at the end (configuration, environment).
    """
    table = rows(results)
    head = "".join(f"<th>{escape(h)}</th>" for h in headings(results))
    body = "".join(
        f'<tr class="{"chosen" if r.method == recommended else ""}">{"".join(f"<td>{escape(t)}</td>" for t in cells(r))}</tr>'
        for r in table
    )
    end = "".join(f"<h2>{escape(heading)}</h2><pre>{escape(text)}</pre>" for heading, text in notes.items())
    name = escape(title)
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>keepsight: {name}</title><style>{STYLE}</style></head><body>"
        f'<h1>{name}</h1><p>{escape(caption(results))}</p><p class="main">{escape(why)}</p>'
        f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>{_picture(table, recommended, main_name(results))}'
        f"<p>Seconds and peak memory are those of one seed: fitting and predicting, without the features, which are computed "
        f"once and shared. No choice was made on test images.</p>{_metrics(results)}{_classes(results)}{end}</body></html>\n",
    )
