"""A run that was stopped and went on equals an unbroken one, bit for bit; rates and batches are as asked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmdiff.training import checkpoints as writing
from mmdiff.training.checkpoints import checkpoints, load_checkpoint
from mmdiff.training.loop import Batch, Loss, TrainConfig, learning_rate, parameter_groups, train

CONFIG = TrainConfig(
    steps=12, learning_rate=1e-2, rates={}, warmup_steps=3, save_every=5, log_every=1, workers=0, seed=4
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
    """Batch n holds the points `n * size` to `(n + 1) * size - 1`, so that two small batches make a large one."""

    def __init__(self, size: int = 8) -> None:
        self.size = size

    def __getitem__(self, number: int) -> Batch:
        points = range(number * self.size, (number + 1) * self.size)
        x = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(point)) for point in points])
        return {"x": x, "y": x.sin().sum(1, keepdim=True), "number": number}


def noisy_loss(model: nn.Module, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """A mean over the points, with noise from the loop's draws."""
    noise = torch.randn(batch["x"].shape, generator=draws)
    return (model(batch["x"] + 0.3 * noise) - batch["y"]).square().mean(), {"noise": noise.mean().item()}


def plain_loss(model: nn.Module, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    return (model(batch["x"]) - batch["y"]).square().mean(), {}


def stopping(loss: Loss, after: int, error: BaseException) -> Loss:
    """The loss of the first `after` batches, and then an error."""
    calls = 0

    def stop(model: nn.Module, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
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
    assert all(line.keys() == {"step", "loss", "grad_norm", "noise", "learning_rate"} for line in lines)
    assert [line["learning_rate"] for line in lines] == [learning_rate(CONFIG, step) for step in range(12)]
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


@pytest.mark.parametrize("after", [3, 5, 8, 11])  # batches: before the first checkpoint, right at it, behind it
@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_resumed_run_equals_an_unbroken_one(
    tmp_path: Path, unbroken: Path, after: int, error: BaseException
) -> None:
    """Weights, optimizer and log, bit for bit; lines that were logged behind the checkpoint used to come twice."""
    folder, model = tmp_path / "broken", Toy()
    with pytest.raises(type(error)):
        train(Toy(), stopping(noisy_loss, after, error), Points(), CONFIG, folder, "toy")
    assert len(logged(folder)) == after
    assert [load_checkpoint(path, Toy()) for path in checkpoints(folder)] == [5, 10][: after // 5]
    torch.manual_seed(after)  # the global generator must not matter
    metrics = train(model, noisy_loss, Points(), CONFIG, folder, "toy")
    assert weights(folder) == weights(unbroken)
    assert logged(folder) == logged(unbroken)
    assert metrics == {name: value for name, value in logged(unbroken)[-1].items() if name in metrics}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch_state(unbroken)[name])


def torch_state(folder: Path) -> dict[str, Tensor]:
    model = Toy()
    load_checkpoint(checkpoints(folder)[-1], model)
    return model.state_dict()


def test_a_run_interrupted_again_and_again(tmp_path: Path, unbroken: Path) -> None:
    """Each call gets 6 batches further than the last checkpoint; the save after step 10 is interrupted as well."""
    folder, save_file = tmp_path / "broken", writing.save_file

    def interrupt(tensors: dict[str, Tensor], path: Path) -> None:
        if "00000010" in str(path) and path.name == "optimizer.safetensors":
            raise KeyboardInterrupt
        save_file(tensors, path)

    for after, steps in ((6, [5]), (4, [5])):
        with pytest.raises(KeyboardInterrupt):
            train(Toy(), stopping(noisy_loss, after, KeyboardInterrupt()), Points(), CONFIG, folder, "toy")
        assert [load_checkpoint(path, Toy()) for path in checkpoints(folder)] == steps
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "save_file", interrupt)
        train(Toy(), noisy_loss, Points(), CONFIG, folder, "toy")
    assert [load_checkpoint(path, Toy()) for path in checkpoints(folder)] == [5]
    train(Toy(), noisy_loss, Points(), CONFIG, folder, "toy")
    assert weights(folder) == weights(unbroken) and logged(folder) == logged(unbroken)
    assert not list(folder.glob(".*"))


def test_a_torn_line_does_not_stop_a_resumed_run(tmp_path: Path, unbroken: Path) -> None:
    """A machine that went down in the middle of a line: it is dropped, like everything of the steps that come again."""
    folder = tmp_path / "broken"
    with pytest.raises(RuntimeError):
        train(Toy(), stopping(noisy_loss, 6, RuntimeError()), Points(), CONFIG, folder, "toy")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "seconds": 0.1, "lo')
    train(Toy(), noisy_loss, Points(), CONFIG, folder, "toy")
    assert logged(folder) == logged(unbroken)


def test_a_finished_run_is_left_as_it_is(unbroken: Path) -> None:
    before, lines, model = weights(unbroken), (unbroken / "metrics.jsonl").read_text(), Toy()
    assert train(model, stopping(noisy_loss, 0, AssertionError()), Points(), CONFIG, unbroken, "toy") == {}
    assert weights(unbroken) == before and (unbroken / "metrics.jsonl").read_text() == lines
    assert all(torch.equal(tensor, torch_state(unbroken)[name]) for name, tensor in model.state_dict().items())


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
    """Batches are asked for by number, so neither their order nor a process of their own can matter."""
    train(Toy(), noisy_loss, Points(), replace(CONFIG, workers=1), tmp_path / "worker", "toy")
    assert logged(tmp_path / "worker") == logged(unbroken)
    assert weights(tmp_path / "worker") == weights(unbroken)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_order_and_go_on_in_order(tmp_path: Path, accumulate: int, workers: int) -> None:
    """A resumed run starts at batch `step * accumulate`: counting steps instead would train on some batches twice."""
    seen: list[int] = []

    def note(model: nn.Module, batch: Batch, draws: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        seen.append(batch["number"])
        return plain_loss(model, batch, draws)

    config = replace(CONFIG, accumulate=accumulate, workers=workers, steps=5)
    train(Toy(), note, Points(), config, tmp_path, "toy")
    assert seen == list(range(5 * accumulate))
    train(Toy(), note, Points(), replace(config, steps=7), tmp_path, "toy")
    assert seen == list(range(7 * accumulate))


def test_two_half_batches_are_one_whole(tmp_path: Path) -> None:
    """For a mean loss; a sum instead of a mean over the parts would double the gradient that is clipped."""
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
    assert not {line["noise"] for line in logged(tmp_path / "other")} & {line["noise"] for line in logged(unbroken)}


@pytest.mark.parametrize("order", [list, lambda items: list(reversed(items))])
def test_frozen_parts_stay_and_the_longest_prefix_counts(tmp_path: Path, order: Callable[[Any], Any]) -> None:
    """Whichever prefix stands first; decay alone would move a frozen weight, so it must not reach the optimizer."""
    rates = dict(order({"body": 0.0, "body.second": 0.5, "body.second.bias": 0.0}.items()))
    model, start = Toy(), Toy().state_dict()
    train(model, noisy_loss, Points(), replace(CONFIG, rates=rates, weight_decay=0.5), tmp_path, "toy")
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, start[name])}
    assert changed == {"body.second.weight", "head.weight", "head.bias"}
    stored = json.loads((checkpoints(tmp_path)[-1] / "state.json").read_text())["param_groups"]
    final = learning_rate(CONFIG, CONFIG.steps - 1)
    assert [(group["factor"], group["weight_decay"], group["lr"], len(group["params"])) for group in stored] == [
        (0.5, 0.5, 0.5 * final, 1), (1.0, 0.0, final, 1), (1.0, 0.5, final, 1)
    ]


def test_a_later_stage_thaws_what_an_earlier_one_froze() -> None:
    model = Toy()
    parameter_groups(model, replace(CONFIG, rates={"": 0.0, "head": 1.0}))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    groups = parameter_groups(model, CONFIG)
    assert sum(len(group["params"]) for group in groups) == 6
    assert all(p.requires_grad for p in model.parameters())


def test_only_matrices_decay() -> None:
    """Biases and norms would be pulled towards zero, which is no neutral value for a norm's scale."""
    groups = parameter_groups(Toy(), CONFIG)
    assert {(p.dim() > 1, group["weight_decay"]) for group in groups for p in group["params"]} == {
        (True, CONFIG.weight_decay), (False, 0.0)
    }


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.6), (110, 0.2), (500, 0.2)],
)
def test_learning_rate_schedule(step: int, share: float) -> None:
    """Linear over 10 steps, then the cosine over 100: half way between start and end at half time, never under it."""
    config = TrainConfig(steps=110, learning_rate=2.0, rates={}, warmup_steps=10, final_rate=0.2)
    assert learning_rate(config, step) == pytest.approx(2.0 * share)


@pytest.mark.parametrize(("steps", "warmup"), [(5, 0), (3, 100), (1, 1), (1, 0)])
def test_learning_rate_of_short_runs(steps: int, warmup: int) -> None:
    """A trial run may end inside the warm-up, or have none: no division by zero, no rate above the highest."""
    config = TrainConfig(steps=steps, learning_rate=1.0, rates={}, warmup_steps=warmup)
    rates = [learning_rate(config, step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates == sorted(rates, reverse=warmup < steps)
