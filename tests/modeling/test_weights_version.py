"""However a model is changed, the same pipeline then answers as a fresh one does."""

import copy
import dataclasses
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from mmdiff.config import PRESETS, ModelConfig
from mmdiff.modeling.checkpoint import load_folder
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.onednn_linear import use_onednn
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.modeling.quantize import quantize
from mmdiff.modeling.weights_version import WeightsVersion
from mmdiff.pipeline import Pipeline

SETTINGS: dict[str, Any] = {"gen_length": 8, "steps": 1, "block_length": 8}
Change = Callable[[MMDiffModel], Any]


@pytest.fixture(scope="module")
def processor(random_tiny: Path) -> MMDiffProcessor:
    return MMDiffProcessor.of(
        load_folder(random_tiny, torch.device("cpu"), torch.float32)[1].tokenizer, small()
    )


def small() -> ModelConfig:
    tiny = PRESETS["tiny"]
    assert tiny.vision is not None
    sizes = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    }
    backbone = dataclasses.replace(tiny.backbone, num_key_value_heads=3, **sizes)
    return dataclasses.replace(
        tiny, backbone=backbone, vision=dataclasses.replace(tiny.vision, **sizes), audio=None
    )


@pytest.fixture
def pipeline(processor: MMDiffProcessor) -> Pipeline:
    torch.manual_seed(0)
    return Pipeline(MMDiffModel(MMDiffConfig.of(small())), processor)


def picture() -> Image.Image:
    image = Image.new("RGB", (60, 60), "white")
    ImageDraw.Draw(image).rectangle((10, 10, 40, 30), fill="red")
    return image


def said(pipeline: Pipeline) -> list[tuple[str, float]]:
    answer = pipeline.ask(picture(), "what is it?", **SETTINGS)
    return [(token.text, token.confidence) for token in answer.tokens]


def layer(model: MMDiffModel) -> nn.Module:
    found: nn.Module = model.backbone.layers[0].mlp.up_proj
    return found


def add_in_place(model: MMDiffModel) -> None:
    with torch.no_grad():
        layer(model).weight.add_(0.1)


def add_in_inference_mode(model: MMDiffModel) -> None:
    with torch.inference_mode():
        layer(model).weight.mul_(1.5)


def add_through_data(model: MMDiffModel) -> None:
    """As adapters are merged; PyTorch counts no change then."""
    layer(model).weight.data += 0.1


def change_a_row_through_data(model: MMDiffModel) -> None:
    model.backbone.embed_tokens.weight.data[model.model_config.tokens.image - 1] = 1.0


def write_through_numpy(model: MMDiffModel) -> None:
    layer(model).weight.detach().numpy()[:] *= 1.5


def replace_data(model: MMDiffModel) -> None:
    layer(model).weight.data = layer(model).weight.data * 1.5


def replace_the_layer(model: MMDiffModel) -> None:
    torch.manual_seed(1)
    model.backbone.layers[0].mlp.up_proj = nn.Linear(48, 96, bias=False)


def load_other_weights(model: MMDiffModel) -> None:
    torch.manual_seed(2)
    other = {name: torch.randn_like(tensor) * 0.05 for name, tensor in model.state_dict().items()}
    model.load_state_dict(other)


def assign_other_weights(model: MMDiffModel) -> None:
    torch.manual_seed(2)
    other = {name: torch.randn_like(tensor) * 0.05 for name, tensor in model.state_dict().items()}
    model.load_state_dict(other, assign=True)


def hook(model: MMDiffModel) -> None:
    model.backbone.layers[0].register_forward_hook(lambda _layer, _inputs, x: x + 0.1)


def wrap_forward(model: MMDiffModel) -> None:
    mlp = model.backbone.layers[0].mlp
    before = mlp.forward
    mlp.forward = lambda x: 2 * before(x)


def step(**options: Any) -> Change:
    def stepped(model: MMDiffModel) -> None:
        model.train()
        optimizer = torch.optim.AdamW(model.backbone.parameters(), lr=0.01, **options)
        model(torch.tensor([[5, 9, 11]])).logits.square().sum().backward()
        optimizer.step()

    return stepped


CHANGES: dict[str, Change] = {
    "in place": add_in_place,
    "inference mode": add_in_inference_mode,
    "through .data": add_through_data,
    "a row through .data": change_a_row_through_data,
    "through NumPy": write_through_numpy,
    "other data": replace_data,
    "another layer": replace_the_layer,
    "load_state_dict": load_other_weights,
    "load_state_dict(assign=True)": assign_other_weights,
    "a hook": hook,
    "another forward": wrap_forward,
    "AdamW": step(),
    "fused AdamW": step(fused=True),
    "SGD by foreach": step(foreach=True),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float64": lambda model: model.double(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_answers_as_a_fresh_one(pipeline: Pipeline, name: str) -> None:
    before = said(pipeline)
    CHANGES[name](pipeline.model)
    after = said(pipeline)
    assert after != before and after == said(Pipeline(pipeline.model, pipeline.processor))


def test_what_was_not_changed_is_kept(pipeline: Pipeline) -> None:
    said(pipeline)
    missed = pipeline.store.misses
    for _ in range(2):
        pipeline.model.train()  # a run that asks between its steps
        pipeline.model.zero_grad()
        said(pipeline)
    assert pipeline.store.misses == missed and pipeline.store.hits > 4


def test_an_answer_on_its_way_leaves_nothing_for_other_weights(pipeline: Pipeline) -> None:
    """It began with the old ones, and goes on with the new."""
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "what is it?"}]
    waiting = pipeline.start([[{"role": "user", "content": content}]], **SETTINGS)
    add_in_place(pipeline.model)
    said(pipeline)
    waiting.step()
    assert said(pipeline) == said(Pipeline(pipeline.model, pipeline.processor))


def test_clear_forgets(pipeline: Pipeline) -> None:
    """Also what is too small to be noticed: one number, written where PyTorch does not count."""
    said(pipeline)
    layer(pipeline.model).weight.data[1, 40] += 100.0
    pipeline.clear()
    assert len(pipeline.store) == 0 and said(pipeline) == said(
        Pipeline(pipeline.model, pipeline.processor)
    )


def test_training_goes_on_with_dropout(pipeline: Pipeline) -> None:
    """Answers are those without it, and the model is then as the run left it."""

    class Dropping(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside, self.dropout = inside, nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dropout(self.inside(x))

    layers = pipeline.model.backbone.layers
    layers[0].mlp.up_proj = Dropping(layers[0].mlp.up_proj)
    pipeline.model.train()
    layers[1].eval()  # a part that stands still
    states = [module.training for module in pipeline.model.modules()]
    wanted = said(pipeline)
    assert [module.training for module in pipeline.model.modules()] == states and layers[
        0
    ].mlp.up_proj.training
    assert wanted == said(Pipeline(pipeline.model, pipeline.processor))


def test_adapters_are_noticed(pipeline: Pipeline) -> None:
    """Switched, disabled, scaled, merged, taken apart again, and deleted."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        target_modules=["up_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.1
    )
    adapted = peft.get_peft_model(pipeline.model, settings)
    adapted.add_adapter("other", settings)
    seen = []

    def check() -> None:
        seen.append(said(pipeline))
        assert seen[-1] == said(Pipeline(copy.deepcopy(pipeline.model), pipeline.processor))

    check()
    adapted.set_adapter("other")
    check()
    with adapted.disable_adapter():
        check()
    adapted.set_adapter("default")
    check()
    assert seen[0] == seen[3] and len({str(each) for each in seen}) == 3
    adapted.merge_adapter()
    check()
    adapted.unmerge_adapter()
    check()
    layer(pipeline.model).scaling["default"] *= 3
    check()
    adapted.train()
    check()
    adapted.delete_adapter("default")
    check()
    assert seen[-3] not in seen[:-3] and seen[-1] not in seen[:-1]


def test_quantized_layers_are_noticed(pipeline: Pipeline) -> None:
    before = said(pipeline)
    quantize(pipeline.model.backbone.layers, "8bit")
    pipeline.model.to("cpu")
    after = said(pipeline)
    assert after != before and after == said(Pipeline(pipeline.model, pipeline.processor))


def test_layers_through_onednn_are_noticed(pipeline: Pipeline) -> None:
    use_onednn(pipeline.model)
    before = said(pipeline)
    add_through_data(pipeline.model)
    after = said(pipeline)
    assert after != before and after == said(Pipeline(pipeline.model, pipeline.processor))


def test_the_vocabulary_of_structured_answers_follows_the_tokenizer(pipeline: Pipeline) -> None:
    layouts = pipeline.layouts
    assert pipeline.layouts is layouts
    pipeline.processor = copy.copy(pipeline.processor)
    pipeline.processor.tokenizer = copy.deepcopy(pipeline.processor.tokenizer)
    assert pipeline.layouts is not layouts


def test_a_store_is_pickled_without_what_it_keeps(pipeline: Pipeline) -> None:
    said(pipeline)
    again = pickle.loads(pickle.dumps(pipeline.store))
    assert len(pipeline.store) > 1 and len(again) == 0 and again.version(pipeline.model)


def test_a_version_costs_little() -> None:
    """A model with as many tensors as one of 8 billion parameters."""
    layers = nn.ModuleList(
        nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(9))) for _ in range(32)
    )
    version, model = WeightsVersion(), nn.Sequential(layers)
    assert version.of(model) == version.of(model) == 1
    times = []
    for _ in range(10):
        started = time.process_time()
        version.of(model)
        times.append(time.process_time() - started)
    assert min(times) < 5e-3  # below 1 ms where nothing else runs


def test_tensors_without_numbers_are_no_fault() -> None:
    """On no device yet, sparse, transposed, empty, or with numbers that are not equal to
    themselves."""
    for tensor in (
        torch.empty(3, 4, device="meta"),
        torch.eye(3).to_sparse(),
        torch.randn(4, 6).t(),
        torch.empty(0, 3),
        torch.full((3,), torch.nan),
        torch.tensor(1.0),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(5, dtype=torch.bool),
    ):
        model, version = nn.Module(), WeightsVersion()
        model.register_buffer("held", tensor)
        assert version.of(model) == version.of(model) == 1
