"""The clips of a corpus with their decisions as one DuckDB table: what the report reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from uniavgen.curation.people.identities import stored_persons
from uniavgen.curation.policy.rules import Policy
from uniavgen.curation.policy.verdicts import columns_needed
from uniavgen.curation.report.totals import AFTER_RULES
from uniavgen.shards.corpus.schema import KEYS, schema
from uniavgen.shards.corpus.tables import Corpus

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

LARGE_COLUMNS = (
    "voice",
    "versions",
    "words",
    "video_hash",
    "sound_hash",
    "text_hash",
    "face",
    "sync_curve",
)
"""Columns of the clips table that no total needs. They would fill the memory."""


@contextmanager
def judged_corpus(
    corpus: Corpus, policy: Policy, decisions: pa.Table | None = None, other: pa.Table | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with three kinds of tables.

    `judged`: clips with their decisions, `person` (the person's name, else the speaker), `passes` (the clip
    passes every rule; duplicates and clips on both sides pass and are not kept), `seconds`, `uri` and
    `other`, without LARGE_COLUMNS. `undecided`: the number of clips without a decision. `<name>_table`: every
    other table of the corpus.

    `decisions`: by `policy`, instead of those of the corpus. `other`: `clip_id` and `kept` of the decisions
    to compare with; the column `other` is `kept` or `rejected`, or empty for a clip without one.
    """
    import duckdb
    import pyarrow as pa

    columns = {name: schema(name).names for name in KEYS}
    unread = set(LARGE_COLUMNS) - set(columns_needed(policy))
    columns["clips"] = [name for name in columns["clips"] if name not in unread]
    columns["sources"] = [name for name in columns["sources"] if name not in ("words", "passages")]
    persons = stored_persons(corpus)
    with duckdb.connect() as connection:
        table = pa.table(
            {"speaker": list(persons), "person": list(persons.values())},
            schema=pa.schema([(name, pa.string()) for name in ("speaker", "person")]),
        )
        connection.register("persons", table)
        no_decisions = pa.table({"clip_id": pa.array([], pa.string()), "kept": pa.array([], pa.bool_())})
        for name in KEYS:
            connection.register(f"{name}_table", corpus.read(name, columns[name]))
        if decisions is not None:
            connection.register("decisions_table", decisions)
        connection.register("other_table", no_decisions if other is None else other)
        connection.execute(
            """CREATE TEMP TABLE judged AS SELECT c.*, d.kept, d.reason, d.failed_rules, d.split,
            list_has_all($after, d.failed_rules) AS passes, c.end_s - c.start_s AS seconds,
            coalesce(s.uri, '') AS uri, coalesce(p.person, c.speaker, '') AS person,
            CASE WHEN o.kept THEN 'kept' WHEN NOT o.kept THEN 'rejected' ELSE '' END AS other
            FROM clips_table c JOIN decisions_table d USING (clip_id) LEFT JOIN other_table o USING (clip_id)
            LEFT JOIN sources_table s USING (source_id) LEFT JOIN persons p ON p.speaker = c.speaker""",
            {"after": list(AFTER_RULES)},
        )
        connection.execute(
            """CREATE TEMP TABLE undecided AS SELECT count(*) AS clips
            FROM (SELECT clip_id FROM clips_table EXCEPT SELECT clip_id FROM judged)"""
        )
        connection.unregister("clips_table")  # a second, large copy
        yield connection
