"""Which SQL of an agent is sent: what only reads declared tables, and nothing else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake.agents.refusals import CallError
from trilake.agents.statement import MAX_SQL, check_statement

TABLES = frozenset({"flights", "airports", "airlines", "planes"})

ANSWERED = {
    "SELECT 1": set(),
    "SELECT count() FROM flights FINAL SAMPLE 0.1": {"flights"},
    "SELECT a FROM flights LEFT ARRAY JOIN arr AS a": {"flights"},
    "EXPLAIN SELECT * FROM flights": {"flights"},
    "/* why */ EXPLAIN PIPELINE SELECT * FROM flights": {"flights"},
    "DESCRIBE flights": {"flights"},
    "DESC analytics.flights": {"flights"},
    "DESCRIBE TABLE (SELECT 1)": set(),
    "EXISTS TABLE flights": {"flights"},
    "EXISTS analytics.flights": {"flights"},
    "SELECT * FROM flights WHERE carrier IN airlines": {"flights", "airlines"},
    "SELECT count() FROM flights WHERE carrier NOT IN (airlines) AND dest IN ('JFK')": {"flights", "airlines"},
    "SELECT sum(number) FROM numbers(10)": set(),
    "SELECT * FROM values('a Int', 1)": set(),
    "WITH a AS (SELECT 1 AS x) SELECT * FROM a": set(),
    "WITH 1 AS x, (SELECT 2) AS y SELECT x, y": set(),
    "SELECT quantile(0.9)(x), ['a','b'][1] FROM analytics.flights AS f ANY LEFT JOIN airports a ON a.b = f.c": {
        "flights",
        "airports",
    },
    "(SELECT 1) UNION DISTINCT (SELECT 2)": set(),
    "FROM flights SELECT count()": {"flights"},
    "SELECT carrier, count() FROM flights GROUP BY ALL": {"flights"},
    "SELECT 1 WHERE (1, 2) GLOBAL NOT IN (SELECT carrier, faa FROM airports)": {"airports"},
    "SELECT COLUMNS('a.*'), * EXCEPT(x) FROM flights": {"flights"},
    "SELECT arrayMap(x -> x+1, [1]), countIf(a), argMax(a, b), map('a', 1)['a'], (1,2).2, a::Int64 FROM flights": {
        "flights"
    },
    "SELECT sum(c) OVER (ORDER BY m) FROM flights QUALIFY row_number() OVER (ORDER BY m) = 1": {"flights"},
    "SELECT 1 -- the end; really\n;": set(),
    "SELECT tailnum FROM flights WHERE dest = 'file()' OR dest = 'system.users; DROP TABLE x'": {"flights"},
}

REFUSED = {
    "not_a_query": [
        "DROP TABLE flights",
        "INSERT INTO flights SELECT * FROM flights",
        "SHOW PROCESSLIST",
        "SET readonly = 0",
        "USE system",
        "SYSTEM FLUSH LOGS",
        "CREATE TABLE x AS SELECT 1",
        "ALTER TABLE flights DELETE WHERE 1",
        "OPTIMIZE TABLE flights",
        "TRUNCATE TABLE flights",
        "GRANT ALL ON *.* TO x",
        "ATTACH TABLE x",
        "EXPLAIN EXPLAIN SELECT 1",
        "EXPLAIN DROP TABLE flights",
        "SELECT * FROM (DESCRIBE TABLE url('x'))",
    ],
    "not_parsed": ["KILL QUERY WHERE 1", "SELECT 1 INTO OUTFILE 'x'", "EXISTS DATABASE system", "SELEC 1", "SELECT ("],
    "table_function": [
        *(
            form.format(function)
            for function in ("file('/etc/passwd')", "url('http://x')", "s3('http://x')", "remote('h', system.one)")
            for form in (
                "SELECT * FROM {}",
                "DESCRIBE TABLE {}",
                "EXPLAIN SELECT * FROM {}",
                "SELECT (SELECT 1 FROM {})",
            )
        ),
        "SELECT * FROM merge('analytics', 'x')",
        "SELECT * FROM merge(REGEXP('.*'), '.*')",
        "SELECT * FROM view(SELECT * FROM system.users)",
        "SELECT * FROM cluster('trilake', system.one)",
        "SELECT * FROM executable('x', 'TSV', 'a String')",
        "SELECT * FROM loop(flights)",
        "SELECT * FROM flights UNION ALL SELECT * FROM mysql('h', 'd', 't', 'u', 'p')",
    ],
    "unknown_table": [
        "SELECT * FROM shard_1.flights_local",
        "SELECT * FROM flights_local",
        "SELECT * FROM flights_staging_0123456789ab_201302",
        "SELECT * FROM system.query_log",
        "SELECT * FROM `system`.`users`",
        'SELECT * FROM "system"."users"',
        "SELECT * FROM flights, system.one",
        "SELECT * FROM flights JOIN system.one ON 1",
        "SELECT * FROM flights WHERE carrier IN system.users",
        "SELECT * FROM flights WHERE carrier IN secrets",
        "SELECT 0 IN (system.one)",
        "SELECT 0 NOT IN ((system.one))",
        "SELECT 0 GLOBAL IN (secrets)",
        "SELECT * FROM flights WHERE EXISTS (SELECT 1 FROM system.one)",
        "WITH a AS (SELECT * FROM system.one) SELECT 1",
        "WITH flights AS (SELECT 1) SELECT * FROM system.flights",
        "DESCRIBE system.users",
        "EXISTS TABLE system.users",
        "EXPLAIN ESTIMATE SELECT * FROM system.one",
        "SELECT * FROM dictionary('d')",
    ],
    "function": [
        "SELECT file('/etc/passwd')",
        "SELECT dictGet('d', 'a', 1)",
        "SELECT joinGet('d', 'a', 1)",
        "SELECT globalIn(carrier, secret.t) FROM flights",
        "SELECT sleep(3)",
        "SELECT hostName()",
        "SELECT currentUser()",
        "SELECT user()",
        "SELECT getSetting('readonly')",
        "SELECT hasColumnInTable('system', 'one', 'dummy')",
    ],
    "clause": [
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT * FROM (SELECT 1 SETTINGS log_queries_min_type = 'EXCEPTION_WHILE_PROCESSING')",
        "SELECT 1 FORMAT JSON",
        "EXPLAIN SELECT 1 FORMAT TSV",
        "DESCRIBE flights SETTINGS describe_include_subcolumns = 1",
    ],
    "several_statements": ["SELECT 1; SELECT 2", "SELECT 1;; DROP TABLE flights"],
    "parameter": ["SELECT {x:String}", "SELECT * FROM {t:Identifier}"],
    "quotes": ["SELECT $$a$$", "SELECT \u2018a\u2019"],
    "comment": ["SELECT 1 # x", "SELECT 1 /* /* */ */", "SELECT 1 // x"],
    "no_statement": ["", " ;", "-- nothing"],
    "nul": ["SELECT 'a\0'"],
    "sql_too_long": [f"SELECT '{'x' * MAX_SQL}'"],
}


@pytest.mark.parametrize(("sql", "tables"), ANSWERED.items(), ids=list(ANSWERED))
def test_a_query_of_declared_tables_is_sent_as_it_is(sql: str, tables: set[str]) -> None:
    statement = check_statement(sql, TABLES)
    assert statement.tables == tables
    assert statement.sql == sql.rstrip(";").rstrip("\n") or sql.startswith(statement.sql)


@pytest.mark.parametrize(
    ("code", "sql"), [(code, sql) for code, statements in REFUSED.items() for sql in statements], ids=lambda x: x[:60]
)
def test_everything_else_is_refused_by_name_and_says_what_to_do(code: str, sql: str) -> None:
    with pytest.raises(CallError) as refused:
        check_statement(sql, TABLES)
    assert refused.value.code == code
    assert refused.value.hint
    assert not re.search(r"\x1b|<class", str(refused.value))


WORDS = [
    "SELECT",
    "*",
    "FROM",
    "flights",
    "system.one",
    "(",
    ")",
    ",",
    "IN",
    "WITH",
    "AS",
    "a",
    "1",
    "'x'",
    ";",
    "--",
    "/*",
    "*/",
    "JOIN",
    "url('x')",
    "SETTINGS",
    "=",
    "EXPLAIN",
    "DESCRIBE",
    "EXISTS",
    "`",
    '"',
    "{a:Int8}",
]


@given(st.text(max_size=200) | st.lists(st.sampled_from([*WORDS, "UNION ALL", "\n"]), max_size=25).map(" ".join))
def test_any_text_is_answered_or_refused_and_nothing_else(text: str) -> None:
    try:
        statement = check_statement(text, TABLES)
    except CallError:
        return
    assert statement.tables <= TABLES
    hidden = r"'[^']*'|--[^\n]*|/\*.*?\*/|`[^`]*`|\"[^\"]*\""
    assert "system.one" not in re.sub(hidden, "", statement.sql, flags=re.DOTALL)
