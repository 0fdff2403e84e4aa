-- Statements of `sluice shards attach`, run by ops/shards.py in the main database. {…}: identifiers and literals.

-- name: extension
create extension if not exists postgres_fdw

-- name: own_view
-- The main database's own view, of its own tables, which hold no repos. An attached one is replaced.
do $$ begin
    if to_regclass('sluice.record_here') is null then
        alter view sluice.record rename to record_here;
    else
        drop view if exists sluice.record;
    end if;
end $$

-- name: drop_all
drop schema if exists sluice_shards cascade

-- name: all_shards
create schema sluice_shards

-- name: drop_server
drop server if exists {server} cascade

-- name: server
create server {server} foreign data wrapper postgres_fdw options ({options})

-- name: user
create user mapping for current_user server {server} options ({options})

-- name: drop_tables
drop schema if exists {server} cascade

-- name: schema
create schema {server}

-- name: tables
import foreign schema sluice limit to (record, repo, label, buffered_event) from server {server} into {server}
