"""extract, choose and fill with models of random weights: every cache and rule, batches, sounds and
texts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import AfterValidator, Field

from mmdiff.answers import Extraction
from mmdiff.config import PRESETS
from mmdiff.decoding.commit_rules import RULES
from mmdiff.errors import MMDiffError
from mmdiff.eval.structured_adversarial import SCHEMAS, Judge
from mmdiff.generation import collect
from mmdiff.pipeline import Pipeline, load
from mmdiff.serve.engine.detokenizer import draft
from mmdiff.structured.schema.errors import BudgetError, UnsupportedSchemaError
from mmdiff.structured.schema.inputs import compile_template
from mmdiff.training.tiny.structured import scene_schema
from mmdiff.transcript import Segment, Transcript

PICTURE = Path(__file__).parents[2] / "examples" / "shapes.png"
CACHES = ("prefix", "block", "dual", "delayed")


@pytest.fixture(scope="module")
def pipeline(random_tiny: Path) -> Pipeline:
    return load(str(random_tiny))


@pytest.mark.parametrize(
    ("rule", "cache"),
    [*((rule, "none") for rule in sorted(RULES)), *(("threshold", cache) for cache in CACHES)],
)
def test_values_fit_with_every_rule_and_cache(pipeline: Pipeline, rule: str, cache: str) -> None:
    for name, temperature in (("receipt", 0.0), ("one of", 1.0)):
        made = pipeline.extract(
            PICTURE, SCHEMAS[name], rule=rule, cache=cache, temperature=temperature, steps=8
        )
        assert Judge(SCHEMAS[name])(made.text)
        assert json.loads(made.text) == made.value


@pytest.mark.parametrize(
    "options",
    [
        {"cfg_scale": 1.5},
        {"lookahead": 2},
        {"top_k": 1},
        {"order": "random", "seed": 3},
        {"block_length": 4},
        {"max_tokens": 120},
    ],
    ids=str,
)
def test_values_fit_with_every_other_setting(pipeline: Pipeline, options: dict[str, Any]) -> None:
    made = pipeline.extract(PICTURE, SCHEMAS["receipt"], steps=8, **options)
    assert Judge(SCHEMAS["receipt"])(made.text)


def test_weights_that_are_not_numbers_give_values_that_fit(random_tiny: Path) -> None:
    broken = load(str(random_tiny))
    with torch.no_grad():
        broken.model.backbone.lm_head.weight.fill_(float("nan"))
    assert Judge(SCHEMAS["receipt"])(broken.extract(PICTURE, SCHEMAS["receipt"]).text)


def test_bounded_choices_take_one_pass_and_tell_their_chances(pipeline: Pipeline) -> None:
    made = pipeline.extract(PICTURE, SCHEMAS["choices"])
    assert (made.passes, made.steps) == (1, 1)
    for path, count in (("/a", 2), ("/b", 5), ("/c", 5)):
        chances = made.fields[path].probabilities
        assert len(chances) == count and sum(chance for _, chance in chances) == pytest.approx(1)
        assert (
            chances[0][0] == made.value[path[1:]] and made.fields[path].confidence == chances[0][1]
        )
    assert pipeline.choose(PICTURE, "what color is it?", ["red", "blue"]).passes == 1


def test_each_source_is_looked_at(pipeline: Pipeline, root: Path) -> None:
    schema = {
        "type": "object",
        "required": ["words"],
        "properties": {"words": {"type": "string", "maxLength": 20}},
    }
    speech = next((root / "examples").glob("*.wav"), None) or next(
        (root / "examples").glob("*.flac")
    )
    made = [
        pipeline.extract(PICTURE, schema),
        pipeline.extract(None, schema, audio=str(speech), audio_as="embeddings"),
        pipeline.extract(None, schema, text="A red circle."),
        pipeline.extract([PICTURE, PICTURE], schema, question="What is the difference?"),
    ]
    assert all(Judge(schema)(each.text) for each in made)


def said(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Whatever the audio, this is transcribed."""
    segments = (Segment(0, 1, text, 0.75),) if text else ()
    monkeypatch.setattr(Pipeline, "transcribe", lambda self, speech, **_: Transcript(segments, 1.0))


def assert_same_fields(made: Extraction, wanted: Extraction) -> None:
    """But for rounding: the prefix of one of them was in the cache."""
    for name, field in wanted.fields.items():
        assert made.fields[name].confidence == pytest.approx(field.confidence, rel=1e-4)


NOISE: Any = {
    "audio": np.random.default_rng(0).normal(size=16_000).astype(np.float32),
    "sample_rate": 16_000,
}


def test_speech_is_read_as_a_text_or_looked_at_as_it_is(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(monkeypatch, "a red circle")
    ways: Any = ((None, {}, ()), (PICTURE, {"question": "which?", "text": "A star."}, ("A star.",)))
    for image, more, extra in ways:
        made = pipeline.extract(image, SCHEMAS["choices"], **NOISE, **more)
        typed = pipeline.extract(
            image, SCHEMAS["choices"], **{**more, "text": "\n".join(("a red circle", *extra))}
        )
        assert (made.heard, made.heard_confidence) == ("a red circle", 0.75)
        assert made.text == typed.text
        assert_same_fields(made, typed)
    whole = pipeline.extract(None, SCHEMAS["choices"], audio_as="embeddings", **NOISE)
    assert (
        whole.heard == ""
        and whole.fields != pipeline.extract(None, SCHEMAS["choices"], **NOISE).fields
    )
    colors, question = ["red", "blue"], "What color is named?"
    chosen = pipeline.choose(None, question, colors, **NOISE)
    assert chosen.heard == "a red circle"
    assert_same_fields(chosen, pipeline.choose(None, f"a red circle\n{question}", colors))
    assert pipeline.choose(None, question, colors, audio_as="embeddings", **NOISE).value in colors


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"audio_as": "sound"}, "audio_as='sound' is not known; use transcript or embeddings"),
        ({"audio_as": None}, "audio_as=None is not known"),
        ({"image": PICTURE, "audio_as": "embeddings"}, "do not go together"),
        ({}, "no speech was found in the audio"),
    ],
)
def test_audio_that_cannot_be_used_is_refused(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], match: str
) -> None:
    said(monkeypatch, "")
    given = {"image": None, **NOISE, **more}
    with pytest.raises(MMDiffError, match=match):
        pipeline.extract(schema=SCHEMAS["choices"], **given)
    with pytest.raises(MMDiffError, match=match):
        pipeline.choose(question="which?", choices=["a", "b"], **given)


def test_rows_with_scaffolds_join_and_do_not_change_each_other(pipeline: Pipeline) -> None:
    scaffolds = [pipeline.compile(SCHEMAS[name], 200) for name in ("receipt", "lengths", "one of")]
    messages = [[{"role": "user", "content": f"number {n}"}] for n in range(3)]
    alone = []
    for message, scaffold in zip(messages, scaffolds, strict=True):
        finished = collect(
            pipeline.start([message], seeds=[5], scaffolds=[scaffold], threshold=0.5)
        )
        alone.append(pipeline.answers(finished)[0].text)
    finished = collect(pipeline.start(messages, seeds=[5] * 3, scaffolds=scaffolds, threshold=0.5))
    together = [answer.text for answer in pipeline.answers(finished)]
    assert [together[finished.names.index(name)] for name in range(3)] == alone
    for text, name in zip(alone, ("receipt", "lengths", "one of"), strict=True):
        assert Judge(SCHEMAS[name])(text)


def test_what_is_not_allowed_is_refused_before_the_model_is_asked(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.model, "forward", None)
    monkeypatch.setattr(pipeline.model.backbone, "forward", None)
    with pytest.raises(UnsupportedSchemaError, match="at /type of the schema"):
        pipeline.extract(PICTURE, {"type": "nope"})
    with pytest.raises(BudgetError, match="raise max_tokens"):
        pipeline.extract(PICTURE, SCHEMAS["receipt"], max_tokens=5)
    with pytest.raises(MMDiffError, match="choices="):
        pipeline.choose(PICTURE, "what is it?", [])
    with pytest.raises(MMDiffError, match="no hole"):
        pipeline.fill("nothing", image=PICTURE)
    with pytest.raises(UnsupportedSchemaError, match="neither a JSON Schema nor a type"):
        pipeline.extract(PICTURE, object())


@pytest.mark.parametrize("text", ['say "hi"', "a\\b\n", '"x" y', "{}", " leading"])
def test_choices_come_back_as_they_were_given(pipeline: Pipeline, text: str) -> None:
    assert pipeline.choose(PICTURE, "what is said?", [text, text + "!"]).value in (text, text + "!")
    if text == text.strip():
        made = pipeline.fill(f"It is [[{text}|{text}!]].", image=PICTURE)
        assert made.text in (f"It is {text}.", f"It is {text}!.")
        assert {value for value, _ in made.fields[""].probabilities} == {text, text + "!"}


def test_a_space_before_a_hole_is_part_of_what_is_filled_in(pipeline: Pipeline) -> None:
    tokens = pipeline.processor.tokenizer
    scaffold = compile_template("a [[red|blue]] [[/[a-z]+/]] [[ ]]", pipeline.layouts, 64)
    literals = [piece for piece in scaffold.witness.pieces if isinstance(piece, str)]
    assert literals == ["a"]
    choices = scaffold.layouts.choices(scaffold.witness.pieces[1].node)
    assert all(tokens.decode(row).startswith(" ") for row in choices[:, :1])


def test_holes_are_filled_and_the_rest_stands(pipeline: Pipeline) -> None:
    made = pipeline.fill("A [[ ]] is left of the [[red|green]] one.", image=PICTURE)
    assert made.text.startswith("A ") and made.text.endswith(
        (" is left of the red one.", " is left of the green one.")
    )


def test_the_schema_of_scenes_is_that_of_the_example(root: Path) -> None:
    assert json.loads((root / "examples" / "things.json").read_text()) == scene_schema()


def test_the_same_seed_gives_the_same_value(pipeline: Pipeline) -> None:
    made = [
        pipeline.extract(PICTURE, SCHEMAS["receipt"], temperature=1.0, seed=seed).text
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


def test_the_budget_leaves_room_for_the_prompt(pipeline: Pipeline) -> None:
    room = PRESETS["tiny"].backbone.max_position_embeddings
    with pytest.raises(MMDiffError, match="exceed the model's"):
        pipeline.extract(PICTURE, SCHEMAS["receipt"], max_tokens=room)


def test_chances_are_those_of_the_positions(pipeline: Pipeline) -> None:
    made = pipeline.choose(PICTURE, "what color is it?", ["red", "blue", "green"])
    told = dict(made.fields[""].probabilities)
    assert (
        set(told) == {"red", "blue", "green"}
        and max(told, key=lambda word: told[word]) == made.value
    )
    assert all(one >= 0 for one in told.values())
    assert list(itertools.accumulate(told.values()))[-1] == pytest.approx(1)


def test_a_value_without_anything_to_decide_takes_no_pass(pipeline: Pipeline) -> None:
    made = pipeline.extract(PICTURE, {"const": {"a": [1, None]}})
    assert (made.value, made.fields, made.passes) == ({"a": [1, None]}, {}, 0)


def test_an_optional_member_that_cannot_be_worked_out_is_left_out(pipeline: Pipeline) -> None:
    """Nothing is refused once the model has been asked."""
    large = {"type": "string", "pattern": "^(x|[ab]*a[ab]{30}c)$"}
    schema = {
        "type": "object",
        "properties": {"a": large, "b": {"type": "boolean"}},
        "required": ["b"],
    }
    assert set(pipeline.extract(PICTURE, schema).value) == {"b"}


def test_holes_have_fields_of_their_own(pipeline: Pipeline) -> None:
    made = pipeline.fill("[[red|blue]] and [[red|blue]]", image=PICTURE)
    assert list(made.fields) == ["", "/1"]


def test_literals_hold_no_control_tokens(pipeline: Pipeline) -> None:
    """One would end the answer, or claim an image, where a name or a choice is spelled."""
    text, tokens = "a <|eot_id|> <|image|> <|mdm_mask|>", pipeline.model.model_config.tokens
    ids = pipeline.layouts.vocabulary.encode(text)
    assert not {tokens.eot, tokens.image, tokens.mask} & set(ids)
    assert pipeline.processor.tokenizer.decode(ids) == text
    assert pipeline.choose(None, "which?", ["<|eot_id|> it", "<|image|>"]).text in (
        "<|eot_id|> it",
        "<|image|>",
    )


@pytest.fixture
def uniform(random_tiny: Path) -> Pipeline:
    """A model to which all is alike, and which so says the same thing twice."""
    made = load(str(random_tiny))
    with torch.no_grad():
        made.model.backbone.lm_head.weight.fill_(0.0)
    return made


DIFFERENT = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 500},
    "uniqueItems": True,
    "minItems": 3,
    "maxItems": 3,
}


def test_what_was_repaired_is_said_and_nothing_is_sure_of_it(uniform: Pipeline) -> None:
    schema = {
        "type": "object",
        "required": ["a", "b"],
        "properties": {"a": DIFFERENT, "b": {"type": "boolean"}},
    }
    made = uniform.extract(PICTURE, schema)
    changed = {repair.pointer for repair in made.repairs}
    assert changed and changed < {"/a/0", "/a/1", "/a/2"}
    assert {path for path, each in made.fields.items() if each.confidence == 0} == changed
    assert made.confidence == 0 and all("was changed to" in each for each in made.warnings)
    assert made.fields["/b"].confidence > 0


def _only_these(text: str) -> str:
    if text != "a" * 8:
        raise ValueError("these and no others")
    return text


def test_a_stand_in_is_called_one(pipeline: Pipeline) -> None:
    made = pipeline.extract(
        PICTURE, Annotated[str, Field(pattern="^[a-z]{8}$"), AfterValidator(_only_these)]
    )
    assert made.value == "a" * 8 and made.confidence == 0
    assert [repair.pointer for repair in made.repairs] == [
        ""
    ] and "stands here instead" in made.repairs[0].what


def test_decisions_about_the_structure_have_their_chances(pipeline: Pipeline) -> None:
    made = pipeline.extract(
        PICTURE,
        {
            "type": "object",
            "required": ["a"],
            "properties": {
                "a": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
                "b": {"type": "boolean"},
                "c": {"type": ["object", "integer"], "minimum": 0},
            },
            "minProperties": 2,
        },
    )
    kinds = {(each.pointer, each.kind): each for each in made.decisions}
    assert ("/a", "items") in kinds and ("/b", "present") in kinds
    assert kinds["/a", "items"].chosen == len(made.value["a"])
    assert kinds["/b", "present"].chosen == ("b" in made.value)
    assert all(
        sum(chance for _, chance in each.probabilities) == pytest.approx(1)
        for each in made.decisions
    )
    assert made.confidence == min(
        each.confidence for each in (*made.decisions, *made.fields.values())
    )


def test_padding_inside_ends_no_draft_and_no_count(pipeline: Pipeline) -> None:
    words = {"type": "string", "maxLength": 40}
    scaffold = pipeline.compile(
        {"type": "object", "required": ["a", "b"], "properties": {"a": words, "b": words}}
    )
    batch = pipeline.start([[{"role": "user", "content": "hello"}]], scaffolds=[scaffold], steps=4)
    while batch.working:
        batch.step()
        told = draft(pipeline, batch, 0, 0)
        assert str(told["text"]).startswith('{"a":"') and str(told["text"]).endswith('"}')
    answer = pipeline.answers(batch.pop_finished())[0]
    spelled = "".join(token.text for token in answer.tokens).strip()
    assert spelled == answer.text and answer.confidence == answer.structured.confidence  # type: ignore[union-attr]
