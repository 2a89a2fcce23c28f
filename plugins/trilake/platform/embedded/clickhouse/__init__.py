"""ClickHouse for one machine: ClickHouse's HTTP interface over the ClickHouse engine in this process (chDB).

It supports what clickhouse-connect, curl and Airflow's hook need, and refuses other requests with ClickHouse's error
codes. The engine runs the queries. The modules here pass requests to it and return its answers:

- `config`: the gateway's configuration (JSON), and the engine's configuration (XML) that is made from it
- `statement`: finds what the gateway must know about an SQL text before the engine gets it
- `protocol`: a request's parameters and headers, typed; errors and their HTTP status
- `wire`: the bytes of request and answer bodies: compression, forms, spooling
- `engine`: connections, sessions and streams of the engine
- `gateway`: handles one request from its first byte to its last
- `server`: the process: its data folder, its port, its shutdown
"""
