-- Notes of sluice.appview_dirty that the AppView's tables refuse to fold (appview/reconcile.py): put aside, so that they
-- hold nothing up, until they are noted again or `sluice appview rebuild` tries them.
create table sluice.appview_refused (
    kind       text not null,
    uri        text collate "C" not null,
    reason     text not null,                            -- what the database said
    refused_at timestamptz not null default now(),
    primary key (kind, uri)
);
