"""Which published instances a compiled schema can say, and what llguidance accepts of them."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from mmdiff.config import PRESETS
from mmdiff.eval.expressible import declared, expressible
from mmdiff.eval.structured import app
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.constraint.token_dfa import Vocabulary

SCHEMAS: dict[str, Any] = {
    "closed": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["a"],
    },
    "refused": {"type": "string", "pattern": "^(?<=a)b$"},
    "ranking": {"type": "array", "items": {"enum": ["x", "y"]}, "uniqueItems": True},
}
INSTANCES: dict[str, tuple[list[Any], list[Any]]] = {
    "closed": ([{"b": "x", "a": 1}, {"a": 1, "c": 2}], [{"b": "x"}, {"a": "1"}]),
    "refused": (["b"], ["c"]),
    "ranking": ([["y", "x"]], [["x", "x"]]),
    "without a schema": ([1], []),
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    instances, schemas = tmp_path / "instances.jsonl.xz", tmp_path / "schemas.jsonl"
    rows = (
        {"id": name, "valid": valid, "invalid": invalid}
        for name, (valid, invalid) in INSTANCES.items()
    )
    instances.write_bytes(lzma.compress("\n".join(map(json.dumps, rows)).encode()))
    schemas.write_text(
        "\n".join(json.dumps({"id": name, "schema": schema}) for name, schema in SCHEMAS.items())
    )
    return instances, schemas


@pytest.fixture(scope="module")
def layouts(root: Path) -> TemplateBuilder:
    tokens, file = PRESETS["tiny"].tokens, root / "mmdiff" / "models" / "tiny" / "tokenizer.json"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(file)))
    return TemplateBuilder(Vocabulary.of(tokenizer, tokens), tokens.mask, tokens.eot)


def test_instances_are_said_in_the_schemas_order_or_not_at_all(
    files: tuple[Path, Path], layouts: TemplateBuilder
) -> None:
    rows = list(expressible(*files, layouts, compare=False))
    said = {(row.schema, row.valid): [] for row in rows}
    for row in rows:
        said[row.schema, row.valid].append(row.ours)
    assert said == {
        ("closed", True): [True, False],
        ("closed", False): [False, False],
        ("refused", True): [False],
        ("refused", False): [False],
        ("ranking", True): [True],
        ("ranking", False): [False],
    }
    assert "undeclared" in rows[1].why and "look-behind" in rows[4].why


def test_llguidance_is_asked_in_both_orders(
    files: tuple[Path, Path], layouts: TemplateBuilder
) -> None:
    pytest.importorskip("llguidance")
    rows = [row for row in expressible(*files, layouts, compare=True) if row.schema == "closed"]
    assert [row.theirs for row in rows] == [True, True, False, False]
    assert list(declared(SCHEMAS["closed"], {"c": 1, "b": 2, "a": 3})) == ["a", "b", "c"]


def test_the_command_prints_shares(files: tuple[Path, Path]) -> None:
    done = CliRunner().invoke(
        app, ["expressible", str(files[0]), "--schemas", str(files[1]), "--no-compare"]
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.exit_code == 0 and told[0] == {
        "instances": "valid",
        "count": 4,
        "said": 2,
        "share": 0.5,
    }
    assert told[1]["said"] == 0
