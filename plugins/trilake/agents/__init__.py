"""The agents' door: what an AI agent may ask and do on the platform, bounded and recorded.

`server` has the tools, which agents call over HTTP through Airflow's API server. Each tool is a thin layer over one of
the other modules: `statement` (which SQL is answered), `questions` (how it is sent, and how much comes back), `calls`
(the record of every call), `runs` (DAG runs), `files` (objects), `trace` and `health`.
"""

# What Airflow's users need the permission `can read` on, to use the door.
RESOURCE = "Trilake agents"
