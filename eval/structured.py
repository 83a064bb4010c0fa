"""Structured output measured: `python -m mmdiff.eval.structured COMMAND`, each with `--help`.

scenes      unseen scenes as JSON: by scaffold, by a scaffold of fixed length, and free
validity    values under hostile weights, rules and temperatures (the long tier of the tests)
coverage    real schemas: compiled and valid, or refused
expressible valid instances of real schemas: how many can be said
mutated     schemas with something broken in them
passes      against free decoding of the same text
speed       what constraints add to a step, and how long compiling takes
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from mmdiff.eval import structured_adversarial
from mmdiff.eval.evidence import processor_name
from mmdiff.eval.expressible import Instance, expressible
from mmdiff.modeling.hub import SHIPPED
from mmdiff.pipeline import Pipeline, load
from mmdiff.prompts import EXTRACT_PROMPT
from mmdiff.structured.constraint.compiled import compile_schema
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.constraint.token_dfa import Vocabulary
from mmdiff.structured.schema.serialize import outline
from mmdiff.training.tiny.scenes import MAX_THINGS, TEST_SEEDS, example, scene_json
from mmdiff.training.tiny.structured import scene_schema

FREE_ROOM = 192  # positions of a free answer about a scene
WAYS = ("scaffold", "fixed", "free")
app = typer.Typer(help="Measure structured output.", no_args_is_help=True, add_completion=False)


def score_scenes(
    pipeline: Pipeline, seen: Sequence[Any], way: str, **decoding: Any
) -> dict[str, Any]:
    """Scenes as JSON: how much is right, how much is made up, and how many passes it took.

    Args:
        seen: triples as of `scenes.example`.
        way: "scaffold"; "fixed", a scaffold with as many objects as a scene has at most; or "free"
            decoding.

    Returns:
        counts of fields right, said and wanted, of fields said about objects that are not there, of
        lists that are wholly right (of scenes of up to 3 objects, and of all), of answers that are
        JSON at all, and passes.
    """
    schema, counts = scene_schema(), Counter[str]()
    if way == "fixed":
        schema = json.loads(json.dumps(schema))
        schema["properties"]["objects"]["minItems"] = MAX_THINGS
    for image, scene, _ in seen:
        wanted = scene_json(scene)
        if way == "free":
            answer = pipeline.ask(
                image, EXTRACT_PROMPT.format(outline(schema)), gen_length=FREE_ROOM, **decoding
            )
            said, passes = _parsed(answer.text), answer.passes
        else:
            made = pipeline.extract(image, schema, **decoding)
            said, passes = made.value, made.passes
        counts["json"] += said is not None
        counts["passes"] += passes
        _count_objects(counts, _objects(said), wanted["objects"])
    precision = counts["right"] / max(counts["said"], 1)
    recall = counts["right"] / max(counts["wanted"], 1)
    return {
        "way": way,
        "scenes": len(seen),
        "json": counts["json"] / len(seen),
        "field_f1": 2 * precision * recall / max(precision + recall, 1e-9),
        "made_up": counts["made up"] / max(counts["said"], 1),
        "made_up_fields": counts["made up"],
        "exact_up_to_3": counts["small exact"] / max(counts["small"], 1),
        "of_up_to_3": counts["small"],
        "exact": counts["exact"] / len(seen),
        "passes": counts["passes"] / len(seen),
    }


def _objects(said: Any) -> list[dict[str, Any]]:
    """The objects of an answer about a scene; what is not an object counts as an empty one."""
    objects = None
    if isinstance(said, dict):
        objects = said.get("objects")
    found = []
    if isinstance(objects, list):
        for each in objects:
            found.append(each if isinstance(each, dict) else {})
    return found


def _count_objects(
    counts: Counter[str], objects: list[dict[str, Any]], wanted: list[dict[str, Any]]
) -> None:
    counts["wanted"] += sum(map(len, wanted))
    counts["said"] += sum(map(len, objects))
    counts["made up"] += sum(map(len, objects[len(wanted) :]))
    for each, thing in zip(objects, wanted, strict=False):
        for name, value in thing.items():
            counts["right"] += each.get(name) == value
    exact, small = objects == wanted, len(wanted) <= 3
    counts["exact"] += exact
    counts["small"] += small
    counts["small exact"] += exact and small


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


@app.command()
def scenes(
    model: Annotated[str, typer.Option(help="A shipped model or a folder.")] = "tiny",
    limit: Annotated[int, typer.Option(help="Unseen scenes.")] = 300,
    ways: Annotated[str, typer.Option(help="Which ways, with commas between.")] = ",".join(WAYS),
) -> None:
    """Unseen scenes as JSON."""
    pipeline = load(model)
    seen = []
    for seed in TEST_SEEDS[:limit]:
        seen.append(example(seed))
    for way in ways.split(","):
        _tell(score_scenes(pipeline, seen, way))


@app.command()
def validity(generations: int = 100_000, seed: int = 0) -> None:
    """Values under hostile weights, rules and temperatures."""
    layouts, tokens = _shipped()
    counts = Counter[str]()
    for first in track(range(0, generations, 500), description=f"{generations} values"):
        counts += structured_adversarial.validity(
            layouts, tokens, min(500, generations - first), seed + first
        )
    _tell(dict(sorted(counts.items())))
    raise typer.Exit(int(counts["not valid"] > 0))


@app.command()
def coverage(file: Path, draws: int = 4, show: bool = False) -> None:
    """Real schemas, lines of {"id", "schema"}: compiled and valid, or refused."""
    layouts, tokens = _shipped()
    schemas = list(structured_adversarial.read_schemas(file))
    rows = list(
        track(
            structured_adversarial.coverage(iter(schemas), layouts, tokens, draws),
            total=len(schemas),
        )
    )
    _tell_outcomes(rows, show)


@app.command("expressible")
def tell_expressible(
    file: Annotated[Path, typer.Argument(help='Lines of {"id", "valid", "invalid"}.')],
    schemas: Annotated[Path, typer.Option(help='Lines of {"id", "schema"}.')],
    compare: Annotated[bool, typer.Option(help="Ask llguidance in the same run.")] = True,
    show: bool = False,
) -> None:
    """Valid instances of real schemas: how many can be said, of the invalid ones none."""
    layouts, _ = _shipped()
    rows = list(track(expressible(file, schemas, layouts, compare)))
    for row in rows:
        if row.valid != row.ours and (show or not row.valid):
            _tell(
                {"schema": row.schema, "valid": row.valid, "why": row.why, "llguidance": row.theirs}
            )
    for kind, valid in (("valid", True), ("invalid", False)):
        _tell(_shares([row for row in rows if row.valid is valid], kind, compare))
    raise typer.Exit(int(any(row.ours and not row.valid for row in rows)))


def _shares(rows: Sequence[Instance], kind: str, compare: bool) -> dict[str, Any]:
    count = max(1, len(rows))
    ours = theirs = 0
    for row in rows:
        ours += row.ours
        theirs += bool(row.theirs)
    told = {"instances": kind, "count": len(rows), "said": ours, "share": round(ours / count, 4)}
    if compare:
        return {**told, "llguidance": theirs, "llguidance_share": round(theirs / count, 4)}
    return told


@app.command()
def mutated(count: int = 10_000, show: bool = False) -> None:
    """Schemas with something broken in them: refused, or honoured with valid values."""
    layouts, tokens = _shipped()
    _tell_outcomes(list(structured_adversarial.mutations(layouts, tokens, 0, count)), show)


@app.command()
def passes() -> None:
    """Passes of each schema's value, one position at a time, against free decoding of the same
    text."""
    layouts, tokens = _shipped()
    found = {}
    for name, made, free in structured_adversarial.half_the_passes(layouts, tokens):
        found[name] = {"scaffold": made, "free": free}
    _tell(found)


@app.command()
def speed(vocabulary: int = 130_000) -> None:
    """What constraints add to a step, and how long compiling takes with everything warm."""
    layouts, tokens = _shipped()
    _tell(structured_adversarial.added_time(tokens, vocabulary))
    for name, schema in structured_adversarial.SCHEMAS.items():
        compile_schema(schema, layouts, 512)
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            compile_schema(schema, layouts, 512)
            seconds.append(time.perf_counter() - started)
        _tell({"schema": name, "compile_ms": round(1e3 * sorted(seconds)[2], 2)})


def _shipped() -> tuple[TemplateBuilder, Any]:
    """Layouts of the shipped tokenizer, without the model."""
    from mmdiff.modeling.checkpoint import config_of
    from mmdiff.modeling.processor import MMDiffProcessor

    tokens = config_of(SHIPPED / "tiny").tokens
    tokenizer = MMDiffProcessor.from_pretrained(SHIPPED / "tiny").tokenizer
    return TemplateBuilder(Vocabulary.of(tokenizer, tokens), tokens.mask, tokens.eot), tokens


def _tell_outcomes(rows: Sequence[structured_adversarial.Covered], show: bool) -> None:
    counts = Counter(row.outcome for row in rows)
    seconds = sorted(row.seconds for row in rows)
    for row in rows:
        if row.outcome == "invalid" or (show and row.outcome != "valid"):
            _tell({"name": row.name, "outcome": row.outcome, "told": row.told})
    _tell(
        {
            "schemas": len(rows),
            **counts,
            "valid_share": counts["valid"] / len(rows),
            "compile_p50_ms": round(1e3 * seconds[len(seconds) // 2], 2),
            "compile_p99_ms": round(1e3 * seconds[int(0.99 * len(seconds))], 2),
            "on": processor_name(),
        }
    )
    raise typer.Exit(int(counts["invalid"] > 0))


def _tell(values: Any) -> None:
    typer.echo(json.dumps(values, ensure_ascii=False))


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
