-- name: put
-- parameters: arrays of did (each once, sorted: rows are locked in this order), pds, handle, signing_key, label_key, labeler
insert into sluice.identity (did, pds, handle, signing_key, label_key, labeler)
select * from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
on conflict (did) do update set
    pds = excluded.pds, handle = excluded.handle, signing_key = excluded.signing_key,
    label_key = excluded.label_key, labeler = excluded.labeler, resolved_at = now()

-- name: find_many
-- parameters: dids. The age is in seconds of the database's clock.
select did, pds, handle, signing_key, label_key, labeler, extract(epoch from now() - resolved_at)::float8
from sluice.identity
where did = any(%s::text[])

-- name: forget
-- parameters: dids
delete from sluice.identity where did = any(%s::text[])

-- name: some_plc
-- parameters: how many. Any DIDs that the directory has resolved.
select did from sluice.identity where did >= 'did:plc:' and did < 'did:plc;' limit %s
