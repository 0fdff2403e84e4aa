"""Changes of one stored repo: name → (statement with the DID as its value, the kinds of findings that an audit reports)."""

TAMPERED = {
    "a row is gone": ("delete from sluice.record where did = %s and rkey = 'self'", {"root"}),
    "a row too many": (
        "insert into sluice.record (did, collection, rkey, cid, rev, attempt, json, raw, reason, indexed_at)"
        " select did, collection, 'more', cid, rev, attempt, json, raw, reason, indexed_at"
        " from sluice.record where did = %s and rkey = 'self'",
        {"root"},
    ),
    "a row that stands for no path": (
        "update sluice.record set rkey = '\\%%' where did = %s and rkey = 'self'",
        {"bad_rows"},
    ),
    "a changed body": (
        "update sluice.record set json = replace(json::text, 'hello', 'hellO')::json where did = %s",
        {"record"},
    ),
    "a body that is no JSON of ours": (
        "update sluice.record set json = '[1]' where did = %s and rkey = '3kaaaaaaaaaa2'",
        {"record"},
    ),
    "a changed cid": (
        "update sluice.record set cid = overlay(cid placing 'aaa' from 20) where did = %s and rkey = 'self'",
        {"root", "record"},
    ),
    "no cid": ("update sluice.record set cid = 'x' where did = %s and rkey = 'self'", {"root", "record", "bad_cid"}),
    "no body": (
        "update sluice.record set json = null, raw = null, reason = null where did = %s and rkey = 'self'",
        {"no_body"},
    ),
    "json that is not what raw says": (
        "update sluice.record set json = '{}' where did = %s and rkey = 'self' and raw is not null",
        {"json"},
    ),
    "another root": (
        "update sluice.repo set data = overlay(data placing 'aaa' from 20) where did = %s",
        {"root", "commit"},
    ),
    "another rev": ("update sluice.repo set rev = '3lzzzzzzzzzz2' where did = %s", {"commit"}),
    "a changed commit block": (
        "update sluice.repo set commit_block = set_byte(commit_block, 40, 1) where did = %s",
        {"commit"},
    ),
    "no commit block": ("update sluice.repo set commit_block = null where did = %s", {"no_commit"}),
}
