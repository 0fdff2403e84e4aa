-- Since when a repo's attempts have ended without being counted (quotas, a directory or a disk of ours). Beyond a time that
-- depends on the reason such an attempt is counted after all: nothing is retried for ever.
alter table sluice.repo add column deferred_since timestamptz;
