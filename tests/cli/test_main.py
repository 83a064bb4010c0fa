"""The command line: answers on stdout, and for bad input one sentence on stderr with exit code 2,
no traceback."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from typer.testing import CliRunner

from mmdiff.answers import Draft, Token
from mmdiff.cli.ask import _paint
from mmdiff.cli.main import app, main
from mmdiff.cli.outputs import to_json
from mmdiff.config import PRESETS
from mmdiff.eval import speed
from mmdiff.eval.speed import picture_length, random_model
from mmdiff.modeling.checkpoint import load_folder, save_folder
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.pipeline import Pipeline
from mmdiff.transcript import Segment, Transcript
from mmdiff.vision.image_io import open_image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (70, 40), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(16_000) * 0.4) / 3, 16_000)
    return tmp_path / "tone.wav"


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["mmdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_ask_prints_the_answer(monkeypatch, capsys, picture: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, err = call(
        monkeypatch, capsys, "ask", picture, "what?", "--model", random_tiny, "--gen-length", 8
    )
    assert code == 0 and len(out.splitlines()) == 1 and "Traceback" not in err


def test_number_types_are_chosen_or_refused(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, picture: Path, random_tiny: Path
) -> None:
    command = ["ask", str(picture), "what is it?", "--model", str(random_tiny)]
    code, out, _ = call(monkeypatch, capsys, *command, "--dtype", "bfloat16")
    assert out and code == 0
    code, out, err = call(monkeypatch, capsys, *command, "--dtype", "int8")
    assert (out, code) == ("", 2)
    assert "dtype='int8' does not fit; use float32 or bfloat16, or auto" in err


def test_several_pictures_get_a_line_each(
    monkeypatch, capsys, picture: Path, random_tiny: Path
) -> None:  # type: ignore
    code, out, _ = call(
        monkeypatch,
        capsys,
        "ask",
        picture,
        picture,
        "what?",
        "--model",
        random_tiny,
        "--json",
        "--gen-length",
        8,
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 2
    assert set(rows[0]) == {
        "picture",
        "question",
        "answer",
        "confidence",
        "steps",
        "passes",
        "load_seconds",
        "answer_seconds",
        "tokens",
    }


def test_show_steps_draws(monkeypatch, capsys, picture: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(
        monkeypatch,
        capsys,
        "ask",
        picture,
        "what?",
        "--model",
        random_tiny,
        "--show-steps",
        "--gen-length",
        8,
    )
    assert code == 0 and "step" in out


def test_a_tone_is_transcribed_to_nothing(
    monkeypatch, capsys, sound: Path, random_tiny: Path
) -> None:  # type: ignore
    code, out, _ = call(
        monkeypatch, capsys, "transcribe", sound, "--model", random_tiny, "--format", "vtt"
    )
    assert code == 0 and out == "WEBVTT\n\n"


def heard_as(monkeypatch: pytest.MonkeyPatch, *segments: Segment) -> None:
    """A model that writes these segments, whatever it hears."""
    made = Transcript(segments, 1.0)
    monkeypatch.setattr(Pipeline, "transcribe", lambda self, samples, **_: made)


SURE, UNSURE = (
    Segment(0.0, 1.0, "turn on the light", 0.93),
    Segment(61.5, 63.0, "kitchen might", 0.2),
)


def test_no_speech_and_unsure_words_are_said_on_stderr(
    monkeypatch, capsys, sound: Path, random_tiny: Path
) -> None:  # type: ignore
    heard_as(monkeypatch, SURE, UNSURE)
    code, out, err = call(monkeypatch, capsys, "transcribe", sound, "--model", random_tiny)
    assert code == 0 and out == "turn on the light kitchen might\n"
    assert err == f"mmdiff: {sound}: not sure of 'kitchen might' at 61.5 s (confidence 0.20)\n"
    heard_as(monkeypatch, *[UNSURE] * 9)
    assert (
        "nor of 4 more segments"
        in call(monkeypatch, capsys, "transcribe", sound, "--model", random_tiny)[2]
    )
    heard_as(monkeypatch)
    assert (
        "no speech was found"
        in call(monkeypatch, capsys, "transcribe", sound, "--model", random_tiny)[2]
    )


def test_a_doubtful_spoken_question_is_told(
    monkeypatch, capsys, sound: Path, picture: Path, random_tiny: Path
) -> None:  # type: ignore
    heard_as(monkeypatch, UNSURE)
    code, out, err = call(
        monkeypatch,
        capsys,
        "ask",
        picture,
        "--speech",
        sound,
        "--model",
        random_tiny,
        "--json",
        "--gen-length",
        8,
    )
    assert code == 0 and "heard: kitchen might" in err and "not sure of 'kitchen might'" in err
    assert (
        json.loads(out)["heard"] == "kitchen might" and json.loads(out)["heard_confidence"] == 0.2
    )


def test_standard_input_is_transcribed(monkeypatch, capsys, sound: Path, random_tiny: Path) -> None:  # type: ignore
    heard_as(monkeypatch, SURE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sound.read_bytes())))
    code, out, _ = call(
        monkeypatch, capsys, "transcribe", "-", "--model", random_tiny, "--format", "srt"
    )
    assert code == 0 and out.startswith("1\n00:00:00,000 --> 00:00:01,000\nturn on")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert call(monkeypatch, capsys, "transcribe", "-")[0] == 2


# https://github.com/xiph/opus/issues/297
def test_what_is_read_is_never_written_over(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, tmp_path: Path, sound: Path, random_tiny: Path
) -> None:
    heard_as(monkeypatch, SURE)
    before, link, requests = sound.read_bytes(), tmp_path / "link.txt", tmp_path / "a.jsonl"
    link.symlink_to(sound)
    for out in (sound, link):
        code, _, err = call(
            monkeypatch, capsys, "transcribe", sound, "--out", out, "--model", random_tiny
        )
        assert code == 2 and "would be written over" in err and sound.read_bytes() == before
    requests.write_text("{")  # which could be the beginning of a row that was broken off
    code, _, err = call(monkeypatch, capsys, "run-batch", "-i", requests, "-o", requests)
    assert code == 2 and "would be written over" in err and requests.read_text() == "{"


def test_transcripts_go_where_links_and_pipes_lead(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, tmp_path: Path, sound: Path, random_tiny: Path
) -> None:
    heard_as(monkeypatch, SURE)
    link, pipe = tmp_path / "link.txt", tmp_path / "pipe"
    link.symlink_to(tmp_path / "real.txt")
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for out in (link, pipe):
        assert (
            call(monkeypatch, capsys, "transcribe", sound, "--out", out, "--model", random_tiny)[0]
            == 0
        )
    assert (
        link.is_symlink()
        and pipe.is_fifo()
        and os.read(reader, 100).decode() == link.read_text() != ""
    )
    os.close(reader)


def test_standard_input_that_is_closed_or_no_text(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, tmp_path: Path, random_tiny: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "boolean"}')
    extract = ("extract", "-", "--schema", schema, "--model", random_tiny)
    for content, says in (
        (None, "is closed"),
        (b"caf\xe9", "is not text in UTF-8"),
        (b"", "nothing to extract from"),
    ):
        given = None if content is None else io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr(sys, "stdin", given)
        code, _, err = call(monkeypatch, capsys, *extract)
        assert code == 2 and says in err and "Traceback" not in err
    monkeypatch.setattr(sys, "stdin", None)
    assert call(monkeypatch, capsys, "transcribe", "-", "--model", random_tiny)[0] == 2


def test_a_full_disk_behind_standard_output_is_told(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmdiff.cli.main.app", full)
    code, _, err = call(monkeypatch, capsys, "info")
    assert (
        code == 2 and err == "mmdiff: standard output cannot be written (No space left on device)\n"
    )


def test_one_bad_file_does_not_stop_the_others(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, sound: Path, picture: Path, random_tiny: Path
) -> None:
    heard_as(monkeypatch, SURE)
    given = ("transcribe", sound, picture, "nowhere.wav", sound, "--model", random_tiny)
    code, out, err = call(monkeypatch, capsys, *given)
    assert code == 1 and out == f"{sound}: turn on the light\n" * 2
    assert (
        "red.png" in err and "nowhere.wav" in err and "2 of 4 files could not be transcribed" in err
    )
    code, out, _ = call(monkeypatch, capsys, *given, "--format", "json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and [row["file"] for row in rows] == [str(each) for each in given[1:5]]
    assert [("error" in row, row.get("text")) for row in rows] == [
        (False, "turn on the light"),
        (True, None),
        (True, None),
        (False, "turn on the light"),
    ]
    assert call(monkeypatch, capsys, "transcribe", "nowhere.wav", "nor.wav")[0] == 2


def test_transcripts_go_to_files(
    monkeypatch, capsys, sound: Path, tmp_path: Path, random_tiny: Path
) -> None:  # type: ignore
    heard_as(monkeypatch, SURE)
    other, out = tmp_path / "other.wav", tmp_path / "subtitles"
    other.write_bytes(sound.read_bytes())
    both = ("transcribe", sound, other, "--model", random_tiny, "--format", "vtt")
    code, said, err = call(monkeypatch, capsys, *both)
    assert code == 2 and said == "" and "add --out FOLDER" in err
    code, said, _ = call(monkeypatch, capsys, *both, "--out", out)
    assert (
        code == 0
        and said == ""
        and sorted(file.name for file in out.iterdir()) == ["other.vtt", "tone.vtt"]
    )
    assert (out / "tone.vtt").read_text().startswith("WEBVTT\n\n00:00.000 --> 00:01.000\nturn on")
    code, _, err = call(
        monkeypatch, capsys, "transcribe", sound, sound, "--out", out, "--model", random_tiny
    )
    assert code == 2 and "would both be written to" in err
    code, _, _ = call(
        monkeypatch,
        capsys,
        "transcribe",
        sound,
        "--out",
        tmp_path / "a.txt",
        "--model",
        random_tiny,
    )
    assert code == 0 and (tmp_path / "a.txt").read_text() == "turn on the light\n"
    code, _, err = call(monkeypatch, capsys, *both, "--out", tmp_path / "a.txt")
    assert code == 2 and "is a file; 2 transcripts need a folder" in err


@pytest.mark.parametrize("extra", [["--json"], ["--show-steps"], []])
def test_pictures_are_opened_a_few_at_a_time(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, picture: Path, random_tiny: Path, extra: list[str]
) -> None:
    """No more are held than fit the bound on their pixels, and the one that is being opened."""
    held: list[weakref.ref[Image.Image]] = []
    most = 0

    def opened(source: Any) -> Image.Image:
        nonlocal most
        made = open_image(source)
        held.append(weakref.ref(made))
        most = max(most, sum(each() is not None for each in held))
        return made

    monkeypatch.setattr("mmdiff.vision.image_io.open_image", opened)
    monkeypatch.setattr("mmdiff.cli.ask.CHUNK_PIXELS", 3 * 70 * 40)
    code, out, _ = call(
        monkeypatch,
        capsys,
        "ask",
        *[picture] * 10,
        "what?",
        "--model",
        random_tiny,
        "--gen-length",
        2,
        *extra,
    )
    assert code == 0 and len(held) == 10 and most <= 4
    if "--show-steps" not in extra:
        assert len(out.splitlines()) == 10


def test_one_bad_picture_does_not_stop_the_others(
    monkeypatch, capsys, picture: Path, random_tiny: Path
) -> None:  # type: ignore
    given = (
        "ask",
        picture,
        "nowhere.png",
        picture,
        "what?",
        "--model",
        random_tiny,
        "--gen-length",
        2,
        "--json",
    )
    code, out, err = call(monkeypatch, capsys, *given)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1 and "nowhere.png" in err and len(rows) == 3
    assert sorted("error" in row for row in rows) == [False, False, True]


def test_listen_and_refine_print_an_answer(
    monkeypatch, capsys, sound: Path, random_tiny: Path
) -> None:  # type: ignore
    code, out, _ = call(
        monkeypatch,
        capsys,
        "listen",
        sound,
        "what?",
        "--model",
        random_tiny,
        "--gen-length",
        8,
        "--json",
    )
    assert code == 0 and json.loads(out)["sound"] == str(sound)
    code, out, _ = call(
        monkeypatch,
        capsys,
        "refine",
        sound,
        "--draft",
        "a star",
        "--share",
        0,
        "--model",
        random_tiny,
    )
    assert code == 0 and out == "a star\n"


def test_a_deaf_model_is_not_asked_to_hear(
    monkeypatch, capsys, sound: Path, random_tiny: Path, tmp_path: Path
) -> None:  # type: ignore
    _, processor = load_folder(random_tiny, torch.device("cpu"), torch.float32)
    config = dataclasses.replace(PRESETS["tiny"], audio=None)
    save_folder(
        MMDiffModel(MMDiffConfig.of(config)),
        MMDiffProcessor.of(processor.tokenizer, config),
        tmp_path,
    )
    capsys.readouterr()
    code, _, err = call(monkeypatch, capsys, "listen", sound, "who is it?", "--model", tmp_path)
    assert code == 2 and "takes no audio" in err and len(err.strip().splitlines()) == 1


def test_open_positions_and_unsure_tokens_are_marked() -> None:
    text = _paint(Draft(2, (Token("red", 0.99, 0), None, Token(" star", 0.4, 2))))
    assert text.plain == "step   3  red▒ star"
    assert [str(span.style) for span in text.spans if "dim" in str(span.style)] == ["dim"]


def test_info_counts_parameters(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call(monkeypatch, capsys, "info", "llada-8b")
    assert code == 0 and json.loads(out)["parameters"]["total"] == 8_015_581_184
    assert isinstance(json.loads(out)["machine"]["cpu_multiplies_bfloat16"], bool)


def test_info_fetches_settings_alone(monkeypatch, capsys, reference: Path) -> None:  # type: ignore[no-untyped-def]
    asked: list[str] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(reference / "dream")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    code, out, _ = call(monkeypatch, capsys, "info", "Dream-org/some-model")
    assert code == 0 and json.loads(out)["settings"]["backbone"]["shifted"] is True
    assert asked and all(pattern.endswith("config.json") for pattern in asked)


@pytest.mark.parametrize("random", [False, True])
def test_bench_writes_a_report(
    monkeypatch, capsys, tmp_path: Path, random_tiny: Path, random: bool
) -> None:  # type: ignore
    """A picture's positions come before the answer; the weights are the model's own or random ones
    of its sizes."""
    made = []
    monkeypatch.setattr(
        speed, "random_model", lambda *given: made.append(random_model(*given)) or made[0]
    )
    code, _, _ = call(
        monkeypatch,
        capsys,
        "bench",
        "--model",
        random_tiny,
        "--picture",
        "64x64",
        "--prompt",
        4,
        "--cache",
        "prefix",
        "--gen-length",
        8,
        "--block-length",
        8,
        "--steps",
        2,
        "--repeats",
        1,
        "--out",
        tmp_path / "report.json",
        *["--random"] * random,
    )
    (row,) = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert code == 0 and len(made) == random and row["how"] == "cache prefix"
    assert row["prompt"] == 4 + picture_length("64x64", PRESETS["tiny"]) and 1 <= row["passes"] <= 2


BAD_FILES: dict[str, bytes] = {
    "empty.png": b"",
    "text.png": b"this is not a picture",
    "cut.png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00",
    "huge.png": bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000186a0000186a008020000000000000000"
    ),
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
        (["ask", "PICTURE"], "give at least one image and then the question"),
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
        (["transcribe", "SOUND", "--beam-size", "0"], "beam_size=0"),
        (["transcribe", "SOUND", "--channels", "three"], "--channels 'three'"),
        (["transcribe", "SOUND", "--language", "xx"], "language='xx' is not known to tiny.en"),
        (["transcribe", "SOUND", "--speech-model", "nothing"], "unknown speech model 'nothing'"),
        (["eval", "--against", "nowhere.json"], "nowhere.json cannot be read"),
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
        (["ask", "PICTURE", "what?", "--seed", str(2**64)], f"seed={2**64}"),
        (["ask", "PICTURE", "what?", "--seed", str(-(2**70)), "--show-steps"], f"seed={-(2**70)}"),
        (
            ["choose", "PICTURE", "what?", "red", "blue", "--seed", "9" * 300],
            "seed=a whole number of 997 bits",
        ),
        (["fill", "PICTURE", "a [[red|blue]]", "--seed", str(2**64)], f"seed={2**64}"),
        (["caption", "PICTURE", "--seed", str(2**64)], f"seed={2**64}"),
        (["ask", "PICTURE", "what?", "--temperature", "inf"], "temperature=inf"),
        (["ask", "PICTURE", "what?", "--temperature", "nan"], "temperature=nan"),
        (["ask", "PICTURE", "what?", "--cfg-scale", "inf", "--json"], "cfg_scale=inf"),
        (["ask", "PICTURE", "what?", "--threshold", "nan"], "threshold=nan"),
        (["ask", "PICTURE", "what?", "--steps", "1000000000000"], "steps=1000000000000"),
        (["ask", "PICTURE", "what?", "--set", "steps=true"], "steps=True"),
        (["ask", "PICTURE", "what?", "--set", "gamma=Infinity"], "gamma=inf"),
        (["ask", "PICTURE", "what?", "--set", "steps=4.0"], "steps=4.0"),
        (["ask", "PICTURE", "what?", "--set", 'rule=["wino"]'], "rule=['wino']"),
        (["refine", "SOUND", "--draft", "a star", "--share", "nan"], "share=nan"),
        (["fill", "PICTURE", "a \udcff [[red|blue]]"], "half of a surrogate pair"),
        (["train", "tiny", "--scale", "nan"], "--scale nan"),
        (["train", "tiny", "--scale", "inf"], "--scale inf"),
        (["caption", "PICTURE", "--set", "=wino"], "--set '=wino' does not fit"),
        (["bench", "--accuracy", "--setting", "nothing"], "unknown setting 'nothing'"),
        (["bench", "--limit", "3"], "--limit is for --accuracy"),
        (["bench", "--accuracy", "--model", "nothing"], "'nothing'"),
        (
            ["bench", "--accuracy", "--out", "nowhere/report.json"],
            "nowhere/report.json cannot be written",
        ),
        (["bench", "--accuracy", "--out", "."], ". cannot be written"),
        (
            ["bench", "--accuracy", "--plot", "nowhere/plot.png"],
            "nowhere/plot.png cannot be written",
        ),
        (["bench", "--accuracy", "--plot", "plot.docx"], "plot.docx cannot be drawn"),
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
        (["bench", "--picture", "64x64"], "needs a model that takes images"),
        (
            ["bench", "--baselines", "--rule", "saber", "--model", "MODEL", "--random"],
            "leave out --baselines",
        ),
        (["bench", "--out", "nowhere/report.json"], "nowhere/report.json cannot be written"),
    ],
)
def test_bad_arguments(  # type: ignore[no-untyped-def]
    monkeypatch,
    capsys,
    picture: Path,
    sound: Path,
    random_tiny: Path,
    arguments: list[str],
    says: str,
) -> None:
    files = {"PICTURE": str(picture), "SOUND": str(sound), "MODEL": str(random_tiny)}
    given = [files.get(argument, argument) for argument in arguments]
    if files.keys() & set(arguments) and "--model" not in given:
        given += ["--model", str(random_tiny)]
    code, out, err = call(monkeypatch, capsys, *given)
    assert (
        code == 2 and says in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err
    )


@pytest.mark.parametrize("arguments", [["ask"], ["fly"], ["ask", "a", "b", "--steps", "many"]])
def test_unknown_words_are_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--seed", 2**64), "'seed' does not fit"),
        (("--temperature", "inf"), "'temperature' does not fit"),
        (("--temperature", "nan"), "'temperature' does not fit"),
        (("--set", "steps=true"), "'steps' does not fit"),
        (("--set", "bogus=1"), "'bogus' is not supported here"),
        (("--threshold", 7), "'threshold' does not fit"),
    ],
)
def test_a_folder_is_not_begun_with_bad_settings(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, picture: Path, tmp_path: Path, option: tuple[str, Any], says: str
) -> None:
    """Each of its captions would fail alike."""
    code, out, err = call(
        monkeypatch, capsys, "caption", picture.parent, "--out", tmp_path / "out.jsonl", *option
    )
    assert (
        code == 2
        and says in err
        and len(err.strip().splitlines()) == 1
        and not (tmp_path / "out.jsonl").exists()
    )


def test_printed_json_has_no_numbers_that_are_none() -> None:
    """JSON knows neither NaN nor Infinity, and what reads it need not either."""
    told = {"confidence": float("nan"), "tokens": [{"confidence": float("inf")}, (1.5, True, None)]}
    assert (
        to_json(told) == '{"confidence": null, "tokens": [{"confidence": null}, [1.5, true, null]]}'
    )


def test_a_question_need_not_be_unicode(
    monkeypatch, capsys, picture: Path, random_tiny: Path
) -> None:  # type: ignore
    """Nor a file's name: a shell hands on whatever bytes it has."""
    odd = picture.with_name("r\udce9d.png")
    picture.rename(odd)
    code, out, err = call(
        monkeypatch,
        capsys,
        "ask",
        odd,
        "what \udcff?",
        "--model",
        random_tiny,
        "--json",
        "--gen-length",
        8,
    )
    assert code == 0 and json.loads(out)["picture"] == str(odd) and "Traceback" not in err


def test_a_closed_pipe_is_no_traceback(picture: Path, random_tiny: Path) -> None:
    command = f"{sys.executable} -m mmdiff.cli.main info llada-8b | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env={**os.environ}, timeout=120
    )
    assert "Traceback" not in done.stderr


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "schema.json"
    file.write_text(
        json.dumps({"type": "object", "required": ["n"], "properties": {"n": {"enum": [1, 2]}}})
    )
    return file


def test_extract_prints_the_value(
    monkeypatch, capsys, picture: Path, schema: Path, random_tiny: Path
) -> None:  # type: ignore
    code, out, _ = call(
        monkeypatch, capsys, "extract", picture, "--schema", schema, "--model", random_tiny
    )
    assert code == 0 and json.loads(out)["n"] in (1, 2)
    code, out, _ = call(
        monkeypatch,
        capsys,
        "extract",
        picture,
        "--schema",
        schema,
        "--model",
        random_tiny,
        "--json",
    )
    told = json.loads(out)
    assert told["passes"] == 1 and sum(
        chance for _, chance in told["fields"]["/n"]["chances"]
    ) == pytest.approx(1)


def test_what_was_said_is_extracted(
    monkeypatch, capsys, sound: Path, schema: Path, random_tiny: Path
) -> None:  # type: ignore
    heard_as(monkeypatch, UNSURE)
    model = ("--model", random_tiny, "--json")
    code, out, err = call(monkeypatch, capsys, "extract", sound, "--schema", schema, *model)
    assert (
        code == 0
        and err.startswith("heard: kitchen might\n")
        and "not sure of these words (confidence 0.20)" in err
    )
    assert (json.loads(out)["heard"], json.loads(out)["heard_confidence"]) == ("kitchen might", 0.2)
    code, out, err = call(
        monkeypatch, capsys, "choose", sound, "which room?", "kitchen", "hall", *model
    )
    assert (
        code == 0
        and json.loads(out)["heard"] == "kitchen might"
        and json.loads(out)["value"] in ("kitchen", "hall")
    )
    whole = ("--audio-as", "embeddings")
    code, out, err = call(monkeypatch, capsys, "extract", sound, "--schema", schema, *model, *whole)
    assert code == 0 and "heard" not in out + err
    heard_as(monkeypatch)
    for verb in (
        ("extract", sound, "--schema", schema),
        ("choose", sound, "which room?", "kitchen", "hall"),
    ):
        code, out, err = call(monkeypatch, capsys, *verb, *model)
        assert (
            code == 2
            and out == ""
            and "no speech was found in the audio" in err
            and err.count("\n") == 1
        )
        code, _, err = call(monkeypatch, capsys, *verb, "--audio-as", "words", *model)
        assert (
            code == 2
            and err == "mmdiff: --audio-as 'words' is not known; use transcript or embeddings\n"
        )


def test_extract_takes_a_type_and_a_text(
    monkeypatch, capsys, tmp_path: Path, random_tiny: Path
) -> None:  # type: ignore
    (tmp_path / "receipts.py").write_text(
        "from typing import Literal\nKind = Literal['cash', 'card']\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Paid by card.")))
    code, out, _ = call(
        monkeypatch, capsys, "extract", "-", "--schema", "receipts:Kind", "--model", random_tiny
    )
    assert code == 0 and json.loads(out) in ("cash", "card")


def test_repairs_are_told(
    monkeypatch, capsys, picture: Path, tmp_path: Path, random_tiny: Path
) -> None:  # type: ignore
    # left to the validator, and random weights are as good as sure to miss what is allowed
    items = {
        "type": "integer",
        "minimum": 0,
        "maximum": 500,
        "not": {"multipleOf": 1, "maximum": 498},
    }
    (tmp_path / "odd.json").write_text(
        json.dumps({"type": "array", "items": items, "minItems": 2, "maxItems": 2})
    )
    args = ("extract", picture, "--schema", tmp_path / "odd.json", "--model", random_tiny)
    code, out, err = call(monkeypatch, capsys, *args)
    assert (
        code == 0
        and len(json.loads(out)) == 2
        and ("note: at /0 of the value" in err or "note: at the root" in err)
    )
    code, out, err = call(monkeypatch, capsys, *args, "--json")
    told = json.loads(out)
    assert told["repairs"][0]["what"] in err and told["confidence"] == 0 and told["decisions"] == []


def test_choose_and_fill_print_texts(monkeypatch, capsys, picture: Path, random_tiny: Path) -> None:  # type: ignore
    code, out, _ = call(
        monkeypatch, capsys, "choose", picture, "what?", "red", "green", "--model", random_tiny
    )
    assert code == 0 and out.strip() in ("red", "green")
    code, out, _ = call(
        monkeypatch, capsys, "fill", picture, "It is [[red|green]].", "--model", random_tiny
    )
    assert code == 0 and out.strip() in ("It is red.", "It is green.")


UNSTRUCTURED = {
    "no such file": (["extract", "PICTURE", "--schema", "nowhere.json"], "cannot be read"),
    "not JSON": (["extract", "PICTURE", "--schema", "PICTURE"], "is not JSON|cannot be read"),
    "no such module": (["extract", "PICTURE", "--schema", "nowhere:Type"], "give module:Type"),
    "no such type": (["extract", "PICTURE", "--schema", "json:Nothing"], "give module:Type"),
    "not a type": (
        ["extract", "PICTURE", "--schema", "math:pi"],
        "neither a JSON Schema nor a type",
    ),
    "budget": (
        ["extract", "PICTURE", "--schema", "SCHEMA", "--max-tokens", "3"],
        "raise max_tokens",
    ),
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
