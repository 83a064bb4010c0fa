"""The page in a real browser without a window, against the real server with the default model."""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from mmdiff.audio.audio_io import load_audio
from tests.helpers.programs import needs
from tests.helpers.serving import Served

CHROMIUM = shutil.which("chromium")
SECONDS = 60  # a busy machine answers slowly
pytestmark = [pytest.mark.slow, needs("chromium")]


@pytest.fixture(scope="module")
def voice(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the browser's microphone hears, again and again: a spoken question and a pause."""
    path = tmp_path_factory.mktemp("voice") / "voice.wav"
    spoken = load_audio(str(root / "examples" / "question.flac"))
    soundfile.write(path, np.concatenate([spoken, np.zeros(8000, np.float32)]), 16_000)
    return path


@pytest.fixture(scope="module")
def browser(voice: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = [
            "--no-sandbox",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-audio-capture={voice}",
        ]
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Page]:
    """The page; whatever it asks elsewhere or complains about fails the test."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.set_default_timeout(1000 * SECONDS)
    asked: list[str] = []
    complaints: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(server.url)
    expect(opened.locator("#curl")).to_contain_text("curl")
    yield opened
    assert [url for url in asked if not url.startswith((server.url, "blob:", "data:"))] == []
    assert [text for text in complaints if "400" not in text] == []
    context.close()


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask").click()


def answered(page: Page) -> str:
    expect(page.get_by_role("button", name="Ask")).to_be_enabled(timeout=1000 * SECONDS)
    expect(page.locator("#problem")).to_be_empty()
    return page.locator("#text").inner_text()


def choose_image(page: Page, root: Path, name: str = "shapes.png") -> None:
    page.get_by_label("Image").set_input_files(root / "examples" / name)
    expect(page.get_by_alt_text("The chosen image")).to_be_visible()


def test_a_question_about_an_image_is_answered_step_by_step(page: Page, root: Path) -> None:
    choose_image(page, root)
    page.get_by_text("Settings").click()
    page.get_by_label("Longest answer").fill("16")
    page.get_by_label("Steps").fill("8")
    ask(page, "what color is the circle?")
    assert answered(page) == "red"
    expect(page.locator("#status")).to_contain_text(re.compile(r"Done in [1-8] step"))
    slider = page.get_by_role("slider", name="Step")
    last = int(slider.get_attribute("max") or 0)
    tokens = page.locator("#canvas .token")
    text = "".join(tokens.all_inner_texts()).strip()
    assert text == "red" and page.locator("#canvas .open").count() == 0
    assert re.fullmatch(r"[\d.]+ %, decided in step \d+", tokens.first.get_attribute("title") or "")
    slider.focus()
    for _ in range(last):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#step-name")).to_contain_text(f"step 1 of {last + 1}")
    page.get_by_role("button", name="Replay").click()
    expect(page.locator("#step-name")).to_contain_text(f"step {last + 1} of {last + 1}")


def test_a_long_answer_is_seen_with_open_positions(page: Page, root: Path) -> None:
    choose_image(page, root, "wide.png")
    page.get_by_text("Settings").click()
    page.get_by_label("Longest answer").fill("64")
    page.get_by_label("Steps").fill("64")
    ask(page, "Describe the picture in detail.")
    text = answered(page)
    assert len(text.split()) > 5
    slider = page.get_by_role("slider", name="Step")
    assert int(slider.get_attribute("max") or 0) >= 5
    slider.fill("2")
    assert page.locator("#canvas .open").count() > 0
    assert page.locator("#canvas .new").count() >= 1


def test_the_keyboard_is_enough(page: Page, root: Path) -> None:
    page.get_by_label("Question", exact=True).focus()
    page.keyboard.type("is there a circle?")
    page.keyboard.press("Enter")
    assert answered(page)
    page.locator("body").evaluate("body => document.activeElement.blur()")
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id"))
    assert {
        "image",
        "audio",
        "record",
        "question",
        "as-json",
        "ask",
        "step",
        "play",
        "curl",
        "copy",
    } <= seen


def test_an_image_can_be_dropped_and_removed(page: Page, root: Path) -> None:
    data = list((root / "examples" / "one.png").read_bytes())
    page.evaluate(
        """data => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(data)], "one.png", {type: "image/png"}));
        const drop = new DragEvent("drop", {dataTransfer: transfer, bubbles: true});
        document.getElementById("drop").dispatchEvent(drop);
    }""",
        data,
    )
    expect(page.get_by_alt_text("The chosen image")).to_be_visible()
    ask(page, "what shape is it?")
    assert "ring" in answered(page)
    page.get_by_role("button", name="Remove the image").click()
    expect(page.get_by_alt_text("The chosen image")).to_be_hidden()
    assert "image_url" not in page.locator("#curl").inner_text()


def test_a_recorded_question_is_heard(page: Page, root: Path) -> None:
    choose_image(page, root)
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.get_by_role("button", name="Stop recording")).to_have_attribute(
        "aria-pressed", "true"
    )
    page.wait_for_timeout(4000)
    page.get_by_role("button", name="Stop recording").click()
    expect(page.locator("#player")).to_be_visible()
    page.get_by_role("button", name="Ask").click()
    assert answered(page)
    assert len(page.get_by_label("Question", exact=True).input_value().split()) >= 3


def test_audio_can_be_asked_about(page: Page, root: Path) -> None:
    page.get_by_role("button", name="Audio").set_input_files(root / "examples" / "talk.flac")
    page.get_by_label("what I ask about").check()
    expect(page.locator("#curl")).to_contain_text("input_audio")
    ask(page, 'Is the word "kitchen" said?')
    assert answered(page)


def test_fields_of_a_json_answer_fill_in(page: Page, root: Path) -> None:
    choose_image(page, root)
    page.get_by_label("Answer with fields").check()
    page.get_by_role("textbox", name="Fields").fill("color: red | green | blue\ncount: integer")
    ask(page, "what color is the circle, and how many circles are there?")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled(timeout=1000 * SECONDS)
    if "not served" in page.get_by_role("alert").inner_text():
        pytest.skip("the server has no answers with fields")
    value = json.loads(answered(page))
    names, values = (
        page.locator("#values dt").all_inner_texts(),
        page.locator("#values dd").all_inner_texts(),
    )
    assert names == ["color", "count"] and values == [str(value["color"]), str(value["count"])]
    page.get_by_role("slider", name="Step").fill("0")
    assert page.locator("#values dt").all_inner_texts() == ["color", "count"]


PARTS: dict[
    str, list[list[object]]
] = {  # of a JSON answer: path, value, whether the value is complete
    '{"color": "re▒", "count": ▒▒, "things": [{"shape": "cir': [
        ["color", "re▒", False],
        ["count", "▒▒", False],
        ["things.0.shape", "cir", False],
    ],
    '{"color": "red", "count": 3, "ok": true}': [
        ["color", "red", True],
        ["count", "3", True],
        ["ok", "true", True],
    ],
    '{"a": {"b": ["x", "y\\"z\\u0041"]}, "c": null}': [
        ["a.b.0", "x", True],
        ["a.b.1", 'y"zA', True],
        ["c", "null", True],
    ],
    "▒▒▒▒": [],
    '{"a▒': [],
    "{}": [],
    '{"a": "': [["a", "", False]],
    '{"a": "x\\': [["a", "x", False]],
}


@pytest.mark.parametrize("text", PARTS)
def test_fields_are_read_from_unfinished_json(page: Page, text: str) -> None:
    found = page.evaluate("async text => (await import('./fields.js')).valuesOf(text)", text)
    assert [[each["path"], each["value"], each["complete"]] for each in found] == PARTS[text]


@needs("curl")
def test_the_command_gives_the_same_answer(page: Page, root: Path) -> None:
    choose_image(page, root)
    ask(page, "what color is the star?")
    wanted = answered(page)
    page.get_by_role("button", name="Copy the command").click()
    expect(page.locator("#copied")).to_have_text("Copied.")
    command = page.evaluate("navigator.clipboard.readText()")
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=SECONDS)
    events = [
        json.loads(line[6:]) for line in said.stdout.splitlines() if line.startswith("data: {")
    ]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == wanted


def test_what_goes_wrong_is_said_once_in_a_sentence(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no question")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    page.get_by_label("Image").set_input_files(tmp_path / "cut.png")
    ask(page, "what is it?")
    expect(page.get_by_role("alert")).to_contain_text("image 0")
    page.get_by_role("button", name="Remove the image").click()
    page.get_by_label("Answer with fields").check()
    page.get_by_role("textbox", name="Fields").fill("count: integre")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text('unknown type "integre"')


def test_an_answer_can_be_stopped(page: Page, server: Served) -> None:
    os.kill(server.engine(), signal.SIGSTOP)  # so that the answer is not there sooner
    try:
        ask(page, "what is it?")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("#status")).to_have_text("Stopped.")
    finally:
        os.kill(server.engine(), signal.SIGCONT)
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(page: Page, root: Path, scheme: Any) -> None:
    """No rule of axe (WCAG 2.2 AA) is broken, with an answer on the page; motion is left out where
    it is not wanted."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    choose_image(page, root)
    page.get_by_label("Answer with fields").check()
    page.get_by_label("Answer with fields").uncheck()
    page.get_by_text("Settings").click()
    ask(page, "Describe the picture briefly.")
    assert answered(page)
    found = Axe().run(page).response
    assert [
        (rule["id"], node["html"]) for rule in found["violations"] for node in rule["nodes"]
    ] == []
    style = "getComputedStyle(document.querySelector('#canvas .token')).transitionDuration"
    assert page.evaluate(style) == "0s"


def test_the_files_are_small_and_may_do_little(root: Path, server: Served) -> None:
    files = list((root / "mmdiff" / "serve" / "page").iterdir())
    for file in files:
        with urllib.request.urlopen(f"{server.url}/{file.name}") as answer:
            assert answer.read() == file.read_bytes()
            policy = answer.headers["content-security-policy"]
            assert (
                "default-src 'self'" in policy
                and "unsafe" not in policy
                and "frame-ancestors 'none'" in policy
            )
    assert sum(file.stat().st_size for file in files) < 40_000
