"""Whether a compiled schema can say a given value: `arranged`, a parser of JSON values by the tree
of the schema.

The slow mirror of `structure.Tree.walk`, for measuring and for tests; nothing here is used while
decoding. It asks for the same as decoding does: the tree's words, in as many tokens as a slot may
have, all within the budget, and accepted by the validator.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from mmdiff.structured.constraint.compiled import CompiledSchema
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.regular.compile_limits import LanguageError
from mmdiff.structured.regular.derivatives import matches
from mmdiff.structured.schema.errors import ScaffoldError
from mmdiff.structured.schema.serialize import dumps, identity, pointer
from mmdiff.structured.schema.structure import (
    NOWHERE,
    ArrayNode,
    ConcatNode,
    EnumNode,
    ObjectNode,
    Ref,
    RegularNode,
    Tree,
    UnionNode,
)

DEEP = 120  # values inside each other


class Unsaid(Exception):
    """The value cannot be said; `path` is the JSON pointer of the part that is at fault, `why` what
    is wrong there."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"at {path or 'the root'}: {why}")
        self.path, self.why = path, why


def arranged(scaffold: CompiledSchema, value: Any) -> Any:
    """The value with its members in the order in which the scaffold says them.

    Raises:
        Unsaid: the scaffold cannot say it.
    """
    made = _Parser(scaffold.tree, scaffold.layouts).parse(scaffold.tree.root, value, "", 0)
    text = dumps(made)
    if not scaffold.judge(text):
        raise Unsaid("", "the validator does not accept it")
    if len(scaffold.layouts.vocabulary.encode(text)) >= scaffold.budget:
        raise Unsaid("", f"it takes more than {scaffold.budget} tokens")
    return made


class _Parser:
    def __init__(self, tree: Tree, layouts: TemplateBuilder) -> None:
        self.tree, self.layouts = tree, layouts

    def parse(self, node: Any, value: Any, path: str, depth: int) -> Any:
        """The value as the node says it."""
        if depth > DEEP:
            raise Unsaid(path, f"it is more than {DEEP} deep")
        match node:
            case Ref():
                return self.parse(self.tree.refs[node.key], value, path, depth + 1)
            case EnumNode():
                return self._choice(node, value, path)
            case RegularNode():
                return self._number(node, value, path)
            case ConcatNode():
                return self._quoted(node.parts[1], value, path)
            case UnionNode():
                return self._either(node, value, path, depth)
            case ArrayNode():
                return self._array(node, value, path, depth)
            case ObjectNode():
                return self._object(node, value, path, depth)
            case _:
                raise Unsaid(path, f"{type(node).__name__} is not the node of a value")

    def _choice(self, node: EnumNode, value: Any, path: str) -> Any:
        known = {}
        for each in node.values:
            known[identity(each)] = each
        if identity(value) not in known:
            raise Unsaid(path, f"{dumps(value)[:80]} is none of {len(known)} values")
        return known[identity(value)]

    def _number(self, node: RegularNode, value: Any, path: str) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unsaid(path, f"{dumps(value)[:80]} is not a number")
        for text in dict.fromkeys(
            (dumps(value), f"{Decimal(dumps(value)):f}", dumps(value).removesuffix(".0"))
        ):
            if self._said(node, text, path):
                return value
        raise Unsaid(path, f"the number {dumps(value)[:80]} is not among those that are said")

    def _quoted(self, inner: RegularNode | EnumNode, value: Any, path: str) -> Any:
        if not isinstance(value, str):
            raise Unsaid(path, f"{dumps(value)[:80]} is not a string")
        if isinstance(inner, EnumNode):
            return self._choice(inner, value, path)
        if not inner.least <= len(value) <= (inner.most if inner.most is not None else len(value)):
            raise Unsaid(path, f"a string of {len(value)} characters")
        if not self._said(inner, value, path):
            raise Unsaid(path, f"the string {value[:80]!r} is not among those that are said")
        return value

    def _said(self, node: RegularNode, text: str, path: str) -> bool:
        try:
            if not matches(node.language, text):
                return False
        except LanguageError:
            return False
        try:
            if self.layouts.holds(node, text):
                return True
        except (LanguageError, ScaffoldError) as error:
            raise Unsaid(path, f"its slot cannot be made: {error}") from None
        raise Unsaid(path, f"no slot takes {len(text)} characters")

    def _either(self, node: UnionNode, value: Any, path: str, depth: int) -> Any:
        faults = []
        for option in node.options:
            if self.tree.cost(option) == NOWHERE:
                continue
            try:
                return self.parse(option, value, path, depth + 1)
            except Unsaid as fault:
                faults.append(fault)
        raise max(
            faults,
            key=lambda fault: fault.path.count("/"),
            default=Unsaid(path, "nothing can be said here"),
        )

    def _array(self, node: ArrayNode, value: Any, path: str, depth: int) -> Any:
        if not isinstance(value, list):
            raise Unsaid(path, f"{dumps(value)[:80]} is not an array")
        if not node.least <= len(value) <= node.most:
            raise Unsaid(path, f"an array of {len(value)} items, not {node.least} to {node.most}")
        made = []
        for number, item in enumerate(value):
            if number < len(node.first):
                inner = node.first[number]
            else:
                inner = node.rest
            if inner is None:
                raise Unsaid(path, f"an item number {number} is not said")
            made.append(self.parse(inner, item, pointer(path, number), depth + 1))
        return made

    def _object(self, node: ObjectNode, value: Any, path: str, depth: int) -> Any:
        if not isinstance(value, Mapping):
            raise Unsaid(path, f"{dumps(value)[:80]} is not an object")
        if not node.least <= len(value) <= node.most:
            raise Unsaid(
                path, f"an object of {len(value)} members, not {node.least} to {node.most}"
            )
        made = {}
        for member in node.members:
            if member.name in value:
                made[member.name] = self.parse(
                    member.node, value[member.name], pointer(path, member.name), depth + 1
                )
            elif member.required:
                raise Unsaid(path, f"the member {member.name!r} is always said")
        for name, item in value.items():
            if name not in made:
                made[name] = self._entry(node, name, item, pointer(path, name), depth)
        return made

    def _entry(self, node: ObjectNode, name: str, item: Any, path: str, depth: int) -> Any:
        faults = [Unsaid(path, "an undeclared member is not said")]
        for key, inner in node.entries if node.open else ():
            try:
                assert isinstance(key, RegularNode | EnumNode)
                self._quoted(key, name, path)
                return self.parse(inner, item, path, depth + 1)
            except Unsaid as fault:
                faults.append(fault)
        raise max(faults, key=lambda fault: fault.path.count("/"))
