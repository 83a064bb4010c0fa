"""The command line: answers on stdout, and for bad input one sentence on stderr with exit code 2, no traceback."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner

from mmdiff.checkpoint import load_folder, save_folder
from mmdiff.cli import _paint, app, main
from mmdiff.config import PRESETS
from mmdiff.eval import speed
from mmdiff.eval.speed import picture_length, random_model
from mmdiff.model import MMDiffConfig, MMDiffModel
from mmdiff.pipeline import Draft, Token
from mmdiff.processor import MMDiffProcessor


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (70, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(16_000) * 0.4) / 3, 16_000)
    return tmp_path / "tone.wav"


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mmdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_ask_prints_the_answer(monkeypatch, capsys, picture: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, err = call(monkeypatch, capsys, "ask", picture, "what?", "--model", random_tiny, "--gen-length", 8)
    assert code == 0 and len(out.splitlines()) == 1 and "Traceback" not in err


def test_several_pictures_get_a_line_each(monkeypatch, capsys, picture: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(monkeypatch, capsys, "ask", picture, picture, "what?", "--model", random_tiny, "--json",
                        "--gen-length", 8)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 2
    assert set(rows[0]) == {
        "picture", "question", "answer", "confidence", "steps", "passes", "load_seconds", "answer_seconds", "tokens"
    }


def test_show_steps_draws(monkeypatch, capsys, picture: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(monkeypatch, capsys, "ask", picture, "what?", "--model", random_tiny, "--show-steps",
                        "--gen-length", 8)
    assert code == 0 and "step" in out


def test_a_tone_is_transcribed_to_nothing(monkeypatch, capsys, sound: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(monkeypatch, capsys, "transcribe", sound, "--model", random_tiny, "--format", "vtt")
    assert code == 0 and out == "WEBVTT\n\n"


def test_listen_and_refine_print_an_answer(monkeypatch, capsys, sound: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(monkeypatch, capsys, "listen", sound, "what?", "--model", random_tiny, "--gen-length", 8,
                        "--json")
    assert code == 0 and json.loads(out)["sound"] == str(sound)
    code, out, _ = call(monkeypatch, capsys, "refine", sound, "--draft", "a star", "--share", 0, "--model", random_tiny)
    assert code == 0 and out == "a star\n"


def test_a_deaf_model_is_not_asked_to_hear(monkeypatch, capsys, random_tiny: Path, tmp_path: Path) -> None:  # type: ignore
    _, processor = load_folder(random_tiny, torch.device("cpu"), torch.float32)
    config = dataclasses.replace(PRESETS["tiny"], audio=None)
    save_folder(MMDiffModel(MMDiffConfig.of(config)), MMDiffProcessor.of(processor.tokenizer, config), tmp_path)
    capsys.readouterr()
    code, _, err = call(monkeypatch, capsys, "eval", "speech", "--model", tmp_path)
    assert code == 2 and "takes no sounds" in err and len(err.strip().splitlines()) == 1


def test_open_positions_and_unsure_tokens_are_marked() -> None:
    text = _paint(Draft(2, (Token("red", 0.99, 0), None, Token(" star", 0.4, 2))))
    assert text.plain == "step   3  red▒ star"
    assert [str(span.style) for span in text.spans if "dim" in str(span.style)] == ["dim"]


def test_info_counts_parameters(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call(monkeypatch, capsys, "info", "llada-8b")
    assert code == 0 and json.loads(out)["parameters"]["total"] == 8_015_581_184


@pytest.mark.parametrize("random", [False, True])
def test_bench_writes_a_report(monkeypatch, capsys, tmp_path: Path, random_tiny: Path, random: bool) -> None:  # type: ignore
    """A picture's positions come before the answer; the weights are the model's own or random ones of its sizes."""
    made = []
    monkeypatch.setattr(speed, "random_model", lambda *given: made.append(random_model(*given)) or made[0])
    code, _, _ = call(monkeypatch, capsys, "bench", "--model", random_tiny, "--picture", "64x64", "--prompt", 4,
                        "--cache", "prefix", "--gen-length", 8, "--block-length", 8, "--steps", 2, "--repeats", 1,
                        "--out", tmp_path / "report.json", *["--random"] * random)
    (row,) = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert code == 0 and len(made) == random and row["how"] == "cache prefix"
    assert row["prompt"] == 4 + picture_length("64x64", PRESETS["tiny"]) and 1 <= row["passes"] <= 2


BAD_FILES: dict[str, bytes] = {
    "empty.png": b"",
    "text.png": b"this is not a picture",
    "cut.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00",
    "huge.png": bytes.fromhex("89504e470d0a1a0a0000000d49484452000186a0000186a008020000000000000000"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(monkeypatch, capsys, tmp_path: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(BAD_FILES[name])
    code, out, err = call(monkeypatch, capsys, "ask", tmp_path / name, "what?")
    assert code == 2 and out == "" and name in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", "nowhere.png", "what?"], "nowhere.png"),
        (["ask", ".", "what?"], "."),
        (["ask", "PICTURE"], "give at least one picture and then the question"),
        (["ask", "PICTURE", " "], "the question is empty"),
        (["ask", "PICTURE", "what?", "--model", "nothing"], "'nothing'"),
        (["ask", "PICTURE", "what?", "--steps", "0"], "steps=0"),
        (["ask", "PICTURE", "what?", "--gen-length", "100000"], "gen_length=100000"),
        (["ask", "PICTURE", "what?", "--threshold", "7"], "threshold=7.0"),
        (["ask", "PICTURE", "what?", "--device", "abacus"], "abacus"),
        (["ask", "PICTURE", "what?", "--json", "--show-steps"], "choose one"),
        (["caption", "PICTURE", "--length", "novel"], "'novel'"),
        (["ask", "PICTURE", "--speech", "nowhere.wav"], "nowhere.wav"),
        (["transcribe", "nowhere.wav"], "nowhere.wav"),
        (["transcribe", "PICTURE"], "red.png"),
        (["transcribe", "SOUND", "--format", "docx"], "'docx'"),
        (["transcribe", "SOUND", "--batch-size", "0"], "--batch-size 0"),
        (["listen", "SOUND", " "], "the question is empty"),
        (["refine", "SOUND", "--draft", " "], "--draft is empty"),
        (["refine", "SOUND", "--draft", "a star", "--share", "2"], "share=2.0"),
        (["train", "nothing"], "'nothing'"),
        (["train", "tiny", "--scale", "0"], "--scale 0"),
        (["train", "tiny", "--whisper", "nothing"], "'nothing'"),
        (["eval", "nothing"], "'nothing'"),
        (["eval", "--limit", "0"], "--limit 0"),
        (["eval", "--out", "nowhere/scores.json"], "nowhere/scores.json cannot be written"),
        (["info", "nothing"], "'nothing'"),
        (["ask", "PICTURE", "what?", "--set", "temperature=hot"], "temperature='hot'"),
        (["ask", "PICTURE", "what?", "--set", "cache=5"], "cache=5"),
        (["ask", "PICTURE", "what?", "--set", "steps=x"], "steps='x'"),
        (["ask", "PICTURE", "what?", "--set", "bogus=1"], "unknown decoding setting 'bogus'"),
        (["ask", "PICTURE", "what?", "--set", "rule"], "--set 'rule' does not fit"),
        (["caption", "PICTURE", "--set", "=wino"], "--set '=wino' does not fit"),
        (["compare", "nothing"], "unknown setting 'nothing'"),
        (["compare", "--batch-size", "0"], "--batch-size 0"),
        (["compare", "--limit", "0"], "--limit 0"),
        (["compare", "--model", "nothing"], "'nothing'"),
        (["compare", "--out", "nowhere/report.json"], "nowhere/report.json cannot be written"),
        (["compare", "--out", "."], ". cannot be written"),
        (["compare", "--plot", "nowhere/plot.png"], "nowhere/plot.png cannot be written"),
        (["compare", "--plot", "plot.docx"], "plot.docx cannot be drawn"),
        (["bench", "--preset", "huge"], "--preset 'huge'"),
        (["bench", "--model", "nothing"], "'nothing'"),
        (["bench", "--dtype", "float8"], "--dtype 'float8'"),
        (["bench", "--cache", "yes"], "cache='yes'"),
        (["bench", "--rule", "best"], "rule='best'"),
        (["bench", "--steps", "0"], "steps=0"),
        (["bench", "--prompt", "9", "--prompt", "0"], "--prompt 0"),
        (["bench", "--batch", "0"], "--batch 0"),
        (["bench", "--repeats", "0"], "--repeats 0"),
        (["bench", "--picture", "big", "--preset", "llada-v-8b"], "picture='big'"),
        (["bench", "--picture", "64x64"], "needs a model that takes pictures"),
        (["bench", "--baselines", "--rule", "saber", "--model", "MODEL", "--random"], "leave out --baselines"),
        (["bench", "--out", "nowhere/report.json"], "nowhere/report.json cannot be written"),
    ],
)
def test_bad_arguments(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, picture: Path, sound: Path, random_tiny: Path, arguments: list[str], says: str
) -> None:
    files = {"PICTURE": str(picture), "SOUND": str(sound), "MODEL": str(random_tiny)}
    given = [files.get(argument, argument) for argument in arguments]
    if files.keys() & set(arguments) and "--model" not in given:
        given += ["--model", str(random_tiny)]
    code, out, err = call(monkeypatch, capsys, *given)
    assert code == 2 and says in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err


@pytest.mark.parametrize("arguments", [["ask"], ["fly"], ["ask", "a", "b", "--steps", "many"]])
def test_unknown_words_are_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2


def test_a_closed_pipe_is_no_traceback(picture: Path, random_tiny: Path) -> None:
    command = f"{sys.executable} -m mmdiff.cli info llada-8b | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env={**os.environ}, timeout=120)
    assert "Traceback" not in done.stderr


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"enum": [1, 2]}}}))
    return file


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


def test_repairs_are_told(monkeypatch, capsys, picture: Path, tmp_path: Path, random_tiny: Path) -> None:  # type: ignore
    items = {"type": "integer", "minimum": 0, "maximum": 500}
    (tmp_path / "odd.json").write_text(json.dumps({
        "type": "array", "items": items, "uniqueItems": True, "minItems": 2, "maxItems": 2,
        "contains": {"multipleOf": 97, "minimum": 1}}))
    args = ("extract", picture, "--schema", tmp_path / "odd.json", "--model", random_tiny)
    code, out, err = call(monkeypatch, capsys, *args)
    assert code == 0 and len(json.loads(out)) == 2 and ("note: at /0 of the value" in err or "note: at the root" in err)
    code, out, err = call(monkeypatch, capsys, *args, "--json")
    told = json.loads(out)
    assert told["repairs"][0]["what"] in err and told["confidence"] == 0 and told["decisions"] == []


def test_choose_and_fill_print_texts(monkeypatch, capsys, picture: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(monkeypatch, capsys, "choose", picture, "what?", "red", "green", "--model", random_tiny)
    assert code == 0 and out.strip() in ("red", "green")
    code, out, _ = call(monkeypatch, capsys, "fill", picture, "It is [[red|green]].", "--model", random_tiny)
    assert code == 0 and out.strip() in ("It is red.", "It is green.")


UNSTRUCTURED = {
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


@pytest.mark.parametrize("name", sorted(UNSTRUCTURED))
def test_bad_schemas_and_holes_are_one_sentence(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, name: str, picture: Path, schema: Path, random_tiny: Path
) -> None:
    arguments, told = UNSTRUCTURED[name]
    given = [str({"PICTURE": picture, "SCHEMA": schema}.get(each, each)) for each in arguments]
    code, out, err = call(monkeypatch, capsys, *given, "--model", random_tiny)
    assert code == 2 and out == "" and len(err.strip().splitlines()) == 1
    assert re.search(told, err) and "Traceback" not in err
