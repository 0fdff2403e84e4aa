"""JSON Schemas of the topics, generated from `schemas.events`. `python -m tools.json_schemas` writes them to schemas/json/.

`register(settings)` registers them with the schema registry of the settings (the REST interface that Redpanda and Confluent share),
under the subject `<topic>-value`.
"""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from schemas.events import TOPIC_MESSAGES
from schemas.settings import Settings

FOLDER = Path(__file__).resolve().parent.parent / "schemas" / "json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ANSWER_SECONDS = 10.0


class RegistryUnavailable(Exception):
    """The schema registry did not answer, or rejected a schema."""


def schemas() -> dict[str, dict[str, Any]]:
    """Topic (without prefix) → JSON Schema of its values."""
    return {
        topic: {"$schema": DIALECT, "title": topic, **TypeAdapter(message).json_schema()}
        for topic, message in TOPIC_MESSAGES.items()
    }


def text(schema: dict[str, Any]) -> str:
    """The text of a schema's file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write(folder: Path = FOLDER) -> list[Path]:
    """Write one file per topic. Returns the paths."""
    folder.mkdir(exist_ok=True)
    written = []
    for topic, schema in schemas().items():
        path = folder / f"{topic}.json"
        path.write_text(text(schema), "utf-8")
        written.append(path)
    return written


def register(settings: Settings) -> dict[str, int]:
    """Register all schemas: subject → id. A schema that is registered already keeps its id. Raises RegistryUnavailable."""
    found = {}
    for topic, schema in schemas().items():
        subject = f"{settings.topic(topic)}-value"
        body = json.dumps({"schemaType": "JSON", "schema": json.dumps(schema)}).encode()
        url = f"{settings.kafka_schema_registry.rstrip('/')}/subjects/{subject}/versions"
        headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
        try:
            request = urllib.request.Request(url, body, headers)  # noqa: S310 - the operator's own URL
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - the same
                found[subject] = int(json.load(answer)["id"])
        except urllib.error.HTTPError as err:
            raise RegistryUnavailable(
                f"{subject} was rejected: {err.code} {err.read(300).decode(errors='replace')}"
            ) from err
        except (OSError, ValueError, KeyError) as err:
            raise RegistryUnavailable(
                f"{settings.kafka_schema_registry} does not answer as a schema registry ({err})"
            ) from err
    return found


if __name__ == "__main__":
    write()
