"""The page about the record names fields that a real record has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs" / "record.md").read_text("utf-8")
# Values, not fields.
VALUES = {"plan", "admission", "soft", "hard", "allocator", "worker_lost", "auto"}


def longctx(folder: Path, *words: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "longctx", *words, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("record")


@pytest.fixture(scope="module")
def summary(place: Path) -> dict[str, Any]:
    return longctx(
        place, "run", "--model", "fake", "--target-tokens", "1000", "--output-dir", "one"
    )


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_fields_of_the_summary_are_there(summary: dict[str, Any]) -> None:
    seen = set()
    for names, holds in rows("summary.json"):
        for field in re.findall(r"`(\w+)`", names):
            seen.add(field)
            assert field in summary, field
            if field not in ("status", "mode", "kind", "config", "config_sources", "turns"):
                inner = set(re.findall(r"`(\w+)`", holds)) - VALUES
                assert inner <= keys_of(summary[field]), (field, inner - keys_of(summary[field]))
    assert seen >= {"status", "limits", "turns", "recall", "memory", "speed", "guard"}


def test_fields_of_a_turn_are_there(summary: dict[str, Any]) -> None:
    line = PAGE.split("\nA turn: ", 1)[1].split("\n\n", 1)[0]
    fields = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", line))
    assert len(fields) > 15
    assert set(fields) <= set(summary["turns"][0])


def test_events_that_are_named_are_written(summary: dict[str, Any], place: Path) -> None:
    lines = (place / summary["record"]["events"]).read_text("utf-8").splitlines()
    written = {json.loads(line)["event"] for line in lines}
    named = {name for row in rows("events.jsonl") for name in re.findall(r"`(\w+)`", row[0])}
    assert written <= named
    assert named - written <= {"guard", "recovered", "error", "warning", "note"}


def test_fields_of_a_plan_are_there(place: Path) -> None:
    plan = longctx(place, "plan", "--model", "shape:qwen3-4b", "--ceiling", "116GB")
    fields = next(row[2] for row in rows("The documents of the other commands") if "plan" in row[0])
    assert set(re.findall(r"`(\w+)`", fields)) <= keys_of(plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("compare", ["--target-tokens", "1000"]),
        ("find-max", ["--most", "1000", "--resolution", "500"]),
        ("sweep", ["--targets", "1k", "--depths", "0,1"]),
    ],
)
def test_fields_of_the_other_documents_are_there(
    place: Path, command: str, words: list[str]
) -> None:
    document = longctx(place, command, "--model", "fake", *words)
    row = next(
        row for row in rows("The documents of the other commands") if row[0] == f"`{command}`"
    )
    assert set(re.findall(r"`(\w+)`", row[2])) <= keys_of(document)
    written = json.loads((place / document["directory"] / row[1].strip("`")).read_text("utf-8"))
    assert set(re.findall(r"`(\w+)`", row[2])) <= keys_of(written)
