-- database: lake
-- Tables that were published before this table existed are spread over the shards that their publications name.
INSERT INTO shard_sets (table_name, shards)
SELECT table_name, max(shard::integer)
FROM publications, jsonb_object_keys(rows) AS shard
WHERE partition <> 'all'
GROUP BY table_name
ON CONFLICT DO NOTHING;
