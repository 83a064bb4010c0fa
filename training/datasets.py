"""Batches as a function of their number: phrases for the tower, clips for CTC, and packed
conversations for the whole model.

Shapes: M mels and F frames (10 ms) of a clip of audio.
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
from torch.utils.data import Dataset

from mmdiff.config import ModelConfig
from mmdiff.errors import MMDiffError
from mmdiff.prompts import CAPTION_ROOM, REFINE_PROMPT
from mmdiff.training.batches import TrainingBatch
from mmdiff.training.packing import Row, Turn, audio_inputs, pack, pad, patch_owners, pixels
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.augment import augment
from mmdiff.training.tiny.questions import (
    ATTRIBUTES,
    CAPTION_PROMPTS,
    Length,
    Phrase,
    caption_spans,
    captions,
    phrases,
    questions,
    references,
    truth_table,
)
from mmdiff.training.tiny.scenes import SHAPES, TRAIN_SEEDS, example, pick
from mmdiff.training.tiny.sentences import TRANSCRIBE_PROMPTS, heard_question
from mmdiff.training.tiny.speech import Speech
from mmdiff.training.tiny.structured import structured
from mmdiff.vision.image_io import open_image

CAPTION_IMPORTANCE = 0.8  # of a caption's token: one caption has as many tokens as ten answers
# Kinds of question that take long to learn, so asked more often.
LEARNED_LAST = ("relation", "same", "count")
CAPTION_MIX: tuple[Length, ...] = ("word", "short", "short", "long", "long")  # shares of lengths
# A batch of clips is drawn among this many times its number that follow each other in length.
ALIKE = 12
MAX_FRAMES = 800  # of 10 ms, of a clip that another may follow
TRIES = 20  # rows of one source after each other that cannot be read, before the run ends
Source = Callable[[np.random.Generator], Row]


def scene_row(
    rng: np.random.Generator,
    num_questions: int = 6,
    num_hard: int = 3,
    num_references: int = 16,
    num_structured: int = 0,
) -> Row:
    """A generated scene of the training seeds: contents, questions, one caption, JSON, and words
    for its things."""
    image, scene, rng = example(int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)))
    turns = []
    for qa in questions(scene, rng, num_questions):
        turns.append(Turn(qa.question, qa.answer))
    for qa in questions(scene, rng, num_hard, LEARNED_LAST):
        turns.append(Turn(qa.question, qa.answer))
    length = pick(rng, CAPTION_MIX)
    prompts = CAPTION_PROMPTS[length]
    prompt = prompts[int(rng.integers(len(prompts)))]
    text = captions(scene)[length]
    spans = []
    if length != "word":
        spans = caption_spans(text, scene)
    # At least the length that captions are asked for with, lest the canvas's tells the caption's.
    turns.append(Turn(prompt, text, CAPTION_IMPORTANCE, CAPTION_ROOM[length], spans))
    for _ in range(num_structured):
        prompt, parts, laid_out = structured(scene, rng)
        turns.append(Turn(prompt, "", parts=parts, num_scaffolded=laid_out))
    return image, [scene, *turns, *references(scene, rng, num_references)]


def easy_vqa_row(rng: np.random.Generator, num_questions: int = 8) -> Row:
    """An image of easy-VQA's train split, mirrored and shifted at random, with some of its
    questions."""
    images = easy_vqa.load("train")
    chosen = images[int(rng.integers(len(images)))]
    image = chosen.open()
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    corner = image.getpixel((0, 0))
    shift_x, shift_y = rng.integers(-3, 4, 2).tolist()  # pixels of 64
    moved = Image.new("RGB", image.size, corner)
    moved.paste(image, (shift_x, shift_y))
    asked = rng.permutation(len(chosen.questions))[:num_questions]
    return moved, [Turn(*chosen.questions[i]) for i in asked]


@dataclass(frozen=True)
class SpokenRows:
    """A source of rows of spoken sentences, each to be written down, put right, or asked about."""

    speech: Speech
    per_row: int = 7
    transcribe: float = 0.45  # share of the clips to be written down
    refine: float = 0.35  # share to be put right; the rest is asked about

    def __call__(self, rng: np.random.Generator) -> Row:
        return None, [self._turn(rng) for _ in range(self.per_row)]

    def _turn(self, rng: np.random.Generator) -> Turn:
        mel, said = self.speech[int(rng.integers(self.speech.count))]
        while rng.random() < 0.15 and mel.shape[1] < MAX_FRAMES:
            more, words = self.speech[int(rng.integers(self.speech.count))]
            mel = torch.cat((mel, more), dim=1)
            said = f"{said} {words}"
        mel = augment(mel, rng)
        form = rng.random()
        if form < self.transcribe:
            return Turn(pick(rng, TRANSCRIBE_PROMPTS), said, mel=mel, transcript=said)
        if form < self.transcribe + self.refine:
            return Turn(REFINE_PROMPT, said, mel=mel, transcript=said, padding_slots=True)
        return Turn(*heard_question(said, rng), mel=mel, transcript=said)


def read_row(source: Source, rng: np.random.Generator) -> tuple[Row, list[str]]:
    """The next row of a source that can be read, and what is wrong with those before it.

    Raises:
        MMDiffError: none of many can.
    """
    skipped: list[str] = []
    while len(skipped) < TRIES:
        try:
            image, turns = source(rng)
            # Upright and in RGB; and Pillow reads a file only when it is asked for its pixels.
            if image is not None:
                image = open_image(image)
            return (image, turns), skipped
        except (MMDiffError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            skipped.append(f"{error}"[:300])
    raise MMDiffError(
        f"{TRIES} rows of the training data after each other cannot be read; "
        f"the last: {skipped[-1]}"
    )


class ConversationDataset(Dataset[TrainingBatch]):
    """Packed conversations; `sources` gives the rows of a batch, in order.

    A row whose image or audio cannot be read is left out, and the next one of its source takes its
    place.
    """

    def __init__(
        self, config: ModelConfig, tokenizer_file: Path, sources: Sequence[Source], seed: int
    ) -> None:
        self.config, self.tokenizer_file = config, tokenizer_file
        self.sources, self.seed = sources, seed

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def __getitem__(self, number: int) -> TrainingBatch:
        rng = np.random.default_rng((self.seed, number))
        rows = []
        reasons: list[str] = []
        for source in self.sources:
            row, skipped = read_row(source, rng)
            rows.append(row)
            reasons += skipped
        batch = pack(rows, self.tokenizer, self.config, rng)
        if reasons:
            batch["skipped"] = reasons
        return batch


class RegionTextDataset(Dataset[TrainingBatch]):
    """Images with the thing each patch shows, phrases, and which phrase is true of which thing.

    Every batch holds each one-attribute phrase, and `phrases_each` longer ones about each image.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer_file: Path,
        num_images: int,
        phrases_each: int,
        seed: int,
    ) -> None:
        self.config, self.tokenizer_file = config, tokenizer_file
        self.num_images, self.phrases_each = num_images, phrases_each
        self.seed = seed

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def __getitem__(self, number: int) -> TrainingBatch:
        assert self.config.vision is not None
        rng = np.random.default_rng((self.seed, number))
        examples = []
        for _ in range(self.num_images):
            examples.append(example(int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop))))
        said = []
        for name, values in ATTRIBUTES.items():
            for value in values:
                said.append(Phrase(**{name: value}))
        said += [Phrase(shape=shape) for shape in SHAPES] * 2  # learned last, so said more often
        for _, scene, own in examples:
            said += phrases(scene, own, self.phrases_each)
        ids, lengths = [], []
        for phrase in said:
            ids.append(self.tokenizer.encode(phrase.text()).ids)
            lengths.append([1] * len(ids[-1]))
        alone = []
        for _, scene, _ in examples:
            for thing in scene.things:
                alone.append(replace(scene, things=(thing,)))
        truth = torch.from_numpy(truth_table(said, alone))
        owners, before = [], 0
        for _, scene, _ in examples:
            owner = patch_owners(scene, self.config.vision.patches_per_side)
            owners.append(torch.where(owner > 0, owner + before, 0))
            before += len(scene.things)
        return {
            "pixel_values": pixels([image for image, _, _ in examples], self.config),
            "phrase_ids": pad(ids, self.config.tokens.pad),
            "phrase_mask": pad(lengths, 0).bool(),
            "owner": torch.stack(owners),
            "truth": torch.cat((torch.zeros(1, len(said), dtype=torch.bool), truth)),
        }


class SpeechDataset(Dataset[TrainingBatch]):
    """The spectrograms of `num_clips` clips about as long as each other, and the tokens of what is
    said."""

    def __init__(self, speech: Speech, tokenizer_file: Path, num_clips: int, seed: int) -> None:
        self.speech, self.tokenizer_file = speech, tokenizer_file
        self.num_clips, self.seed = num_clips, seed

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def __getitem__(self, number: int) -> TrainingBatch:
        rng = np.random.default_rng((self.seed, number))
        span = min(ALIKE * self.num_clips, self.speech.count)
        start = int(rng.integers(self.speech.count - span + 1))
        numbers = rng.choice(self.speech.by_length[start : start + span], self.num_clips)
        mels, transcripts = [], []
        for clip in numbers:
            mel, said = self.speech[int(clip)]
            mels.append(augment(mel, rng))
            transcripts.append(said)
        return audio_inputs(mels, transcripts, self.tokenizer)
