"""The HTML page of `uniavgen ablate`: measured values beside the paper's, and verdicts. It works offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniavgen.shards.atomic_files import replace_file

SHOWN = {"sync": "LS", "timbre": "TC", "expression": "EC"}
"""Drawn measures -> the measure of the paper that each corresponds to."""

MEASURED, SEED, PAPER, LEVEL = "#1f5fa8", "#6fa3dc", "#b5651d", "#999999"

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Ablations on the synthetic data set</title>
<style>
body {
  font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em;
}
h1 { font-size: 1.6em; } h2 { font-size: 1.15em; margin: 2em 0 0.3em; }
table { border-collapse: collapse; font-size: 0.9em; } th, td { padding: 0.2em 0.8em; text-align: left; }
th { border-bottom: 2px solid #ccc; } td { border-bottom: 1px solid #eee; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.reproduced { color: #1a7f37; font-weight: 600; } .reversed { color: #b42318; font-weight: 600; }
.undecided { color: #777; }
</style></head><body>
<h1>Ablations on the synthetic data set</h1>
<p>The paper reports {{ total }} orders between two rows of a table.
Here: {{ counts }}, over {{ seeds }} seeds.
Dots are seeds. Diamonds are their means, with the 95 % interval of Student's t.
Dotted lines are reference levels: unrelated video and audio (left), the law of the data set (right).
Measured and published values are on different scales: compare orders, not numbers.
If no row were better than another, about {{ chance }} comparisons would still count as reproduced.</p>
{% for figure in figures %}<h2>{{ figure.title }}</h2>{{ figure.html }}
{% endfor %}
<h2>Orders</h2>
<table><tr><th>table</th><th>measure</th><th>better</th><th>worse</th><th class="n">paper</th>
<th class="n">measured difference</th><th class="n">confidence</th><th>verdict</th></tr>
{% for v in verdicts %}<tr><td>{{ v.table }}</td><td>{{ v.role }}</td>
<td>{{ v.better }}</td><td>{{ v.worse }}</td><td class="n">{{ v.paper }}</td>
<td class="n">{{ v.measured }}</td><td class="n">{{ "%.3f" % v.confidence }}</td>
<td class="{{ v.judgement }}">{{ v.judgement }}</td></tr>
{% endfor %}</table>
</body></html>
"""


def write_page(path: Path, summary: dict[str, Any]) -> Path:
    """Draw every table, write the page, and return its path."""
    from jinja2 import Environment

    figures = [
        {"title": table["title"], "html": draw_table(table, summary["levels"], first=number == 0)}
        for number, table in enumerate(summary["tables"])
    ]
    verdicts = [
        {
            **verdict,
            "paper": "best"
            if None in verdict["paper"]
            else " > ".join(f"{value:g}" for value in verdict["paper"]),
            "measured": "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**verdict["difference"]),
        }
        for verdict in summary["verdicts"]
    ]
    page = Environment(autoescape=False).from_string(PAGE)
    html = page.render(
        counts=", ".join(f"{count} {name}" for name, count in summary["judgements"].items()),
        total=len(verdicts),
        seeds=summary["seeds"],
        chance=f"{0.05 * len(verdicts):.0f}",
        figures=figures,
        verdicts=verdicts,
    )
    replace_file(path, html.encode())
    return path


def draw_table(table: dict[str, Any], levels: dict[str, dict[str, float]], *, first: bool) -> str:
    """One table as HTML: measured values in the upper panels, the paper's below if it gives any.

    Only the `first` one includes plotly's JavaScript.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    published = any(row["paper"] for row in table["rows"])
    titles = [f"{name} (corresponds to {role})" for name, role in SHOWN.items()]
    titles += [f"paper: {role}" for role in SHOWN.values()] if published else []
    figure = make_subplots(
        rows=2 if published else 1,
        cols=3,
        shared_yaxes=True,
        subplot_titles=titles,
        vertical_spacing=0.18,
        horizontal_spacing=0.04,
    )
    names = [row["row"] for row in table["rows"]]
    for column, (measure, role) in enumerate(SHOWN.items(), start=1):
        for row in table["rows"]:
            dots = [seed[measure] for seed in row["seeds"]]
            figure.add_trace(
                go.Scatter(
                    x=dots, y=[row["row"]] * len(dots), mode="markers", marker={"color": SEED, "size": 8}
                ),
                1,
                column,
            )
        intervals = [row["measures"][measure] for row in table["rows"]]
        means = [entry["mean"] for entry in intervals]
        half = [entry["high"] - entry["mean"] for entry in intervals]
        marker = {"color": MEASURED, "size": 10, "symbol": "diamond"}
        bars = {"type": "data", "array": half, "color": MEASURED}
        figure.add_trace(go.Scatter(x=means, y=names, mode="markers", marker=marker, error_x=bars), 1, column)
        for level in levels.values():
            figure.add_vline(x=level[measure], line={"dash": "dot", "color": LEVEL}, row=1, col=column)
        values = [seed[measure] for row in table["rows"] for seed in row["seeds"]]
        figure.update_xaxes(range=axis_range(values), row=1, col=column)
        if published:
            published_values = [row["paper"].get(role) for row in table["rows"]]
            marker = {"color": PAPER, "size": 10, "symbol": "diamond"}
            figure.add_trace(
                go.Scatter(x=published_values, y=names, mode="markers", marker=marker), 2, column
            )
    figure.update_yaxes(autorange="reversed")
    height = (150 + 34 * len(names)) * (2 if published else 1)
    figure.update_layout(
        showlegend=False, height=height, template="plotly_white", margin={"l": 10, "r": 10, "t": 40, "b": 10}
    )
    return str(figure.to_html(full_html=False, include_plotlyjs=first, config={"displayModeBar": False}))


def axis_range(values: list[float]) -> list[float]:
    """Range of an axis that shows 0, 1 and every value."""
    return [min(-0.05, *values) - 0.02, max(1.05, *values) + 0.02]
