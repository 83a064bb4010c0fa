"""What the pages say is so: names, links, commands and options exist, Python runs, images can be
made again.

Commands are parsed by the real command line and not run. Python runs on random weights of the
default model's sizes.
"""

import ast
import importlib
import pkgutil
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from PIL import Image, ImageChops

import mmdiff

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *(
        f"docs/{name}.md"
        for name in (
            "architecture",
            "batch",
            "decoding",
            "install",
            "model",
            "performance",
            "serving",
            "speech",
            "structured",
            "training",
            "usage",
        )
    ),
]
EXTERNAL = {
    "arecord",
    "bash",
    "cd",
    "curl",
    "docker",
    "git",
    "lint-imports",
    "mypy",
    "pytest",
    "python3",
    "ruff",
    "source",
    "systemctl",
    "tensorboard",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", PAGES)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(read(page)) if found == language]


def inline_code(page: str) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", FENCE.sub("", read(page)))


@pytest.fixture(scope="module")
def modules() -> list[ModuleType]:
    """All of mmdiff."""
    found = pkgutil.walk_packages(mmdiff.__path__, "mmdiff.")
    return [mmdiff, *(importlib.import_module(module.name) for module in found)]


@pytest.fixture(scope="module")
def sources() -> str:
    """Every line in which a name may be defined: our modules, and what builds and checks them."""
    rooms = ("mmdiff", "vision", "training", "eval", "audio", "examples")
    files = [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]
    return "\n".join(
        path.read_text(encoding="utf-8")
        for path in [*files, ROOT / "pyproject.toml", ROOT / "Makefile"]
    )


# Names


def has(holder: object, path: list[str]) -> bool:
    """Whether `holder` has the attribute; fields without default count too."""
    for name in path:
        if name in getattr(holder, "__annotations__", {}) and not hasattr(holder, name):
            return path[-1] == name
        if not hasattr(holder, name):
            return False
        holder = getattr(holder, name)
    return True


def exists(name: str, modules: list[ModuleType], sources: str) -> bool:
    if "/" in name or (ROOT / name).is_file():
        return (ROOT / name).exists() or name in sources
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        path = name.split(".")
        ours = [module for module in modules if module.__name__.rpartition(".")[2] == path[0]]
        if any(has(module, path) for module in modules) or any(
            has(module, path[1:]) for module in ours
        ):
            return True
        if name.startswith("mmdiff."):
            return name in {module.__name__ for module in modules} or has(mmdiff, path[1:])
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", sources) is not None


@every_page
def test_names_exist(page: str, modules: list[ModuleType], sources: str) -> None:
    names = [
        code
        for code in inline_code(page)
        if not re.search(r"[\s(),]", code) and not code.startswith("-")
    ]
    assert [name for name in names if not exists(name, modules, sources)] == []


def test_names_in_diagrams_exist(modules: list[ModuleType], sources: str) -> None:
    pages = ("docs/architecture.md", "docs/model.md")
    diagrams = "\n".join(text for page in pages for text in blocks(page, "text"))
    names = re.findall(r"\b(?:[A-Z]\w+\.\w+|[A-Z]+[a-z]+[A-Z]\w+|\w+_\w+)", diagrams)
    assert len(names) > 10
    assert [name for name in names if not exists(name, modules, sources)] == []


def test_names_that_do_not_exist_are_found(modules: list[ModuleType], sources: str) -> None:
    wrong = [
        "mmdiff/painter.py",
        "paint_image",
        "Canvas.paint",
        "mmdiff.painting",
        "vision/",
        "docs/tuning.md",
    ]
    assert [name for name in wrong if exists(name, modules, sources)] == ["vision/"]
    assert all(
        exists(name, modules, sources)
        for name in ("Canvas.commit", "Answer.text", "scenes.draw", "load")
    )


def test_the_rows_are_those_that_are_checked() -> None:
    (contract,) = [
        c
        for c in tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
        if c["type"] == "layers"
    ]
    built = [re.findall(r"\w+", re.sub(r"\(\w+\)", "", row)) for row in contract["layers"]]
    diagram = blocks("docs/architecture.md", "text")[0]
    # a row and what it holds stand at least two blanks apart
    rows = [re.findall(r"\w+", row.split("  ")[0]) for row in diagram.splitlines()]
    assert rows == [row for row in built if row]


def test_the_architecture_is_short() -> None:
    assert len(read("docs/architecture.md").split()) < 1000


def found_by() -> list[tuple[str, str, str]]:
    """The rows of "Find it": question, file, and what to look for there."""
    return re.findall(
        r"^\| ([^|]+\?) \| `([^`|]+)` \| `([^`|]+)` \|$", read("docs/architecture.md"), re.MULTILINE
    )


def test_twenty_questions_are_answered() -> None:
    questions = [question for question, _, _ in found_by()]
    assert len(set(questions)) >= 20 and len(set(questions)) == len(questions)
    section = read("docs/architecture.md").partition("## Find it")[2]
    assert section.count("\n| ") == len(questions) + 1, "a row without question, file and word"


@pytest.mark.parametrize(("question", "file", "word"), found_by())
def test_what_is_asked_for_is_found(question: str, file: str, word: str) -> None:
    assert re.search(rf"\b{re.escape(word)}\b", read(file)), f"{question} {file} lacks {word}"


def test_readme_names_all_that_the_default_model_knows() -> None:
    from mmdiff.training.tiny.scenes import COLOURS, SHAPES, SIZES

    text = read("README.md")
    assert [
        word for word in (*SHAPES, *COLOURS, *SIZES) if not re.search(rf"\b{word}\b", text)
    ] == []


def test_the_numbers_of_embeddings_are_right() -> None:
    from mmdiff.config import PRESETS
    from mmdiff.vision.anyres import count_tokens

    page = " ".join(read("docs/model.md").split())
    tiny, large = PRESETS["tiny"].vision, PRESETS["llada-v-8b"].vision
    assert tiny is not None and large is not None
    pixels, patch, patches = tiny.image_size, tiny.patch_size, tiny.patches_per_side**2
    assert (
        f"{pixels} x {pixels} pixels in patches of {patch} x {patch}, so {patches} patches" in page
    )
    assert f"an image is {count_tokens((64, 64), tiny)} embeddings" in page
    each, example = large.tokens_per_side**2, count_tokens((640, 480), large)
    assert f"{each} per view, and for example {example:,} for an image of 640 x 480 pixels" in page


# Links


@every_page
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(page)))
    local = [target for target in targets if not re.match(r"https://", target)]
    assert [
        target for target in local if not ((ROOT / page).parent / target.partition("#")[0]).exists()
    ] == []


# Commands


def commands(page: str) -> list[str]:
    """Lines after a `$ ` in console blocks, and inline code that begins with a command of ours."""
    typed = [
        line[2:]
        for block in blocks(page, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    return typed + [
        code for code in inline_code(page) if re.match(r"(mmdiff|make|pip|python) ", code)
    ]


def parse(words: list[str]) -> dict[str, Any]:
    """The values that the command line reads from `mmdiff ...`; unknown commands and options
    raise."""
    from mmdiff.cli.main import app

    group: Any = typer.main.get_command(app)
    name, *rest = words[1:]
    if "--help" in rest or name in ("--help", "--version"):
        return {}
    return dict(group.commands[name].make_context(name, rest).params)


def check(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "mmdiff":
        check_values(words[1], parse(words))
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[:2] == ["python", "-m"]:
        importlib.import_module(words[2])
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "pip":
        extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
        assert all(
            set(named.split(",")) <= set(extras) for named in re.findall(r"\[([\w,]+)\]", command)
        )
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).is_file()
    else:
        assert words[0] in EXTERNAL


def check_values(name: str, values: dict[str, Any]) -> None:
    from mmdiff.config import PRESETS
    from mmdiff.eval.run import GROUPS, TASKS
    from mmdiff.prompts import CAPTION_PROMPTS
    from mmdiff.training.recipes import RECIPES

    given = [
        word
        for value in values.values()
        for word in (value if isinstance(value, list) else [value])
    ]
    files = [word for word in given if str(word).startswith("examples/")]
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert values.get("length", "short") in CAPTION_PROMPTS
    if name == "train":
        assert values["recipe"] in {*RECIPES, "NAME"}
    if name == "eval":
        assert set(values["tasks"] or []) <= {*TASKS, *GROUPS, "NAME"}
    if name == "info":
        assert values["model"] in PRESETS


@every_page
def test_commands_parse(page: str) -> None:
    for command in commands(page):
        check(command)


@pytest.mark.parametrize(
    "command",
    [
        "mmdiff ask a.png 'what?' --colour",
        "mmdiff paint a.png",
        "mmdiff caption examples/one.png --length huge",
        "mmdiff ask examples/none.png 'what?'",
        "make coffee",
        "python examples/none.py",
        "pip install 'mmdiff[none]'",
    ],
)
def test_commands_that_do_not_work_are_found(command: str) -> None:
    with pytest.raises(Exception):  # noqa: B017  (each library has its own)
        check(command)


@every_page
def test_options_exist(page: str) -> None:
    from mmdiff.cli.main import app

    group: Any = typer.main.get_command(app)
    parameters = [parameter for command in group.commands.values() for parameter in command.params]
    known = {
        opt for parameter in parameters for opt in (*parameter.opts, *parameter.secondary_opts)
    }
    named = {code.split()[0] for code in inline_code(page) if code.startswith("--")}
    load = re.findall(r'"(--\w+)"', read("eval/server_load.py"))
    assert named <= known | {"--help", *load}


def test_readme_shows_what_make_demo_asks() -> None:
    (shown,) = re.findall(r"\$ make demo\n\$ (.+)\n", read("README.md"))
    assert f"$$ {shown}'" in read("Makefile")


# Python and images


@pytest.fixture
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@every_page
def test_python_blocks_run(page: str, in_the_repository: None) -> None:
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})


def test_every_example_compiles_and_says_what_it_is_for() -> None:
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert scripts and all(
        ast.get_docstring(ast.parse(script.read_text("utf-8"))) for script in scripts
    )


def test_asking_from_python(
    in_the_repository: None, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore
    monkeypatch.setattr(sys, "argv", ["ask.py"])
    runpy.run_path(str(ROOT / "examples" / "ask.py"), run_name="__main__")
    assert "what color is the circle?" in capsys.readouterr().out


@pytest.mark.slow
def test_finetuning_writes_a_model(
    random_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", str(random_tiny), "--out", str(tmp_path), "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *options])
    runpy.run_path(str(ROOT / "examples" / "finetune.py"), run_name="__main__")
    assert (
        mmdiff.load(tmp_path / "model").ask(None, "which picture is this?", gen_length=8).steps > 0
    )
    assert (tmp_path / "mine" / "metrics.jsonl").is_file()


def test_the_images_are_made_by_the_script() -> None:
    made = runpy.run_path(str(ROOT / "examples" / "make_images.py"))["images"]()
    assert set(made) == {path.name for path in (ROOT / "examples").glob("*.png")}
    for name, image in made.items():
        with Image.open(ROOT / "examples" / name) as stored:
            assert stored.mode == "RGB" and stored.size == image.size
            assert ImageChops.difference(stored, image).getbbox() is None, name


def test_the_shapes_can_be_asked_about_without_doubt() -> None:
    from mmdiff.training.tiny.questions import captions

    scenes = runpy.run_path(str(ROOT / "examples" / "make_images.py"))["SCENES"]
    assert [thing.shape for thing in scenes["shapes.png"].things].count("circle") == 1
    assert (
        captions(scenes["shapes.png"])["short"] == "a red circle, a yellow triangle and a blue star"
    )
