"""The data sets that more than one DAG or job uses."""

from trilake.lake import DataSet

FLIGHTS = DataSet("flights", grain="month", date="flight_date", shard_by="flight")
WEATHER = DataSet("weather", grain="month", date="time_hour", shard_by="origin")

# Dimension tables: small, replaced as a whole, complete on every shard.
AIRLINES = DataSet("airlines")
AIRPORTS = DataSet("airports")
PLANES = DataSet("planes")
