"""Whatever the weights, rules and temperatures, what comes out fits its schema, or was refused
before."""

from __future__ import annotations

import io
import json
import lzma
import random
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmdiff.config import PRESETS
from mmdiff.eval import structured_adversarial
from mmdiff.eval.structured_adversarial import (
    SCHEMAS,
    WEIGHTS,
    Fake,
    Judge,
    coverage,
    generate,
    read_schemas,
    settings,
    validity,
)
from mmdiff.structured.constraint.compiled import compile_schema
from mmdiff.structured.constraint.template import TemplateBuilder

TOKENS = PRESETS["tiny"].tokens


def test_hostile_weights_give_valid_values(layouts: TemplateBuilder) -> None:
    counts = validity(layouts, TOKENS, 250)
    assert counts["valid"] == 250, {
        name: count for name, count in counts.items() if name.startswith("not valid")
    }


@pytest.mark.parametrize("weights", sorted(WEIGHTS))
def test_every_kind_of_weights_fills_every_schema(layouts: TemplateBuilder, weights: str) -> None:
    rng = random.Random(weights)
    for name in rng.sample(sorted(SCHEMAS), 6):
        scaffold = compile_schema(SCHEMAS[name], layouts, 512)
        made, _ = generate(scaffold, Fake(layouts, TOKENS, weights), settings(rng), 1)
        assert Judge(SCHEMAS[name])(made.text), (name, made.text)


def test_the_official_suite_has_no_wrong_value(
    layouts: TemplateBuilder, suite: list[tuple[str, Any]]
) -> None:
    outcomes = Counter(
        covered.outcome for covered in coverage(iter(suite), layouts, TOKENS, draws=1)
    )
    assert outcomes["invalid"] == 0
    assert outcomes["valid"] > 0.8 * sum(outcomes.values()), outcomes


def test_real_schemas_are_covered(layouts: TemplateBuilder, root: Path) -> None:
    file = root.parent / "shared" / "data" / "jsonschemabench-sample.jsonl.xz"
    if not file.exists():
        pytest.skip("the sample of JSONSchemaBench is not beside the repository")
    some = random.Random(0).sample(list(read_schemas(file)), 60)
    outcomes = Counter(
        covered.outcome for covered in coverage(iter(some), layouts, TOKENS, draws=1)
    )
    assert outcomes["invalid"] == 0
    assert outcomes["valid"] >= 58, outcomes


def test_packed_and_plain_lines_are_read(tmp_path: Path) -> None:
    line = json.dumps({"id": "a", "schema": {"type": "null"}}) + "\n"
    (tmp_path / "plain.jsonl").write_text(line)
    (tmp_path / "packed.jsonl.xz").write_bytes(lzma.compress(line.encode()))
    for file in tmp_path.iterdir():
        assert list(read_schemas(file)) == [("a", {"type": "null"})]


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest) -> list[tuple[str, Any]]:
    """The JSON-Schema-Test-Suite's schemas of two drafts, from the sources of the package
    jsonschema."""
    folder = Path(str(request.config.cache.mkdir("jsonschema-sources")))  # type: ignore[union-attr]
    if not list(folder.glob("*.tar.gz")):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--no-binary",
            ":all:",
        ]
        subprocess.run([*command, "-d", str(folder), "jsonschema==4.26.0"], check=True)
    found = []
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        for member in archive:
            draft = next(
                (
                    each
                    for each in ("draft2020-12", "draft7")
                    if f"/json/tests/{each}/" in member.name
                ),
                None,
            )
            if draft is None or not member.name.endswith(".json"):
                continue
            file = archive.extractfile(member)
            assert file is not None
            for group in json.load(io.TextIOWrapper(file, "utf-8")):
                schema = group["schema"]
                if draft == "draft7" and isinstance(schema, dict):
                    schema = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
                found.append((f"{member.name}: {group['description']}", schema))
    return found


def test_a_judge_whose_patterns_never_end_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured_adversarial, "SECONDS", 0.2)
    assert not Judge({"pattern": "^(a|a)*$"})(json.dumps("a" * 60 + "!"))


def test_alternatives_with_members_of_their_own_are_decided(layouts: TemplateBuilder) -> None:
    """The decision about the next member has one name in both, and other options."""
    flag, closed = {"type": "boolean"}, {"type": "object", "additionalProperties": False}
    schema = {
        "anyOf": [
            {**closed, "properties": dict.fromkeys("abcdef", flag)},
            {**closed, "properties": dict.fromkeys("gh", flag), "required": ["g"]},
        ]
    }
    scaffold = compile_schema(schema, layouts, 256)
    with structured_adversarial.limited(60):
        made = {
            generate(scaffold, Fake(layouts, TOKENS, "random"), structured_adversarial.BASE, seed)[
                0
            ].text
            for seed in range(40)
        }
    assert (
        all(map(Judge(schema), made))
        and any("g" in json.loads(text) for text in made)
        and len(made) > 5
    )
