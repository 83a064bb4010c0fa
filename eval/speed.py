"""How fast answers are made: passes, milliseconds, tokens, memory, and how far that is from what
the machine allows.

Useful tokens are those before the first end token; the prompt is never counted. Random weights are
as fast as trained ones per pass; how many tokens a pass commits is only told by a trained model.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import itertools
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mmdiff.config import PRESETS, BackboneConfig, DecodingConfig, ModelConfig, TokenIds
from mmdiff.decoding.canvas import Array, Canvas
from mmdiff.decoding.commit_rules import rule_name
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.sampler import Sampler, denoise
from mmdiff.errors import MMDiffError
from mmdiff.eval.baselines import joining_caches, llada_loop
from mmdiff.eval.evidence import device_name
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.onednn_linear import use_onednn
from mmdiff.vision.anyres import count_tokens

SMALL = ModelConfig(
    backbone=BackboneConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
    ),
    tokens=TokenIds(mask=8191, eos=8190, eot=8189, bos=8188, pad=8190),
)
SIZES: dict[str, ModelConfig] = {"small": SMALL, **PRESETS}


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked of the model."""

    prompt_length: int  # positions, those of images and audio among them
    batch: int
    decoding: DecodingConfig


def picture_length(size: str, config: ModelConfig) -> int:
    """How many positions an image takes whose size is given as "640x480".

    Raises:
        MMDiffError: it is not a size, or the model takes no images.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", size)
    if found is None:
        raise MMDiffError(
            f"picture={size!r} is not a size; give width and height in pixels, such as 640x480"
        )
    if config.vision is None:
        raise MMDiffError(
            f"an image of {size} needs a model that takes images; try the preset llada-v-8b"
        )
    return count_tokens((int(found[1]), int(found[2])), config.vision)


def random_model(
    sizes: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> MMDiffModel:
    """A language model of these sizes with random weights, made where it will run; towers are left
    out.

    Raises:
        MMDiffError: there is not enough memory for it.
    """
    config = dataclasses.replace(sizes, vision=None, audio=None)
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = torch.nn.Module.to(MMDiffModel(MMDiffConfig.of(config)), dtype)
    needed, free = sum(weight.nbytes for weight in model.parameters()), free_bytes(device)
    if needed > free:
        raise MMDiffError(
            f"the model takes {needed / 2**30:.1f} GiB in {str(dtype)[6:]}, and {device.type} has "
            f"{free / 2**30:.1f} GiB free; use a smaller preset, bfloat16, or another device"
        )
    model.to_empty(device=device)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            torch.nn.init.ones_(parameter)
    if device.type == "cpu":
        use_onednn(model)
    return model.eval()


def bench(
    model: MMDiffModel,
    loads: Sequence[Load],
    repeats: int,
    baselines: bool,
    diverging: bool = False,
    bfloat16: bool = False,
) -> dict[str, Any]:
    """Every load measured, and beside them the obvious versions; also printed as a table.

    Args:
        diverging: also tell how far each cache is from computing everything.
        bfloat16: also tell how much faster each load is in bfloat16 than in float32.
    """
    if baselines:
        for load in loads:
            _check_plain(load.decoding)
    machine = measure_machine(model.device, model.dtype)
    rows = []
    for load in track(loads, "bench"):
        rows.append({**_row(load), **measure(model, load, repeats, machine)})
        if diverging and load.decoding.cache != "none":
            rows[-1] |= divergence(model, load)
    if bfloat16:
        ratios = compare_dtypes(model, loads, repeats)
        rows += [_row(load) | ratio for load, ratio in zip(loads, ratios, strict=True)]
    if baselines:
        alike: dict[str, list[Load]] = {}
        for load in loads:
            alike.setdefault(str(_row(load)), []).append(load)
        for group in alike.values():
            rows += [_row(group[0]) | row for row in measure_baselines(model, group, repeats)]
    report = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        **machine,
        "rows": rows,
    }
    Console(width=max(Console().width, 140)).print(_table(report))
    return report


def measure(
    model: MMDiffModel, load: Load, repeats: int, machine: dict[str, float]
) -> dict[str, Any]:
    """The medians of several answers to random prompts, after a short one that is not counted."""
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _answer(model, _short(load), 0)
    runs: dict[str, list[float]] = {}
    for seed in range(repeats):
        for name, values in _answer(model, load, seed).items():
            runs.setdefault(name, []).extend(values)
    middle = {name: statistics.median(values) for name, values in runs.items()}
    passes, seconds, useful = middle["passes"], middle["seconds"], middle["useful"]
    floor_ms = 1000 * floor_seconds(model, load, machine)
    return {
        "how": f"cache {load.decoding.cache}",
        "passes": passes,
        "seconds": round(seconds, 4),
        "ms_per_pass": round(1000 * seconds / passes, 3),
        "ms_of_a_step": round(middle["steps_ms"], 3),
        "floor_ms": round(floor_ms, 3),
        "tokens_per_pass": round(useful / passes / load.batch, 3),
        "tokens_per_second": round(useful / seconds, 1),
        "first_commit_ms": round(middle["first_ms"], 2),
        "peak_mebibytes": round(peak_mebibytes(model.device)),
    }


def compare_dtypes(
    model: MMDiffModel, loads: Sequence[Load], rounds: int
) -> Iterator[dict[str, Any]]:
    """How many times as fast a pass is in bfloat16 as in float32: median, least and most of
    `rounds`.

    The two take turns within a round, so that what else the machine does slows down both.
    """
    types = [torch.float32, torch.bfloat16]
    models = {dtype: torch.nn.Module.to(copy.deepcopy(model), dtype) for dtype in types}
    for load in track(loads, "bfloat16"):
        for each in models.values():
            _answer(each, _short(load), 0)
        ratios = []
        for number in range(rounds):
            types.reverse()  # neither always goes first
            per_pass = {}
            for dtype in types:
                run = _answer(models[dtype], load, number)
                per_pass[dtype] = run["seconds"][0] / run["passes"][0]
            ratios.append(per_pass[torch.float32] / per_pass[torch.bfloat16])
        yield _ratios(f"bfloat16, cache {load.decoding.cache}", "float32", ratios)


def divergence(model: MMDiffModel, load: Load) -> dict[str, float]:
    """How far a cache is from computing everything: in logits on its own way, and in the ids at its
    end.

    `logits_off` is the mean absolute difference over the standard deviation of the exact logits;
    `ids_equal` the share of ids that are those without a cache.
    """
    tokens, plain = model.model_config.tokens, dataclasses.replace(load.decoding, cache="none")
    prompt, canvas = random_prompt(model, load, 0), _blank(model, load)
    with torch.inference_mode():
        exact = ModelRunner(model, prompt)
        kept = make_runner(ModelRunner(model, prompt), load.decoding)
    off: list[float] = []

    def both(
        ids_AG: Array, rows: Sequence[int], select_AG: Array, hidden_AG: Array | None = None
    ) -> Tensor:
        wanted = exact(ids_AG, [exact.prompts[row] for row in rows], select_AG)
        got = kept(ids_AG, [kept.prompts[row] for row in rows], select_AG)
        off.append(float((wanted - got).abs().mean() / wanted.std()))
        return got

    *_, one = denoise(both, canvas, load.decoding, tokens)
    *_, other = denoise(exact, canvas, plain, tokens)
    same = float((one.ids_BG == other.ids_BG).float().mean())
    return {"logits_off": round(statistics.mean(off), 4), "ids_equal": round(same, 4)}


COUNTERPARTS = {"none": "llada_loop", "block": "joining block", "dual": "joining dual"}


def measure_baselines(
    model: MMDiffModel, loads: Sequence[Load], rounds: int
) -> Iterator[dict[str, Any]]:
    """The obvious loops, for fixed quotas and without an early end, and how many times as fast ours
    are: median, least and most of `rounds`.

    Args:
        loads: alike but for their caches.

    All take turns within a round, after one that is not counted, so that what else the machine does
    slows down all of them. The number of passes is the same.
    """
    load = loads[0]
    decoding, mask = load.decoding, model.model_config.tokens.mask
    lengths = (decoding.gen_length, decoding.block_length, decoding.steps, mask)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "llada_loop": lambda ids: llada_loop(model.backbone, ids, *lengths),
        "joining block": lambda ids: joining_caches(model.backbone, ids, *lengths, dual=False),
        "joining dual": lambda ids: joining_caches(model.backbone, ids, *lengths, dual=True),
    }
    ours = {each.decoding.cache or "none": each for each in loads}
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, *ours)}
    for seed in track(range(-1, rounds), "the obvious versions"):
        prompt = random_prompt(model, load, max(seed, 0))
        for name, way in ways.items():
            started = time.perf_counter()
            way(prompt)
            _wait(model.device)
            seconds[name].append(time.perf_counter() - started)
        for cache, each in ours.items():
            seconds[cache] += _answer(model, each, max(seed, 0))["seconds"]
    for name in ways:
        middle = statistics.median(seconds[name][1:])
        yield {
            "how": name,
            "passes": decoding.steps,
            "seconds": round(middle, 4),
            "ms_per_pass": round(1000 * middle / decoding.steps, 3),
        }
    for name in filter(ours.__contains__, COUNTERPARTS):
        pairs = zip(seconds[COUNTERPARTS[name]], seconds[name], strict=True)
        yield _ratios(f"cache {name}", COUNTERPARTS[name], [a / b for a, b in list(pairs)[1:]])


def _ratios(how: str, other: str, ratios: Sequence[float]) -> dict[str, Any]:
    """Median, least and most; of seven, the latter are a 98 % interval of the median."""
    return {
        "how": f"{how} against {other}",
        "times_as_fast": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def random_prompt(model: MMDiffModel, load: Load, seed: int) -> Tensor:
    """Ids (batch, prompt length) that are no special tokens."""
    tokens, draws = model.model_config.tokens, torch.Generator().manual_seed(seed)
    special = {
        tokens.mask,
        tokens.eos,
        tokens.eot,
        tokens.bos,
        tokens.pad,
        tokens.image,
        tokens.audio,
        *tokens.never,
    }
    ids = torch.randint(
        model.model_config.backbone.vocab_size, (load.batch, load.prompt_length), generator=draws
    )
    other = next(number for number in itertools.count() if number not in special)
    special_ids = torch.tensor([number for number in special if number is not None])
    return ids.masked_fill(torch.isin(ids, special_ids), other).to(model.device)


def compile_layers(model: MMDiffModel) -> None:
    """Let PyTorch compile each layer of the backbone, with CUDA graphs on a GPU.

    Raises:
        MMDiffError: on the CPU, there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if model.device.type == "cpu" and sys.platform != "win32" and shutil.which(compiler) is None:
        raise MMDiffError(
            f"compiling needs the C++ compiler {compiler}, which is not installed; install it "
            "or name another one in CXX"
        )
    mode = "reduce-overhead" if model.device.type == "cuda" else "default"
    for layer in model.backbone.layers:
        layer.compile(mode=mode)


def measure_machine(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes per second of a large copy (read and written), and operations per second of a large
    layer."""
    copied_bytes, size = 1 << 27, 2048
    if device.type == "cuda":
        copied_bytes, size = 1 << 30, 8192
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    layer = torch.nn.Linear(size, size, bias=False, device=device, dtype=dtype)
    if device.type == "cpu":
        use_onednn(layer)
    copied = _fastest(lambda: target.copy_(source), device)
    with torch.inference_mode():
        multiplied = _fastest(lambda: layer(layer.weight), device)
    return {
        "bytes_per_second": 2 * source.numel() / copied,
        "operations_per_second": 2 * size**3 / multiplied,
    }


def floor_seconds(model: MMDiffModel, load: Load, machine: dict[str, float]) -> float:
    """The least a step can take that computes one block against what is kept: its bytes or its
    operations.

    Bytes: weights of layers and head once, keys and values of prompt and canvas once. Operations:
    two for each weight and position, and attention's two products; the last layer and the head
    compute the block alone, but for keys and values.
    """
    config, decoding = model.backbone.config, load.decoding
    layers, head = config.num_hidden_layers, config.vocab_size * config.hidden_size
    both = (
        2 * config.num_key_value_heads * config.head_dim
    )  # numbers of a position's key and value in a layer
    layer = sum(weight.numel() for weight in model.backbone.layers[0].parameters())
    item, total, block = (
        model.dtype.itemsize,
        load.prompt_length + decoding.gen_length,
        decoding.block_length,
    )
    width = {"none": total, "dual": block}.get(decoding.cache or "none", decoding.gen_length)
    keyed = config.hidden_size * both  # weights of the last layer that every column passes
    products = 4 * config.hidden_size * total * (width * (layers - 1) + block)
    operations = load.batch * (
        2 * (layer * (layers - 1) + keyed) * width + 2 * (layer - keyed + head) * block + products
    )
    moved = item * (layer * layers + head + layers * both * total * load.batch)
    return max(moved / machine["bytes_per_second"], operations / machine["operations_per_second"])


def free_bytes(device: torch.device) -> int:
    """Of the GPU, or of the machine where there is none."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def peak_mebibytes(device: torch.device) -> float:
    """Of the GPU for this load; where there is none, of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _check_plain(decoding: DecodingConfig) -> None:
    blocks, rest = divmod(decoding.gen_length, decoding.block_length)
    if rest or decoding.steps % max(blocks, 1) or rule_name(decoding) != "quota":
        raise MMDiffError(
            "the obvious versions take the rule quota and whole blocks with as many steps each, "
            f"not {decoding.steps} steps, gen_length={decoding.gen_length} and "
            f"block_length={decoding.block_length} with {rule_name(decoding)}; "
            "leave out --baselines"
        )


def _blank(model: MMDiffModel, load: Load) -> Canvas:
    return Canvas.blank(
        load.batch, load.decoding.gen_length, model.model_config.tokens.mask, model.device
    )


def _short(load: Load) -> Load:
    """One step a block: enough to have every kernel at hand."""
    decoding = load.decoding
    blocks = -(-decoding.gen_length // decoding.block_length)
    return dataclasses.replace(load, decoding=dataclasses.replace(decoding, steps=blocks))


def _answer(model: MMDiffModel, load: Load, seed: int) -> dict[str, list[float]]:
    """What was measured of one answer: a number of each but "steps_ms", which has all steps but the
    first."""
    tokens, decoding = model.model_config.tokens, load.decoding
    prompt = random_prompt(model, load, seed)
    canvas = _blank(model, load)
    _wait(model.device)
    started = time.perf_counter()
    with torch.inference_mode():
        predict = make_runner(ModelRunner(model, prompt), decoding)
    batch, times = Sampler(predict, canvas, decoding, tokens), []
    while batch.working:
        batch.step()
        _wait(model.device)
        times.append(time.perf_counter())
    ends = (tokens.eos, tokens.eot) if decoding.stop else ()
    return {
        "seconds": [times[-1] - started],
        "first_ms": [1000 * (times[0] - started)],
        "passes": [max(each.passes for each in predict.prompts)],
        "steps_ms": [1000 * (after - before) for before, after in itertools.pairwise(times)]
        or [0.0],
        "useful": [sum(map(len, batch.canvas.token_ids(ends)))],
    }


def _fastest(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _row(load: Load) -> dict[str, Any]:
    return {"prompt": load.prompt_length, "batch": load.batch}


def _table(report: dict[str, Any]) -> Table:
    title = (
        f"{report['device']}, {report['dtype']}, {report['threads']} threads, {report['date']}; "
        f"copies {report['bytes_per_second'] / 1e9:.0f} GB/s, multiplies "
        f"{report['operations_per_second'] / 1e12:.2f} TFLOP/s"
    )
    table = Table(title=title)
    names = list(dict.fromkeys(name for row in report["rows"] for name in row))
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name == "how" else "right")
    for row in report["rows"]:
        table.add_row(*[str(row.get(name, "")) for name in names])
    return table
