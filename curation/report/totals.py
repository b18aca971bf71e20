"""Totals of the report page: one DuckDB query each, with few rows whatever the corpus's size.

Every function takes a connection of `judged_corpus`, with `judged` (clips with decisions) and the other
tables, and returns plain rows. Seconds are clip durations; `kept` counts kept clips.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from uniavgen.curation.config import DuplicateConfig
from uniavgen.curation.duplicates.groups import DUPLICATE, find_duplicates
from uniavgen.curation.people.splits import LENGTH_S, NEITHER, PITCH_HZ, TRAIN, VAL
from uniavgen.curation.policy.decisions import BOTH_SIDES
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import duckdb

MAX_ROWS = 12
"""Rows of a table by language or speaker; all others share one more row. The constants here are heuristics.
"""

BAND_WIDTHS_S = (1, 2, 5, 10, 30, 60, 300)
"""Widths of clip length bands: the smallest that gives at most `MAX_BANDS` is used."""

MAX_BANDS = 14

AFTER_RULES = (DUPLICATE, BOTH_SIDES)
"""Reasons of rejected clips that pass every rule."""

_YIELD = """count(*) AS clips, sum(seconds) AS seconds, count(*) FILTER (kept) AS kept,
    coalesce(sum(seconds) FILTER (kept), 0) AS kept_seconds"""


def query_rows(connection: duckdb.DuckDBPyConnection, sql: str, **params: Any) -> list[dict[str, Any]]:
    """The rows of a query as dicts."""
    rows: list[dict[str, Any]] = connection.sql(sql, params=params or None).to_arrow_table().to_pylist()
    return rows


def query_totals(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The headline numbers. `passing` clips fail no rule; some of them are rejected for `AFTER_RULES`."""
    return query_rows(
        connection,
        """SELECT (SELECT count(*) FROM sources_table) AS sources,
        (SELECT count(*) FROM failures_table) AS failures,
        (SELECT coalesce(sum(duration_s), 0) FROM sources_table) AS source_seconds, count(*) AS clips,
        (SELECT clips FROM undecided) AS undecided,
        coalesce(sum(seconds), 0) AS clip_seconds, count(*) FILTER (kept) AS kept,
        coalesce(sum(seconds) FILTER (kept), 0) AS kept_seconds, count(*) FILTER (passes) AS passing,
        count(DISTINCT speaker) FILTER (kept AND speaker <> '') AS speakers,
        count(DISTINCT person) FILTER (kept AND person <> '') AS persons FROM judged""",
    )[0]


def query_after_rules(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Clips that pass every rule and are rejected: `reason`, `clips`, `seconds`."""
    return query_rows(
        connection,
        """SELECT reason, count(*) AS clips, sum(seconds) AS seconds FROM judged WHERE passes AND NOT kept
        GROUP BY reason ORDER BY reason""",
    )


def query_shares(connection: duckdb.DuckDBPyConnection, label: str, others: str) -> list[dict[str, Any]]:
    """Clips and seconds by the SQL expression `label`, most kept time first.

    Beyond `MAX_ROWS` one row has the rest, named `others` and marked with `several`.
    """
    rows = query_rows(
        connection,
        f"""WITH labels AS (SELECT {label} AS label, {_YIELD} FROM judged GROUP BY 1),
        ranked AS (SELECT *,
            row_number() OVER (ORDER BY kept_seconds DESC, seconds DESC, label) AS rank FROM labels)
        SELECT CASE WHEN rank <= {MAX_ROWS} THEN label END AS label, count(*) AS merged,
        sum(clips)::BIGINT AS clips, sum(seconds) AS seconds, sum(kept)::BIGINT AS kept,
        sum(kept_seconds) AS kept_seconds
        FROM ranked GROUP BY 1 ORDER BY min(rank)""",
    )
    return [
        row if row["label"] else row | {"label": f"{row['merged']} {others}", "several": True} for row in rows
    ]


def query_lengths(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Clips and seconds by clip length, in equal rising bands; the last includes all longer clips."""
    longest = connection.sql("SELECT coalesce(quantile_disc(seconds, 0.998), 0) FROM judged").fetchall()[0][0]
    width = next((width for width in BAND_WIDTHS_S if longest / width <= MAX_BANDS), BAND_WIDTHS_S[-1])
    last = min(MAX_BANDS - 1, int(longest / width))
    rows = query_rows(
        connection,
        f"""SELECT least({last}, floor(seconds / {width}))::INT AS band, {_YIELD}
        FROM judged GROUP BY 1 ORDER BY 1""",
    )
    open_end = connection.sql(
        f"SELECT count(*) > 0 FROM judged WHERE seconds >= {(last + 1) * width}"
    ).fetchall()[0][0]
    for row in rows:
        low = row.pop("band") * width
        ends = open_end and low == last * width
        row["label"] = f"{low} s and more" if ends else f"{low}–{low + width} s"
    return rows


def query_splits(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """`clips`, `seconds`, `speakers`, `persons` and `sources` of train, val and neither: kept clips, and for
    neither the clips rejected for being near both sides.

    Train and val have a row even if they are empty.
    """
    return query_rows(
        connection,
        f"""SELECT side AS split, count(clip_id) AS clips, coalesce(sum(seconds), 0) AS seconds,
        count(DISTINCT speaker) AS speakers, count(DISTINCT person) AS persons,
        count(DISTINCT source_id) AS sources
        FROM (VALUES ('{TRAIN}', 0), ('{VAL}', 1), ('{NEITHER}', 2)) AS sides(side, place)
        LEFT JOIN (SELECT * FROM judged WHERE kept OR reason = '{BOTH_SIDES}') ON split = side
        GROUP BY side, place HAVING place < 2 OR clips > 0 ORDER BY place""",
    )


def query_strata(connection: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Kept seconds in `train` and `val` by `axis` and `label`: language, band of voice pitch, band of clip
    length.

    Beyond `MAX_ROWS` one row has the rest.
    """
    axes = {
        "language": ("coalesce(nullif(language, ''), 'none')", "-sum(seconds)"),
        "voice pitch": (_band_label("pitch_hz", PITCH_HZ, "Hz"), "min(nullif(pitch_hz, 'NaN'))"),
        "clip length": (_band_label("seconds", LENGTH_S, "s"), "min(seconds)"),
    }
    queries = [
        f"""WITH every AS (SELECT {label} AS label, {order} AS rank,
            coalesce(sum(seconds) FILTER (split = '{TRAIN}'), 0) AS train,
            coalesce(sum(seconds) FILTER (split = '{VAL}'), 0) AS val FROM judged WHERE kept GROUP BY 1),
        placed AS (SELECT *, row_number() OVER (ORDER BY rank NULLS LAST, label) AS place FROM every),
        named AS (SELECT *, CASE WHEN place <= {MAX_ROWS} THEN label END AS name FROM placed)
        SELECT '{axis}' AS axis, coalesce(name, count(*) || ' others') AS label,
        sum(train) AS train, sum(val) AS val
        FROM named GROUP BY name ORDER BY min(place)"""
        for axis, (label, order) in axes.items()
    ]
    return [row for query in queries for row in query_rows(connection, query)]


def _band_label(column: str, bounds: tuple[float, ...], unit: str) -> str:
    """SQL of the label of a value's band."""
    names = [f"below {bounds[0]:g}", *(f"{low:g}–{high:g}" for low, high in pairwise(bounds))]
    whens = [
        f"WHEN {column} < {bound} THEN '{name} {unit}'" for name, bound in zip(names, bounds, strict=True)
    ]
    missing = f"{column} IS NULL OR isnan({column})"
    return (
        f"CASE WHEN {missing} THEN 'not measured' {' '.join(whens)} ELSE '{bounds[-1]:g} {unit} and more' END"
    )


def query_sources(
    connection: duckdb.DuckDBPyConnection, limit: int, pages: list[str]
) -> list[dict[str, Any]]:
    """Sources with their yield; those with a source page first."""
    return query_rows(
        connection,
        """SELECT s.source_id, s.uri, s.duration_s, s.width, s.height, s.fps, s.video_codec, s.audio_codec,
        s.error, len(list_distinct(list_transform(s.turns, lambda turn: turn.label))) AS speakers,
        len(s.shots) AS shots,
        count(j.clip_id) AS clips, count(*) FILTER (j.kept) AS kept,
        string_agg(DISTINCT nullif(j.reason, ''), ', ' ORDER BY nullif(j.reason, '')) AS reasons
        FROM sources_table s LEFT JOIN judged j USING (source_id) GROUP BY ALL
        ORDER BY list_contains($pages, any_value(s.source_id)) DESC, s.uri LIMIT $limit""",
        pages=pages,
        limit=limit,
    )


def query_duplicates(
    connection: duckdb.DuckDBPyConnection, corpus: Corpus, config: DuplicateConfig
) -> list[dict[str, Any]]:
    """Clips rejected as duplicates by `kind`: `clips`, `seconds`, `groups`, and one `example` pair with
    `clip_id`, `kept_clip`, `picture`, `sound`, `shared_s`, `mirrored`, `speed` (`find_duplicates`).

    Most seconds first.

    Pairs that `curate` stored are reused unless clips or the configuration changed.
    """
    if not query_rows(connection, f"SELECT 1 FROM judged WHERE reason = '{DUPLICATE}' LIMIT 1"):
        return []
    passing = connection.sql("SELECT clip_id, passes AS kept FROM judged").to_arrow_table()
    connection.register("duplicates_table", find_duplicates(corpus, passing, config))
    return query_rows(
        connection,
        f"""SELECT kind, count(*) AS clips, sum(seconds) AS seconds, count(DISTINCT kept_clip) AS groups,
        min_by({{'clip_id': clip_id, 'kept_clip': kept_clip, 'picture': picture, 'sound': sound,
        'shared_s': shared_s, 'mirrored': mirrored, 'speed': speed}}, clip_id) AS example
        FROM duplicates_table JOIN judged USING (clip_id)
        WHERE reason = '{DUPLICATE}' AND kept_clip <> clip_id
        GROUP BY kind ORDER BY seconds DESC, kind""",
    )
