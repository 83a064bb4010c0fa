"""Batches as a function of their number: phrases for the tower, packed conversations for the whole model.

A packed row is one picture with several questions behind it, each a branch that sees the picture and itself only
(`attention.visibility`), so the picture is encoded once for all of them.

Shapes: B pictures, T positions, M phrases, R branches of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from mmdiff.config import ModelConfig
from mmdiff.tokens import CHAT_TEMPLATE, IMAGE, segment_ids
from mmdiff.training import easy_vqa
from mmdiff.training.corrupt import IGNORE
from mmdiff.training.loop import Batch
from mmdiff.training.questions import (
    ATTRIBUTES,
    CAPTION_PROMPTS,
    FACTS,
    Facts,
    Length,
    Phrase,
    Reference,
    caption_spans,
    captions,
    facts_of,
    phrases,
    questions,
    references,
    tell,
    truth_table,
)
from mmdiff.training.scenes import SHAPES, TRAIN_SEEDS, Scene, example, pick
from mmdiff.vision.views import make_views

PADDING_IMPORTANCE = 0.1  # of an end-of-text token behind an answer, against 1 for the answer's own tokens
CAPTION_IMPORTANCE = 0.8  # of a caption's token: one caption has as many tokens as ten answers
CANVAS_LENGTHS, CANVAS_ODDS = (8, 16, 32), (0.75, 0.1, 0.15)  # positions; an answer too long for one gets more
LEARNED_LAST = ("relation", "same")  # the kinds of question that compare two things, so asked more often
CAPTION_MIX: tuple[Length, ...] = ("word", "short", "short", "long", "long")  # the shares of the lengths
CAPTION_CANVAS: dict[Length, int] = {"word": 8, "short": 32, "long": 64}  # at least, lest the room tells the length


@dataclass(frozen=True)
class Turn:
    """A question about the row's picture and its answer."""

    question: str
    answer: str
    importance: float = 1.0
    canvas: int = 0  # positions at least, however short the answer
    spans: Sequence[tuple[int, int, Facts]] = ()  # where the answer speaks of what: characters, facts


Row = tuple[Image.Image, Sequence[Turn | Reference | Scene]]
Source = Callable[[np.random.Generator], Row]


def scene_row(rng: np.random.Generator, num_questions: int = 6, num_compared: int = 2, num_references: int = 16) -> Row:
    """A generated scene of the training seeds, with its contents, questions, one caption, and words for its things."""
    image, scene, rng = example(int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)))
    turns = [Turn(qa.question, qa.answer) for qa in questions(scene, rng, num_questions)]
    turns += [Turn(qa.question, qa.answer) for qa in questions(scene, rng, num_compared, LEARNED_LAST)]
    length = pick(rng, CAPTION_MIX)
    prompts = CAPTION_PROMPTS[length]
    prompt = prompts[int(rng.integers(len(prompts)))]
    text = captions(scene)[length]
    spans = caption_spans(text, scene) if length != "word" else []
    turns.append(Turn(prompt, text, CAPTION_IMPORTANCE, CAPTION_CANVAS[length], spans))
    return image, [scene, *turns, *references(scene, rng, num_references)]


def easy_vqa_row(rng: np.random.Generator, num_questions: int = 8) -> Row:
    """A picture of easy-VQA's train split, mirrored and shifted at random, with some of its questions."""
    pictures = easy_vqa.load("train")
    picture = pictures[int(rng.integers(len(pictures)))]
    image = picture.open()
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    corner = image.getpixel((0, 0))
    shift_x, shift_y = (int(v) for v in rng.integers(-3, 4, 2))  # pixels of 64
    moved = Image.new("RGB", image.size, corner)
    moved.paste(image, (shift_x, shift_y))
    asked = rng.permutation(len(picture.questions))[:num_questions]
    return moved, [Turn(*picture.questions[i]) for i in asked]


class Conversations(Dataset[Batch]):
    """Packed conversations; `sources` gives the rows of a batch, in order."""

    def __init__(self, config: ModelConfig, tokenizer_file: Path, sources: Sequence[Source], seed: int) -> None:
        self.config, self.tokenizer_file, self.sources, self.seed = config, tokenizer_file, sources, seed

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        return pack([source(rng) for source in self.sources], self.tokenizer, self.config, rng)


class Phrases(Dataset[Batch]):
    """Pictures with the thing each patch shows, phrases, and which phrase is true of which thing.

    Every batch holds each one-attribute phrase, and `phrases_each` longer ones about each picture.
    """

    def __init__(
        self, config: ModelConfig, tokenizer_file: Path, num_pictures: int, phrases_each: int, seed: int
    ) -> None:
        self.config, self.tokenizer_file, self.seed = config, tokenizer_file, seed
        self.num_pictures, self.phrases_each = num_pictures, phrases_each

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def __getitem__(self, number: int) -> Batch:
        assert self.config.vision is not None
        rng = np.random.default_rng((self.seed, number))
        examples = [example(int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop))) for _ in range(self.num_pictures)]
        said = [Phrase(**{name: value}) for name, values in ATTRIBUTES.items() for value in values]
        said += [Phrase(shape=shape) for shape in SHAPES] * 2  # learned last, so said more often
        said += [phrase for _, scene, own in examples for phrase in phrases(scene, own, self.phrases_each)]
        ids = [self.tokenizer.encode(phrase.text()).ids for phrase in said]
        alone = [replace(scene, things=(thing,)) for _, scene, _ in examples for thing in scene.things]
        truth = torch.from_numpy(truth_table(said, alone))
        owners, before = [], 0
        for _, scene, _ in examples:
            owner = patch_owners(scene, self.config.vision.patches_per_side)
            owners.append(torch.where(owner > 0, owner + before, 0))
            before += len(scene.things)
        return {
            "pixel_values": _pixels([image for image, _, _ in examples], self.config),
            "phrase_ids": _pad(ids, self.config.tokens.pad),
            "phrase_mask": _pad([[1] * len(row) for row in ids], 0).bool(),
            "owner": torch.stack(owners),
            "truth": torch.cat((torch.zeros(1, len(said), dtype=torch.bool), truth)),
        }


def patch_owners(scene: Scene, patches_per_side: int) -> Tensor:
    """Which thing each patch of the padded square shows, (P): 0 for background, else 1 + its number in the scene.

    A patch shows the uppermost thing that has the patch's centre in the middle 80 % of its bounding box.
    """
    side = max(scene.width, scene.height)
    centres = (torch.arange(patches_per_side) + 0.5) / patches_per_side * side  # pixels of the padded square
    x, y = centres - (side - scene.width) // 2, centres - (side - scene.height) // 2
    owner = torch.zeros(patches_per_side, patches_per_side, dtype=torch.long)
    for number, thing in enumerate(scene.things, start=1):
        across = (x - thing.centre[0]).abs() < 0.4 * thing.width
        down = (y - thing.centre[1]).abs() < 0.4 * thing.height
        owner[down[:, None] & across] = number
    return owner.flatten()


def pack(rows: Sequence[Row], tokenizer: Tokenizer, config: ModelConfig, rng: np.random.Generator) -> Batch:
    """One batch: the chat prompt of each picture once, its questions and answers as branches behind it.

    A `Reference` is a branch of its words alone. `named` (B, T) is 1 at their end, in answers where they speak
    of something, and at the picture's tokens where the row has its `Scene`. `facts` (N, K) holds what is to be told
    there, in reading order.
    """
    assert config.vision is not None and config.tokens.image is not None
    before, after = _prompt_parts()
    start = tokenizer.encode(before).ids + [config.tokens.image] * config.vision.tokens_per_side**2
    packed, facts = zip(*(_pack_row(turns, start, after, tokenizer, config, rng) for _, turns in rows), strict=True)
    fills = {"input_ids": config.tokens.pad, "labels": IGNORE, "importance": 0.0}
    batch: Batch = {name: _pad([row[name] for row in packed], fills.get(name, 0)) for name in packed[0]}
    batch["attention_mask"] = _pad([[1] * len(row["input_ids"]) for row in packed], 0).bool()
    batch["pixel_values"] = _pixels([image for image, _ in rows], config)
    batch["image_sizes"] = torch.tensor([image.size for image, _ in rows])
    batch["image_grids"] = torch.zeros(len(rows), 2, dtype=torch.long)
    batch["facts"] = torch.tensor([fact for row in facts for fact in row], dtype=torch.long).view(-1, len(FACTS))
    return batch


def _pack_row(
    turns: Sequence[Turn | Reference | Scene], start: list[int], question: str, tokenizer: Tokenizer,
    config: ModelConfig, rng: np.random.Generator,
) -> tuple[dict[str, list[int] | list[float]], list[Facts]]:
    tokens = config.tokens
    ids, labels, importance = list(start), [IGNORE] * len(start), [0.0] * len(start)
    segments = segment_ids(torch.tensor([start]), tokens)[0].tolist()
    positions, branches = list(range(len(start))), [0] * len(start)
    told: list[Facts | None] = [None] * len(start)
    for scene in (turn for turn in turns if isinstance(turn, Scene)):
        shown = iter(_shown_facts(scene, config))
        told = [next(shown) if token == tokens.image else None for token in start]
    for branch, turn in enumerate((turn for turn in turns if not isinstance(turn, Scene)), start=1):
        canvas: list[int] = []
        weights: list[float] = []
        if isinstance(turn, Reference):
            prompt = tokenizer.encode(f"\n{turn.text}").ids
            after = tokenizer.encode(turn.after).ids if turn.after else []
            told += [None] * (len(prompt) - 1) + [turn.facts] + [None] * len(after)
            prompt += after
        else:
            prompt = tokenizer.encode(question.format(turn.question)).ids
            encoded = tokenizer.encode(turn.answer)
            answer = [*encoded.ids, tokens.eot]
            room = int(rng.choice(CANVAS_LENGTHS, p=CANVAS_ODDS))
            padding = max(room, turn.canvas, -(-len(answer) // 8) * 8) - len(answer)
            canvas = answer + [tokens.eos] * padding
            weights = [turn.importance] * len(answer) + [PADDING_IMPORTANCE] * padding
            about = [next((facts for first, end, facts in turn.spans if first < stop <= end), None)
                     for _, stop in encoded.offsets]
            told += [None] * len(prompt) + about + [None] * (1 + padding)
        prompt_segments = segment_ids(torch.tensor([start + prompt]), tokens)[0, len(start):].tolist()
        ids += prompt + canvas
        labels += [IGNORE] * len(prompt) + canvas
        importance += [0.0] * len(prompt) + weights
        segments += prompt_segments + [prompt_segments[-1] + 1] * len(canvas)
        positions += range(len(start), len(start) + len(prompt) + len(canvas))
        branches += [branch] * (len(prompt) + len(canvas))
    row: dict[str, list[int] | list[float]] = {
        "input_ids": ids, "labels": labels, "importance": importance, "segment_ids": segments,
        "position_ids": positions, "branch_ids": branches, "named": [int(facts is not None) for facts in told],
    }
    return row, [facts for facts in told if facts is not None]


def _shown_facts(scene: Scene, config: ModelConfig) -> list[Facts]:
    """For each of a picture's tokens, what is so of the thing that it shows."""
    assert config.vision is not None
    side, merged = config.vision.tokens_per_side, config.vision.pixel_shuffle
    owners = patch_owners(scene, config.vision.patches_per_side).view(side, merged, side, merged)
    facts = [tell({}), *(facts_of([thing], scene) for thing in scene.things)]
    return [facts[owner] for owner in owners.amax((1, 3)).flatten().tolist()]


def _prompt_parts() -> tuple[str, str]:
    """The chat prompt of one picture and a question, before the picture and (with a {} for the question) after it."""
    from jinja2 import Template

    content = [{"type": "image"}, {"type": "text", "text": "{}"}]
    text = Template(CHAT_TEMPLATE).render(
        messages=[{"role": "user", "content": content}], bos_token="<|startoftext|>", add_generation_prompt=True
    )
    before, after = text.split(IMAGE)
    return before, after


def _pixels(images: Sequence[Image.Image], config: ModelConfig) -> Tensor:
    assert config.vision is not None
    return torch.cat([make_views(image, config.vision).pixels_V3HW for image in images])


def _pad(rows: Sequence[Sequence[float]], fill: float) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
