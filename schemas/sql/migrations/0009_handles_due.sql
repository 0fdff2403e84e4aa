-- Handles that go before those which are only to be checked again: never checked, or asked for by an event. Empty once all were checked.
create index handle_first on sluice.handle (next_check_at) where checked_at is null or next_check_at = '-infinity';
