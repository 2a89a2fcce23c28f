-- database: lake
-- Every call of an agent (plugins/trilake/agents/calls.py). A call begins before anything is done; ended_at is NULL if
-- the server died before its end. Rows are kept for 90 days.
CREATE TABLE agent_calls (
    id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    agent     text        NOT NULL,
    tool      text        NOT NULL,
    arguments jsonb       NOT NULL,
    ended_at  timestamptz,
    -- done, or the short name of the refusal
    outcome   text,
    said      text,
    rows      bigint,
    bytes     bigint,
    query_id  text,
    run_id    text
);
CREATE INDEX agent_calls_of_an_agent ON agent_calls (agent, at);
