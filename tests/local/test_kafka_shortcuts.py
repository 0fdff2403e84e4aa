"""What is kept to make later starts of the broker cheaper: found when it is whole, made again when it is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from local.embedded.kafka_shortcuts import CHECKPOINT, META, ClassArchive, format_storage
from local.embedded.kept_files import keep, kept

OPTIONS = ["-XX:+UseSerialGC"]


@pytest.fixture
def java(tmp_path: Path) -> str:
    path = tmp_path / "java"
    path.write_text("#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "kafka"
    folder.mkdir()
    return folder


def test_a_damaged_file_is_deleted_and_the_newest_is_kept(tmp_path: Path) -> None:
    assert kept(tmp_path, "thing") is None
    for content in (b"first", b"second"):
        (tmp_path / "draft").write_bytes(content)
        keep(tmp_path / "draft", tmp_path, "thing")
    found = kept(tmp_path, "thing")
    assert found is not None
    assert found.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [found]
    found.write_bytes(b"secon")
    assert kept(tmp_path, "thing") is None
    assert not found.exists()


def written_by(archive: ClassArchive, content: bytes) -> None:
    """As the JVM does at its end."""
    (option, *_) = archive.options()
    assert option.startswith("-XX:ArchiveClassesAtExit=")
    Path(option.partition("=")[2]).write_bytes(content)


def test_the_archive_of_a_clean_end_is_used_by_the_next_start(home: Path, java: str) -> None:
    archive = ClassArchive(home, java, OPTIONS)
    written_by(archive, b"classes")
    archive.collect(ended_cleanly=True)
    (option,) = archive.options()
    path = Path(option.removeprefix("-XX:SharedArchiveFile="))
    assert path.read_bytes() == b"classes"
    archive.collect(ended_cleanly=True)
    assert path.exists(), "an end without a draft changes nothing"
    assert ClassArchive(home, java, ["-XX:+UseG1GC"]).options()[0].startswith("-XX:ArchiveClassesAtExit="), "its own"


def test_a_killed_or_damaged_archive_is_made_again(home: Path, java: str) -> None:
    archive = ClassArchive(home, java, OPTIONS)
    written_by(archive, b"cla")
    archive.collect(ended_cleanly=False)
    assert list(home.iterdir()) == []
    written_by(archive, b"classes")
    archive.collect(ended_cleanly=True)
    (path,) = home.iterdir()
    path.write_bytes(b"class")  # a JVM would crash on it
    written_by(archive, b"classes again")
    archive.collect(ended_cleanly=True)
    (path,) = home.iterdir()
    assert path.read_bytes() == b"classes again"


def test_one_broker_at_a_time_writes_the_archive(home: Path, java: str) -> None:
    """Writing costs more than it saves; several brokers that start on a new machine must not all do it."""
    first, second = ClassArchive(home, java, OPTIONS), ClassArchive(home, java, OPTIONS)
    written_by(first, b"classes")
    assert (second.options(), second.writes) == ([], False)
    second.collect(ended_cleanly=True)
    first.collect(ended_cleanly=True)
    assert second.options()[0].startswith("-XX:SharedArchiveFile=")


def test_an_archive_that_was_not_written_is_not_kept(home: Path, java: str) -> None:
    archive = ClassArchive(home, java, OPTIONS)
    assert archive.options()
    archive.collect(ended_cleanly=True)
    assert list(home.iterdir()) == []


def test_the_draft_of_a_killed_process_is_removed_later(home: Path, java: str) -> None:
    left = home / ".classes-0.jsa-draft"
    left.write_bytes(b"cla")
    ClassArchive(home, java, OPTIONS).options()
    assert left.exists(), "it may be in the making"
    os.utime(left, (0, 0))
    ClassArchive(home, java, OPTIONS).options()
    assert not left.exists()


def test_the_storage_tool_runs_once_for_a_version_and_again_for_a_damaged_result(home: Path, tmp_path: Path) -> None:
    runs: list[str] = []

    def formatted(name: str) -> dict[str, str]:
        data = tmp_path / name

        def tool(cluster: str) -> None:
            runs.append(cluster)
            data.mkdir()
            (data / CHECKPOINT).write_bytes(b"features")
            (data / META).write_text(f"cluster.id={cluster}\n")

        format_storage(home, data, tool)
        assert (data / CHECKPOINT).read_bytes() == b"features"
        return dict(line.split("=", 1) for line in (data / META).read_text().splitlines())

    clusters = [formatted(name)["cluster.id"] for name in ("a", "b", "c")]
    assert runs == clusters[:1]
    assert len(set(clusters)) == 3
    (path,) = home.iterdir()
    path.write_bytes(b"feat")
    again = formatted("d")["cluster.id"]
    assert runs[1:] == [again]
    assert formatted("e").keys() == {"version", "node.id", "directory.id", "cluster.id"}
    assert len(runs) == 2
