"""ClickHouse for one machine: the ClickHouse engine in this process (chDB) behind ClickHouse's HTTP interface.

It does what clickhouse-connect, curl and Airflow's hook need of a server, and refuses the rest with ClickHouse's own
error codes. The engine does the work; the modules here only carry requests to it and answers back:

- `config`: the JSON file that starts the gateway, and the XML file that it makes for the engine
- `statement`: what has to be known of a text of SQL before the engine sees it
- `protocol`: a request's parameters and headers, typed; errors and their HTTP status
- `wire`: the bytes of bodies: compression, forms, spooling
- `engine`: connections, sessions, streams of the engine
- `server`: one request from its first byte to its last
"""
