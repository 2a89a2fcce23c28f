"""Which Spark SQL an agent may run. Spark's own parser reads each statement; nothing is run."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from trilake.spark.readonly import FUNCTIONS, REFUSED_FUNCTIONS, TABLE_FUNCTIONS, QueryRefusedError, check_query

TABLES = ("flights", "planes", "weather")

ALLOWED = [
    "SELECT count(*) FROM lake.curated.flights",
    "SELECT count(*) FROM curated.flights;",
    "TABLE flights",
    "SELECT 1",
    "VALUES (1, DATE '2013-01-02'), (2, CAST('2013-01-01' AS DATE))",
    "SELECT * FROM VALUES (1, upper('x')) AS t(a, b)",
    "SELECT * FROM flights VERSION AS OF 8744736658442914487",
    "SELECT * FROM flights FOR SYSTEM_TIME AS OF '2026-01-01'",
    "SELECT carrier, avg(arr_delay) AS d FROM flights GROUP BY carrier HAVING d > 1 ORDER BY 2 DESC NULLS LAST LIMIT 3",
    "SELECT * FROM flights LIMIT 3 OFFSET 2",
    "SELECT DISTINCT f.* EXCEPT (year) FROM flights f",
    "WITH f AS (SELECT * FROM flights), g AS (SELECT * FROM f) SELECT * FROM g UNION ALL SELECT * FROM f",
    "WITH f(a) AS (SELECT 1) SELECT * FROM F",
    "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT * FROM t",
    "SELECT * FROM (WITH f AS (SELECT 1) SELECT * FROM f)",
    "SELECT * FROM flights WHERE tailnum NOT IN (SELECT tailnum FROM planes) AND EXISTS (SELECT 1 FROM planes)",
    "SELECT (SELECT max(seats) FROM planes), (a, b) IN (SELECT 1, 2) FROM flights",
    "SELECT * FROM flights NATURAL JOIN weather",
    "SELECT * FROM flights f LEFT JOIN planes p USING (tailnum) CROSS JOIN weather",
    "SELECT * FROM flights f FULL OUTER JOIN planes p ON f.tailnum = p.tailnum LEFT ANTI JOIN weather ON true",
    "SELECT * FROM flights, LATERAL (SELECT * FROM planes WHERE planes.tailnum = flights.tailnum)",
    "SELECT * FROM flights INTERSECT SELECT * FROM flights EXCEPT SELECT * FROM flights MINUS SELECT * FROM flights",
    "SELECT sum(x) OVER w, rank() OVER (PARTITION BY a ORDER BY b) FROM flights WINDOW w AS (PARTITION BY c ORDER BY d "
    "ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)",
    "SELECT avg(x) OVER (ORDER BY d RANGE BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) FROM flights",
    "SELECT * FROM flights PIVOT (sum(distance) FOR month IN (1, 2))",
    "SELECT * FROM flights UNPIVOT (v FOR k IN (a, b))",
    "SELECT explode(array(1, 2)), posexplode(a) AS (p, q) FROM flights",
    "SELECT * FROM flights LATERAL VIEW OUTER explode(a) t AS x LATERAL VIEW stack(2, 1, 2) AS y",
    "SELECT * FROM flights TABLESAMPLE (10 PERCENT) REPEATABLE (1)",
    "SELECT * FROM explode(array(1, 2)) AS t(x)",
    "SELECT a, sum(b) FROM flights GROUP BY ROLLUP(a, c)",
    "SELECT a, sum(b), grouping(a) FROM flights GROUP BY GROUPING SETS ((a), ()) ORDER BY ALL",
    "SELECT a, b, sum(c) FROM flights GROUP BY CUBE(a, b)",
    "FROM flights |> WHERE month > 1 |> AGGREGATE count(*) GROUP BY carrier |> ORDER BY carrier |> LIMIT 3",
    "SELECT CAST(a AS INT), a::bigint, try_cast(a AS date), CASE a WHEN 1 THEN 'x' ELSE 'y' END FROM flights",
    "SELECT a LIKE 'x%', a NOT ILIKE ANY ('x', 'y'), a LIKE ALL ('x'), a RLIKE 'y', a BETWEEN 1 AND 2 FROM flights",
    "SELECT a IS NOT NULL, a IS DISTINCT FROM b, a <=> b, NOT a, -a, ~a, a % b, a DIV b, a ^ b & c | d FROM flights",
    "SELECT a || b, a[0], a.b.c, named_struct('x', 1).x, struct(*), map('k', 1)['k'], a IS TRUE FROM flights",
    "SELECT transform(a, x -> x + 1), aggregate(a, 0, (x, y) -> x + y), filter(a, (x, i) -> i > 0) FROM flights",
    "SELECT extract(YEAR FROM d), trim(BOTH 'x' FROM a), position('a' IN b), substring(a FROM 1) FROM flights",
    "SELECT overlay(a PLACING 'x' FROM 1), timestampdiff(HOUR, d, e) FROM flights",
    "SELECT current_date, CURRENT_TIMESTAMP, now(), INTERVAL 1 DAY, DATE '2013-01-01', TIMESTAMP '2013-01-01 00:00:00'",
    "SELECT count(DISTINCT a), count(*) FILTER (WHERE b), first(a IGNORE NULLS), any_value(a) FROM flights",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a DESC) FROM flights",
    "SELECT /*+ BROADCAST(p), COALESCE(2) */ * FROM flights f JOIN planes p USING (tailnum)",
    "SELECT * FROM flights DISTRIBUTE BY a SORT BY b",
    "SELECT a COLLATE UTF8_LCASE, lpad('x', 3), from_json(a, 'x INT'), get_json_object(a, '$.x') FROM flights",
    "SELECT flights.user FROM flights",
    "SELECT 'DROP TABLE x; $(X) INSERT', `count` FROM flights -- reflect(",
    "SELECT " + " + ".join(["1"] * 300),
    "SELECT " + "(" * 100 + "1" + ")" * 100,
]

REFUSED = [
    # other statements
    "DROP TABLE flights",
    "INSERT INTO flights SELECT 1",
    "INSERT OVERWRITE DIRECTORY '/tmp/x' USING csv SELECT 1",
    "FROM flights INSERT INTO planes SELECT * INSERT INTO weather SELECT *",
    "DELETE FROM flights",
    "UPDATE flights SET a = 1",
    "MERGE INTO flights USING planes ON true WHEN MATCHED THEN DELETE",
    "CREATE TABLE x AS SELECT 1",
    "TRUNCATE TABLE flights",
    "CREATE TEMPORARY VIEW v AS SELECT 1",
    "CREATE TEMPORARY VIEW v USING csv OPTIONS (path '/etc/passwd')",
    "CREATE FUNCTION f AS 'java.lang.Runtime' USING JAR 's3a://x/y.jar'",
    "CREATE TEMPORARY FUNCTION f() RETURNS INT RETURN 1",
    "ADD JAR 's3a://exports/agents/ada/x.jar'",
    "ADD FILE '/etc/passwd'",
    "LIST JARS",
    "CALL lake.system.expire_snapshots('curated.flights')",
    "SET spark.sql.variable.substitute = true",
    "SET -v",
    "RESET",
    "SHOW TABLES IN lake.curated",
    "SHOW CREATE TABLE flights",
    "DESCRIBE flights",
    "EXPLAIN SELECT 1",
    "EXPLAIN DROP TABLE x",
    "USE lake.curated",
    "CACHE TABLE flights",
    "REFRESH '/x'",
    "ANALYZE TABLE flights COMPUTE STATISTICS",
    "ALTER TABLE flights ADD COLUMN x INT",
    "LOAD DATA INPATH '/x' INTO TABLE flights",
    "DECLARE x INT",
    "EXECUTE IMMEDIATE 'SELECT 1'",
    "BEGIN SELECT 1; END",
    "BEGIN DROP TABLE x; END",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE flights",
    "dfs -ls /",
    "",
    ";",
    "SELECT",
    # programs
    "SELECT TRANSFORM(a) USING 'sh -c id' AS (b) FROM flights",
    "MAP a USING 'sh' FROM flights",
    "FROM flights REDUCE a USING 'sh'",
    "SELECT * FROM (SELECT TRANSFORM(a) USING 'sh' FROM flights)",
    "WITH x AS (SELECT TRANSFORM(a) USING 'sh' FROM flights) SELECT 1",
    "SELECT 1 WHERE EXISTS (SELECT TRANSFORM(a) USING 'sh' FROM flights)",
    # functions
    "SELECT reflect('java.lang.System', 'getenv')",
    "SELECT java_method('java.lang.Runtime', 'getRuntime')",
    "SELECT REFLECT('a', 'b')",
    "SELECT try_reflect('a', 'b')",
    "SELECT system.builtin.reflect('a', 'b')",
    "SELECT `reflect`('a', 'b')",
    "SELECT f(1)",
    "SELECT 1 ORDER BY reflect('a', 'b')",
    "SELECT transform(array(1), x -> reflect('a', 'b'))",
    "SELECT CASE WHEN reflect('a', 'b') THEN 1 END",
    "SELECT * FROM VALUES (reflect('a', 'b'))",
    "SELECT sum(1) FILTER (WHERE reflect('a', 'b'))",
    "SELECT sum(a) OVER (ORDER BY reflect('a', 'b'))",
    "SELECT sum(a) OVER w FROM flights WINDOW w AS (ORDER BY reflect('a', 'b'))",
    "SELECT (SELECT reflect('a', 'b'))",
    "SELECT 1 IN (SELECT reflect('a', 'b'))",
    "SELECT * FROM flights PIVOT (sum(a) FOR b IN (reflect('a', 'b')))",
    "SELECT * FROM flights JOIN planes ON reflect('a', 'b')",
    "SELECT * FROM range(reflect('a', 'b'))",
    "SELECT /*+ COALESCE(reflect('a')) */ 1",
    "SELECT 1 LIMIT reflect('a', 'b')",
    "SELECT * FROM flights LATERAL VIEW explode(reflect('a', 'b')) t AS x",
    "SELECT * FROM flights LATERAL VIEW f(1) t AS x",
    "SELECT * FROM flights TIMESTAMP AS OF reflect('a', 'b')",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY reflect('a', 'b'))",
    "SELECT a, sum(b) FROM flights GROUP BY GROUPING SETS ((reflect('a', 'b')), ())",
    "SELECT struct(reflect('a', 'b'))[0]",
    "SELECT identifier('reflect')('a', 'b')",
    "SELECT identifier(:x)",
    "SELECT :x",
    "SELECT ?",
    "SELECT lake.system.bucket(2, a) FROM flights",
    "SELECT from_protobuf(a, 'X', '/etc/passwd') FROM flights",
    "SELECT from_xml(a, 'b INT', map('rowValidationXSDPath', '/etc/passwd')) FROM flights",
    "SELECT input_file_name() FROM flights",
    "SELECT current_user()",
    "SELECT current_user",
    "SELECT USER",
    "SELECT session_user",
    "SELECT version()",
    "SELECT current_catalog()",
    "SELECT xpath('<a/>', 'a')",
    # relations
    "SELECT * FROM csv.`s3a://raw/flights`",
    "SELECT * FROM parquet.`/etc`",
    "SELECT * FROM text.`file:///proc/self/environ`",
    "SELECT * FROM lake.`s3a://lake/curated/flights`",
    "SELECT * FROM `s3a://lake/curated/flights`",
    "SELECT * FROM lake.curated.airlines",
    "SELECT * FROM airlines",
    "SELECT * FROM lake.quarantine.flights",
    "SELECT * FROM quarantine.flights",
    "SELECT * FROM lake.curated.flights.files",
    "SELECT * FROM lake.curated.flights.history",
    "SELECT * FROM flights.snapshots",
    "SELECT * FROM spark_catalog.curated.flights",
    "SELECT * FROM global_temp.flights",
    "SELECT * FROM curated.curated.flights",
    "SELECT * FROM other.flights",
    "SELECT * FROM STREAM flights",
    "SELECT * FROM flights WITH (`snapshot-id` = 1)",
    "SELECT * FROM identifier('lake.curated.flights')",
    "TABLE lake.quarantine.flights",
    "SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x) JOIN x",
    "WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a",
    "WITH x AS (SELECT * FROM x) SELECT * FROM x",
    "SELECT 1 WHERE 1 IN (SELECT a FROM secrets)",
    "SELECT (SELECT max(a) FROM secrets)",
    "SELECT * FROM flights, LATERAL (SELECT * FROM secrets)",
    "SELECT * FROM secrets VERSION AS OF 1",
    # table functions
    "SELECT * FROM python_worker_logs()",
    "SELECT * FROM sql_keywords()",
    "SELECT * FROM f(TABLE(flights))",
    "SELECT * FROM collations()",
    # settings in the text
    "SELECT '${spark.hadoop.fs.s3a.secret.key}'",
    "SELECT '${env:AIRFLOW_CONN_AWS_DEFAULT}'",
    "SELECT 1 AS `${system:user.name}`",
    "SELECT /*+ SLEEP(1) */ 1",
    "SELECT '" + "x" * 20_000 + "'",
]


@pytest.mark.parametrize("sql", ALLOWED, ids=lambda sql: sql[:60])
def test_a_query_of_declared_tables_is_allowed(spark: SparkSession, sql: str) -> None:
    check_query(spark, sql, TABLES)


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: sql[:60])
def test_what_does_more_than_read_declared_tables_is_refused_and_told_what_to_do(spark: SparkSession, sql: str) -> None:
    with pytest.raises(QueryRefusedError) as refused:
        check_query(spark, sql, TABLES)
    assert refused.value.hint
    assert len(str(refused.value)) < 1000


def test_each_function_of_spark_is_listed_as_allowed_or_as_refused(spark: SparkSession) -> None:
    known = {function.name for function in spark.catalog.listFunctions()}
    assert not FUNCTIONS & REFUSED_FUNCTIONS
    assert known == FUNCTIONS | REFUSED_FUNCTIONS
    assert TABLE_FUNCTIONS <= FUNCTIONS


_PLACES = [
    "SELECT {} FROM flights",
    "SELECT a FROM flights WHERE {} = 1",
    "SELECT {} AS x FROM flights GROUP BY {}",
    "SELECT a FROM flights ORDER BY {}",
    "SELECT coalesce(1, {})",
    "SELECT array(1, {})[0]",
    "SELECT CASE WHEN a THEN {} END FROM flights",
    "SELECT sum({}) OVER (PARTITION BY {})",
    "SELECT * FROM (SELECT {} AS y)",
    "WITH x AS (SELECT {}) SELECT 1",
    "SELECT 1 IN (SELECT {})",
    "SELECT transform(a, x -> {}) FROM flights",
    "SELECT CAST({} AS STRING)",
    "SELECT * FROM planes JOIN flights ON {}",
    "SELECT {} UNION ALL SELECT {}",
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["coalesce(1, {})", "array(1, {})[0]", "(SELECT {})", "upper({})", "abs(-({}))"]), max_size=4
    ),
    st.sampled_from(_PLACES),
)
def test_a_refused_function_is_found_at_each_place_and_depth(
    spark: SparkSession, inside: list[str], place: str
) -> None:
    def put(text: str) -> str:
        for form in inside:
            text = form.replace("{}", text)
        return place.replace("{}", text)

    check_query(spark, put("lower('x')"), TABLES)
    with pytest.raises(QueryRefusedError, match="reflect"):
        check_query(spark, put("reflect('x', 'y')"), TABLES)
