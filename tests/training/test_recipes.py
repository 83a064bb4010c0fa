"""A whole recipe, one step a stage: what it leaves behind can be asked, and a second call has
nothing to do."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperModel

from mmdiff.answers import Answer
from mmdiff.config import PRESETS, ModelConfig
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import canonical_state
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.pipeline import load
from mmdiff.training import recipes
from mmdiff.training.checkpoints import checkpoints, load_checkpoint
from mmdiff.training.datasets import (
    ConversationDataset,
    RegionTextDataset,
    SpeechDataset,
    SpokenRows,
    easy_vqa_row,
    scene_row,
)
from mmdiff.training.objectives import (
    GROUNDING,
    MODEL_INPUTS,
    CtcHead,
    GroundingHeads,
    Stage,
    TowerTrainer,
    denoising_loss,
    grounded_loss,
    spelling_loss,
    waves,
)
from mmdiff.training.recipes import RECIPES, run
from mmdiff.training.tiny import recipe
from mmdiff.training.tiny.questions import FACTS
from mmdiff.training.tiny.recipe import align, corpus, hear, spell, structure, tower, tune
from mmdiff.training.tiny.tokenizer import train_tokenizer
from mmdiff.training.tiny.whisper import whisper_tower

SCALE = 1e-4  # of thousands of steps: one a stage
LAST = "step-00000001"


class FakeSpeech:
    """Noise for speech."""

    count = 3
    by_length = np.arange(3)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, str]:
        generator = torch.Generator().manual_seed(number)
        return torch.randn(80, 100 + 19 * number, generator=generator), (
            "stop",
            "two one",
            "is there a circle",
        )[number]


SPEECH: Any = FakeSpeech()


def small(make: Callable[..., Stage], model: ModelConfig) -> Stage:
    """A stage of the recipe with two pictures a batch, everything else as it is."""
    stage = make(model)
    data: dict[str, Any] = {
        "tower": partial(RegionTextDataset, model, num_images=2, phrases_each=1, seed=1),
        "align": partial(ConversationDataset, model, sources=[scene_row, easy_vqa_row], seed=2),
        "tune": partial(ConversationDataset, model, sources=[scene_row, easy_vqa_row], seed=3),
        "spell": partial(SpeechDataset, SPEECH, num_clips=2, seed=4),
        "hear": partial(
            ConversationDataset, model, sources=[scene_row, SpokenRows(SPEECH, 2)], seed=5
        ),
        "structure": partial(
            ConversationDataset, model, sources=[partial(scene_row, num_structured=2)], seed=6
        ),
    }
    return replace(stage, data=data[stage.name])


@pytest.fixture(scope="module")
def small_recipe() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "tiny", tuple(partial(small, make) for make in RECIPES["tiny"]))
        patch.setattr(recipe, "corpus", partial(corpus, 20))
        yield


@pytest.fixture(scope="module")
def finished(small_recipe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert run("tiny", folder, scale=SCALE) == folder / "model"
    return folder


def test_the_finished_model_answers(finished: Path) -> None:
    """In bfloat16, a few megabytes, of the preset's form; three stages' weights have to survive the
    way there."""
    pipeline = load(finished / "model", device="cpu")
    assert pipeline.model.model_config == PRESETS["tiny"]
    stored = load_file(finished / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    answers = pipeline.ask(
        [Image.new("RGB", (64, 80), "red")] * 2, ["what shape is present?", "is it red?"]
    )
    assert all(isinstance(answer, Answer) and answer.steps >= 1 for answer in answers)
    assert not any(token.text.startswith("<|") for answer in answers for token in answer.tokens)


def test_another_whisper_may_be_heard_with(
    small_recipe: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "tiny", RECIPES["tiny"][-3:-2])  # it learns to spell
    sizes = {
        "d_model": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
    }
    sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2}
    WhisperModel(WhisperConfig(**sizes)).save_pretrained(tmp_path / "whisper")
    pipeline = load(
        run("tiny", tmp_path / "run", scale=SCALE, whisper=tmp_path / "whisper"), device="cpu"
    )
    audio = pipeline.model.model_config.audio
    assert audio is not None and (audio.hidden_size, audio.num_hidden_layers, audio.ctc_drafts) == (
        64,
        2,
        True,
    )
    assert pipeline.transcribe(np.zeros(16_000, np.float32), sample_rate=16_000).text == ""


def test_the_finished_model_is_the_last_checkpoint(finished: Path) -> None:
    model = MMDiffModel(MMDiffConfig.of(PRESETS["tiny"]))
    load_checkpoint(finished / "structure" / LAST, GroundingHeads(model))
    stored = load_file(finished / "model" / "model.safetensors")
    for name, tensor in canonical_state(model).items():
        assert torch.equal(tensor.bfloat16(), stored[name]), name


def test_stages_go_on_from_each_other(finished: Path) -> None:
    """The tower of the first stage is not touched by the second, where it is frozen, and moves in
    the third."""
    assert sorted(path.name for path in finished.iterdir() if path.is_dir()) == [
        "align",
        "hear",
        "model",
        "spell",
        "structure",
        "tower",
        "tune",
    ]
    states = {}
    for stage in ("tower", "align", "tune"):
        assert [path.name for path in checkpoints(finished / stage)] == [LAST]
        assert (finished / stage / "metrics.jsonl").read_text().startswith('{"step": 1, ')
        stored = load_file(finished / stage / LAST / "model.safetensors")
        states[stage] = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    names = [name for name in states["tune"] if name.startswith("vision_tower.")]
    assert len(names) > 50
    assert all(torch.equal(states["tower"][name], states["align"][name]) for name in names)
    assert any(not torch.equal(states["align"][name], states["tune"][name]) for name in names)
    for part in ("backbone.", "connector."):
        ours = [name for name in states["tune"] if name.startswith(part)]
        assert all(not torch.equal(states["align"][name], states["tune"][name]) for name in ours)


def test_the_audio_tower_starts_from_whispers(finished: Path) -> None:
    """Tower, connector and head learn to spell; then the tower stands still, and the rest learns to
    hear."""
    assert PRESETS["tiny"].audio is not None
    whisper = whisper_tower(PRESETS["tiny"].audio).state_dict()
    states = {
        stage: load_file(finished / stage / LAST / "model.safetensors")
        for stage in ("tune", "spell", "hear")
    }
    for name, tensor in whisper.items():
        stored = {stage: state[f"model.audio_tower.{name}"] for stage, state in states.items()}
        assert torch.equal(stored["tune"], tensor) and torch.equal(
            stored["spell"], stored["hear"]
        ), name
    moved = {
        name
        for name in states["spell"]
        if not torch.equal(states["spell"][name], states["tune"][name])
    }
    assert {name.split(".")[1] for name in moved} == {"audio_connector", "audio_tower", "backbone"}
    assert {name for name in moved if "backbone" in name} == {"model.backbone.lm_head.weight"}
    assert not torch.equal(
        states["hear"]["model.audio_connector.norm.weight"],
        states["spell"]["model.audio_connector.norm.weight"],
    )


def test_a_second_call_trains_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finished stage is loaded as it was, and gives the very same model."""

    def refuse(*_: object) -> Any:
        raise AssertionError("trained again")

    before = {path: path.read_bytes() for path in finished.rglob("*.safetensors")}
    times = {path: path.stat().st_mtime_ns for path in finished.rglob("step-*/*")}
    stages = tuple(
        partial(lambda make, model: replace(make(model), loss=refuse), make)
        for make in RECIPES["tiny"]
    )
    monkeypatch.setitem(RECIPES, "tiny", stages)
    monkeypatch.setattr(recipes, "train_tokenizer", refuse)
    run("tiny", finished, scale=SCALE)
    assert {path: path.read_bytes() for path in finished.rglob("*.safetensors")} == before
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("step-*/*")} == times


def test_an_interrupted_recipe_gives_the_same_model(
    small_recipe: None, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second stage; the third must not notice."""

    def stop(*_: object) -> Any:
        raise KeyboardInterrupt

    whole = RECIPES["tiny"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(
            RECIPES,
            "tiny",
            (whole[0], lambda model: replace(whole[1](model), loss=stop), *whole[2:]),
        )
        run("tiny", tmp_path, scale=SCALE)
    assert (
        checkpoints(tmp_path / "tower")
        and not checkpoints(tmp_path / "align")
        and not (tmp_path / "model").exists()
    )
    run("tiny", tmp_path, scale=SCALE)
    model = Path("model") / "model.safetensors"
    assert (tmp_path / model).read_bytes() == (finished / model).read_bytes()


def test_a_damaged_checkpoint_is_not_trained_on(
    small_recipe: None, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "tower", tmp_path / "tower")
    damaged = tmp_path / "tower" / LAST / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match="tower/step-00000001/model.safetensors is missing or damaged"
    ):
        run("tiny", tmp_path, scale=SCALE)


@pytest.mark.parametrize(
    ("make", "frozen"),
    [
        (tower, set()),
        (align, {"model.vision_tower"}),
        (tune, set()),
        (spell, {"model"}),
        (hear, {"model.audio_tower"}),
        (structure, {"model.audio_tower"}),
    ],
)
def test_rates_name_parts_that_exist(make: Callable[..., Stage], frozen: set[str]) -> None:
    """A prefix that fits no parameter changes nothing, and nobody would notice."""
    stage = make(PRESETS["tiny"])
    with torch.device("meta"):
        model = MMDiffModel(MMDiffConfig.of(PRESETS["tiny"]))
        names = [name for name, _ in stage.wrap(model).named_parameters()]
    assert all(any(name.startswith(prefix) for name in names) for prefix in stage.config.rates)
    assert {prefix for prefix, rate in stage.config.rates.items() if rate == 0} == frozen
    assert (
        stage.config.warmup_steps < stage.config.steps
        and stage.config.save_every < stage.config.steps
    )


@pytest.mark.parametrize(("side", "width"), [(12, 192), (6, 32), (27, 64)])
def test_waves_tell_patches_apart_and_neighbours_alike(side: int, width: int) -> None:
    """Across and down alike; rows and columns mixed up in `flatten` would make (r, c) and (c, r)
    the same."""
    table = waves(side, width)
    assert table.shape == (side * side, width) and table.dtype == torch.float32
    assert table.abs().max() <= 0.5
    distance = (table[:, None] - table).norm(dim=2).view(side, side, side, side)
    for row in range(0, side - 1, 3):
        for column in range(0, side - 1, 3):
            here = distance[row, column]
            near = torch.stack((here[row, column + 1], here[row + 1, column]))
            rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            strangers = here[((rows - row).abs() + (columns - column).abs()) > 2]
            assert near.min() > 0.01 and near.max() < strangers.min()
    assert torch.allclose(
        distance, distance.permute(1, 0, 3, 2), atol=1e-4
    )  # mirrored at the diagonal


def test_the_tower_starts_from_waves() -> None:
    torch.manual_seed(0)
    model = MMDiffModel(MMDiffConfig.of(PRESETS["tiny"]))
    trainer = TowerTrainer(model)
    assert model.vision_tower is not None
    positions = model.vision_tower.get_parameter("embeddings.position_embedding.weight")
    assert torch.equal(positions, waves(12, 192))
    assert trainer.vision_tower is model.vision_tower  # trained in place, not a copy
    phrase_ids, mask = (
        torch.tensor([[9, 10, 1], [10, 9, 7], [9, 10, 11]]),
        torch.tensor([[1, 1, 0]] * 2 + [[1, 1, 1]]),
    )
    logits = trainer(torch.randn(2, 3, 96, 96), phrase_ids, mask.bool())
    assert logits.shape == (2 * 144, 3)
    torch.testing.assert_close(logits[:, 0], logits[:, 1])  # a bag of words, without its padding
    assert not torch.allclose(logits[:, 0], logits[:, 2])


def test_only_hidden_answers_are_scored() -> None:
    """The loss of a model that knows the answers is 0, whatever it says anywhere else, and its
    draws decide it."""
    labels = torch.tensor([[-100, -100, 8, 9, 2, 1, 1, 1, -100, 7, 2, 1]])
    batch = {name: torch.zeros_like(labels) for name in MODEL_INPUTS} | {
        "input_ids": labels.clamp(min=5),
        "labels": labels,
        "importance": (labels > 1).float(),
        "branch_ids": torch.tensor([[0] * 2 + [1] * 6 + [2] * 4]),
    }
    seen = []

    class Knowing(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, select: torch.Tensor, **_: Any) -> Any:
            seen.append(input_ids)
            assert torch.equal(select, input_ids == 0)  # the mask id
            assert (labels[select] >= 0).all()
            return type("Output", (), {"logits": 100.0 * torch.eye(10)[labels[select]]})

    loss = denoising_loss("late_mean", mask_id=0)
    for seed in (0, 1, 0):
        value, metrics = loss(Knowing(), batch, torch.Generator().manual_seed(seed))
        assert value.item() == 0 and metrics["right"] == 1
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_heads_tell_from_the_hidden_states_of_inner_layers() -> None:
    """And change nothing about the model's own output; their loss reaches the tower."""
    torch.manual_seed(0)
    model = MMDiffModel(MMDiffConfig.of(PRESETS["tiny"])).eval()
    grounder = GroundingHeads(model)
    ids = torch.tensor([[7, 8, 9, 10], [11, 12, 13, 14]])
    named = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]])
    logits, told = grounder(named, input_ids=ids)
    assert torch.equal(logits, model(input_ids=ids).logits)
    assert [part.shape for part in told] == [(3, sum(FACTS.values()))] * 2 and grounder.layers == (
        2,
        3,
    )
    assert not any(layer._forward_hooks for layer in model.backbone.layers)
    hidden: list[torch.Tensor] = []
    for layer in model.backbone.layers:
        layer.register_forward_hook(lambda _layer, _inputs, x: hidden.append(x))
    model(input_ids=ids)
    for number, head, part in zip(grounder.layers, grounder.heads, told, strict=True):
        x = hidden[number - 1]
        torch.testing.assert_close(part, head(torch.stack((x[0, 1], x[0, 3], x[1, 3]))))


def test_the_grounded_loss_is_the_answers_and_the_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MMDiffModel(MMDiffConfig.of(PRESETS["tiny"]))
    train_tokenizer(corpus(20), 640).save(str(tmp_path / "tokenizer.json"))
    batch = ConversationDataset(
        PRESETS["tiny"], tmp_path / "tokenizer.json", [scene_row, easy_vqa_row], seed=0
    )[0]
    grounder = GroundingHeads(model)
    value, metrics = grounded_loss("mean", PRESETS["tiny"])(
        grounder, batch, torch.Generator().manual_seed(1)
    )
    answers, _ = denoising_loss("mean", 0)(model, batch, torch.Generator().manual_seed(1))
    assert value.item() == pytest.approx(
        answers.item() + GROUNDING * metrics["grounding"], rel=1e-5
    )
    (value - answers.detach()).backward()
    assert all(parameter.grad is not None for parameter in grounder.heads.parameters())
    assert model.vision_tower is not None
    assert all(p.grad is not None for p in model.vision_tower.parameters() if p.requires_grad)


def test_sounds_add_the_loss_of_their_drafts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PRESETS["tiny"]
    model = MMDiffModel(MMDiffConfig.of(config))
    train_tokenizer(corpus(20), 768).save(str(tmp_path / "tokenizer.json"))
    batch = ConversationDataset(
        config, tmp_path / "tokenizer.json", [scene_row, SpokenRows(SPEECH, 3)], seed=0
    )[0]
    grounder = GroundingHeads(model)
    value, metrics = grounded_loss("mean", config)(
        grounder, batch, torch.Generator().manual_seed(1)
    )
    value.backward()
    assert model.audio_connector is not None and metrics["draft"] > 0
    assert all(p.grad is not None for p in model.audio_connector.parameters())
    silent = {name: tensor for name, tensor in batch.items() if name != "said"}
    without, _ = grounded_loss("mean", config)(grounder, silent, torch.Generator().manual_seed(1))
    assert value.item() == pytest.approx(without.item() + metrics["draft"], rel=1e-4)


def test_a_speller_learns_to_spell(tmp_path: Path) -> None:
    """Three sounds by heart."""
    torch.manual_seed(0)
    model = MMDiffModel(MMDiffConfig.of(PRESETS["tiny"]))
    train_tokenizer(corpus(20), 768).save(str(tmp_path / "tokenizer.json"))
    batch, speller = (
        SpeechDataset(SPEECH, tmp_path / "tokenizer.json", 6, seed=0)[0],
        CtcHead(model),
    )
    assert model.audio_connector is not None
    optimizer = torch.optim.AdamW(
        [*model.audio_connector.parameters(), model.backbone.lm_head.weight], lr=3e-3
    )
    losses = []
    for _ in range(60):
        value, _ = spelling_loss(PRESETS["tiny"].tokens.eos)(speller, batch, torch.Generator())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert losses[-1] < 0.1 * losses[0]


def test_the_corpus_holds_every_kind_of_text() -> None:
    texts = set(corpus(30))
    assert {
        "user",
        "assistant",
        "\nDescribe the picture in detail.",
        "\nwhat shape is in the image?",
        "yes",
    } <= texts
    assert any(text.startswith('{"objects": [{"shape": ') for text in texts)
