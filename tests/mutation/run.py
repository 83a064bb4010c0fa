"""Would the tests notice? Makes one small change to the code at a time (changes.py) and runs the
tests nearest to it.

    python tests/mutation/run.py [--only FILE] [--check]

The tree is copied to a temporary folder, and each change is made, tried and undone there. A change
that the near tests let through is tried on the wide ones: it is caught, late (by the wide ones
alone), missed, or listed as equivalent with the reason. Exits with 1 where one was missed, and with
2 and a sentence where the list does not fit the code any more.

What is imported from elsewhere is imported once, and every trial is a fork of that process: most
trials take a second or two. It runs where there is `os.fork`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(Path(__file__).parent))
from changes import CHANGES, Change  # noqa: E402

ROOT = Path(__file__).parents[2]
# Slow to import, and none of ours.
OTHERS = (
    "torch",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.tokenization_utils_tokenizers",
    "timm",
    "open_clip",
    "numpy",
    "PIL.Image",
    "safetensors.torch",
    "pytest",
    "hypothesis",
    "jsonschema_rs",
    "fastapi",
    "httpx",
)
PATIENCE = 5  # how many times the seconds that the tests take without a change
LEAST = 30.0  # how many seconds at least


class ListError(Exception):
    """The list does not fit the code or the tests."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument(
        "--only",
        action="append",
        metavar="FILE",
        help="changes whose file or old text contains this; may be given several times",
    )
    parser.add_argument(
        "--check", action="store_true", help="only whether the list fits the code; nothing is run"
    )
    arguments = parser.parse_args()
    only = arguments.only or [""]
    chosen = [
        change
        for change in CHANGES
        if any(part in change.file or part in change.old for part in only)
    ]
    try:
        check(CHANGES)
        if arguments.check:
            print(f"{len(CHANGES)} changes fit the code")
            return 0
        if not chosen:
            raise ListError(
                f"no change is listed for {only}; name a file of tests/mutation/changes.py"
            )
        load_others()
        with tempfile.TemporaryDirectory() as folder:
            counts = try_all(chosen, copied(Path(folder) / "tree"))
    except ListError as error:
        print(f"mutation: {error}", file=sys.stderr)
        return 2
    print(
        ", ".join(f"{counts[kind]} {kind}" for kind in ("caught", "late", "missed", "equivalent")),
        "of",
        len(chosen),
    )
    return 1 if counts["missed"] else 0


def check(changes: Sequence[Change]) -> None:
    """Raises ListError with everything that does not fit."""
    if wrong := [fault for change in changes for fault in faults(change)]:
        raise ListError("\n".join([*wrong, "correct tests/mutation/changes.py"]))


def faults(change: Change) -> Iterator[str]:
    """The old text must be in its file once, what comes out must be Python, and the tests exist."""
    path = ROOT / change.file
    code = path.read_text(encoding="utf-8") if path.is_file() else ""
    count = code.count(change.old)
    if count != 1:
        yield f"{change.file} holds {change.old!r} {count} times, not once"
        return
    try:
        ast.parse(code.replace(change.old, change.new))
    except SyntaxError as error:
        yield f"{change.file} is not Python with {change.new!r} for {change.old!r}: {error}"
    named = [word for word in shlex.split(f"{change.near} {change.wide}") if word.endswith(".py")]
    for name in named:
        if not (ROOT / name).is_file():
            yield f"{name}, which {change.file} names, does not exist"


def load_others() -> None:
    importlib.import_module("mmdiff.torchvision_fix").declare_operators()
    for name in OTHERS:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"without {name}, which the tests import themselves", file=sys.stderr)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmdiff"]:
        del sys.modules[name]


def copied(tree: Path) -> Path:
    """A copy of what git knows of and does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    return tree


def try_all(changes: list[Change], tree: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    usual: dict[str, float] = {}  # seconds of the tests without a change
    for change in changes:
        outcome, by = ("equivalent", change.why) if change.why else attempt(change, tree, usual)
        counts[outcome] += 1
        print(
            f"{outcome:10} {change.file}: {change.old.strip()!r} -> {change.new.strip()!r} {by}",
            flush=True,
        )
    return counts


def attempt(change: Change, tree: Path, usual: dict[str, float]) -> tuple[str, str]:
    """What becomes of a change, and the test that failed."""
    path = tree / change.file
    whole = path.read_text(encoding="utf-8")
    for outcome, tests in (("caught", change.near), ("late", change.wide)):
        if not tests:
            continue
        if tests not in usual:
            started = time.monotonic()
            if failed := failure(tree, tests, 3600):
                raise ListError(f"{tests} fails without any change ({failed}); repair that first")
            usual[tests] = time.monotonic() - started
        try:
            path.write_text(whole.replace(change.old, change.new), encoding="utf-8")
            failed = failure(tree, tests, LEAST + PATIENCE * usual[tests])
        finally:
            path.write_text(whole, encoding="utf-8")
        if failed:
            return outcome, f"({failed})"
    return "missed", ""


def failure(tree: Path, tests: str, seconds: float) -> str:
    """The first test that fails, or nothing."""
    log = tree.parent / "log"
    child = os.fork()
    if child == 0:
        run_tests(tree, tests, log)
    until = time.monotonic() + seconds
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return f"over {seconds:.0f} seconds"
        time.sleep(0.05)
    code, lines = (
        os.waitstatus_to_exitcode(found[1]),
        log.read_text(encoding="utf-8", errors="replace").splitlines(),
    )
    if code in (4, 5):  # pytest's: wrong usage, and no tests
        raise ListError(f"pytest finds no tests in {tests!r}: {lines[-1] if lines else ''}")
    failed = [line.partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return (failed or [f"pytest ends with {code}"])[0] if code else ""


def run_tests(tree: Path, tests: str, log: Path) -> None:
    """In a fork of this process; does not come back."""
    code = 1
    try:
        os.setsid()
        os.chdir(tree)
        held = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(held, 1)
        os.dup2(held, 2)
        os.environ["PYTHONPATH"] = str(tree)  # for the processes that tests start
        # or a change of the same second and length would not be seen
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(tree))
        pytest = importlib.import_module("pytest")
        options = shlex.split("-xq --tb=no -p no:cacheprovider --hypothesis-seed=0 -rfE")
        code = int(pytest.main([*options, *shlex.split(tests)]))
        assert str(tree) in str(sys.modules["mmdiff"].__file__) if code in (0, 1) else True
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
