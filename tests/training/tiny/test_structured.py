"""Scenes as JSON to train on: what is seen, what is open, what is told."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import numpy as np
import pytest
from tokenizers import Tokenizer

from mmdiff.config import PRESETS
from mmdiff.prompts import EXTRACT_PROMPT
from mmdiff.structured.schema.serialize import outline, pieces
from mmdiff.training.packing import DECISION_LENGTHS, Turn, _laid_out
from mmdiff.training.tiny.scenes import random_scene, scene_json
from mmdiff.training.tiny.structured import FORMS, scene_schema, structured

TOKENS = PRESETS["tiny"].tokens


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> Tokenizer:
    return Tokenizer.from_file(str(root / "mmdiff" / "models" / "tiny" / "tokenizer.json"))


def test_every_form_gives_values_that_fit_its_schema() -> None:
    for seed in range(60):
        scene, rng = random_scene(seed), np.random.default_rng(seed)
        for form, _ in FORMS:
            schema, value = form(scene, rng)
            assert jsonschema_rs.is_valid(schema, value)
        assert jsonschema_rs.is_valid(scene_schema(), scene_json(scene))


def test_parts_spell_the_value() -> None:
    for seed in range(40):
        prompt, parts, laid_out = structured(random_scene(seed), np.random.default_rng(seed))
        text = "".join(part.text for part in parts)
        value = json.loads(text)
        assert "".join(piece.text for piece in pieces(value)) == text
        assert prompt.startswith(EXTRACT_PROMPT.format("{")[:-1]) and 0 <= laid_out <= len(parts)


def test_scaffolds_show_literals_and_decisions_show_no_values(tokenizer: Tokenizer) -> None:
    ways = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        prompt, parts, laid_out = structured(random_scene(seed), rng)
        turn = Turn(prompt, "", parts=parts, num_scaffolded=laid_out)
        canvas, is_open, weights, _ = _laid_out(turn, tokenizer, TOKENS, rng)
        assert len(canvas) == len(is_open) == len(weights)
        way = "scaffold" if laid_out == len(parts) else "decision" if laid_out else "free"
        ways.add(way)
        if way == "scaffold":
            said = tokenizer.decode([token for token in canvas if token > TOKENS.audio])
            assert said.replace(" ", "") == "".join(part.text for part in parts).replace(" ", "")
            assert not all(is_open) and canvas[-1] == TOKENS.eot and not is_open[-1]
        elif way == "decision":
            behind = next(
                number for number, token in enumerate(reversed(canvas)) if token != TOKENS.mask
            )
            assert sum(is_open) <= 2 and behind + 2 in DECISION_LENGTHS
            seen = {canvas[place] for place in range(len(canvas)) if not is_open[place]}
            assert TOKENS.mask in seen and tokenizer.token_to_id("circle") not in seen
        else:
            assert all(is_open) and TOKENS.eot in canvas
    assert ways == {"scaffold", "decision", "free"}


def test_the_length_of_a_canvas_does_not_tell_a_decision(tokenizer: Tokenizer) -> None:
    lengths: dict[bool, set[int]] = {True: set(), False: set()}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        prompt, parts, laid_out = structured(random_scene(seed), rng)
        if 0 < laid_out < len(parts):
            canvas, is_open, _, _ = _laid_out(
                Turn(prompt, "", parts=parts, num_scaffolded=laid_out), tokenizer, TOKENS, rng
            )
            lengths["},{" in parts[laid_out].text].add(len(canvas) - is_open.index(True))
    assert lengths[True] == lengths[False] == set(DECISION_LENGTHS)


def test_outlines_are_those_of_extract() -> None:
    assert (
        outline(scene_schema(("shape", "size")))
        == '{"objects":[{"shape":"","size":"small"|"large"}],"count":0}'
    )
