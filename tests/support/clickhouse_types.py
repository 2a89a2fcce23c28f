"""The families of types of ClickHouse. A test compares them with the engine's own list."""

_INTERVALS = (
    "Day", "Hour", "Microsecond", "Millisecond", "Minute", "Month", "Nanosecond", "Quarter", "Second", "Week", "Year",
)  # fmt: skip
_BITS = (8, 16, 32, 64, 128, 256)
FAMILIES = frozenset(
    {
        "AggregateFunction", "Array", "BFloat16", "Bool", "Date", "Date32", "DateTime",
        "DateTime64", "Decimal", "Dynamic", "Enum16", "Enum8", "FixedString", "Float32",
        "Float64", "Geometry", "IPv4", "IPv6", "JSON", "LineString", "LowCardinality", "Map",
        "MultiLineString", "MultiPoint", "MultiPolygon", "Nested", "Nothing", "Nullable", "Point", "Polygon",
        "QBit", "Ring", "SimpleAggregateFunction", "String", "Time", "Time64", "Tuple", "UUID", "Variant",
        *(f"Interval{unit}" for unit in _INTERVALS),
        *(f"{name}{bits}" for name in ("Int", "UInt") for bits in _BITS),
    }
)  # fmt: skip
# Other names of a family of the list.
OTHER_NAMES = frozenset({"DateTime32", "Decimal32", "Decimal64", "Decimal128", "Decimal256", "Enum"})
# Types around another type, with its values.
WRAPPERS = frozenset({"LowCardinality", "Nullable", "SimpleAggregateFunction"})
