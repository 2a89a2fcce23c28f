"""Which Spark SQL an agent may run: one query that only reads curated tables of declared data sets.

Spark SQL is code: it has TRANSFORM, which starts a program, functions that call any method of Java, and relations that
are paths. So Spark's own parser reads the text, and every object of the plan that it makes is compared with what is
allowed: nodes, expressions, relations and functions. What is not listed here is refused, so a later Spark does not give
an agent more by itself. Nothing is analysed or run before.

This is the first of two checks. On the hosts, the second one is the job's rights: its identity at S3 and its user of
PostgreSQL can read the lake, and write one prefix of bucket ``exports``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from trilake.errors import TrilakeError
from trilake.lake.catalog import CATALOG
from trilake.lake.data_set import CURATED_NAMESPACE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

MAX_SQL = 20_000  # characters


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Functions of Spark that work on their arguments alone. The test of this module holds this list and the next one
# against Spark's registry, so a function that a later Spark brings has to be put into one of them.
FUNCTIONS = _words(
    """
    abs acos acosh add_months aes_decrypt aes_encrypt aggregate and any any_value approx_count_distinct
    approx_percentile approx_top_k approx_top_k_accumulate approx_top_k_combine approx_top_k_estimate array
    array_agg array_append array_compact array_contains array_distinct array_except array_insert array_intersect
    array_join array_max array_min array_position array_prepend array_remove array_repeat array_size array_sort
    array_union arrays_overlap arrays_zip ascii asin asinh assert_true atan atan2 atanh avg base64 between bigint
    bin binary bit_and bit_count bit_get bit_length bit_or bit_xor bitmap_and_agg bitmap_bit_position
    bitmap_bucket_number bitmap_construct_agg bitmap_count bitmap_or_agg bool_and bool_or boolean bround btrim
    cardinality case cast cbrt ceil ceiling char char_length character_length chr coalesce collate collation
    collect_list collect_set concat concat_ws contains conv convert_timezone corr cos cosh cot count count_if
    count_min_sketch covar_pop covar_samp crc32 csc cume_dist curdate current_date current_time current_timestamp
    current_timezone date date_add date_diff date_format date_from_unix_date date_part date_sub date_trunc dateadd
    datediff datepart day dayname dayofmonth dayofweek dayofyear decimal decode degrees dense_rank div double e
    element_at elt encode endswith equal_null every exists exp explode explode_outer expm1 extract factorial filter
    find_in_set first first_value flatten float floor forall format_number format_string from_csv from_json
    from_unixtime from_utc_timestamp get get_json_object getbit greatest grouping grouping_id hash hex
    histogram_numeric hll_sketch_agg hll_sketch_estimate hll_union hll_union_agg hour hypot if ifnull ilike in
    initcap inline inline_outer instr int is_valid_utf8 is_variant_null isnan isnotnull isnull json_array_length
    json_object_keys json_tuple kll_merge_agg_bigint kll_merge_agg_double kll_merge_agg_float kll_sketch_agg_bigint
    kll_sketch_agg_double kll_sketch_agg_float kll_sketch_get_n_bigint kll_sketch_get_n_double
    kll_sketch_get_n_float kll_sketch_get_quantile_bigint kll_sketch_get_quantile_double
    kll_sketch_get_quantile_float kll_sketch_get_rank_bigint kll_sketch_get_rank_double kll_sketch_get_rank_float
    kll_sketch_merge_bigint kll_sketch_merge_double kll_sketch_merge_float kll_sketch_to_string_bigint
    kll_sketch_to_string_double kll_sketch_to_string_float kurtosis lag last last_day last_value lcase lead least
    left len length levenshtein like listagg ln localtimestamp locate log log10 log1p log2 lower lpad ltrim
    luhn_check make_date make_dt_interval make_interval make_time make_timestamp make_timestamp_ltz
    make_timestamp_ntz make_valid_utf8 make_ym_interval map map_concat map_contains_key map_entries map_filter
    map_from_arrays map_from_entries map_keys map_values map_zip_with mask max max_by md5 mean median min min_by
    minute mod mode monotonically_increasing_id month monthname months_between named_struct nanvl negative next_day
    not now nth_value ntile nullif nullifzero nvl nvl2 octet_length or overlay parse_json parse_url percent_rank
    percentile percentile_approx percentile_cont percentile_disc pi pmod posexplode posexplode_outer position
    positive pow power printf quarter quote radians raise_error rand randn random randstr range rank reduce regexp
    regexp_count regexp_extract regexp_extract_all regexp_instr regexp_like regexp_replace regexp_substr regr_avgx
    regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy repeat replace reverse right
    rint rlike round row_number rpad rtrim schema_of_csv schema_of_json schema_of_variant schema_of_variant_agg sec
    second sentences sequence session_window sha sha1 sha2 shiftleft shiftright shiftrightunsigned shuffle sign
    signum sin sinh size skewness slice smallint some sort_array soundex space spark_partition_id split split_part
    sqrt st_asbinary st_geogfromwkb st_geomfromwkb st_setsrid st_srid stack startswith std stddev stddev_pop
    stddev_samp str_to_map string string_agg struct substr substring substring_index sum tan tanh theta_difference
    theta_intersection theta_intersection_agg theta_sketch_agg theta_sketch_estimate theta_union theta_union_agg
    time time_diff time_trunc timestamp timestamp_micros timestamp_millis timestamp_seconds tinyint to_binary
    to_char to_csv to_date to_json to_number to_time to_timestamp to_timestamp_ltz to_timestamp_ntz
    to_unix_timestamp to_utc_timestamp to_varchar to_variant_object transform transform_keys transform_values
    translate trim trunc try_add try_aes_decrypt try_avg try_divide try_element_at try_make_interval
    try_make_timestamp try_make_timestamp_ltz try_make_timestamp_ntz try_mod try_multiply try_parse_json
    try_parse_url try_subtract try_sum try_to_binary try_to_date try_to_number try_to_time try_to_timestamp
    try_url_decode try_validate_utf8 try_variant_get typeof ucase unbase64 unhex uniform unix_date unix_micros
    unix_millis unix_seconds unix_timestamp upper url_decode url_encode uuid validate_utf8 var_pop var_samp variance
    variant_explode variant_explode_outer variant_get weekday weekofyear when width_bucket window window_time
    xxhash64 year zeroifnull zip_with
    ! != % & * + - / < << <= <=> <> = == > >= >> >>> ^ | || ~
    """
)
# Functions that run code, read a file (a schema, an XSD), parse XML, or reveal the server.
REFUSED_FUNCTIONS = _words(
    """
    reflect java_method try_reflect input_file_name input_file_block_start input_file_block_length current_user user
    session_user version current_catalog current_database current_schema from_avro to_avro schema_of_avro
    from_protobuf to_protobuf from_xml to_xml schema_of_xml xpath xpath_boolean xpath_double xpath_float xpath_int
    xpath_long xpath_number xpath_short xpath_string python_worker_logs sql_keywords collations
    """
)
# These make rows. They are allowed where FROM names a function.
TABLE_FUNCTIONS = _words(
    "range explode explode_outer posexplode posexplode_outer inline inline_outer stack json_tuple variant_explode "
    "variant_explode_outer"
)
# Names that are functions without parentheses, too, if there is no column of that name.
_REVEALING_NAMES = frozenset({"current_user", "session_user", "user"})
_HINTS = _words(
    "broadcast broadcastjoin mapjoin merge shuffle_merge mergejoin shuffle_hash shuffle_replicate_nl coalesce "
    "repartition repartition_by_range rebalance"
)

_CATALYST = "org.apache.spark.sql.catalyst."
# The classes of Catalyst that the parser makes of a query, without their packages.
_CLASSES = _words(
    """
    Aggregate Distinct Except Filter Generate GlobalLimit GroupingSets Intersect Join LateralJoin
    LocalLimit LocalRelation Offset OneRowRelation Pivot Project RelationTimeTravel
    RepartitionByExpression Sample Sort SubqueryAlias Union UnresolvedHaving UnresolvedHint
    UnresolvedInlineTable UnresolvedRelation UnresolvedSubqueryColumnAliases UnresolvedTVFAliases
    UnresolvedTableValuedFunction UnresolvedWith Unpivot WithWindowDefinition
    PipeOperator PipeExpression

    Cross FullOuter Inner LeftAnti LeftOuter LeftSemi NaturalJoin RightOuter UsingJoin JoinHint

    UnresolvedAlias UnresolvedAttribute UnresolvedExtractValue UnresolvedFunction UnresolvedGenerator
    UnresolvedNamedLambdaVariable UnresolvedOrdinal UnresolvedRegex UnresolvedStar UnresolvedStarExceptOrReplace
    UnresolvedWindowExpression FunctionIdentifier AliasIdentifier

    Alias MultiAlias Literal Cast CaseWhen If Coalesce Collate UnresolvedCollation NamedArgumentExpression
    NamePlaceholder CreateNamedStruct LambdaFunction
    And Or Not EqualTo EqualNullSafe GreaterThan GreaterThanOrEqual LessThan LessThanOrEqual In InSubquery IsNull
    IsNotNull IsUnknown IsNotUnknown Like LikeAll LikeAny NotLikeAll NotLikeAny ILike RLike
    Add Subtract Multiply Divide IntegralDivide Remainder UnaryMinus UnaryPositive BitwiseAnd BitwiseNot BitwiseOr
    BitwiseXor ShiftLeft ShiftRight ShiftRightUnsigned NumericEvalContext
    Concat Lower Overlay StringLocate StringTrim StringTrimLeft StringTrimRight Substring
    CurrentDate CurrentTimestamp CurrentTime LocalTimestamp TimestampAdd TimestampDiff Extract
    Exists ListQuery ScalarSubquery LateralSubquery
    Rollup Cube GroupingAnalytics UngroupedAnalytics
    AggregateExpression First Last AnyValue Count Complete
    SortOrder Ascending Descending NullsFirst NullsLast
    WindowExpression WindowSpecDefinition WindowSpecReference SpecifiedWindowFrame UnspecifiedFrame RowFrame RangeFrame
    UnboundedPreceding UnboundedFollowing CurrentRow ExprId EvalMode
    """
)
# What a node has beside other nodes: texts, numbers, types, the kind of a cast.
_VALUES = ("java.lang.", "org.apache.spark.sql.types.", "org.apache.spark.unsafe.types.", "scala.Enumeration$Val")
_READ_ONLY = "Send one SELECT, WITH, VALUES or TABLE. It can read, and nothing else."


class QueryRefusedError(TrilakeError):
    """A query that is not run. It names what is not allowed. Another try would not help."""


def check_query(spark: SparkSession, sql: str, tables: Collection[str]) -> None:
    """Check one query before anything of it is analysed or run.

    A table may be named ``lake.curated.flights``, ``curated.flights`` or ``flights``. The short names are right only in
    a session whose current namespace is ``lake.curated``.

    :param tables: the names of the data sets that may be read.
    :raises QueryRefusedError: it is not one query that only reads these.
    """
    from pyspark.errors import PySparkException

    if len(sql) > MAX_SQL:
        raise QueryRefusedError(f"The query has {len(sql)} characters.", hint=f"At most {MAX_SQL} are read.")
    # Spark would put settings (also those with keys), Java's properties and the environment in its place
    if "${" in sql:
        raise QueryRefusedError("The query has ${, which Spark replaces by a setting.", hint="Write the value instead.")
    spark.conf.set("spark.sql.variable.substitute", "false")
    try:
        plan = spark._jsparkSession.sessionState().sqlParser().parsePlan(sql)
    except PySparkException as e:
        raise QueryRefusedError(
            f"The query cannot be parsed: {_first_lines(e)}", hint=f"Correct it. {_READ_ONLY}"
        ) from None
    _Checked(frozenset(tables)).walk(plan)


def open_query(spark: SparkSession, sql: str, tables: Collection[str]) -> DataFrame:
    """A checked query's rows. They are not read yet. The session's current namespace becomes ``lake.curated``.

    :raises QueryRefusedError: see `check_query`; or Spark finds that a column or a type is wrong.
    """
    from pyspark.errors import AnalysisException, IllegalArgumentException

    check_query(spark, sql, tables)
    spark.catalog.setCurrentCatalog(CATALOG)
    spark.catalog.setCurrentDatabase(CURATED_NAMESPACE)
    try:
        return spark.sql(sql)
    except (AnalysisException, IllegalArgumentException) as e:  # the second one: there is no such snapshot
        raise QueryRefusedError(f"Spark cannot run the query: {_first_lines(e)}", hint="Correct it.") from None


class _Checked:
    """Walks through a parsed plan: every object that is reachable from it, so that no clause is overlooked."""

    def __init__(self, tables: frozenset[str]) -> None:
        self._tables = tables

    def walk(self, plan: Any) -> None:
        # Not recursive: 20,000 characters can be nested deeper than Python's stack. With each object go the names that
        # WITH has made there.
        waiting: list[tuple[Any, frozenset[str]]] = [(plan, frozenset())]
        while waiting:
            item, names = waiting.pop()
            if item is None or isinstance(item, str | int | float | bool):
                continue
            kind = str(item.getClass().getName())
            if kind.startswith(("scala.collection.", "scala.Some", "scala.None", "scala.Tuple", "scala.util.")):
                waiting += [(inner, names) for inner in _inner(item, kind)]
            elif kind.startswith(_CATALYST):
                waiting += self._node(item, kind, names)
            elif not kind.startswith(_VALUES):
                raise _not_allowed(kind)

    def _node(self, node: Any, kind: str, names: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
        name = kind.rpartition(".")[2].removesuffix("$").rpartition("$")[2]
        if name not in _CLASSES:
            raise _not_allowed(kind)
        if name in ("Literal", "LocalRelation", "ExprId"):  # values
            return
        if name == "UnresolvedWith":
            known = names
            for relation in _elements(node.cteRelations()):
                alias = str(relation._1()).lower()
                yield relation._2(), known | {alias} if node.allowRecursion() else known
                known |= {alias}
            yield node.child(), known
            return
        if name == "UnresolvedRelation":
            self._relation(node, names)
            return
        if name in ("UnresolvedFunction", "UnresolvedTableValuedFunction", "UnresolvedGenerator"):
            self._function(node, name)
        elif name == "UnresolvedAttribute":
            parts = [str(part) for part in _elements(node.nameParts())]
            if len(parts) == 1 and parts[0].lower() in _REVEALING_NAMES:
                raise QueryRefusedError(
                    f"{parts[0]} is a function that is not allowed.",
                    hint="If it is a column, write its table's name in front of it.",
                )
        elif name == "UnresolvedHint" and str(node.name()).lower() not in _HINTS:
            raise QueryRefusedError(
                f"The hint {node.name()} is not allowed.", hint=f"Allowed are {', '.join(sorted(_HINTS))}."
            )
        yield from ((inner, names) for inner in _inner(node, kind))

    def _relation(self, node: Any, names: frozenset[str]) -> None:
        parts = [str(part) for part in _elements(node.multipartIdentifier())]
        written = ".".join(parts)
        if node.isStreaming() or not node.options().isEmpty():
            raise QueryRefusedError(f"{written} has options or is a stream.", hint="Name the table alone.")
        if len(parts) == 1 and parts[0].lower() in names:
            return
        in_front = [CATALOG, CURATED_NAMESPACE]
        if len(parts) > 3 or parts[:-1] != in_front[3 - len(parts) :] or parts[-1] not in self._tables:
            similar = get_close_matches(parts[-1], self._tables, n=1)
            hint = f"Is it {similar[0]}? " if similar and similar[0] != written else ""
            raise QueryRefusedError(
                f"{written} is not one of the tables that can be read.",
                hint=f"{hint}They are named such as {CATALOG}.{CURATED_NAMESPACE}.<data set>: "
                f"{', '.join(sorted(self._tables)) or 'there are none'}.",
            )

    def _function(self, node: Any, kind: str) -> None:
        if kind == "UnresolvedGenerator":
            identifier = node.name()
            parts = [str(identifier.funcName())] + ["?"] * (identifier.database().isDefined())
        else:
            parts = [str(part) for part in _elements(node.nameParts() if kind == "UnresolvedFunction" else node.name())]
        allowed = FUNCTIONS if kind == "UnresolvedFunction" else TABLE_FUNCTIONS
        if len(parts) != 1 or parts[0].lower() not in allowed:
            what = "function" if kind == "UnresolvedFunction" else "table function"
            hint = (
                "It runs code, reads something outside of the query's tables, or reveals the server."
                if parts[-1].lower() in REFUSED_FUNCTIONS
                else "Use one of Spark's own functions, without a database in front."
                if allowed is FUNCTIONS
                else f"Read a table, or one of {', '.join(sorted(TABLE_FUNCTIONS))}."
            )
            raise QueryRefusedError(f"The {what} {'.'.join(parts)} is not allowed.", hint=hint)


def _not_allowed(kind: str) -> QueryRefusedError:
    word = kind.rpartition(".")[2].removesuffix("$").removeprefix("Unresolved")
    return QueryRefusedError(f"The query has a part that is not allowed: {word}.", hint=_READ_ONLY)


def _inner(item: Any, kind: str) -> Iterator[Any]:
    """The fields of one of Scala's case classes, or the elements of one of its collections."""
    yield from _elements(item) if kind.startswith("scala.collection.") else _iterated(item.productIterator())


def _elements(collection: Any) -> Iterator[Any]:
    return _iterated(collection.iterator())


def _iterated(iterator: Any) -> Iterator[Any]:
    while iterator.hasNext():
        yield iterator.next()


def _first_lines(error: Exception) -> str:
    """What Spark says, without the query and its own plan."""
    text = str(error).partition("== SQL")[0].partition("\n'")[0]
    return " ".join(text.split())[:500]
