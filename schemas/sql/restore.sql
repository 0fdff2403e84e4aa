-- Statements of `sluice restore` (ops/backup.py) and of what follows it (control/tasks/restored.py).

-- name: is_empty
-- A database without our schema.
select to_regnamespace('sluice') is null

-- name: mark
-- No repo is claimed until the index has read the log: what it holds was numbered after the backup.
insert into sluice.cursor (flow, upstream, position) values ('restore', 'log', 'begun') on conflict do nothing

-- name: restoring
select detail from sluice.cursor where flow = 'restore' and upstream = 'log'

-- name: note_ends
-- How far the index has to read: the log's ends when control first saw the mark.
update sluice.cursor set detail = %(detail)s::jsonb where flow = 'restore' and upstream = 'log'

-- name: restored
delete from sluice.cursor where flow = 'restore' and upstream = 'log'
