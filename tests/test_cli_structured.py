"""extract, choose and fill on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmdiff.cli import main


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (70, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"enum": [1, 2]}}}))
    return file


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mmdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_extract_prints_the_value(monkeypatch, capsys, picture: Path, schema: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(monkeypatch, capsys, "extract", picture, "--schema", schema, "--model", random_tiny)
    assert code == 0 and json.loads(out)["n"] in (1, 2)
    code, out, _ = call(monkeypatch, capsys, "extract", picture, "--schema", schema, "--model", random_tiny, "--json")
    told = json.loads(out)
    assert told["passes"] == 1 and sum(chance for _, chance in told["fields"]["/n"]["chances"]) == pytest.approx(1)


def test_extract_takes_a_type_and_a_text(monkeypatch, capsys, tmp_path: Path, random_tiny: Path) -> None:  # type: ignore
    (tmp_path / "receipts.py").write_text("from typing import Literal\nKind = Literal['cash', 'card']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys.stdin, "read", lambda: "Paid by card.")
    code, out, _ = call(monkeypatch, capsys, "extract", "-", "--schema", "receipts:Kind", "--model", random_tiny)
    assert code == 0 and json.loads(out) in ("cash", "card")


def test_choose_and_fill_print_texts(monkeypatch, capsys, picture: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(monkeypatch, capsys, "choose", picture, "what?", "red", "green", "--model", random_tiny)
    assert code == 0 and out.strip() in ("red", "green")
    code, out, _ = call(monkeypatch, capsys, "fill", picture, "It is [[red|green]].", "--model", random_tiny)
    assert code == 0 and out.strip() in ("It is red.", "It is green.")


BAD = {
    "no such file": (["extract", "PICTURE", "--schema", "nowhere.json"], "cannot be read"),
    "not JSON": (["extract", "PICTURE", "--schema", "PICTURE"], "is not JSON|cannot be read"),
    "no such module": (["extract", "PICTURE", "--schema", "nowhere:Type"], "give module:Type"),
    "no such type": (["extract", "PICTURE", "--schema", "json:Nothing"], "give module:Type"),
    "not a type": (["extract", "PICTURE", "--schema", "math:pi"], "neither a JSON Schema nor a type"),
    "budget": (["extract", "PICTURE", "--schema", "SCHEMA", "--max-tokens", "3"], "raise max_tokens"),
    "setting": (["extract", "PICTURE", "--schema", "SCHEMA", "--set", "rule=nope"], "rule"),
    "same choices": (["choose", "PICTURE", "what?", "a", "a"], "same text twice"),
    "empty question": (["choose", "PICTURE", " ", "a", "b"], "question is empty"),
    "no holes": (["fill", "PICTURE", "nothing"], "no hole"),
    "bad pattern": (["fill", "PICTURE", "[[/(/]]"], "pattern|parenthes"),
    "no picture": (["fill", "nowhere.png", "[[ ]]"], "nowhere.png"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_input_is_one_sentence(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, name: str, picture: Path, schema: Path, random_tiny: Path
) -> None:
    import re

    arguments, told = BAD[name]
    given = [str({"PICTURE": picture, "SCHEMA": schema}.get(each, each)) for each in arguments]
    code, out, err = call(monkeypatch, capsys, *given, "--model", random_tiny)
    assert code == 2 and out == "" and len(err.strip().splitlines()) == 1
    assert re.search(told, err) and "Traceback" not in err
