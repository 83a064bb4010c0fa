"""`mmdiff eval`, `bench` and `info`: what a model answers, how fast, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmdiff.cli.flags import Device, Dtype, Model, SpeechModel, flags_of, with_flags
from mmdiff.cli.inputs import check_outputs, load_pipeline, refuse
from mmdiff.cli.outputs import to_json
from mmdiff.config import DecodingConfig, ModelConfig, flag, help_of
from mmdiff.serve.options import ServerOptions

if TYPE_CHECKING:
    from mmdiff.modeling.multimodal import MMDiffModel


def evaluate(
    tasks: Annotated[
        list[str] | None, typer.Argument(help="Tasks, or pictures, or speech.")
    ] = None,
    model: Model = "tiny",
    speech_model: SpeechModel = None,
    limit: Annotated[
        int | None, typer.Option(help="At most this many of each kind, the first ones.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Evidence as JSON; an interrupted run goes on (default: in runs/eval)."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Evidence of another run, to compare with.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions answered at once.")] = 64,
    device: Device = None,
    dtype: Dtype = "auto",
) -> None:
    """Measure a model on images and speech it was not trained on."""
    from mmdiff.eval.evidence import default_out, read
    from mmdiff.eval.run import GROUPS, TASKS
    from mmdiff.eval.run import evaluate as run_tasks

    names = [task for name in tasks or GROUPS for task in GROUPS.get(name, (name,))]
    if unknown := [name for name in names if name not in TASKS]:
        raise refuse(f"unknown task {unknown[0]!r}; known are {', '.join((*GROUPS, *TASKS))}")
    if batch_size < 1 or (limit is not None and limit < 1):
        raise refuse(f"--batch-size {batch_size} and --limit {limit} must be at least 1")
    check_outputs(out)
    if against is not None:
        read(against)  # a file that is not evidence is reported before the work begins
    pipeline = load_pipeline(model, device, dtype, speech_model=speech_model)
    out = out or default_out(model)
    run_tasks(
        pipeline, list(dict.fromkeys(names)), limit, batch_size, name=model, out=out, other=against
    )
    typer.echo(f"evidence: {out}", err=True)


@dataclass(frozen=True)
class BenchOptions:
    """What `mmdiff bench` measures."""

    model: str | None = flag(None, help_of(ServerOptions, "model"))
    preset: str = flag("small", "Sizes of a model with random weights: small, llada-8b, ...")
    random: bool = flag(False, "Random weights for --model too, as presets have.")
    prompt: tuple[int, ...] = flag((), "Positions before the answer; may be given again.")
    picture: str | None = flag(None, "Add the positions of an image of this size.", metavar="WxH")
    cache: tuple[str, ...] = flag((), "none, prefix, block, ...; may be given again.")
    batch: tuple[int, ...] = flag((), "Answers at once; may be given again.")
    gen_length: int = flag(128, help_of(DecodingConfig, "gen_length"))
    block_length: int = flag(32, "Positions of a block.")
    steps: int = flag(128, "Steps in all, for the rule quota.")
    rule: str | None = flag(None, "What a step commits.")
    threshold: float | None = flag(None, help_of(DecodingConfig, "threshold"))
    dtype: str = flag("float32", "float32 or bfloat16.")
    device: str | None = flag(None, help_of(ServerOptions, "device"))
    repeats: int = flag(3, "Answers measured, of which the medians are shown.")
    baselines: bool = flag(False, "Also measure the obvious versions.")
    divergence: bool = flag(False, "Also tell how far caches are from exact.")
    bfloat16: bool = flag(False, "Also time bfloat16 against float32, by turns.")
    compiled: bool = flag(False, "Compile the layers; CUDA graphs on a GPU.", name="compile")
    out: Path | None = flag(
        None, "Write the report as JSON here; with --accuracy an interrupted one goes on."
    )
    accuracy: bool = flag(False, "Accuracy against forward passes instead.")
    setting: tuple[str, ...] = flag((), "With --accuracy, one of its settings (all).")
    limit: int | None = flag(None, "With --accuracy, images of each task (all).", least=1)
    batch_size: int = flag(64, "With --accuracy, questions answered at once.", least=1)
    plot: Path | None = flag(None, "With --accuracy, score against passes as PNG, SVG, PDF.")

    @property
    def prompts(self) -> tuple[int, ...]:
        return self.prompt or (1 if self.picture else 729,)

    @property
    def batches(self) -> tuple[int, ...]:
        return self.batch or (1,)

    @property
    def trained(self) -> bool:
        """Whether the model's own weights are loaded."""
        return self.model is not None and not self.random

    def plans(self) -> list[DecodingConfig]:
        """The settings with each of the caches.

        Raises:
            MMDiffError: one does not fit.
        """
        from mmdiff.config import from_dict

        settings = {
            "gen_length": self.gen_length,
            "block_length": self.block_length,
            "steps": self.steps,
            "rule": self.rule,
            "threshold": self.threshold,
            "stop": self.trained,  # random weights end anywhere
        }
        try:
            return [
                from_dict(DecodingConfig, {**settings, "cache": cache})
                for cache in self.cache or ("none", "prefix")
            ]
        except ValueError as error:
            raise refuse(str(error)) from None


@with_flags(options=flags_of(BenchOptions))
def bench(options: BenchOptions) -> None:
    """Measure the speed of answers with random weights or a model's, or the accuracy of rules and
    caches."""
    if options.accuracy:
        _bench_accuracy(options)
        return
    for name in ("setting", "limit", "plot"):
        if getattr(options, name):
            raise refuse(f"--{name} is for --accuracy; add it, or leave --{name} out")
    from mmdiff.eval.speed import Load, bench, compile_layers, picture_length

    _check_bench(options)
    sizes = _sizes(options)
    seen = picture_length(options.picture, sizes) if options.picture else 0
    plans = options.plans()
    measured = _measured_model(options, sizes)
    loads = [
        Load(length + seen, rows, plan)
        for length in options.prompts
        for rows in options.batches
        for plan in plans
    ]
    if options.compiled:
        compile_layers(measured)
    report = bench(
        measured, loads, options.repeats, options.baselines, options.divergence, options.bfloat16
    )
    if options.out is not None:
        options.out.write_text(to_json(report, indent=1) + "\n")


def _check_bench(options: BenchOptions) -> None:
    from mmdiff.eval.speed import SIZES

    check_outputs(options.out)
    if options.model is None and options.preset not in SIZES:
        raise refuse(f"--preset {options.preset!r} is not known; use one of {', '.join(SIZES)}")
    if options.dtype not in ("float32", "bfloat16"):
        raise refuse(f"--dtype {options.dtype!r} is not known; use float32 or bfloat16")
    counts = {
        "--prompt": options.prompts,
        "--batch": options.batches,
        "--repeats": (options.repeats,),
    }
    for name, values in counts.items():
        if min(values) < 1:
            raise refuse(f"{name} {min(values)} does not fit; it must be at least 1")


def _sizes(options: BenchOptions) -> ModelConfig:
    from mmdiff.eval.speed import SIZES
    from mmdiff.modeling.checkpoint import config_of
    from mmdiff.modeling.hub import find_base

    if options.model is None:
        return SIZES[options.preset]
    return config_of(find_base(options.model, weights=not options.random)[0])


def _measured_model(options: BenchOptions, sizes: ModelConfig) -> MMDiffModel:
    from mmdiff.eval.speed import random_model
    from mmdiff.modeling.device import choose_device, choose_dtype
    from mmdiff.pipeline import load

    device = choose_device(options.device)
    number_type = choose_dtype(options.dtype, device)
    if options.model is not None and options.trained:
        return load(options.model, device=device, dtype=number_type).model
    return random_model(sizes, device, number_type)


def _bench_accuracy(options: BenchOptions) -> None:
    """Accuracy against forward passes for each rule and cache."""
    from mmdiff.eval import accuracy_vs_passes

    known = accuracy_vs_passes.SETTINGS
    settings = list(options.setting or known)
    if unknown := [name for name in settings if name not in known]:
        raise refuse(f"unknown setting {unknown[0]!r}; known are {'; '.join(known)}")
    check_outputs(options.out, options.plot)
    if options.plot:
        accuracy_vs_passes.check_plot(options.plot)
    pipeline = load_pipeline(options.model or "tiny", options.device)
    report = accuracy_vs_passes.compare(
        pipeline, settings, options.limit, options.batch_size, options.out
    )
    if options.plot:
        accuracy_vs_passes.plot(report, options.plot)


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
    typer.echo(to_json({**describe(stored), "machine": describe_machine()}, indent=1))
