-- Bytes of the held events of a repo, while it has any: they are bounded, not only their number.
alter table sluice.repo add column held_bytes bigint not null default 0;
