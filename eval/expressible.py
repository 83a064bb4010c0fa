"""Completeness: how many valid instances of real schemas a compiled schema can say, beside
llguidance's masks.

A value that fits its schema should not be out of reach. Judged by both validators with formats, as
everywhere here: instances that are called valid and are not are left out, and no invalid one may be
said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiff.eval.structured_adversarial import open_text, read_schemas
from mmdiff.structured.constraint.compiled import compile_schema
from mmdiff.structured.constraint.membership import Unsaid, arranged
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.schema.errors import ScaffoldError
from mmdiff.structured.schema.serialize import dumps

BUDGET = 4096  # tokens of a value


@dataclass(frozen=True)
class Instance:
    """A value published with a schema, and who can say it; None where llguidance was not asked."""

    schema: str
    valid: bool
    ours: bool
    why: str  # it cannot be said by us
    theirs: bool | None = None


def read_instances(path: Path) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Lines of {"id", "valid", "invalid"}, packed with xz or not."""
    with open_text(path) as file:
        for line in file:
            row = json.loads(line)
            yield row["id"], row["valid"], row["invalid"]


def expressible(
    instances: Path, schemas: Path, layouts: TemplateBuilder, compare: bool
) -> Iterator[Instance]:
    """Each instance of the schemas that there are, with who can say it.

    Args:
        compare: ask llguidance as well.
    """
    known = dict(read_schemas(schemas))
    for name, valid, invalid in read_instances(instances):
        if name not in known:
            continue
        theirs = None
        if compare:
            theirs = Masks(known[name])
        scaffold, refusal = None, ""
        try:
            scaffold = compile_schema(known[name], layouts, BUDGET)
        except ScaffoldError as error:
            refusal = str(error)
        for fits, values in ((True, valid), (False, invalid)):
            for value in values:
                made, why = None, refusal
                if scaffold is not None:
                    try:
                        made = arranged(scaffold, value)
                    except Unsaid as fault:
                        why = str(fault)
                said = scaffold is not None and not why
                accepted = None
                if theirs is not None:
                    other = made if said else declared(known[name], value)
                    accepted = theirs.accept(value) or theirs.accept(other)
                yield Instance(name, fits, said, why, accepted)


def declared(schema: Any, value: Any) -> Any:
    """The value with the members of its outermost object in the order of the schema's
    properties."""
    order = {}
    if isinstance(schema, Mapping):
        order = schema.get("properties", {})
    if not isinstance(value, dict) or not isinstance(order, Mapping):
        return value
    return {**{key: value[key] for key in order if key in value}, **value}


class Masks:
    """What llguidance accepts of a schema, byte by byte; nothing where it refuses the schema."""

    def __init__(self, schema: Any) -> None:
        try:
            from llguidance import LLMatcher, LLTokenizer
        except ImportError:
            raise ImportError(
                "comparing needs llguidance: pip install llguidance, or leave --compare out"
            ) from None
        self._tokens = LLTokenizer("byte")
        try:
            self._matcher = LLMatcher(
                self._tokens, LLMatcher.grammar_from_json_schema(schema), log_level=0
            )
            self.refused = bool(self._matcher.is_error())
        except ValueError:
            self.refused = True

    def accept(self, value: Any) -> bool:
        """Whether it can say the value, compactly or with blanks."""
        spellings = (dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value))
        return not self.refused and any(map(self._accepts, spellings))

    def _accepts(self, text: str) -> bool:
        matcher = self._matcher.deep_copy()  # one that refused a text refuses all others
        return bool(matcher.consume_tokens(self._tokens.tokenize_str(text))) and bool(
            matcher.is_accepting()
        )
