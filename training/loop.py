"""The one training loop, for every stage: batches in, a loss function, AdamW with warm-up and
cosine.

Batches and random draws are functions of the seed and the step alone, so a resumed run repeats the
losses of an unbroken one bit for bit on CPU. Stop it at any time; the next call goes on from the
last checkpoint. What is frozen when it comes stays frozen, and a loss that is not a number ends the
run before anything is saved.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmdiff.errors import MMDiffError
from mmdiff.training.batches import SKIPPED
from mmdiff.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint

FEW_SKIPPED = 20  # rows that may be left out in any case; beyond, no more than
SKIPPED_SHARE = 0.1  # of all rows
LOGGER = logging.getLogger("mmdiff.training")
Batch = Mapping[str, Any]  # tensors by name; `TrainingBatch` is that of the data sets here
AnyBatch = TypeVar("AnyBatch", bound=Batch)
Loss = Callable[[nn.Module, AnyBatch, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one stage. A step is one update of the weights."""

    steps: int
    learning_rate: float
    rates: dict[
        str, float
    ]  # name prefix -> factor on the learning rate; 0 freezes for this run; the longest counts
    warmup_steps: int = 100
    final_rate: float = 0.02  # of learning_rate, at the end of the cosine
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    accumulate: int = 1  # batches per step
    mixed_precision: str = (
        "no"  # "bf16" pays only where the machine multiplies it faster than float32
    )
    seed: int = 0
    save_every: int = 500  # steps
    log_every: int = 20  # steps
    workers: int = 1  # processes that prepare batches

    def __post_init__(self) -> None:
        for name, value in {"learning_rate": self.learning_rate, **self.rates}.items():
            if not (math.isfinite(value) and value >= 0):
                raise MMDiffError(
                    f"the rate {name!r}: {value} does not fit; it must be a number, 0 or more"
                )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then cosine down to `final_rate`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = config.final_rate + (1 - config.final_rate) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, progress))
    )
    return config.learning_rate * share


def train(
    model: nn.Module,
    loss: Loss[AnyBatch],
    data: Dataset[AnyBatch],
    config: TrainConfig,
    folder: Path,
    title: str,
) -> dict[str, float]:
    """Train `model` in place up to `config.steps`, resuming from the last checkpoint in `folder`.

    Args:
        data: indexed by the number of the batch, from 0; each item is a whole batch of tensors.
            Rows that had to be left out of one are told under `SKIPPED`.
        folder: gets `step-*` checkpoints, `metrics.jsonl` and TensorBoard events.

    Returns:
        the last logged metrics; none where nothing was left to do.

    Raises:
        MMDiffError: nothing can learn, a rate names no parameter, too many rows cannot be read, or
            the loss is not a number; the last checkpoint is then the last good one.
    """
    # Parts that a batch has no use for, such as the audio tower beside images alone, get no
    # gradients.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[unused],
    )
    folder.mkdir(parents=True, exist_ok=True)
    with _learning(model, config) as groups:
        return _train(model, loss, data, config, folder, title, accelerator, groups)


def _train(
    model: nn.Module,
    loss: Loss[AnyBatch],
    data: Dataset[AnyBatch],
    config: TrainConfig,
    folder: Path,
    title: str,
    accelerator: Accelerator,
    groups: list[dict[str, Any]],
) -> dict[str, float]:
    optimizer = torch.optim.AdamW(groups, betas=config.betas)
    done = checkpoints(folder)
    start = 0
    if done:
        start = load_checkpoint(done[-1], model, optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    batches, metrics = _Batches(_loader(data, config, start, accelerator)), dict[str, float]()
    with (
        _Log(folder, start, accelerator.is_main_process) as log,
        _progress(accelerator.is_main_process) as bar,
    ):
        task = bar.add_task(title, total=config.steps, completed=start, note="")
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step) * group["factor"]
            total = torch.zeros((), device=accelerator.device)
            for part in range(config.accumulate):
                draws = torch.Generator().manual_seed(_draw_seed(config, step, part, accelerator))
                with accelerator.autocast():
                    value, metrics = loss(model, _to(next(batches), accelerator.device), draws)
                accelerator.backward(value / config.accumulate)
                total += value.detach()
            norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
            _check_loss(total, norm, accelerator, folder, step)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % config.log_every == 0 or step + 1 == config.steps:
                metrics = {
                    "loss": value.item(),
                    "grad_norm": float(norm or 0.0),
                    **metrics,
                    **batches.counts,
                }
                log.write(step + 1, {**metrics, "learning_rate": learning_rate(config, step)})
                bar.update(task, note=_note(metrics))
            bar.advance(task)
            saving = (step + 1) % config.save_every == 0 or step + 1 == config.steps
            if saving and accelerator.is_main_process:
                _check_weights(groups, folder, step)
                save_checkpoint(folder, step + 1, accelerator.unwrap_model(model), optimizer)
    return metrics


@contextmanager
def _learning(model: nn.Module, config: TrainConfig) -> Iterator[list[dict[str, Any]]]:
    """The parameters that learn; afterwards all parts are again as they came: frozen or not,
    evaluating or not."""
    learns = []
    for parameter in model.parameters():
        learns.append((parameter, parameter.requires_grad))
    modes = []
    for module in model.modules():
        modes.append((module, module.training))
    try:
        groups = parameter_groups(model, config)
        if not groups:
            raise MMDiffError("nothing can learn: every parameter is frozen, or has the rate 0")
        model.train()
        for (
            module
        ) in model.modules():  # what stands still has no dropout either, and keeps its statistics
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        yield groups
    finally:
        for parameter, before in learns:
            parameter.requires_grad_(before)
        for module, training in modes:
            module.training = training


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameters by learning-rate factor and weight decay (matrices decay, vectors do not).

    Factor 0 freezes, and what is frozen already, as beside a LoRA adapter, stays so whatever its
    factor. Prefixes are those of the model inside where peft has wrapped it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    unknown = set(config.rates)
    for name, parameter in model.named_parameters():
        matches = []
        for prefix in config.rates:
            if name.removeprefix("base_model.model.").startswith(prefix):
                matches.append(prefix)
        unknown -= set(matches)
        factor = 1.0
        if matches:
            factor = config.rates[max(matches, key=len)]
        if factor == 0:
            parameter.requires_grad_(False)
        decay = 0.0
        if parameter.dim() > 1:
            decay = config.weight_decay
        if parameter.requires_grad:
            groups.setdefault((factor, decay), []).append(parameter)
    if unknown:
        raise MMDiffError(
            f"rates name {sorted(unknown)[0]!r}, with which no parameter's name begins; "
            f"leave it out, or name a part of the model, such as {name.split('.')[0]!r}"
        )
    made = []
    for factor, decay in sorted(groups):
        made.append(
            {
                "params": groups[factor, decay],
                "lr": config.learning_rate * factor,
                "factor": factor,
                "weight_decay": decay,
            }
        )
    return made


def _check_loss(
    total: Tensor, norm: Tensor | None, accelerator: Accelerator, folder: Path, step: int
) -> None:
    """Stop in all processes before the weights are changed by what is not a number."""
    fault = not bool(total.isfinite())
    if (
        norm is not None and accelerator.scaler is None
    ):  # the scaler of float16 leaves out such steps by itself
        fault |= not math.isfinite(float(norm))
    if accelerator.num_processes > 1:
        fault = bool(accelerator.reduce(torch.tensor(float(fault), device=accelerator.device)) > 0)
    if fault:
        raise _diverged(f"the loss of step {step + 1} or its gradient is not a number", folder)


def _check_weights(groups: list[dict[str, Any]], folder: Path, step: int) -> None:
    for group in groups:
        for parameter in group["params"]:
            if not parameter.isfinite().all():
                raise _diverged(f"weights are not numbers any more after step {step + 1}", folder)


def _diverged(what: str, folder: Path) -> MMDiffError:
    done = checkpoints(folder)
    kept = "no checkpoint was written"
    if done:
        kept = f"{done[-1]} is the last good checkpoint"
    return MMDiffError(
        f"{what}, so the run stops, and {kept}: lower learning_rate, or look at the data"
    )


class _Batches(Generic[AnyBatch]):
    """The batches of a loader, and how many of their rows had to be left out."""

    def __init__(self, loader: DataLoader[AnyBatch]) -> None:
        self.loader = iter(loader)
        self.rows = self.skipped = 0

    @property
    def counts(self) -> dict[str, float]:
        """For the log, where there is something to count."""
        if self.skipped:
            return {SKIPPED: self.skipped}
        return {}

    def __next__(self) -> AnyBatch:
        batch = next(self.loader)
        if isinstance(batch, MMDiffError):
            raise batch
        reasons = batch.get(SKIPPED, ())
        for reason in reasons:
            LOGGER.warning("left out of the training data: %s", reason)
        self.skipped += len(reasons)
        self.rows += len(reasons) + len(batch.get("input_ids", ()))
        if self.skipped > max(FEW_SKIPPED, SKIPPED_SHARE * self.rows):
            raise MMDiffError(
                f"{self.skipped} of {self.rows} rows of the training data cannot be read, "
                f"which is too many; the last: {reasons[-1]}"
            )
        return batch


def _loader(
    data: Dataset[AnyBatch], config: TrainConfig, start: int, accelerator: Accelerator
) -> DataLoader[AnyBatch]:
    share, rank = accelerator.num_processes, accelerator.process_index
    numbers = []
    for n in range(start * config.accumulate, config.steps * config.accumulate):
        numbers.append(n * share + rank)
    return DataLoader(
        _Telling(data),
        batch_size=None,
        sampler=_Fixed(numbers),
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=_one_thread,
    )


class _Telling(Dataset[Any]):
    """Batches, or what is wrong with one: an error would lose its sentence on the way out of a
    worker."""

    def __init__(self, data: Dataset[Batch]) -> None:
        self.data = data

    def __getitem__(self, number: int) -> Batch | MMDiffError:
        try:
            return self.data[number]
        except MMDiffError as error:
            return MMDiffError(str(error))


class _Fixed(torch.utils.data.Sampler[int]):
    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Any:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def _note(metrics: Mapping[str, float]) -> str:
    shown = [f"{name} {value:.3f}" for name, value in metrics.items()]
    return "  ".join(shown)


def _draw_seed(config: TrainConfig, step: int, part: int, accelerator: Accelerator) -> int:
    batch = (
        step * config.accumulate + part
    ) * accelerator.num_processes + accelerator.process_index
    return config.seed * 10**12 + batch


def _to(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """The batch on the device, without what is only for the log."""
    moved = {}
    for name, value in batch.items():
        if name != SKIPPED:
            moved[name] = value.to(device) if isinstance(value, Tensor) else value
    return cast(AnyBatch, moved)


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        disable=not shown,
        refresh_per_second=1,
    )


class _Log:
    """Metrics as JSON lines, and as TensorBoard events where that package is installed.

    What an interrupted run logged after its last checkpoint is dropped: those steps, after `start`,
    come again.
    """

    def __init__(self, folder: Path, start: int, active: bool) -> None:
        self.started = time.monotonic()
        self.file: TextIO | None = None
        if active:
            self.file = _cut(folder / "metrics.jsonl", start).open("a")
        self.events = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        if active:
            self.events = SummaryWriter(str(folder), purge_step=start + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        if self.file is None:
            return
        numbers: dict[str, float | None] = {}
        for name, value in metrics.items():
            numbers[name] = value if math.isfinite(value) else None
        line = {"step": step, "seconds": round(time.monotonic() - self.started, 1), **numbers}
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.file.flush()
        for name, value in metrics.items():
            if self.events is not None:
                self.events.add_scalar(name, value, step)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.events is not None:
            self.events.close()


def _cut(path: Path, last: int) -> Path:
    """Drop the lines of steps after `last`, and torn ones, all at once."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        steps = []
        for line in lines:
            steps.append(re.fullmatch(r'\{"step": (\d+), .*\}\n', line))
        kept = []
        for line, step in zip(lines, steps, strict=True):
            if step and int(step[1]) <= last:
                kept.append(line)
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(kept))
        part.replace(path)
    return path
