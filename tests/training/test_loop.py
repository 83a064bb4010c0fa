"""A run that was stopped and went on equals an unbroken one, bit for bit; rates and batches are as
asked."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmdiff.errors import MMDiffError
from mmdiff.training import checkpoints as writing
from mmdiff.training.checkpoints import checkpoints, load_checkpoint
from mmdiff.training.loop import Batch, Loss, TrainConfig, learning_rate, parameter_groups, train

CONFIG = TrainConfig(
    steps=12,
    learning_rate=1e-2,
    rates={},
    warmup_steps=3,
    save_every=5,
    log_every=1,
    workers=0,
    seed=4,
)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleDict({"first": nn.Linear(4, 6), "second": nn.Linear(6, 6)})
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body["second"](self.body["first"](x).tanh()).tanh())
        return y


class Points(Dataset[Batch]):
    """Batch n holds the points `n * size` to `(n + 1) * size - 1`, so that two small batches make a
    large one."""

    def __init__(self, size: int = 8) -> None:
        self.size = size

    def __getitem__(self, number: int) -> Batch:
        points = range(number * self.size, (number + 1) * self.size)
        x = torch.stack(
            [torch.randn(4, generator=torch.Generator().manual_seed(point)) for point in points]
        )
        return {"x": x, "y": x.sin().sum(1, keepdim=True), "number": number}


def noisy_loss(
    model: nn.Module, batch: Batch, draws: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """A mean over the points, with noise from the loop's draws."""
    noise = torch.randn(batch["x"].shape, generator=draws)
    return (model(batch["x"] + 0.3 * noise) - batch["y"]).square().mean(), {
        "noise": noise.mean().item()
    }


def plain_loss(
    model: nn.Module, batch: Batch, draws: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    return (model(batch["x"]) - batch["y"]).square().mean(), {}


def stopping(loss: Loss, after: int, error: BaseException) -> Loss:
    """The loss of the first `after` batches, and then an error."""
    calls = 0

    def stop(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return loss(model, batch, draws)

    return stop


def logged(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    """Model, optimizer and settings of the last checkpoint, as the bytes that were written."""
    return {path.name: path.read_bytes() for path in checkpoints(folder)[-1].iterdir()}


@pytest.fixture
def unbroken(tmp_path: Path) -> Path:
    train(Toy(), noisy_loss, Points(), CONFIG, tmp_path / "unbroken", "toy")
    return tmp_path / "unbroken"


def test_every_step_is_logged(unbroken: Path) -> None:
    lines = logged(unbroken)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(
        line.keys() == {"step", "loss", "grad_norm", "noise", "learning_rate"} for line in lines
    )
    assert [line["learning_rate"] for line in lines] == [
        learning_rate(CONFIG, step) for step in range(12)
    ]
    assert len({line["noise"] for line in lines}) == 12
    assert [path.name for path in checkpoints(unbroken)] == ["step-00000010", "step-00000012"]


def test_it_learns(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=60, learning_rate=3e-2, log_every=20)
    train(Toy(), plain_loss, Points(), config, tmp_path, "toy")
    model = Toy()
    before = plain_loss(model, Points(200)[9], torch.Generator())[0].item()
    load_checkpoint(checkpoints(tmp_path)[-1], model)
    assert plain_loss(model, Points(200)[9], torch.Generator())[0].item() < 0.5 * before
    assert [line["step"] for line in logged(tmp_path)] == [20, 40, 60]


@pytest.mark.parametrize(
    "after", [3, 5, 8, 11]
)  # batches: before the first checkpoint, right at it, behind it
@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_resumed_run_equals_an_unbroken_one(
    tmp_path: Path, unbroken: Path, after: int, error: BaseException
) -> None:
    """Weights, optimizer and log, bit for bit; lines that were logged behind the checkpoint used to
    come twice."""
    folder, model = tmp_path / "broken", Toy()
    with pytest.raises(type(error)):
        train(Toy(), stopping(noisy_loss, after, error), Points(), CONFIG, folder, "toy")
    assert len(logged(folder)) == after
    assert [load_checkpoint(path, Toy()) for path in checkpoints(folder)] == [5, 10][: after // 5]
    torch.manual_seed(after)  # the global generator must not matter
    metrics = train(model, noisy_loss, Points(), CONFIG, folder, "toy")
    assert weights(folder) == weights(unbroken)
    assert logged(folder) == logged(unbroken)
    assert metrics == {
        name: value for name, value in logged(unbroken)[-1].items() if name in metrics
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch_state(unbroken)[name])


def torch_state(folder: Path) -> dict[str, Tensor]:
    model = Toy()
    load_checkpoint(checkpoints(folder)[-1], model)
    return model.state_dict()


def test_a_run_interrupted_again_and_again(tmp_path: Path, unbroken: Path) -> None:
    """Each call gets 6 batches further than the last checkpoint; the save after step 10 is
    interrupted as well."""
    folder, save_file = tmp_path / "broken", writing.save_file

    def interrupt(tensors: dict[str, Tensor], path: Path) -> None:
        if "00000010" in str(path) and path.name == "optimizer.safetensors":
            raise KeyboardInterrupt
        save_file(tensors, path)

    for after, steps in ((6, [5]), (4, [5])):
        with pytest.raises(KeyboardInterrupt):
            train(
                Toy(),
                stopping(noisy_loss, after, KeyboardInterrupt()),
                Points(),
                CONFIG,
                folder,
                "toy",
            )
        assert [load_checkpoint(path, Toy()) for path in checkpoints(folder)] == steps
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "save_file", interrupt)
        train(Toy(), noisy_loss, Points(), CONFIG, folder, "toy")
    assert [load_checkpoint(path, Toy()) for path in checkpoints(folder)] == [5]
    train(Toy(), noisy_loss, Points(), CONFIG, folder, "toy")
    assert weights(folder) == weights(unbroken) and logged(folder) == logged(unbroken)
    assert not list(folder.glob(".*"))


def test_a_torn_line_does_not_stop_a_resumed_run(tmp_path: Path, unbroken: Path) -> None:
    """A machine that went down in the middle of a line: it is dropped, like everything of the steps
    that come again."""
    folder = tmp_path / "broken"
    with pytest.raises(RuntimeError):
        train(Toy(), stopping(noisy_loss, 6, RuntimeError()), Points(), CONFIG, folder, "toy")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "seconds": 0.1, "lo')
    train(Toy(), noisy_loss, Points(), CONFIG, folder, "toy")
    assert logged(folder) == logged(unbroken)


def test_a_finished_run_is_left_as_it_is(unbroken: Path) -> None:
    before, lines, model = weights(unbroken), (unbroken / "metrics.jsonl").read_text(), Toy()
    assert (
        train(model, stopping(noisy_loss, 0, AssertionError()), Points(), CONFIG, unbroken, "toy")
        == {}
    )
    assert weights(unbroken) == before and (unbroken / "metrics.jsonl").read_text() == lines
    assert all(
        torch.equal(tensor, torch_state(unbroken)[name])
        for name, tensor in model.state_dict().items()
    )


def test_tensorboard_forgets_the_steps_that_come_again(tmp_path: Path) -> None:
    """Without a purge its curves run back and forth after every resumption."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    with pytest.raises(RuntimeError):
        train(Toy(), stopping(noisy_loss, 8, RuntimeError()), Points(), CONFIG, tmp_path, "toy")
    old = set(tmp_path.glob("events.*"))
    train(Toy(), noisy_loss, Points(), CONFIG, tmp_path, "toy")
    (new,) = set(tmp_path.glob("events.*")) - old
    events = [Event.FromString(raw) for raw in RawEventFileLoader(str(new)).Load()]
    starts = [event.step for event in events if event.session_log.status == SessionLog.START]
    assert starts == [6]
    assert {event.step for event in events if event.HasField("summary")} == set(range(6, 13))


def test_workers_change_nothing(tmp_path: Path, unbroken: Path) -> None:
    """Batches are asked for by number, so neither their order nor a process of their own can
    matter."""
    train(Toy(), noisy_loss, Points(), replace(CONFIG, workers=1), tmp_path / "worker", "toy")
    assert logged(tmp_path / "worker") == logged(unbroken)
    assert weights(tmp_path / "worker") == weights(unbroken)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_order_and_go_on_in_order(
    tmp_path: Path, accumulate: int, workers: int
) -> None:
    """A resumed run starts at batch `step * accumulate`: counting steps instead would train on some
    batches twice."""
    seen: list[int] = []

    def note(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        seen.append(batch["number"])
        return plain_loss(model, batch, draws)

    config = replace(CONFIG, accumulate=accumulate, workers=workers, steps=5)
    train(Toy(), note, Points(), config, tmp_path, "toy")
    assert seen == list(range(5 * accumulate))
    train(Toy(), note, Points(), replace(config, steps=7), tmp_path, "toy")
    assert seen == list(range(7 * accumulate))


def test_two_half_batches_are_one_whole(tmp_path: Path) -> None:
    """For a mean loss; a sum instead of a mean over the parts would double the gradient that is
    clipped."""
    whole, halves = Toy(), Toy()
    config = replace(CONFIG, steps=4)
    train(whole, plain_loss, Points(8), config, tmp_path / "whole", "toy")
    train(halves, plain_loss, Points(4), replace(config, accumulate=2), tmp_path / "halves", "toy")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(halves.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)
    norms = [[line["grad_norm"] for line in logged(tmp_path / run)] for run in ("whole", "halves")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_another_seed_draws_otherwise(tmp_path: Path, unbroken: Path) -> None:
    train(Toy(), noisy_loss, Points(), replace(CONFIG, seed=5), tmp_path / "other", "toy")
    assert not {line["noise"] for line in logged(tmp_path / "other")} & {
        line["noise"] for line in logged(unbroken)
    }


@pytest.mark.parametrize("order", [list, lambda items: list(reversed(items))])
def test_frozen_parts_stay_and_the_longest_prefix_counts(
    tmp_path: Path, order: Callable[[Any], Any]
) -> None:
    """Whichever prefix stands first; decay alone would move a frozen weight, so it must not reach
    the optimizer."""
    rates = dict(order({"body": 0.0, "body.second": 0.5, "body.second.bias": 0.0}.items()))
    model, start = Toy(), Toy().state_dict()
    train(
        model, noisy_loss, Points(), replace(CONFIG, rates=rates, weight_decay=0.5), tmp_path, "toy"
    )
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])
    }
    assert changed == {"body.second.weight", "head.weight", "head.bias"}
    stored = json.loads((checkpoints(tmp_path)[-1] / "state.json").read_text())["param_groups"]
    final = learning_rate(CONFIG, CONFIG.steps - 1)
    assert [
        (group["factor"], group["weight_decay"], group["lr"], len(group["params"]))
        for group in stored
    ] == [(0.5, 0.5, 0.5 * final, 1), (1.0, 0.0, final, 1), (1.0, 0.5, final, 1)]


def test_a_later_stage_learns_what_an_earlier_one_froze(tmp_path: Path) -> None:
    """Freezing is for one run; the model is then as it came."""
    model, start = Toy(), Toy().state_dict()
    train(
        model,
        noisy_loss,
        Points(),
        replace(CONFIG, rates={"": 0.0, "head": 1.0}),
        tmp_path / "first",
        "toy",
    )
    assert all(p.requires_grad for p in model.parameters())
    assert all(
        torch.equal(p, start[name])
        for name, p in model.named_parameters()
        if not name.startswith("head")
    )
    train(model, noisy_loss, Points(), CONFIG, tmp_path / "second", "toy")
    assert not any(torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())


class Normed(nn.Module):
    """With a part that has statistics and dropout, as published towers may."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tower = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.tower(x))
        return y


@pytest.mark.parametrize("frozen", ["before", "by its rate", "half of it before"])
def test_a_frozen_part_is_left_bit_for_bit(tmp_path: Path, frozen: str) -> None:
    """Weights, statistics and modes; whoever froze it, and a rate above 0 thaws nothing."""
    model = Normed()
    model.head[0].eval()
    if frozen == "before":
        model.tower.requires_grad_(False)
    elif frozen == "half of it before":
        model.tower[0].requires_grad_(False)
    rates = {"tower": {"before": 0.5, "by its rate": 0.0, "half of it before": 1.0}[frozen]}
    asked, modes = (
        [p.requires_grad for p in model.parameters()],
        [module.training for module in model.modules()],
    )
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(
        model, noisy_loss, Points(), replace(CONFIG, rates=rates, weight_decay=0.5), tmp_path, "toy"
    )
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])
    }
    head = {f"head.{number}.{name}" for number in (0, 2) for name in ("weight", "bias")}
    norm = {
        f"tower.1.{name}"
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert changed == (head | norm if frozen == "half of it before" else head)
    assert [p.requires_grad for p in model.parameters()] == asked
    assert [module.training for module in model.modules()] == modes


def test_what_is_frozen_is_so_again_after_an_error(tmp_path: Path) -> None:
    model = Toy().eval()
    model.body.requires_grad_(False)
    with pytest.raises(RuntimeError):
        train(
            model,
            stopping(noisy_loss, 2, RuntimeError()),
            Points(),
            replace(CONFIG, rates={"head.bias": 0.0}),
            tmp_path,
            "toy",
        )
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    assert not any(module.training for module in model.modules())


def test_an_adapter_learns_alone(tmp_path: Path) -> None:
    """What peft froze stays, and rates name the parts of the model inside."""
    peft = pytest.importorskip("peft")
    base = Toy()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["first", "second"], r=2))
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(
        model,
        noisy_loss,
        Points(),
        replace(CONFIG, rates={"head": 0.5, "body.second": 0.0}),
        tmp_path,
        "toy",
    )
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])
    }
    assert changed == {name for name in learns if "first" in name} and len(changed) == 2
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learns


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": {"": 0.0}}, "nothing can learn"),
        ({"rates": {"haed": 0.0}}, "'haed'.*such as 'head'"),
        ({"rates": {"head": -1.0}}, "'head': -1.0"),
        ({"rates": {"head": float("nan")}}, "'head': nan"),
        ({"learning_rate": float("inf")}, "'learning_rate': inf"),
    ],
)
def test_rates_that_do_not_fit(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MMDiffError, match=message):
        train(Toy(), noisy_loss, Points(), replace(CONFIG, **settings), tmp_path, "toy")


def turning(loss: Loss, after: int, factor: float) -> Loss:
    """The loss of the first `after` batches, and then a multiple of it."""
    calls = 0

    def turned(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        nonlocal calls
        calls += 1
        value, metrics = loss(model, batch, draws)
        return value * (factor if calls > after else 1.0), metrics

    return turned


@pytest.mark.parametrize("after", [0, 4, 7, 11])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, after: int, factor: float) -> None:
    """Before the weights know of it: the last checkpoint is the last good one, and the run goes on
    from there."""
    model, folder = Toy(), tmp_path / "run"
    done = after // 5 * 5
    wanted = f"step-{done:08d} is the last good checkpoint" if done else "no checkpoint was written"
    with pytest.raises(MMDiffError, match=f"the loss of step {after + 1} .*{wanted}"):
        train(model, turning(noisy_loss, after, factor), Points(), CONFIG, folder, "toy")
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    whole = Toy()
    train(whole, noisy_loss, Points(), CONFIG, folder, "toy")
    assert [path.name for path in checkpoints(folder)][-1] == "step-00000012"


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """A last step that throws them out of range has a loss that looks well."""

    def throwing(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        value, _ = plain_loss(model, batch, draws)
        model.head.bias.data.fill_(torch.inf)
        return value, {}

    with pytest.raises(MMDiffError, match="weights are not numbers any more after step 1"):
        train(Toy(), throwing, Points(), replace(CONFIG, steps=1), tmp_path, "toy")
    assert not checkpoints(tmp_path)


def test_metrics_are_json(tmp_path: Path) -> None:
    """A share of nothing is no number, and JSON has none such."""

    def unsure(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        return plain_loss(model, batch, draws)[0], {"right": float("nan")}

    train(Toy(), unsure, Points(), replace(CONFIG, steps=1), tmp_path, "toy")
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name))["right"] is None


class Leaving(Points):
    """Every `every`-th batch had rows that could not be read."""

    def __init__(self, every: int, rows: int = 1) -> None:
        super().__init__()
        self.every, self.left_out = every, rows

    def __getitem__(self, number: int) -> Batch:
        batch = super().__getitem__(number)
        reasons = (
            [f"{number}-{row}.png is damaged" for row in range(self.left_out)]
            if number % self.every == 0
            else []
        )
        return {**batch, "input_ids": torch.zeros(8, 3)} | ({"skipped": reasons} if reasons else {})


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_that_were_left_out_are_told_and_counted(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    train(Toy(), noisy_loss, Leaving(5), replace(CONFIG, workers=workers), tmp_path, "toy")
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        f"{number}-0.png is damaged" for number in (0, 5, 10)
    ]
    assert [line["skipped"] for line in logged(tmp_path)] == [1] * 5 + [2] * 5 + [3] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_rows_left_out_end_the_run(tmp_path: Path, workers: int) -> None:
    with pytest.raises(MMDiffError, match="24 of 56 rows .*3-5.png is damaged$"):
        train(Toy(), noisy_loss, Leaving(1, 6), replace(CONFIG, workers=workers), tmp_path, "toy")


def test_an_error_of_a_worker_is_one_sentence(tmp_path: Path) -> None:
    class Failing(Points):
        def __getitem__(self, number: int) -> Batch:
            raise MMDiffError("no row can be read")

    with pytest.raises(MMDiffError, match="^no row can be read$"):
        train(Toy(), noisy_loss, Failing(), replace(CONFIG, workers=1), tmp_path, "toy")


class Eyes(nn.Module):
    """Two parts, of which a batch may have use for one alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seeing, self.hearing = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor, heard: bool) -> Tensor:
        return self.seeing(x) + (self.hearing(x) if heard else 0)


class Seen(Points):
    def __init__(self, hears: Callable[[int], bool]) -> None:
        super().__init__(4)
        self.hears = hears

    def __getitem__(self, number: int) -> Batch:
        return {**super().__getitem__(number), "heard": self.hears(number)}


def seen_loss(
    model: nn.Module, batch: Batch, draws: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    return (model(batch["x"], batch["heard"]) - batch["y"]).square().mean(), {}


def one_of_two(rank: int, port: int, folder: Path, hears: Callable[[int], bool]) -> None:
    """A process of two, forked from this one."""
    from accelerate.state import AcceleratorState, PartialState

    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "ACCELERATE_TORCH_DISTRIBUTED": "gloo",
        }
    )
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
    train(Eyes(), seen_loss, Seen(hears), replace(CONFIG, steps=6), folder, "toy")


@pytest.mark.parametrize("sounds", [(), (0, 3, 6, 9), (1,)], ids=str)
def test_two_processes_train_on_images_alone(tmp_path: Path, sounds: tuple[int, ...]) -> None:
    """And on batches of which one process has sounds; as one process does with two batches a
    step."""

    def hears(number: int) -> bool:
        return number in sounds

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=one_of_two, args=(rank, port, tmp_path / "two", hears))
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    one, two = Eyes(), Eyes()
    train(
        one, seen_loss, Seen(hears), replace(CONFIG, steps=6, accumulate=2), tmp_path / "one", "toy"
    )
    load_checkpoint(checkpoints(tmp_path / "two")[-1], two)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor, rtol=0, atol=1e-7)


def test_only_matrices_decay() -> None:
    """Biases and norms would be pulled towards zero, which is no neutral value for a norm's
    scale."""
    groups = parameter_groups(Toy(), CONFIG)
    assert {(p.dim() > 1, group["weight_decay"]) for group in groups for p in group["params"]} == {
        (True, CONFIG.weight_decay),
        (False, 0.0),
    }


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.6), (110, 0.2), (500, 0.2)],
)
def test_learning_rate_schedule(step: int, share: float) -> None:
    """Linear over 10 steps, then the cosine over 100: half way between start and end at half time,
    never under it."""
    config = TrainConfig(steps=110, learning_rate=2.0, rates={}, warmup_steps=10, final_rate=0.2)
    assert learning_rate(config, step) == pytest.approx(2.0 * share)


@pytest.mark.parametrize(("steps", "warmup"), [(5, 0), (3, 100), (1, 1), (1, 0)])
def test_learning_rate_of_short_runs(steps: int, warmup: int) -> None:
    """A trial run may end inside the warm-up, or have none: no division by zero, no rate above the
    highest."""
    config = TrainConfig(steps=steps, learning_rate=1.0, rates={}, warmup_steps=warmup)
    rates = [learning_rate(config, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates == sorted(rates, reverse=warmup < steps)
