"""How often a step waits for the device: what would be read from it is counted, also where the
device is the processor and reading is free."""

import collections
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmdiff.decoding.sampler import Sampler
from mmdiff.pipeline import Pipeline

READS = ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "__index__")
WAITS = ("nonzero", "masked_select", "_local_scalar_dense", "equal", "unique", "_unique2")
BY_MASK = ("index", "index_put", "index_put_", "_index_put_impl_")


class Counted(TorchDispatchMode):
    """Operators whose result has a size that only the device knows, or that hand over a number."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()
        self.inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [each for each in args[1] if each is not None] if name in BY_MASK else []
        by_mask = any(each.dtype in (torch.bool, torch.uint8) for each in masks)
        sized = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        if not self.inside and (name in WAITS or by_mask or sized):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    mode = Counted()
    for name in READS:
        usual = getattr(Tensor, name)

        def read(
            self: Tensor, *args: Any, _usual: Any = usual, _name: str = name, **more: Any
        ) -> Any:
            outer, mode.inside = mode.inside, True
            mode.counts[_name] += not outer
            try:
                return _usual(self, *args, **more)
            finally:
                mode.inside = outer

        monkeypatch.setattr(Tensor, name, read)
    yield mode


def started(pipeline: Pipeline, **settings: Any) -> Sampler:
    texts = ("what?", "how many stars are there?", "where is it?")
    rows = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    return pipeline.start(rows, gen_length=16, block_length=8, steps=8, **settings)


@pytest.mark.parametrize("rule", ["quota", "threshold"])
@pytest.mark.parametrize("cache", ["none", "prefix", "block", "dual", "delayed"])
def test_a_step_reads_once(endless: Pipeline, counted: Counted, cache: str, rule: str) -> None:
    running = started(endless, cache=cache, rule=rule, threshold=0.5)
    running.step()
    counted.counts.clear()
    while running.working:
        with counted:
            running.step()
        assert sum(counted.counts.values()) <= 1, counted.counts
        counted.counts.clear()


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "saber"},
        {"rule": "wino", "cache": "none"},
        {"rule": "running_confidence"},
        {"temperature": 0.7, "order": "random", "top_k": 5},
        {"start_length": 4},
        {"cfg_scale": 1.0},
        {"rule": "local"},
        {"rule": "factor"},
        {"rule": "entropy_bounded"},
        {"rule": "dilated"},
        {"rule": "first_hitting", "order": "entropy"},
    ],
    ids=str,
)
def test_so_does_a_step_with_other_settings(
    endless: Pipeline, counted: Counted, settings: dict[str, Any]
) -> None:
    running = started(endless, **settings)
    running.step()
    counted.counts.clear()
    while running.working:
        with counted:
            running.step()
        assert sum(counted.counts.values()) <= 1, counted.counts
        counted.counts.clear()


def test_a_speculative_step_reads_once_and_its_pass_once_more(
    endless: Pipeline, counted: Counted
) -> None:
    """What to guess is read where there is a pass; steps that were guessed right have none."""
    running = started(endless, lookahead=3, rule="quota", threshold=None)
    running.step()
    steps = passes = 0
    while running.working:
        before = max(each.prompt.passes for each in running.running)
        counted.counts.clear()
        with counted:
            running.step()
        made = max(each.prompt.passes for each in running.running) - before
        assert sum(counted.counts.values()) <= 1 + made, counted.counts
        steps, passes = steps + 1, passes + made
    assert steps > 1 and passes


class OnDevice(Tensor):
    """A tensor that plays one on a device: what is made of it is there too, until it is read."""

    reads = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ not in READS:
            return super().__torch_function__(func, types, args, kwargs or {})
        cls.reads += 1
        return func(args[0].as_subclass(Tensor), *args[1:], **(kwargs or {}))


def test_a_constrained_step_reads_its_logits_and_nothing_else(endless: Pipeline) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}, "name": {"type": "string"}},
        "required": ["color", "name"],
    }
    scaffolds = [endless.compile(schema, max_tokens=40)] * 2
    rows = [[{"role": "user", "content": [{"type": "text", "text": "what?"}]}]] * 2
    running = endless.start(rows, scaffolds=scaffolds, rule="quota", threshold=None, steps=8)
    usual, steps = running.runner, 0
    running.runner = lambda *asked: usual(*asked).as_subclass(OnDevice)
    while running.working:
        OnDevice.reads = 0
        running.step()
        steps += 1
        assert OnDevice.reads == 1
    assert steps > 2


def test_what_waits_is_counted(counted: Counted) -> None:
    some = torch.tensor([True, False])
    with counted:
        torch.arange(2)[some]
        torch.arange(2)[some] = 1
        some.nonzero()
        bool(some.any())
        some.tolist()
        some.numpy(force=True)
        torch.arange(2).repeat_interleave(torch.tensor([1, 2]))
    assert sum(counted.counts.values()) == 7, counted.counts
