-- Statements of `sluice restore` (ops/backup.py) and of control after it (control/tasks/restored.py).

-- name: is_empty
-- Whether the database lacks our schema.
select to_regnamespace('sluice') is null

-- name: mark
-- No repo is claimed until the index has read the log, whose attempts were numbered after the backup.
insert into sluice.cursor (flow, upstream, position) values ('restore', 'log', 'begun') on conflict do nothing

-- name: restoring
select detail from sluice.cursor where flow = 'restore' and upstream = 'log'

-- name: note_ends
-- Where the index has to read to: the log's ends when control first saw the mark.
update sluice.cursor set detail = %(detail)s::jsonb where flow = 'restore' and upstream = 'log'

-- name: restored
delete from sluice.cursor where flow = 'restore' and upstream = 'log'
