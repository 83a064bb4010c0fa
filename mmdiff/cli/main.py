"""The command line: parses, calls, prints. Everything it does is a verb of `pipeline`, `training`
or `eval`.

Heavy imports wait until a command needs them. What a user can cause ends as one sentence and exit
code 2.
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import math
import mimetypes
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdiff.files import shorten
from mmdiff.serve.options import ServerOptions, with_flags

if TYPE_CHECKING:
    from mmdiff.answers import Answer, Draft, Extraction
    from mmdiff.pipeline import Pipeline
    from mmdiff.serve.batch.worker_pool import JobOutcome
    from mmdiff.serve.options import Replicas
    from mmdiff.transcript import Transcript

app = typer.Typer(
    help="Ask a masked-diffusion language model about pictures and sound.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CHUNK_PIXELS = 48_000_000  # of pictures opened together: 144 MB as RGB
CHUNK_IMAGES = 64
SHOWN_UNSURE = 5  # segments of a transcript

Model = Annotated[
    str, typer.Option("--model", help="A shipped model, a checkpoint folder or a hub name.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per picture.")]
ShowSteps = Annotated[
    bool, typer.Option("--show-steps", help="Show the answer while it is denoised.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, mps, ... (default: cuda where there is it).")
]
GenLength = Annotated[int | None, typer.Option(help="Positions of the answer.")]
BlockLength = Annotated[
    int | None, typer.Option(help="Positions of a block; blocks are decided from left to right.")
]
Steps = Annotated[
    int | None, typer.Option(help="Steps in all, with a fixed number of commits per step.")
]
Threshold = Annotated[
    float | None, typer.Option(help="Commit every position this confident (0 to 1) at once.")
]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
CfgScale = Annotated[float | None, typer.Option(help="Classifier-free guidance; 0 is none.")]
Seed = Annotated[int, typer.Option(help="For a temperature above 0.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any decoding setting, such as rule=wino; may be given again.",
    ),
]
MaxNumSeqs = Annotated[int, typer.Option(min=1, max=4096, help="Answers in the making at once.")]
OnRay = Annotated[
    bool, typer.Option("--ray", help="On the cluster at RAY_ADDRESS, or one started here.")
]
MinReplicas = Annotated[
    int | None, typer.Option(min=1, help="Copies of the model with --ray, at least (default: 1).")
]
MaxReplicas = Annotated[
    int | None, typer.Option(min=1, help="And at most (default: as many as at least).")
]
SpeechModel = Annotated[
    str | None,
    typer.Option(help="Whisper that writes speech down: a folder or hub name (default: tiny.en)."),
]
AudioAs = Annotated[
    str, typer.Option(help="transcript: what is said, as text; or embeddings: the audio itself.")
]
Quantize = Annotated[
    str | None, typer.Option(help="8bit or 4bit: the layers' weights in fewer bits.")
]


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    from mmdiff import __version__

    typer.echo(f"mmdiff {__version__}")
    parts = [f"Python {sys.version.split()[0]}"]
    for package in ("torch", "transformers"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} is not installed")
    typer.echo(", ".join(parts))
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print versions and exit."
        ),
    ] = False,
) -> None:
    """What comes before the command."""


@app.command()
def ask(
    pictures_and_question: Annotated[
        list[str],
        typer.Argument(
            metavar="PICTURE... QUESTION", help="One or more pictures, then the question."
        ),
    ],
    speech: Annotated[
        str | None, typer.Option(help="A sound file with the question, instead of words.")
    ] = None,
    speech_model: SpeechModel = None,
    model: Model = "tiny",
    as_json: Json = False,
    show_steps: ShowSteps = False,
    device: Device = None,
    gen_length: GenLength = None,
    block_length: BlockLength = None,
    steps: Steps = None,
    threshold: Threshold = None,
    temperature: Temperature = None,
    cfg_scale: CfgScale = None,
    settings: Settings = None,
    seed: Seed = 0,
    quantize: Quantize = None,
) -> None:
    """Answer a question about each picture."""
    if speech is None and len(pictures_and_question) < 2:
        got = shorten(pictures_and_question[0])
        raise _refuse(
            f"got only {got!r}; give at least one picture and then the question in quotes"
        )
    *pictures, question = pictures_and_question if speech is None else [*pictures_and_question, ""]
    decoding = _given(
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        threshold=threshold,
        temperature=temperature,
        cfg_scale=cfg_scale,
    ) | _settings(settings)
    _answer(
        pictures,
        question,
        model,
        as_json,
        show_steps,
        device,
        seed,
        decoding,
        speech,
        quantize,
        speech_model,
    )


@app.command()
def transcribe(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="WAV, FLAC, OGG, MP3, M4A, WebM, ...; - for standard input."
        ),
    ],
    form: Annotated[
        str, typer.Option("--format", help="text, json, verbose_json, srt or vtt.")
    ] = "text",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write to this file; of several, one each to this folder, by their names."
        ),
    ] = None,
    gate: Annotated[bool, typer.Option(help="Leave out what holds no speech.")] = True,
    language: Annotated[
        str | None, typer.Option(help="A code such as en (default: detected).")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Words that may occur, such as names.")] = None,
    channels: Annotated[
        str, typer.Option(help="mix, or separate: a two-channel call, speaker by speaker.")
    ] = "mix",
    beam_size: Annotated[int, typer.Option(help="Hypotheses that are kept; 1 is greedy.")] = 5,
    speech_model: SpeechModel = None,
    model: Model = "tiny",
    device: Device = None,
) -> None:
    """Write down what is said in each audio file; one that cannot be read does not stop the
    others."""
    import numpy as np

    from mmdiff.audio.audio_io import SAMPLE_RATE, load_audio, load_channels
    from mmdiff.errors import MMDiffError
    from mmdiff.transcript import FORMATS

    if form not in FORMATS:
        raise _refuse(f"--format {form!r} is not known; use one of {', '.join(FORMATS)}")
    if channels not in ("mix", "separate"):
        raise _refuse(f"--channels {channels!r} is not known; use mix or separate")
    if out is None and len(files) > 1 and form in ("srt", "vtt"):
        raise _refuse(
            f"{len(files)} files in --format {form} would run into one another; add --out FOLDER"
        )
    outputs = _transcript_files(files, out, form)
    options = {
        "language": language,
        "prompt": prompt,
        "channels": channels,
        "beam_size": beam_size,
        "gate": gate,
    }
    pipeline, failed = None, 0
    for name, file in zip(files, outputs, strict=True):
        try:
            source = _stdin() if name == "-" else name
            tracks = load_channels(source) if channels == "separate" else [load_audio(source)]
        except MMDiffError as error:
            if len(files) == 1:
                raise
            failed += 1
            typer.echo(f"mmdiff: {error}", err=True)
            if out is None and "json" in form:
                typer.echo(json.dumps({"file": name, "error": str(error)}))
            continue
        pipeline = pipeline or _load(model, device, speech_model=speech_model)
        transcript = _with_progress(
            pipeline, name, np.stack(tracks, 1), sample_rate=SAMPLE_RATE, **options
        )
        _warn_of(name, transcript)
        body = FORMATS[form](transcript)
        if file is not None:
            _write_whole(file, body)
        elif len(files) == 1:
            typer.echo(body, nl=False)
        elif form == "text":
            typer.echo(f"{name}: {body}", nl=False)
        else:
            typer.echo(json.dumps({"file": name, **json.loads(body)}))
    if failed:
        typer.echo(f"mmdiff: {failed} of {len(files)} files could not be transcribed", err=True)
        raise typer.Exit(2 if failed == len(files) else 1)


@app.command()
def listen(
    sound: Annotated[str, typer.Argument(metavar="FILE")],
    question: Annotated[str, typer.Argument()],
    model: Model = "tiny",
    as_json: Json = False,
    device: Device = None,
    gen_length: GenLength = None,
    threshold: Threshold = None,
    steps: Steps = None,
) -> None:
    """Answer a question about a sound."""
    if not question.strip():
        raise _refuse("the question is empty; say what you want to know")
    _check_sounds([sound])
    answer = _load(model, device).listen(
        sound, question, **_given(gen_length=gen_length, threshold=threshold, steps=steps)
    )
    typer.echo(_json({"sound": sound, **_as_dict(question, answer)}) if as_json else answer.text)


@app.command()
def refine(
    sound: Annotated[str, typer.Argument(metavar="FILE")],
    draft: Annotated[str, typer.Option(help="The transcript to put right.")],
    share: Annotated[
        float, typer.Option(help="Share of the draft that is opened again (0 to 1).")
    ] = 0.3,
    mode: Annotated[
        str, typer.Option(help="low_confidence, or chunks: one part after the other.")
    ] = "low_confidence",
    model: Model = "tiny",
    as_json: Json = False,
    device: Device = None,
) -> None:
    """Put a draft transcript of a sound right."""
    if not draft.strip():
        raise _refuse("--draft is empty; give the words to put right, or use mmdiff transcribe")
    _check_sounds([sound])
    answer = _load(model, device).refine(sound, draft, share=share, mode=mode)  # type: ignore[arg-type]
    typer.echo(
        _json({"sound": sound, "draft": draft, **_as_dict("", answer)}) if as_json else answer.text
    )


@app.command()
def caption(
    pictures: Annotated[
        list[str], typer.Argument(metavar="PICTURE...", help="Pictures, or with --out a folder.")
    ],
    length: Annotated[str, typer.Option(help="word, short or long.")] = "short",
    model: Model = "tiny",
    as_json: Json = False,
    show_steps: ShowSteps = False,
    device: Device = None,
    threshold: Threshold = None,
    steps: Steps = None,
    temperature: Temperature = None,
    settings: Settings = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Describe a whole folder, and write a JSON line each here.")
    ] = None,
    max_num_seqs: MaxNumSeqs = 16,
) -> None:
    """Describe each picture."""
    from mmdiff.prompts import CAPTION_PROMPTS, CAPTION_ROOM

    known = next((name for name in CAPTION_PROMPTS if name == length), None)
    if known is None:
        raise _refuse(f"--length {length!r} is not known; use one of {', '.join(CAPTION_PROMPTS)}")
    decoding = _given(threshold=threshold, steps=steps, temperature=temperature) | _settings(
        settings
    )
    if out is not None:
        if len(pictures) != 1 or not Path(pictures[0]).is_dir():
            raise _refuse(
                f"--out is for one folder of pictures, which {shorten(' '.join(pictures))!r} is not"
            )
        from mmdiff.serve.batch.in_process import caption_folder

        body = {"length": known, "seed": seed, **decoding}
        _check_caption(body)
        _tell_outcome(
            caption_folder(Path(pictures[0]), out, body, model, device, max_num_seqs),
            "pictures",
            out,
        )
        return
    decoding = {"gen_length": CAPTION_ROOM[known], **decoding}
    _answer(pictures, CAPTION_PROMPTS[known], model, as_json, show_steps, device, seed, decoding)


@app.command("run-batch")
def run_batch(
    source: Annotated[
        Path,
        typer.Option("--input-file", "-i", help="JSONL, one request a line, in OpenAI's form."),
    ],
    out: Annotated[
        Path,
        typer.Option("--output-file", "-o", help="JSONL; what is in it already is not done again."),
    ],
    model: Model = "tiny",
    speech_model: SpeechModel = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="What requests call the model; may be given again.")
    ] = None,
    allowed_media_domains: Annotated[
        list[str] | None, typer.Option(help="Domains to fetch media from; none by default.")
    ] = None,
    device: Device = None,
    max_num_seqs: MaxNumSeqs = 16,
    on_ray: OnRay = False,
    min_replicas: MinReplicas = None,
    max_replicas: MaxReplicas = None,
) -> None:
    """Answer a file of requests. However it is broken off, the same command goes on."""
    from mmdiff.serve.batch import in_process

    _check_sources([source], [out])
    names, domains = tuple(served_model_name or ()), tuple(allowed_media_domains or ())
    replicas = _replicas(on_ray, min_replicas, max_replicas)
    options = in_process.local_options(model, names, device, max_num_seqs, domains, speech_model)
    if replicas is None:
        outcome = in_process.run_batch(source, out, options)
    else:
        from mmdiff.serve import ray

        outcome = ray.run_batch(source, out, options, replicas)
    _tell_outcome(outcome, "requests", out)


@app.command()
def extract(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="An image or audio, such as speech; - for text on standard input."
        ),
    ],
    schema: Annotated[
        str, typer.Option(help="A JSON Schema file, or module:Type of a type that pydantic knows.")
    ],
    question: Annotated[str | None, typer.Option(help="What is wanted, in words.")] = None,
    audio_as: AudioAs = "transcript",
    max_tokens: Annotated[int, typer.Option(help="Tokens that the value may take.")] = 256,
    speech_model: SpeechModel = None,
    model: Model = "tiny",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print confidences and chances as well.")
    ] = False,
    device: Device = None,
    settings: Settings = None,
    seed: Seed = 0,
    quantize: Quantize = None,
) -> None:
    """Fill in a JSON Schema from an image, from speech or other audio, or from a text; the value
    always fits."""
    wanted = _schema(schema)
    given = _source(source, audio_as)
    made = _load(model, device, quantize, speech_model).extract(
        given.pop("image"),
        wanted,
        question=question,
        max_tokens=max_tokens,
        seed=seed,
        **given,
        **_settings(settings),
    )
    _print_extraction(source, made, as_json)


@app.command()
def choose(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="An image or audio, such as speech.")
    ],
    question: Annotated[str, typer.Argument()],
    choices: Annotated[
        list[str], typer.Argument(metavar="CHOICE...", help="The answers to choose from.")
    ],
    audio_as: AudioAs = "transcript",
    speech_model: SpeechModel = None,
    model: Model = "tiny",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the chance of each choice.")
    ] = False,
    device: Device = None,
    seed: Seed = 0,
    quantize: Quantize = None,
) -> None:
    """Answer a question about an image, or about speech or other audio, with one of the choices."""
    if not question.strip():
        raise _refuse("the question is empty; say what you want to know")
    given = {"image": source} if source == "-" else _source(source, audio_as)
    made = _load(model, device, quantize, speech_model).choose(
        given.pop("image"), question, choices, seed=seed, **given
    )
    _print_extraction(source, made, as_json)


@app.command()
def fill(
    picture: Annotated[str, typer.Argument(metavar="PICTURE")],
    text: Annotated[str, typer.Argument(help='With holes: "The [[ ]] is [[red|green]]."')],
    question: Annotated[str | None, typer.Option(help="What the text answers.")] = None,
    model: Model = "tiny",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was filled in and how sure it is.")
    ] = False,
    device: Device = None,
    settings: Settings = None,
    seed: Seed = 0,
    quantize: Quantize = None,
) -> None:
    """Fill the holes of a text about a picture, in any order."""
    made = _load(model, device, quantize).fill(
        text, image=picture, question=question, seed=seed, **_settings(settings)
    )
    _print_extraction(picture, made, as_json)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="The model to make: tiny.")] = "tiny",
    out: Annotated[
        Path, typer.Option(help="Folder of the run; an interrupted one goes on from there.")
    ] = Path("runs"),
    scale: Annotated[
        float, typer.Option(help="Factor on every stage's number of steps, for a trial run.")
    ] = 1.0,
    whisper: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of a Whisper checkpoint to hear with (default: tiny.en)."
        ),
    ] = None,
) -> None:
    """Train a model from data that is generated or installed. Stop with Ctrl-C; the same command
    goes on."""
    from mmdiff.modeling.hub import find
    from mmdiff.training.recipes import RECIPES, run

    if recipe not in RECIPES:
        raise _refuse(f"unknown recipe {recipe!r}; known are {', '.join(RECIPES)}")
    if not 0 < scale <= 1000:
        raise _refuse(f"--scale {scale} does not fit; it must be above 0, and at most 1,000")
    folder = run(recipe, out / recipe, scale=scale, whisper=find(whisper) if whisper else None)
    typer.echo(f"the model is in {folder}; try: mmdiff ask PICTURE QUESTION --model {folder}")


@app.command("eval")
def evaluate(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks, or pictures, or speech.")
    ] = None,
    model: Model = "tiny",
    speech_model: SpeechModel = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many of each kind.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Evidence as JSON; an interrupted run goes on (default: in runs/eval)."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Evidence of another run, to compare with.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions answered at once.")] = 64,
    device: Device = None,
) -> None:
    """Measure a model on pictures and speech it was not trained on."""
    from mmdiff.eval.evidence import default_out, read
    from mmdiff.eval.run import GROUPS, TASKS
    from mmdiff.eval.run import evaluate as run_tasks

    names = [task for name in tasks or GROUPS for task in GROUPS.get(name, (name,))]
    if unknown := [name for name in names if name not in TASKS]:
        raise _refuse(f"unknown task {unknown[0]!r}; known are {', '.join((*GROUPS, *TASKS))}")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise _refuse(f"--batch-size {batch_size} and --limit {limit} must be at least 1")
    _check_outputs(out)
    if against is not None:
        read(against)  # a file that is not evidence is reported before the work begins
    pipeline = _load(model, device, speech_model=speech_model)
    out = out or default_out(model)
    run_tasks(
        pipeline, list(dict.fromkeys(names)), limit, batch_size, name=model, out=out, other=against
    )
    typer.echo(f"evidence: {out}", err=True)


@app.command()
def bench(
    model: Annotated[
        str | None, typer.Option(help="A shipped model, a checkpoint folder or a hub name.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Sizes of a model with random weights: small, llada-8b, ...")
    ] = "small",
    random: Annotated[
        bool, typer.Option("--random", help="Random weights for --model too, as presets have.")
    ] = False,
    prompt: Annotated[
        list[int] | None, typer.Option(help="Positions before the answer; may be given again.")
    ] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="WxH", help="Add the positions of such a picture.")
    ] = None,
    cache: Annotated[
        list[str] | None, typer.Option(help="none, prefix, block, ...; may be given again.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Answers at once; may be given again.")
    ] = None,
    gen_length: Annotated[int, typer.Option(help="Positions of the answer.")] = 128,
    block_length: Annotated[int, typer.Option(help="Positions of a block.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps in all, for the rule quota.")] = 128,
    rule: Annotated[str | None, typer.Option(help="What a step commits.")] = None,
    threshold: Threshold = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    device: Device = None,
    repeats: Annotated[
        int, typer.Option(help="Answers measured, of which the medians are shown.")
    ] = 3,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also measure the obvious versions.")
    ] = False,
    divergence: Annotated[
        bool, typer.Option("--divergence", help="Also tell how far caches are from exact.")
    ] = False,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Also time bfloat16 against float32, by turns.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the layers; CUDA graphs on a GPU.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the report as JSON here; with --accuracy an interrupted one goes on."
        ),
    ] = None,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Accuracy against forward passes instead.")
    ] = False,
    setting: Annotated[
        list[str] | None, typer.Option(help="With --accuracy, one of its settings (all).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --accuracy, pictures of each task (all).")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="With --accuracy, questions answered at once.")
    ] = 64,
    plot: Annotated[
        Path | None, typer.Option(help="With --accuracy, score against passes as PNG, SVG, PDF.")
    ] = None,
) -> None:
    """Measure the speed of answers with random weights or a model's, or the accuracy of rules and
    caches."""
    if accuracy:
        _bench_accuracy(model or "tiny", setting, limit, out, plot, batch_size, device)
        return
    if setting or limit or plot:
        given = "--setting" if setting else "--limit" if limit else "--plot"
        raise _refuse(f"{given} is for --accuracy; add it, or leave {given} out")

    from mmdiff.config import DecodingConfig, from_dict
    from mmdiff.eval.speed import SIZES, Load, bench, compile_layers, picture_length, random_model
    from mmdiff.modeling.checkpoint import config_of
    from mmdiff.modeling.device import choose_device, choose_dtype
    from mmdiff.modeling.hub import find_base
    from mmdiff.pipeline import load

    _check_outputs(out)
    if model is None and preset not in SIZES:
        raise _refuse(f"--preset {preset!r} is not known; use one of {', '.join(SIZES)}")
    if dtype not in ("float32", "bfloat16"):
        raise _refuse(f"--dtype {dtype!r} is not known; use float32 or bfloat16")
    counts = {
        "--prompt": prompt or [1 if picture else 729],
        "--batch": batch or [1],
        "--repeats": [repeats],
    }
    for name, values in counts.items():
        if min(values) < 1:
            raise _refuse(f"{name} {min(values)} does not fit; it must be at least 1")
    sizes = config_of(find_base(model, weights=not random)[0]) if model else SIZES[preset]
    seen = picture_length(picture, sizes) if picture else 0
    trained = (
        model is not None and not random
    )  # random weights end anywhere, so only a trained model's ends count
    settings = {
        "gen_length": gen_length,
        "block_length": block_length,
        "steps": steps,
        "rule": rule,
        "threshold": threshold,
        "stop": trained,
    }
    try:
        plans = [
            from_dict(DecodingConfig, {**settings, "cache": each})
            for each in cache or ["none", "prefix"]
        ]
    except ValueError as error:
        raise _refuse(str(error)) from None
    place = choose_device(device)
    number_type = choose_dtype(dtype, place)
    if model is not None and trained:
        measured = load(model, device=place, dtype=number_type).model
    else:
        measured = random_model(sizes, place, number_type)
    loads = [
        Load(length + seen, rows, plan)
        for length in counts["--prompt"]
        for rows in counts["--batch"]
        for plan in plans
    ]
    if compiled:
        compile_layers(measured)
    report = bench(measured, loads, repeats, baselines, divergence, bfloat16)
    if out is not None:
        out.write_text(_json(report, indent=1) + "\n")


def _bench_accuracy(
    model: str,
    settings: list[str] | None,
    limit: int | None,
    out: Path | None,
    plot: Path | None,
    batch_size: int,
    device: str | None,
) -> None:
    """Accuracy against forward passes for each rule and cache."""
    from mmdiff.eval import accuracy_vs_passes

    if unknown := [name for name in settings or [] if name not in accuracy_vs_passes.SETTINGS]:
        raise _refuse(
            f"unknown setting {unknown[0]!r}; known are {'; '.join(accuracy_vs_passes.SETTINGS)}"
        )
    _check_outputs(out, plot)
    if plot:
        accuracy_vs_passes.check_plot(plot)
    report = accuracy_vs_passes.compare(
        _load(model, device), settings or list(accuracy_vs_passes.SETTINGS), limit, batch_size, out
    )
    if plot:
        accuracy_vs_passes.plot(report, plot)


@app.command()
@with_flags
def serve(
    *,
    limit_mm_per_prompt: Annotated[
        str | None,
        typer.Option(help='Images and audio of a request, such as {"image": 4, "audio": 1}.'),
    ] = None,
    on_ray: OnRay = False,
    min_replicas: MinReplicas = None,
    max_replicas: MaxReplicas = None,
    **flags: Any,
) -> None:
    """Serve a model over HTTP, as OpenAI's clients ask for it."""
    from mmdiff.serve.http.server import serve as run_server

    given = os.environ.get("MMDIFF_API_KEY")
    if given is not None and not given.strip():
        raise _refuse("MMDIFF_API_KEY is empty; put a key into it, or unset it")
    flags["api_key"] = [*(flags["api_key"] or ()), *(given or "").split()]
    counts = _media_counts(limit_mm_per_prompt)
    options = ServerOptions.of_flags(flags, max_images=counts["image"], max_audios=counts["audio"])
    raise typer.Exit(run_server(options, _replicas(on_ray, min_replicas, max_replicas)))


@app.command()
def info(
    model: Annotated[
        str, typer.Argument(help="A preset, a shipped model, a folder or a hub name.")
    ] = "tiny",
) -> None:
    """Say what a model is made of, without loading its weights, and where it would run."""
    from mmdiff.config import PRESETS
    from mmdiff.modeling.checkpoint import config_of, describe
    from mmdiff.modeling.device import describe_machine
    from mmdiff.modeling.hub import SHIPPED, find_base

    only_preset = model in PRESETS and not (SHIPPED / model / "config.json").is_file()
    stored = PRESETS[model] if only_preset else config_of(find_base(model, weights=False)[0])
    typer.echo(_json({**describe(stored), "machine": describe_machine()}, indent=1))


def main() -> None:
    """The `mmdiff` command."""
    from mmdiff.errors import MMDiffError

    _write_any_text()
    try:
        app()
    except MMDiffError as error:
        typer.echo(f"mmdiff: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is not None:
            raise
        typer.echo(f"mmdiff: standard output cannot be written ({error.strerror})", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _write_any_text() -> None:
    """Let output hold every text: names of files need not be Unicode, and an encoding may lack
    letters."""
    codecs.register_error("mmdiff.any", _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            legacy = (
                sys.platform == "win32" and not stream.isatty()
            )  # files and pipes there have a code page
            stream.reconfigure(encoding="utf-8" if legacy else None, errors="mmdiff.any")


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """A name's bytes as they are, and letters that the encoding lacks as backslash escapes."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def _answer(
    pictures: list[str],
    question: str,
    model: str,
    as_json: bool,
    show_steps: bool,
    device: str | None,
    seed: int,
    decoding: dict[str, Any],
    speech: str | None = None,
    quantize: str | None = None,
    speech_model: str | None = None,
) -> None:
    if speech is None and not question.strip():
        raise _refuse("the question is empty; say what you want to know")
    if show_steps and as_json:
        raise _refuse(
            "--show-steps draws in the terminal and --json prints data; choose one of them"
        )
    images = _opened(pictures)
    first = next(images)  # a bad one is reported before the model loads
    if speech is not None:
        _check_sounds([speech])
    started = time.perf_counter()
    pipeline = _load(model, device, quantize, speech_model)
    seconds = {"load_seconds": round(time.perf_counter() - started, 3)}
    heard: Transcript | None = None
    if speech is not None:
        heard = pipeline.heard(speech)
        question = heard.text
        typer.echo(f"heard: {question}", err=True)
        _warn_of(speech, heard)
    answered = failed = 0
    for chunk in itertools.chain([first], images):
        bad = [(name, image) for name, image in chunk if isinstance(image, Exception)]
        good = [(name, image) for name, image in chunk if not isinstance(image, Exception)]
        for name, error in bad:
            failed += 1
            typer.echo(f"mmdiff: {error}", err=True)
            if as_json:
                typer.echo(_json({"picture": name, "question": question, "error": str(error)}))
        if show_steps:
            while good:
                _show(pipeline, good.pop(0)[1], question, seed, decoding)
            chunk.clear()
            continue
        begun = time.perf_counter()
        answers = pipeline.ask(
            [image for _, image in good], [question] * len(good), seed=seed + answered, **decoding
        )
        seconds["answer_seconds"] = round(time.perf_counter() - begun, 3)
        answered += len(good)
        for (name, _), answer in zip(good, answers, strict=True):
            if as_json:
                typer.echo(
                    _json(
                        {"picture": name, **_as_dict(question, answer), **_heard(heard), **seconds}
                    )
                )
            else:
                typer.echo(answer.text if len(pictures) == 1 else f"{name}: {answer.text}")
        for held in (chunk, good):
            held.clear()  # before the next ones are opened
    if failed:
        raise typer.Exit(2 if failed == len(pictures) else 1)


def _opened(names: list[str]) -> Iterator[list[tuple[str, Any]]]:
    """Names and pictures, or what is wrong with them, as many together as memory is meant for.

    Raises:
        MMDiffError: the only one cannot be opened.
    """
    from mmdiff.errors import MMDiffError
    from mmdiff.vision.image_io import open_image

    chunk: list[tuple[str, Any]] = []
    pixels = 0
    for name in names:
        try:
            image = open_image(name)
        except MMDiffError as error:
            if len(names) == 1:
                raise
            chunk.append((name, error))
            continue
        chunk.append((name, image))
        pixels += image.width * image.height
        del image
        if pixels >= CHUNK_PIXELS or len(chunk) >= CHUNK_IMAGES:
            yield chunk
            chunk, pixels = [], 0
    if chunk:
        yield chunk


def _heard(question: Transcript | None) -> dict[str, Any]:
    if question is None:
        return {}
    return {"heard": question.text, "heard_confidence": round(question.confidence, 4)}


def _warn_of(name: str, transcript: Transcript) -> None:
    """What a reader of the words alone would not know."""
    if not transcript.segments:
        typer.echo(f"mmdiff: {name}: no speech was found", err=True)
    unsure = transcript.unsure
    for segment in unsure[:SHOWN_UNSURE]:
        typer.echo(
            f"mmdiff: {name}: not sure of {segment.text!r} at {segment.start:.1f} s "
            f"(confidence {segment.confidence:.2f})",
            err=True,
        )
    if len(unsure) > SHOWN_UNSURE:
        typer.echo(f"mmdiff: {name}: nor of {len(unsure) - SHOWN_UNSURE} more segments", err=True)


def _transcript_files(names: list[str], out: Path | None, form: str) -> list[Path | None]:
    """Where each transcript goes; None: to standard output."""
    if out is None:
        return [None] * len(names)
    if len(names) == 1 and not out.is_dir():
        _check_outputs(out)
        _check_sources(names, [out])
        return [out]
    if out.exists() and not out.is_dir():
        raise _refuse(f"--out {out} is a file; {len(names)} transcripts need a folder")
    suffix = {"text": "txt", "srt": "srt", "vtt": "vtt"}.get(form, "json")
    files = [out / f"{'stdin' if name == '-' else Path(name).stem}.{suffix}" for name in names]
    for number, file in enumerate(files):
        if file in files[:number]:
            raise _refuse(
                f"{names[number]!r} and {names[files.index(file)]!r} would both be written to "
                f"{file}; "
                "transcribe them one after the other"
            )
    _check_sources(names, files)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refuse(f"--out {out} cannot be made ({error.strerror})") from None
    return list(files)


def _check_sources(names: Iterable[str | Path], outputs: Iterable[Path]) -> None:
    """What is read is never written over."""
    sources = {os.path.realpath(name) for name in names}
    for file in outputs:
        if file.is_file() and os.path.realpath(file) in sources:
            raise _refuse(
                f"{shorten(str(file))} is read, and would be written over; give another name for "
                "the output"
            )


def _write_whole(file: Path, text: str) -> None:
    """All of it or nothing, where a link leads to; a device or a pipe is written to, never
    replaced."""
    file = Path(os.path.realpath(file))
    new = file.with_name(f".{file.name}.new")
    try:
        if file.exists() and not file.is_file():
            file.write_text(text, encoding="utf-8")
            return
        new.write_text(text, encoding="utf-8")
        new.replace(file)
    except OSError as error:
        raise _refuse(f"{file} cannot be written ({error.strerror})") from None


def _replicas(on_ray: bool, least: int | None, most: int | None) -> Replicas | None:
    """None without a cluster."""
    from mmdiff.serve.options import Replicas

    if not on_ray:
        for name, number in (("min", least), ("max", most)):
            if number is not None:
                raise _refuse(
                    f"--{name}-replicas {number} is for a cluster; add --ray, or leave it out"
                )
        return None
    least = least or 1
    if most is not None and most < least:
        raise _refuse(f"--max-replicas {most} is less than --min-replicas {least}; raise it")
    return Replicas(least, most or least)


def _schema(name: str) -> Any:
    """A JSON Schema read from a file, or a type named module:Type."""
    module, found, attribute = name.partition(":")
    if found and not Path(name).exists():
        import importlib

        sys.path.insert(0, str(Path.cwd()))
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise _refuse(
                f"--schema {name!r}: {error}; give module:Type with a module that Python finds"
            ) from None
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise _refuse(f"--schema {name!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also where it is no text
        raise _refuse(f"--schema {name!r} is not JSON: {error}") from None


def _stdin() -> bytes:
    if sys.stdin is None:  # as where a shell closed it
        raise _refuse("standard input is closed, and - reads it; name a file instead")
    return sys.stdin.buffer.read()


def _source(name: str, audio_as: str) -> dict[str, Any]:
    """What is to be looked at: a file's audio where its name says so, else its image."""
    from mmdiff.structured_verbs import AUDIO_AS

    if audio_as not in AUDIO_AS:
        raise _refuse(f"--audio-as {shorten(audio_as)!r} is not known; use {' or '.join(AUDIO_AS)}")
    if name == "-":
        try:
            return {"image": None, "text": _stdin().decode()}
        except UnicodeDecodeError:
            raise _refuse(
                "standard input is not text in UTF-8; name the file where it is an image or audio"
            ) from None
    kind = mimetypes.guess_type(name)[0] or ""
    if not kind.startswith(("audio/", "video/")):
        return {"image": name}
    _check_sounds([name])
    return {"image": None, "audio": name, "audio_as": audio_as}


def _json(value: Any, **options: Any) -> str:
    """JSON, which knows no numbers that are none: null stands for them."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _print_extraction(source: str, made: Extraction, as_json: bool) -> None:
    from mmdiff.transcript import UNSURE

    if made.heard:
        typer.echo(f"heard: {made.heard}", err=True)
        if made.heard_confidence < UNSURE:
            typer.echo(
                f"mmdiff: {source}: not sure of these words "
                f"(confidence {made.heard_confidence:.2f})",
                err=True,
            )
    for warning in made.warnings:
        typer.echo(f"note: {warning}", err=True)
    if not as_json:
        typer.echo(made.text)
        return
    try:
        value = json.loads(made.text)
    except ValueError:  # a choice or a text that was filled in
        value = made.text
    fields = {
        path: {
            "confidence": each.confidence,
            "chances": [list(pair) for pair in each.probabilities],
        }
        for path, each in made.fields.items()
    }
    repairs = [{"pointer": each.pointer, "what": each.what} for each in made.repairs]
    decisions = [
        {
            "pointer": each.pointer,
            "kind": each.kind,
            "chances": [list(pair) for pair in each.probabilities],
        }
        for each in made.decisions
    ]
    told = {
        "value": value,
        "confidence": made.confidence,
        "fields": fields,
        "decisions": decisions,
        "steps": made.steps,
        "passes": made.passes,
        "repairs": repairs,
        "notes": list(made.notes),
    }
    if made.heard:
        told |= {"heard": made.heard, "heard_confidence": round(made.heard_confidence, 4)}
    typer.echo(_json(told, ensure_ascii=False))


def _check_caption(body: dict[str, Any]) -> None:
    """Settings that no picture of a folder could be described with are reported before the first
    one is."""
    from mmdiff.serve.errors import ApiError
    from mmdiff.serve.http.parsing import validated
    from mmdiff.serve.http.schemas import CaptionRequest

    try:
        validated(CaptionRequest, {"image_url": "", **body})
    except ApiError as error:
        raise _refuse(error.message) from None


def _check_outputs(*files: Path | None) -> None:
    """What cannot be written is reported before the work begins."""
    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise _refuse(
                f"{file} cannot be written: give the name of a file in a folder that exists"
            )


def _check_sounds(names: list[str]) -> None:
    """A bad file is reported before the model loads."""
    from mmdiff.audio.audio_io import load_audio

    for name in names:
        load_audio(name)


def _with_progress(pipeline: Pipeline, name: str, samples: Any, **options: Any) -> Transcript:
    """With a bar in the terminal, unless the output's reader is a program."""
    if not sys.stderr.isatty():
        return pipeline.transcribe(samples, **options)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(Path(name).name, total=1.0)
        return pipeline.transcribe(
            samples, progress=lambda share: bar.update(task, completed=share), **options
        )


def _as_dict(question: str, answer: Answer) -> dict[str, Any]:
    return {
        "question": question,
        "answer": answer.text,
        "confidence": round(answer.confidence, 4),
        "steps": answer.steps,
        "passes": answer.passes,
        "tokens": [
            {"text": t.text, "confidence": round(t.confidence, 4), "step": t.step}
            for t in answer.tokens
        ],
    }


def _show(
    pipeline: Pipeline, image: Any, question: str, seed: int, decoding: dict[str, Any]
) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        for draft in pipeline.stream(image, question, seed=seed, **decoding):
            live.update(_paint(draft), refresh=True)


def _paint(draft: Draft) -> Any:
    """Open positions as ▒, unsure tokens dim."""
    from rich.text import Text

    line = Text(f"step {draft.step + 1:3d}  ", style="bold")
    for token in draft.tokens:
        if token is None:
            line.append("▒")
        else:
            line.append(token.text, style="" if token.confidence >= 0.9 else "dim")
    return line


def _tell_outcome(outcome: JobOutcome, what: str, out: Path) -> None:
    typer.echo(f"{outcome.rows} {what}, {outcome.failed} failed: {out}", err=True)
    for sentence in outcome.failures:
        typer.echo(f"  {sentence}", err=True)


def _load(
    model: str, device: str | None, quantize: str | None = None, speech_model: str | None = None
) -> Pipeline:
    from mmdiff.pipeline import load

    return load(model, device=device, quantize=quantize, speech_model=speech_model)  # type: ignore[arg-type]


def _media_counts(given: str | None) -> dict[str, int]:
    """vLLM's --limit-mm-per-prompt."""
    counts = {"image": 4, "audio": 1}
    try:
        found = json.loads(given or "{}")
    except json.JSONDecodeError:
        found = None
    if (
        not isinstance(found, dict)
        or not found.keys() <= counts.keys()
        or not all(isinstance(count, int) and count >= 0 for count in found.values())
    ):
        raise _refuse(
            f"--limit-mm-per-prompt {given!r} does not fit; give JSON such as {json.dumps(counts)}"
        )
    return {**counts, **found}


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _settings(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE by name, numbers and none as JSON has them."""
    found: dict[str, Any] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise _refuse(f"--set {each!r} does not fit; give NAME=VALUE, such as rule=wino")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _refuse(message: str) -> Exception:
    from mmdiff.errors import MMDiffError

    return MMDiffError(message)


if __name__ == "__main__":
    main()
