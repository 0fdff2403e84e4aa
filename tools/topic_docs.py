"""The pages of docs/topics, one per topic, generated from `schemas/topics.yml` and `schemas.events`. `python -m tools.topic_docs` writes them.

`pages(prefix) -> {file name: Markdown}`. The prefix of topic names is part of the file names.
"""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from schemas.events import TOPIC_MESSAGES

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "topics"
DAY_MILLISECONDS = 24 * 3600 * 1000
PER_REPO = "by key: partition *k* of every topic belongs to the same DIDs, and their number never changes"
MEANINGS = {  # of fields that mean the same in every message, unless the model has its own description
    "account_seq": "sequence number that belongs to `account_time`",
    "active": "may the account's content be shown",
    "attempt": "number of the attempt to fetch the repo; only the newest counts",
    "cid": "CID of the record",
    "collection": "NSID of the record's collection",
    "commit": "CID of the signed commit",
    "commit_block": "the signed commit itself, in base64",
    "cts": "when the label was made",
    "data": "MST root of the repo",
    "did": "DID of the account",
    "exp": "when the label ends",
    "handle": "handle of the account, unverified",
    "host": "PDS of the account",
    "neg": "the label is taken back",
    "ops": "what the commit changed, in its order",
    "payload_sha256": "hash of all of it",
    "payload_size": "bytes of all of it",
    "raw": "the DAG-CBOR block in base64, where JSON cannot reproduce its CID",
    "record": "the record as JSON; links are `$link`, bytes `$bytes`",
    "relay": "the upstream that it was read from",
    "rev": "revision of the repo (a TID)",
    "rkey": "record key",
    "seq": "sequence number of the upstream; -1 for history",
    "sig": "the labeler's signature, in base64",
    "signing_key": "key that its commits are signed with",
    "since": "rev of the commit before",
    "src": "DID of the labeler",
    "status": "why the account is not active; of an outcome: how the attempt ended",
    "time": "when it was read or made, UTC",
    "type": "kind of the message",
    "uri": "what is labelled: AT-URI or DID",
    "val": "the label",
}


def pages(prefix: str = "") -> dict[str, str]:
    """File name → page, in the order of topics.yml."""
    document = yaml.safe_load((files("schemas") / "topics.yml").read_text("utf-8"))
    return {f"{prefix}{name}.md": page(prefix + name, name, topic) for name, topic in document["topics"].items()}


def page(title: str, name: str, topic: dict[str, Any]) -> str:
    """The page of one topic; `topic` is its entry in topics.yml."""
    schema = TypeAdapter(TOPIC_MESSAGES[name]).json_schema()
    definitions = schema.get("$defs", {})
    kinds = [definitions[one["$ref"].rpartition("/")[2]] for one in schema.get("anyOf", [])] or [schema]
    nested = [one for key, one in definitions.items() if not any(kind["title"] == key for kind in kinds)]
    facts = {
        "key": topic["key"],
        "value": "JSON, as in the tables below",
        "headers": "none",
        "written by": topic["written_by"],
        "read by": topic["read_by"],
        "kept": f"{topic['retention_ms'] // DAY_MILLISECONDS} days",
        "order": PER_REPO if topic["per_repo"] else "total: there is one partition",
    }
    lines = [f"# {title}", "", topic["about"], "", "| | |", "| --- | --- |"]
    lines += [f"| {what} | {is_} |" for what, is_ in facts.items()]
    for kind in [*kinds, *nested]:
        lines += ["", *_table(kind, only=len(kinds) + len(nested) == 1)]
    lines += ["", f"The same as a JSON Schema: `schemas/json/{name}.json`, in the schema registry as `{title}-value`."]
    return "\n".join(lines) + "\n"


def _table(kind: dict[str, Any], *, only: bool) -> Iterator[str]:
    if not only:
        yield f"## {kind['title']}"
        yield ""
    if about := kind.get("description", "").partition(": ")[2] or kind.get("description", ""):
        yield about[:1].upper() + about[1:]
        yield ""
    yield "| field | type | | meaning |"
    yield "| --- | --- | --- | --- |"
    needed = kind.get("required", [])
    for field, described in kind["properties"].items():
        must = "always" if field in needed or "const" in described else ""
        yield f"| `{field}` | {_type(described)} | {must} | {described.get('description') or MEANINGS.get(field, '')} |"


def _type(described: dict[str, Any]) -> str:
    """The type of a value, in words."""
    if "const" in described:
        return f"`{described['const']}`"
    if "enum" in described:
        return ", ".join(f"`{one}`" for one in described["enum"])
    if "anyOf" in described:
        return " or ".join(_type(one) for one in described["anyOf"])
    if "$ref" in described:
        return str(described["$ref"]).rpartition("/")[2]
    if described.get("type") == "array":
        return f"list of {_type(described['items'])}"
    return str(described.get("type", "any JSON"))


def write(folder: Path = FOLDER) -> None:
    """Write all pages, and remove the pages of topics that no longer exist."""
    folder.mkdir(exist_ok=True)
    made = pages()
    for path in folder.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    write()
