"""Counts how dense the code is: ternaries and comprehensions per 100 code lines, lines over 100
columns, long functions and classes.

    python tests/helpers/house.py [FILE OR FOLDER ...]

A code line is one that holds a token and is not part of a docstring or a comment. Functions and
classes are counted with their docstrings.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ("mmdiff", "vision", "audio", "training", "eval")

COLUMNS = 100
FUNCTION_LINES = 60
CLASS_LINES = 250

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WITH_DOCSTRING = (ast.Module, ast.ClassDef, *FUNCTIONS)
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass
class Counts:
    code_lines: int = 0
    ternaries: int = 0
    comprehensions: int = 0
    wide_lines: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)
    long_classes: list[str] = field(default_factory=list)

    def per_100(self, number: int) -> float:
        return 100 * number / max(self.code_lines, 1)

    def add(self, name: str, text: str) -> None:
        tree = ast.parse(text)
        self.code_lines += len(code_lines(text, tree))
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > COLUMNS:
                self.wide_lines.append(f"{name}:{number} has {len(line)} columns")
        for node in ast.walk(tree):
            self._add_node(name, node)

    def _add_node(self, name: str, node: ast.AST) -> None:
        self.ternaries += isinstance(node, ast.IfExp)
        self.comprehensions += isinstance(node, COMPREHENSIONS)
        if isinstance(node, FUNCTIONS) and length(node) > FUNCTION_LINES:
            self.long_functions.append(f"{name}:{node.lineno} {node.name}: {length(node)} lines")
        if isinstance(node, ast.ClassDef) and length(node) > CLASS_LINES:
            self.long_classes.append(f"{name}:{node.lineno} {node.name}: {length(node)} lines")


def length(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def code_lines(text: str, tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, docstring.lineno + length(docstring)))
    return lines


def python_files(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place]


def count(places: Iterable[Path] = tuple(ROOT / name for name in PACKAGE)) -> Counts:
    counts = Counts()
    files = {path.resolve(): path for path in python_files(places)}  # the rooms are linked too
    for path in files:
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        counts.add(str(name), path.read_text(encoding="utf-8"))
    return counts


def main() -> None:
    counts = count([Path(word) for word in sys.argv[1:]]) if sys.argv[1:] else count()
    for line in (*counts.wide_lines, *counts.long_functions, *counts.long_classes):
        print(line)
    print(
        f"{counts.code_lines} code lines; of 100, {counts.per_100(counts.ternaries):.2f} ternaries "
        f"and {counts.per_100(counts.comprehensions):.2f} comprehensions; "
        f"{len(counts.wide_lines)} wide lines, {len(counts.long_functions)} long functions, "
        f"{len(counts.long_classes)} long classes"
    )


if __name__ == "__main__":
    main()
