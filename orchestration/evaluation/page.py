"""The HTML page of `uniavgen evaluate`: scores with controls, published values, slices, and the videos sorted
by any score. It works offline.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from uniavgen.shards.atomic_files import replace_file

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px;
  margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; line-height: 1.25; } h2 { font-size: 1.15em; margin: 2em 0 0.3em; }
h3 { font-size: 1em; margin: 1.2em 0 0.2em; } p { max-width: 75ch; }
table { border-collapse: collapse; font-size: 0.9em; } th, td { padding: 0.25em 0.8em; text-align: left; }
th { border-bottom: 2px solid #ccc; font-weight: 600; vertical-align: bottom; }
td { border-bottom: 1px solid #eee; vertical-align: top; }
td:first-child, th:first-child { padding-left: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.soft { color: #6b6b6b; font-size: 0.87em; } .name { white-space: nowrap; }
.wide { overflow-x: auto; }
svg.scale { display: block; width: 190px; height: 26px; }
#sorting { display: flex; flex-wrap: wrap; gap: 0.5em 1em; align-items: center; margin: 0.6em 0; }
select { font: inherit; max-width: 100%; }
#videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1.2em 1em; }
#videos figure { margin: 0; min-width: 0; }
#videos video { width: 100%; background: #eee; border-radius: 4px; }
figcaption { font-size: 0.87em; overflow-wrap: anywhere; }
figcaption b { font-variant-numeric: tabular-nums; }
details table { font-size: 1em; } details td { padding: 0.05em 0.8em 0.05em 0; }
</style></head><body>
<h1>Evaluation: {{ summary.videos }} videos, protocol {{ summary.protocol }}</h1>
<p>Controls are {{ summary.real_clips }} real clips. Codec: real clips through the model's codecs (ceiling).
Disturbed and swapped: the same clips changed (floor). A metric that does not order real, disturbed
and swapped is not reported. Intervals: 95 % bootstrap over videos.</p>
<h2>Scores</h2>
{% if reported %}<p class="soft">In the scales, right is better. Blue: the score with its interval.
Ticks: <b>s</b>wapped, <b>d</b>isturbed, <b>c</b>odec, <b>r</b>eal.</p>
<div class="wide"><table><tr><th>metric</th><th class="n">score</th><th class="n">95 % interval</th>
<th class="n">n</th><th>beside its controls</th><th class="n">real</th><th class="n">codec</th>
<th class="n">disturbed</th><th class="n">swapped</th><th>unit</th></tr>
{% for s in reported %}<tr><td class="name"><b>{{ s.metric }}</b><br>
<span class="soft">{{ s.network }}</span></td>
<td class="n"><b>{{ s.score.value | number }}</b></td>
<td class="n">{% if s.score.low is not none %}{{ s.score.low | number }} to
{{ s.score.high | number }}{% endif %}</td>
<td class="n">{{ s.score.count }}</td><td>{{ s.scale | safe }}</td>
<td class="n">{{ s.controls.real | number }}</td>
<td class="n">{% if s.codec %}{{ s.codec.value | number }}{% endif %}</td>
<td class="n">{{ s.controls.disturbed | number }}</td>
<td class="n">{{ s.controls.swapped | number }}</td>
<td class="name">{{ s.unit }}<br><span class="soft">{{ s.better }} is better</span></td></tr>
{% endfor %}</table></div>{% else %}<p>No metric is reported.</p>{% endif %}
<h2>Not reported</h2>
<div class="wide"><table><tr><th>metric</th><th>why</th></tr>
{% for s in unordered %}<tr><td class="name">{{ s.metric }}</td>
<td>measured, but its controls are not ordered: {{ s.why_not }}</td></tr>
{% endfor %}{% for name, why in summary.not_measured.items() %}<tr><td class="name">{{ name }}</td>
<td>{{ why }}</td></tr>
{% endfor %}</table></div>
{% if published %}<h2>{{ published.title }} <span class="soft">({{ published.source }})</span></h2>
<p>{{ summary.comparison }}</p>
<div class="wide"><table><tr><th>method</th>
{% for column in columns %}<th class="n">{{ column }}</th>{% endfor %}</tr>
{% for method, values in published.rows.items() %}<tr><td class="name">{{ method }}</td>
{% for column in columns %}<td class="n">{{ values[column] | number }}</td>{% endfor %}</tr>{% endfor %}
<tr><td class="name"><b>these videos</b></td>
{% for column in columns %}<td class="n">{{ ours[column] | number or "-" }}</td>
{% endfor %}</tr></table></div>
{% else %}<p>{{ summary.comparison }}</p>{% endif %}
{% if slices %}<h2>By condition</h2>
<p class="soft">Value, and its 95 % interval below. Numbers are cut into bands of equal count.</p>
{% for condition, table in slices.items() %}<h3>{{ condition }}</h3>
<div class="wide"><table><tr><th>{{ condition }}</th><th class="n">n</th>
{% for metric in table.metrics %}<th class="n">{{ metric }}</th>{% endfor %}</tr>
{% for name, cells in table.rows.items() %}<tr><td class="name">{{ name }}</td>
<td class="n">{{ table.counts[name] }}</td>
{% for metric in table.metrics %}<td class="n">{% if metric in cells %}{{ cells[metric].value | number }}
{% if cells[metric].low is not none %}<br><span class="soft">{{ cells[metric].low | number }} to
{{ cells[metric].high | number }}</span>{% endif %}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table></div>{% endfor %}{% endif %}
{% if summary.errors %}<h2>Not measured in some videos</h2>
<div class="wide"><table><tr><th>video</th><th>level</th><th>meter</th><th>why</th></tr>
{% for e in summary.errors %}<tr><td>{{ e.video }}</td><td>{{ e.level }}</td>
<td class="name">{{ e.meter }}</td><td>{{ e.error }}</td></tr>{% endfor %}</table></div>{% endif %}
<h2>Videos</h2>
<div id="sorting"><label>sort by <select id="by"><option value="">name</option>
{% for metric in metrics %}<option>{{ metric }}</option>{% endfor %}</select></label>
<label><input type="checkbox" id="down"> high values first</label></div>
<div id="videos">
{% for v in videos %}<figure data-name="{{ v.name }}" data-scores="{{ v.scores | tojson | forceescape }}">
<video src="{{ v.src }}" controls preload="metadata"></video>
<figcaption>{{ v.name }} <b class="value"></b>
{% if v.transcript %}<br><span class="soft">heard: {{ v.transcript }}</span>{% endif %}
<details><summary class="soft">all scores</summary><table>
{% for metric in metrics %}<tr><td>{{ metric }}</td>
<td class="n">{{ v.scores.get(metric) | number }}</td></tr>
{% endfor %}</table></details></figcaption></figure>
{% endfor %}</div>
<script>
const by = document.getElementById("by"), down = document.getElementById("down");
const figures = [...document.querySelectorAll("#videos figure")].map(figure =>
  ({figure, name: figure.dataset.name, scores: JSON.parse(figure.dataset.scores)}));
function sortVideos() {
  const metric = by.value, sign = down.checked ? -1 : 1;
  figures.sort((a, b) => {
    if (!metric) return sign * a.name.localeCompare(b.name);
    const [x, y] = [a.scores[metric], b.scores[metric]];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (x - y);
  });
  for (const {figure, scores} of figures) {
    const value = scores[metric];
    figure.querySelector(".value").textContent = value === undefined ? "" : Number(value.toPrecision(4));
    figure.parentNode.append(figure);
  }
}
by.addEventListener("change", sortVideos);
down.addEventListener("change", sortVideos);
sortVideos();
document.documentElement.dataset.ready = "yes";
</script></body></html>
"""

SCALE_WIDTH, SCALE_MARGIN = 190.0, 12.0
TICKS = {"swapped": "s", "disturbed": "d", "codec": "c", "real": "r"}


def write_page(path: Path, summary: Mapping[str, Any], videos: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page of a summary and its videos (name, video, scores, transcript); returns its path."""
    from jinja2 import Environment

    from uniavgen.orchestration.evaluation.catalog import TABLES, comparable_columns

    environment = Environment(autoescape=True)
    environment.filters["number"] = format_number
    published = TABLES.get(summary["protocol"])
    reported = [{**score, "scale": draw_scale(score)} for score in summary["scores"] if score["reported"]]
    values = {score["metric"]: score["score"]["value"] for score in reported}
    ours = {column: values[name] for column, name in comparable_columns(list(values)).items()}
    html = environment.from_string(PAGE).render(
        summary=summary,
        reported=reported,
        unordered=[score for score in summary["scores"] if not score["reported"]],
        published=published,
        columns=list(next(iter(published.rows.values()))) if published else [],
        ours=ours,
        slices=slice_tables(summary["slices"]),
        metrics=[name for name in values if any(name in video["scores"] for video in videos)],
        videos=[{**video, "src": quote(os.path.relpath(video["video"], path.parent))} for video in videos],
    )
    replace_file(path, html.encode())
    return path


def slice_tables(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of condition, slice, metric and score as one table for each condition: metrics are columns."""
    tables: dict[str, dict[str, Any]] = {}
    for row in rows:
        table = tables.setdefault(row["condition"], {"metrics": [], "rows": {}, "counts": {}})
        if row["metric"] not in table["metrics"]:
            table["metrics"].append(row["metric"])
        table["rows"].setdefault(row["slice"], {})[row["metric"]] = row["score"]
        counts = table["counts"]
        counts[row["slice"]] = max(counts.get(row["slice"], 0), row["score"]["count"])
    return tables


def draw_scale(score: Mapping[str, Any]) -> str:
    """An SVG of a score with its interval beside its controls; right is better."""
    own = score["score"]
    marks = {**score["controls"], "codec": score["codec"]["value"] if score["codec"] else None}
    marks = {name: value for name, value in marks.items() if value is not None}
    low, high = (own[bound] if own[bound] is not None else own["value"] for bound in ("low", "high"))
    ends = [*marks.values(), low, high, own["value"]]
    first, span = min(ends), max(max(ends) - min(ends), 1e-12)

    def x(value: float) -> float:
        share = (value - first) / span
        share = share if score["better"] == "higher" else 1 - share
        return SCALE_MARGIN + share * (SCALE_WIDTH - 2 * SCALE_MARGIN)

    left, right = sorted((x(low), x(high)))
    parts = [f'<line x1="{SCALE_MARGIN}" x2="{SCALE_WIDTH - SCALE_MARGIN}" y1="8" y2="8" stroke="#ccc"/>']
    parts.append(f'<line x1="{left:.1f}" x2="{right:.1f}" y1="8" y2="8" stroke="#6fa3dc" stroke-width="4"/>')
    for name, value in marks.items():
        at = f"{x(value):.1f}"
        parts.append(f'<line x1="{at}" x2="{at}" y1="3" y2="13" stroke="#555"/>')
        parts.append(
            f'<text x="{at}" y="24" text-anchor="middle" font-size="11" fill="#555">{TICKS[name]}</text>'
        )
    parts.append(f'<circle cx="{x(own["value"]):.1f}" cy="8" r="4.5" fill="#1f5fa8"/>')
    label = f"score {format_number(own['value'])}; " + ", ".join(
        f"{name} {format_number(value)}" for name, value in marks.items()
    )
    return f'<svg class="scale" viewBox="0 0 190 26" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def format_number(value: Any) -> str:
    """Four significant digits; "" for nothing."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""
