-- Statements of `sluice export`.

-- name: repos
-- The next repos in DID order: in sync, of active accounts.
select did from sluice.repo where did > %(after)s and phase = 'sync' and active order by did limit %(limit)s

-- name: records
-- Their records. `collections` and `prefixes` are null for all collections, `since` is null for all times.
select did, collection, rkey, cid, rev, json::text, raw, indexed_at::timestamptz
from sluice.record
where did = any(%(dids)s::text[])
  and (%(collections)s::text[] is null or collection = any(%(collections)s::text[]) or collection like any(%(prefixes)s::text[]))
  and (%(since)s::timestamptz is null or indexed_at::timestamptz >= %(since)s::timestamptz)
order by did, collection, rkey
