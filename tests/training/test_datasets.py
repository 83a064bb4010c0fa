"""What is trained on is what is asked later: packed rows equal the processor's prompts and the
sampler's view."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from mmdiff.config import PRESETS
from mmdiff.decoding.model_runner import ModelRunner
from mmdiff.errors import MMDiffError
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.prompts import CAPTION_PROMPTS, CAPTION_ROOM
from mmdiff.tokens import segment_ids
from mmdiff.training import datasets
from mmdiff.training.batches import TrainingBatch
from mmdiff.training.datasets import (
    CAPTION_IMPORTANCE,
    TRIES,
    ConversationDataset,
    RegionTextDataset,
    SpokenRows,
    easy_vqa_row,
    scene_row,
)
from mmdiff.training.forward_process import IGNORE
from mmdiff.training.objectives import MODEL_INPUTS
from mmdiff.training.packing import (
    CANVAS_LENGTHS,
    CANVAS_ODDS,
    PADDING_IMPORTANCE,
    Row,
    Turn,
    _reopened,
    _shown_facts,
    pack,
    patch_owners,
)
from mmdiff.training.tiny import easy_vqa, questions
from mmdiff.training.tiny.questions import (
    ATTRIBUTES,
    FACTS,
    UNKNOWN,
    GroundingPhrase,
    Phrase,
    describe,
    facts_of,
    references,
)
from mmdiff.training.tiny.recipe import corpus
from mmdiff.training.tiny.scenes import (
    COLOURS,
    TEST_SEEDS,
    TRAIN_SEEDS,
    VALID_SEEDS,
    Background,
    Scene,
    Thing,
    draw,
    example,
)
from mmdiff.training.tiny.structured import AnswerPart
from mmdiff.training.tiny.tokenizer import train_tokenizer, wrap_tokenizer
from mmdiff.vision.image_io import open_image
from mmdiff.vision.preprocess import make_views

CONFIG = PRESETS["tiny"]
TOKENS = CONFIG.tokens
GREY = Background("plain", (240, 240, 240), (240, 240, 240))
ROWS: list[tuple[Image.Image, list[Turn]]] = [
    (
        example(3)[0],
        [
            Turn("what color is the circle?", "red"),
            Turn(
                "Describe the picture {in} detail.",
                "a small red circle at the top left, and a teal ring",
                0.5,
                64,
            ),
            Turn("Größe 大?", "不 {} knows"),  # words that the tokenizer has to spell in bytes
        ],
    ),
    (Image.new("RGB", (64, 100), "teal"), [Turn("is it?", "yes")]),
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the recipe's own corpus, only less of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(easy_vqa, "load", lambda split: ())
        tokenizer = train_tokenizer(corpus(60), CONFIG.backbone.vocab_size)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> MMDiffProcessor:
    return MMDiffProcessor.of(wrap_tokenizer(tokenizer), CONFIG)


@pytest.fixture(scope="module")
def batch(tokenizer: Tokenizer) -> TrainingBatch:
    return pack(ROWS, tokenizer, CONFIG, np.random.default_rng(0))


def prompt(
    processor: MMDiffProcessor, rows: Sequence[tuple[Image.Image, str]]
) -> dict[str, Tensor]:
    """What the pipeline gives the model for a question about a picture."""
    content = [
        [{"type": "image", "image": image}, {"type": "text", "text": text}] for image, text in rows
    ]
    return dict(
        processor.apply_chat_template(
            [[{"role": "user", "content": parts}] for parts in content],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
        )
    )


def positions(batch: TrainingBatch, row: int, branch: int) -> tuple[Tensor, Tensor]:
    """Where the prompt and the answer of a branch stand: the shared part and its own, and its
    labelled positions."""
    valid, branches = batch["attention_mask"][row], batch["branch_ids"][row]
    labelled = batch["labels"][row] != IGNORE
    asked = valid & ((branches == 0) | (branches == branch)) & ~labelled
    return asked.nonzero()[:, 0], (valid & (branches == branch) & labelled).nonzero()[:, 0]


BRANCHES = [
    (row, branch) for row, (_, turns) in enumerate(ROWS) for branch in range(1, len(turns) + 1)
]


@pytest.mark.parametrize(("row", "branch"), BRANCHES)
def test_a_branch_is_the_prompt_that_is_asked(
    batch: TrainingBatch, processor: MMDiffProcessor, row: int, branch: int
) -> None:
    """One other newline between template and data, and the model is asked what it never saw."""
    image, turns = ROWS[row]
    alone = prompt(processor, [(image, turns[branch - 1].question)])
    asked, answer = positions(batch, row, branch)
    ids = alone["input_ids"]
    assert batch["input_ids"][row, asked].tolist() == ids[0].tolist()
    segments = segment_ids(ids, TOKENS)[0]
    assert batch["segment_ids"][row, asked].tolist() == segments.tolist()
    assert batch["segment_ids"][row, answer].tolist() == [int(segments[-1]) + 1] * len(answer)
    places = list(
        range(ids.shape[1] + len(answer))
    )  # each branch counts on from the shared part, as if it were alone
    assert batch["position_ids"][row, torch.cat((asked, answer))].tolist() == places
    assert torch.equal(batch["pixel_values"][row : row + 1], alone["pixel_values"])
    assert (
        batch["image_sizes"][row].tolist() == alone["image_sizes"][0].tolist() == list(image.size)
    )
    assert batch["image_grids"][row].tolist() == alone["image_grids"][0].tolist()


@pytest.mark.parametrize(("row", "branch"), BRANCHES)
def test_only_answers_are_learned(
    batch: TrainingBatch, tokenizer: Tokenizer, row: int, branch: int
) -> None:
    """An answer is its words, the end of the turn, and ends of text up to a canvas of whole
    blocks."""
    turn = ROWS[row][1][branch - 1]
    _, answer = positions(batch, row, branch)
    ids, words = batch["input_ids"][row, answer].tolist(), tokenizer.encode(turn.answer).ids
    assert tokenizer.decode(words) == turn.answer
    padding = len(ids) - len(words) - 1
    assert ids == [*words, TOKENS.eot, *[TOKENS.eos] * padding]
    assert batch["labels"][row, answer].tolist() == ids
    assert len(ids) % 8 == 0 and (len(ids) in (*CANVAS_LENGTHS, turn.canvas) or padding < 8)
    weights = [turn.loss_weight] * (len(words) + 1) + [PADDING_IMPORTANCE] * padding
    assert batch["importance"][row, answer].tolist() == pytest.approx(weights)
    assert answer.tolist() == list(range(int(answer[0]), int(answer[0]) + len(ids)))


def test_prompts_and_padding_have_no_labels(batch: TrainingBatch) -> None:
    prompts = batch["labels"] == IGNORE
    assert prompts[~batch["attention_mask"]].all() and prompts[batch["branch_ids"] == 0].all()
    assert (batch["importance"][prompts] == 0).all() and (batch["importance"][~prompts] > 0).all()
    assert (batch["input_ids"][~batch["attention_mask"]] == TOKENS.pad).all()
    assert (~batch["attention_mask"]).any(), "the rows should be of different lengths"
    assert not (batch["input_ids"] == TOKENS.mask).any()
    assert ((batch["input_ids"] == TOKENS.image).sum(1) == 36).all()
    assert ((batch["labels"] == TOKENS.eot).sum(1) == torch.tensor([3, 1])).all()


def test_canvases_are_of_several_lengths(tokenizer: Tokenizer) -> None:
    """The sampler's canvas is longer than most answers; a model that saw short ones only could not
    end it."""
    roomy = max(CANVAS_LENGTHS) + 8
    rows: list[Row] = [
        (ROWS[0][0], [Turn("is it?", "no")] * 200 + [Turn("is it?", "no", canvas=roomy)])
    ]
    packed = pack(rows, tokenizer, CONFIG, np.random.default_rng(1))
    lengths = [len(positions(packed, 0, branch)[1]) for branch in range(1, 202)]
    assert lengths[-1] == roomy
    for length, odds in zip(CANVAS_LENGTHS, CANVAS_ODDS, strict=True):
        assert lengths[:200].count(length) / 200 == pytest.approx(odds, abs=0.12)
    assert set(lengths[:200]) == {
        length for length, odds in zip(CANVAS_LENGTHS, CANVAS_ODDS, strict=True) if odds
    }


@pytest.mark.parametrize("hidden", [0.0, 0.5, 1.0])
def test_packed_logits_are_those_of_the_sampler(
    batch: TrainingBatch, processor: MMDiffProcessor, hidden: float
) -> None:
    """Each branch, packed with others and padded, against the same prompt and canvas as
    `sampler.denoise` sees them."""
    vision = dataclasses.replace(CONFIG.vision, num_hidden_layers=1)  # type: ignore[type-var]
    backbone = dataclasses.replace(CONFIG.backbone, num_hidden_layers=2)
    torch.manual_seed(0)
    model = MMDiffModel(
        MMDiffConfig.of(dataclasses.replace(CONFIG, backbone=backbone, vision=vision))
    ).eval()
    draws = torch.rand(batch["labels"].shape, generator=torch.Generator().manual_seed(1))
    masked = (draws < hidden) & (batch["labels"] != IGNORE)
    ids = torch.where(masked, TOKENS.mask, batch["input_ids"])
    given = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    with torch.inference_mode():
        packed = model(input_ids=ids, **given).logits
        assert torch.equal(model(input_ids=ids, select=masked, **given).logits, packed[masked])
    for row, branch in BRANCHES:
        image, turns = ROWS[row]
        _, answer = positions(batch, row, branch)
        prompted = ModelRunner(model, **prompt(processor, [(image, turns[branch - 1].question)]))
        canvas = ids[row : row + 1, answer]
        alone = prompted(
            canvas.numpy(), prompted.prompts, torch.ones_like(canvas, dtype=torch.bool).numpy()
        )
        torch.testing.assert_close(packed[row, answer], alone, rtol=1e-4, atol=1e-4)


def equal(one: TrainingBatch, other: TrainingBatch) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_conversations_depend_on_their_number_alone(tokenizer_file: Path) -> None:
    """Whatever was asked for before, and in whichever process: a resumed run sees the batches of an
    unbroken one."""

    def make(seed: int) -> ConversationDataset:
        return ConversationDataset(CONFIG, tokenizer_file, [scene_row, easy_vqa_row], seed)

    one, other = make(3), make(3)
    batches = [one[number] for number in range(3)]
    assert all(equal(other[number], batches[number]) for number in (2, 0, 2, 1))
    assert not equal(batches[0], batches[1])
    assert not equal(make(4)[0], batches[0])
    assert (
        batches[0]["pixel_values"].shape == (2, 3, 96, 96) and batches[0]["input_ids"].shape[0] == 2
    )


def test_phrases_depend_on_their_number_alone(tokenizer_file: Path) -> None:
    def make(seed: int) -> RegionTextDataset:
        return RegionTextDataset(CONFIG, tokenizer_file, num_images=2, phrases_each=1, seed=seed)

    one = make(3)
    first, second = one[0], one[1]
    assert equal(make(3)[1], second) and not equal(first, second) and not equal(make(4)[0], first)


def test_phrases_tell_the_truth(
    tokenizer_file: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of `truth` are background and then every thing of every picture, in the numbering of
    `owner`."""
    scenes: list[Scene] = []

    def note(seed: int) -> tuple[Image.Image, Scene, np.random.Generator]:
        made = example(seed)
        scenes.append(made[1])
        return made

    monkeypatch.setattr(datasets, "example", note)
    batch = RegionTextDataset(CONFIG, tokenizer_file, num_images=4, phrases_each=3, seed=0)[0]
    things = [(picture, thing) for picture, scene in enumerate(scenes) for thing in scene.things]
    lengths = batch["phrase_mask"].sum(1).tolist()
    texts = [
        tokenizer.decode(ids[:n])
        for ids, n in zip(batch["phrase_ids"].tolist(), lengths, strict=True)
    ]
    assert batch["truth"].shape == (1 + len(things), len(texts)) and not batch["truth"][0].any()
    assert {
        Phrase(**{name: value}).text() for name, values in ATTRIBUTES.items() for value in values
    } <= set(texts)
    for row, (picture, thing) in enumerate(things, start=1):
        full = describe(thing, scenes[picture])
        parts = [
            dataclasses.replace(full, **dict.fromkeys(gone)) for gone in subsets(list(ATTRIBUTES))
        ]
        true = {part.text() for part in parts}
        assert batch["truth"][row].tolist() == [text in true for text in texts]
    owners = batch["owner"]
    assert owners.shape == (4, 144)
    for picture in range(4):
        shown = set(owners[picture].tolist()) - {0}
        assert shown and all(things[owner - 1][0] == picture for owner in shown)


def subsets(names: list[str]) -> list[list[str]]:
    return [
        [name for bit, name in enumerate(names) if number >> bit & 1]
        for number in range(2 ** len(names))
    ]


def slow_owners(scene: Scene, patches_per_side: int) -> list[int]:
    """Patch by patch and thing by thing, in pixels of the picture."""
    side = max(scene.width, scene.height)
    left, top = (side - scene.width) // 2, (side - scene.height) // 2
    owners = []
    for row in range(patches_per_side):
        for column in range(patches_per_side):
            x = (column + 0.5) * side / patches_per_side - left
            y = (row + 0.5) * side / patches_per_side - top
            owner = 0
            for number, thing in enumerate(scene.things, start=1):
                inside_x = thing.x + 0.1 * thing.width < x < thing.x + 0.9 * thing.width
                inside_y = thing.y + 0.1 * thing.height < y < thing.y + 0.9 * thing.height
                if inside_x and inside_y:
                    owner = number
            owners.append(owner)
    return owners


SIDES = [(96, 96), (131, 64), (64, 131), (160, 97), (75, 150)]


@pytest.mark.parametrize(("width", "height"), SIDES)
@pytest.mark.parametrize("patches_per_side", [12, 7])
def test_patch_owners_by_the_slow_loop(width: int, height: int, patches_per_side: int) -> None:
    rng = np.random.default_rng(width)
    for _ in range(20):
        things = tuple(
            Thing(
                "rectangle",
                "red",
                "large",
                *(int(v) for v in rng.integers((-5, -5, 10, 10), (60, 60, 60, 60))),
            )
            for _ in range(rng.integers(1, 5))
        )
        scene = Scene(width, height, GREY, things)
        assert patch_owners(scene, patches_per_side).tolist() == slow_owners(
            scene, patches_per_side
        )


@pytest.mark.parametrize(("width", "height"), SIDES)
def test_patches_show_their_owner(width: int, height: int) -> None:
    """Against painted pixels: padding at other edges than `views` pads would shift every patch of
    an oblong picture."""
    assert CONFIG.vision is not None
    short = min(width, height)
    things = (
        Thing("rectangle", "red", "large", 2, 3, short // 2, short // 2),
        Thing(
            "rectangle",
            "blue",
            "large",
            width - short // 2 - 2,
            height - short // 2 - 4,
            short // 2,
            short // 2,
        ),
    )
    scene = Scene(width, height, GREY, things)
    pixels = (
        make_views(draw(scene, np.random.default_rng(0)), CONFIG.vision).pixels_V3HW[0] / 2 + 0.5
    )
    size = CONFIG.vision.patch_size
    middles = (
        pixels[:, size // 2 :: size, size // 2 :: size].flatten(1).T * 255
    )  # one pixel of each patch
    owners = patch_owners(scene, CONFIG.vision.patches_per_side)
    for number, thing in enumerate(things, start=1):
        off = (middles[owners == number] - torch.tensor(COLOURS[thing.colour])).abs().amax(1)
        assert len(off) >= 4 and (off < 60).all()


def test_scenes_to_train_on_have_training_seeds(
    tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test picture that is trained on makes the score worthless."""
    seeds: list[int] = []

    def note(seed: int) -> tuple[Image.Image, Scene, np.random.Generator]:
        seeds.append(seed)
        return example(7)

    monkeypatch.setattr(datasets, "example", note)
    rng = np.random.default_rng(0)
    rows = [scene_row(rng, num_questions=1) for _ in range(300)]
    RegionTextDataset(CONFIG, tokenizer_file, num_images=30, phrases_each=1, seed=0)[5]
    assert len(seeds) == len(set(seeds)) == 330
    assert all(
        seed in TRAIN_SEEDS and seed not in TEST_SEEDS and seed not in VALID_SEEDS for seed in seeds
    )
    assert max(seeds) > 0.9 * TRAIN_SEEDS.stop
    kinds = [[type(turn) for turn in turns] for _, turns in rows]
    assert all(row[:2] == [Scene, Turn] and row[-1] is GroundingPhrase for row in kinds)


def test_scene_rows_are_asked_described_and_named() -> None:
    image, row = scene_row(np.random.default_rng(1))
    turns = [turn for turn in row if isinstance(turn, Turn)]
    named = [turn for turn in row if isinstance(turn, GroundingPhrase)]
    assert (
        image.mode == "RGB"
        and len(turns) == 10
        and 5 <= len(named) <= 16
        and len(row) == 11 + len(named)
    )
    assert [turn.loss_weight for turn in turns] == [1.0] * 9 + [CAPTION_IMPORTANCE]
    assert len({turn.question for turn in turns[:6]}) == 6
    assert all(turn.answer in ("yes", "no", *"0123456") for turn in turns[6:9])
    assert any(turns[-1].question in prompts for prompts in questions.CAPTION_PROMPTS.values())


def test_references_are_read_behind_the_picture(tokenizer: Tokenizer, batch: TrainingBatch) -> None:
    """Their words stand where a question's would, and their last one is told from; nothing is
    answered."""
    assert not batch["named"].any() and batch["facts"].shape == (0, len(FACTS))
    scene = example(3)[1]
    said = references(scene, np.random.default_rng(0), 4)
    rows: list[Row] = [(image, [*turns, *said]) for image, turns in ROWS]
    packed = pack(rows, tokenizer, CONFIG, np.random.default_rng(0))
    assert packed["facts"].tolist() == [list(reference.facts) for _ in rows for reference in said]
    for row, (_, turns) in enumerate(ROWS):
        ends = packed["named"][row].nonzero()[:, 0].tolist()
        assert len(ends) == len(said)
        for number, (end, reference) in enumerate(
            zip(ends, said, strict=True), start=len(turns) + 1
        ):
            own = packed["branch_ids"][row] == number
            words = packed["input_ids"][row, own].tolist()
            told = tokenizer.decode(words[: end + 1 - int(own.nonzero()[0, 0])])
            assert (
                told == f"\n{reference.text}" and tokenizer.decode(words) == told + reference.after
            )
            assert (packed["labels"][row, own] == IGNORE).all()
            first = int(own.nonzero()[0, 0])
            asked = batch["input_ids"][row] == tokenizer.encode("\n").ids[0]
            assert packed["segment_ids"][row, first] == batch["segment_ids"][row, asked][0]
            assert packed["position_ids"][row, first] == batch["position_ids"][row, asked][0]


def test_a_scene_is_told_at_the_tokens_of_its_picture(tokenizer: Tokenizer) -> None:
    """Row by row, each token tells of the thing that most of it shows, and only those of its own
    picture."""
    image, scene, _ = example(3)
    blank = (Image.new("RGB", (64, 64)), [Turn("is it?", "no")])
    said = references(scene, np.random.default_rng(0), 1)
    packed = pack(
        [blank, (image, [scene, *blank[1], *said])], tokenizer, CONFIG, np.random.default_rng(0)
    )
    pictured = packed["input_ids"] == TOKENS.image
    assert not packed["named"][0].any() and packed["named"][1].sum() == 37
    assert packed["named"][1, pictured[1]].all()
    assert packed["facts"][36].tolist() == list(said[0].facts)
    owners = patch_owners(scene, 12)
    for token in range(36):
        row, column = divmod(token, 6)
        shown = [
            int(owners[12 * (2 * row + down) + 2 * column + across])
            for down in (0, 1)
            for across in (0, 1)
        ]
        things = [scene.things[owner - 1] for owner in shown if owner]
        told = packed["facts"][token].tolist()
        if not things:
            assert set(told) == {UNKNOWN}
            continue
        *told, centre, of_its_shape, of_its_colour = told
        assert centre in (0, 1)
        assert (told, of_its_shape, of_its_colour) in [
            (
                list(facts_of([thing], scene))[:-3],
                sum(other.shape == thing.shape for other in scene.things),
                sum(other.colour == thing.colour for other in scene.things),
            )
            for thing in things
        ]


def test_a_thing_has_its_centre_on_one_token() -> None:
    """Unless a later thing covers it: then on none."""
    place = list(FACTS).index("centre")
    for seed in range(100):
        _, scene, _ = example(seed)
        side, extent = 6, max(scene.width, scene.height)
        wanted = set()
        for thing in scene.things:
            x = thing.centre[0] + (extent - scene.width) // 2
            y = thing.centre[1] + (extent - scene.height) // 2
            wanted.add(side * int(y * side / extent) + int(x * side / extent))
        marked = {
            token for token, facts in enumerate(_shown_facts(scene, CONFIG)) if facts[place] == 1
        }
        assert marked <= wanted and len(marked) >= len(wanted) - 1


def test_a_caption_tells_of_the_thing_it_speaks_of(tokenizer: Tokenizer) -> None:
    """At the tokens of the words for it, hidden or not, and at no others."""
    first, second = tuple(range(len(FACTS))), tuple(range(1, 1 + len(FACTS)))
    turn = Turn("what is it?", "a red star and a ring", spans=[(0, 10, first), (15, 21, second)])
    packed = pack([(ROWS[0][0], [turn])], tokenizer, CONFIG, np.random.default_rng(0))
    named = packed["named"][0].bool()
    told = [tokenizer.decode([i]) for i in packed["input_ids"][0, named].tolist()]
    cut = packed["facts"].tolist().index(list(second))
    assert ("".join(told[:cut]), "".join(told[cut:])) == ("a red star", " a ring")
    assert packed["facts"].tolist() == [list(first)] * cut + [list(second)] * (len(told) - cut)


def test_captions_are_asked_for_as_they_were_trained() -> None:
    """The first prompts are the pipeline's, and those of the shipped model's training."""
    assert {
        length: prompts[0] for length, prompts in questions.CAPTION_PROMPTS.items()
    } == CAPTION_PROMPTS
    assert CAPTION_PROMPTS["long"] == "Describe the picture in detail."
    assert CAPTION_ROOM == {"word": 8, "short": 32, "long": 64}


def test_easy_vqa_rows_come_from_the_train_split(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    by_path = {picture.path: dict(picture.questions) for picture in easy_vqa.load("train")}

    def note(picture: easy_vqa.EasyVqaImage) -> Image.Image:
        opened.append(picture.path)
        return Image.open(picture.path).convert("RGB")

    monkeypatch.setattr(easy_vqa.EasyVqaImage, "open", note)
    rng = np.random.default_rng(0)
    for _ in range(60):
        image, turns = easy_vqa_row(rng, num_questions=3)
        assert image.size == (64, 64) and len(turns) == len({turn.question for turn in turns}) == 3
        assert all(by_path[opened[-1]][turn.question] == turn.answer for turn in turns)
    assert len(set(opened)) > 50
    assert all(path.parts[-3:-1] == ("train", "images") for path in opened)


def test_the_splits_of_easy_vqa_share_no_picture() -> None:
    train, test = easy_vqa.load("train"), easy_vqa.load("test")
    assert (len(train), len(test)) == (4000, 1000)
    assert not {picture.path for picture in train} & {picture.path for picture in test}
    assert sum(len(picture.questions) for picture in train) == 38575


def test_easy_vqa_pictures_are_moved_but_keep_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift by a few pixels and a mirror leave the background's colour at the rim, not black, and
    the answer true."""
    original = Image.new("RGB", (64, 64), (230, 235, 240))
    original.paste((255, 0, 0), (10, 20, 30, 50))
    monkeypatch.setattr(easy_vqa.EasyVqaImage, "open", lambda picture: original)
    seen = set()
    for seed in range(40):
        image, _ = easy_vqa_row(np.random.default_rng(seed))
        pixels = np.asarray(image)
        red = (pixels == (255, 0, 0)).all(2)
        assert red.sum() == 20 * 30 and ((pixels == (230, 235, 240)).all(2) | red).all()
        seen.add((int(red.any(0).argmax()), int(red.any(1).argmax())))
    lefts, tops = {left for left, _ in seen}, {top for _, top in seen}
    assert lefts <= {*range(7, 14), *range(31, 38)} and tops <= set(range(17, 24))
    assert min(lefts) < 14 <= max(lefts) and len(tops) > 4


class TwoClips:
    count = 2

    def __getitem__(self, number: int) -> tuple[torch.Tensor, str]:
        return torch.randn(80, 150 + 100 * number), ("stop", "is there a red circle")[number]


def test_each_sound_is_a_branch_with_its_own_placeholders(tokenizer: Tokenizer) -> None:
    """12.5 of them a second, behind the opening and before the question; the row has no picture."""
    row = SpokenRows(TwoClips(), per_row=6)(np.random.default_rng(1))  # type: ignore[arg-type]
    packed = pack([ROWS[0], row], tokenizer, CONFIG, np.random.default_rng(0))
    assert packed["pixel_values"].shape[0] == 1 and packed["input_features"].shape[0] == 6 == len(
        packed["said"]
    )
    assert (
        not (packed["input_ids"][1] == TOKENS.image).any()
        and not (packed["input_ids"][0] == TOKENS.audio).any()
    )
    for branch, turn in enumerate(row[1], start=1):
        assert isinstance(turn, Turn) and turn.mel is not None
        here = packed["branch_ids"][1] == branch
        sounds = packed["input_ids"][1, here] == TOKENS.audio
        assert sounds.sum() == -(-turn.mel.shape[1] // 8) and sounds[: int(sounds.sum())].all()
        segments = packed["segment_ids"][1, here]
        assert (
            len(segments[sounds].unique()) == 1 and (segments[~sounds] > segments[sounds][0]).all()
        )
    assert packed["feature_lengths"].tolist() == [turn.mel.shape[1] for turn in row[1]]  # type: ignore[union-attr]


def test_reopened_drafts_keep_their_words_and_say_nothing_in_the_slack() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ids = rng.integers(10, 99, int(rng.integers(1, 20))).tolist()
        made, is_open = _reopened(ids, 1, rng)
        assert [token for token in made if token != 1] == ids and len(made) == len(is_open)
        assert all(here for token, here in zip(made, is_open, strict=True) if token == 1)
        assert any(is_open) and is_open[-1] and made[-1] == 1


MARKS = (
    "<|image|>",
    "<|eot_id|>",
    "<|mdm_mask|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<|audio|>",
)


@pytest.mark.parametrize("mark", MARKS)
def test_control_tokens_in_texts_are_harmless(
    tokenizer: Tokenizer, processor: MMDiffProcessor, mark: str
) -> None:
    """In questions, answers, references and structured parts, as in the prompts of a pipeline."""
    image = Image.new("RGB", (64, 64), "red")
    parts = [
        AnswerPart(f'{{"a {mark}": '),
        AnswerPart(f'"{mark}"', slot=True, alike=(f'"{mark} or more"',)),
        AnswerPart("}"),
    ]
    turns = [
        Turn(f"say {mark}{mark}", f"{mark} it {mark}"),
        Turn("structured", "", parts=parts, num_scaffolded=3),
        GroundingPhrase(f"the {mark}", (IGNORE,) * len(FACTS), f" or {mark}"),
    ]
    plain = [
        Turn("say", "it"),
        Turn(
            "structured",
            "",
            parts=[AnswerPart('{"a": '), AnswerPart('""', slot=True), AnswerPart("}")],
            num_scaffolded=3,
        ),
        GroundingPhrase("the", (IGNORE,) * len(FACTS), " or"),
    ]
    live = tokenizer.token_to_id(mark)
    counts = [
        int(
            (
                pack([(image, each)], tokenizer, CONFIG, np.random.default_rng(0))["input_ids"]
                == live
            ).sum()
        )
        for each in (turns, plain)
    ]
    if mark != "<|endoftext|>":  # pads canvases, of which a longer answer leaves less
        assert counts[0] == counts[1]
    asked = pack([(image, turns[:1])], tokenizer, CONFIG, np.random.default_rng(0))
    where, answer = positions(asked, 0, 1)
    assert torch.equal(
        asked["input_ids"][0, where],
        prompt(processor, [(image, turns[0].question)])["input_ids"][0],
    )
    said = asked["labels"][0, answer].tolist()
    assert said.index(TOKENS.eot) == len(said) - said.count(TOKENS.eos) - 1


def damaged(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "damaged.png").write_bytes(content)
    return tmp_path / "damaged.png"


@pytest.mark.parametrize("opened_by", [open_image, Image.open])
@pytest.mark.parametrize("kind", ["empty", "no image", "cut short", "missing"])
def test_a_damaged_image_is_left_out(
    tokenizer_file: Path, tmp_path: Path, kind: str, opened_by: Any
) -> None:
    """Whoever opens it, and also where the damage shows only when its pixels are wanted; the next
    one is taken."""
    whole = tmp_path / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    contents = {"empty": b"", "no image": b"hello", "cut short": whole.read_bytes()[:900]}
    bad = tmp_path / "nowhere.png" if kind == "missing" else damaged(tmp_path, contents[kind])

    def source(rng: np.random.Generator) -> Any:
        path = bad if rng.random() < 0.5 else whole
        return opened_by(path), [Turn("what?", path.stem)]

    data = ConversationDataset(CONFIG, tokenizer_file, [source] * 8, seed=0)
    first, again = data[0], data[0]
    assert first["input_ids"].shape[0] == 8 and first["skipped"] == again["skipped"]
    assert 1 < len(first["skipped"]) < 30 and all(len(reason) <= 300 for reason in first["skipped"])
    if kind == "missing" or opened_by is open_image:
        assert bad.name in first["skipped"][0]
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert (
        "skipped"
        not in ConversationDataset(
            CONFIG, tokenizer_file, [lambda rng: (None, [Turn("a", "b")])], seed=0
        )[0]
    )


def test_a_source_without_one_good_row_is_told(tokenizer_file: Path, tmp_path: Path) -> None:
    bad = damaged(tmp_path, b"hello")
    data = ConversationDataset(
        CONFIG, tokenizer_file, [lambda rng: (open_image(bad), [Turn("a", "b")])], seed=0
    )
    with pytest.raises(
        MMDiffError, match=f"{TRIES} rows .* cannot be read; the last: .*damaged.png"
    ):
        data[0]


def test_a_mistake_in_a_source_is_no_damage(tokenizer_file: Path) -> None:
    data = ConversationDataset(CONFIG, tokenizer_file, [lambda rng: {}["a"]], seed=0)
    with pytest.raises(KeyError):
        data[0]
