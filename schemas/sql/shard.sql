-- Statements on sluice.shard, run by connectors/postgres/shard_identity.py.

-- name: identity
select main::text, ranges, own from sluice.shard

-- name: holds_repos
select exists (select from sluice.repo) or exists (select from sluice.stream_offset)

-- name: name_main
insert into sluice.shard (main, ranges, own) values (gen_random_uuid(), %(ranges)s, '') returning main::text, ranges, own

-- name: name_shard
insert into sluice.shard (main, ranges, own) values (%(main)s::uuid, %(ranges)s, %(own)s)

-- name: is_named
select coalesce((select %(own)s = any(named) from sluice.shard), false)

-- name: note_named
update sluice.shard set named = named || %(own)s::text where %(own)s <> all(named)

-- name: forget_named
update sluice.shard set named = array_remove(named, %(own)s::text)
