"""Batches as a function of their number: phrases for the tower, packed conversations for the whole
model.

A packed row is one picture with several questions behind it, each a branch that sees the picture
and itself only (`attention.build_attention_mask`), so the picture is encoded once for all of them. Sounds are
short: a row of them has no picture, and in each branch a sound of its own.

Shapes: B rows, T positions, M phrases, R branches of a row, M mels and F frames (10 ms) of a
sound.
"""

from __future__ import annotations

from collections import Counter
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

from mmdiff.audio.connector import count_tokens
from mmdiff.audio.log_mel import pad_mels
from mmdiff.config import ModelConfig, TokenIds
from mmdiff.errors import MMDiffError
from mmdiff.structured.schema.serialize import slot_ids
from mmdiff.tokens import CHAT_TEMPLATE, IMAGE, control_tokens, neutralize, segment_ids
from mmdiff.training.forward_process import IGNORE
from mmdiff.training.loop import SKIPPED, Batch
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.augment import augment
from mmdiff.training.tiny.questions import (
    ATTRIBUTES,
    CAPTION_PROMPTS,
    FACTS,
    Facts,
    GroundingPhrase,
    Length,
    Phrase,
    caption_spans,
    captions,
    facts_of,
    phrases,
    questions,
    references,
    tell,
    truth_table,
)
from mmdiff.training.tiny.scenes import SHAPES, TRAIN_SEEDS, Scene, example, pick
from mmdiff.training.tiny.sentences import REFINE_PROMPT, TRANSCRIBE_PROMPTS, heard_question
from mmdiff.training.tiny.speech import Speech
from mmdiff.training.tiny.structured import AnswerPart, structured
from mmdiff.vision.image_io import open_image
from mmdiff.vision.preprocess import make_views

PADDING_IMPORTANCE = (
    0.1  # of an end-of-text token behind an answer, against 1 for the answer's own tokens
)
LITERAL_IMPORTANCE = 0.3  # of what the structure of an answer tells,
DECISION_IMPORTANCE = 3.0  # and of where it is decided
DECISION_ROOMS = range(
    18, 27
)  # positions from a decision on; if they told its answer, nothing else would be learned
CAPTION_IMPORTANCE = 0.8  # of a caption's token: one caption has as many tokens as ten answers
CANVAS_LENGTHS, CANVAS_ODDS = (
    (8, 16, 32),
    (0.75, 0.1, 0.15),
)  # positions; an answer too long for one gets more
LEARNED_LAST = (
    "relation",
    "same",
    "count",
)  # kinds of question that take long to learn, so asked more often
CAPTION_MIX: tuple[Length, ...] = (
    "word",
    "short",
    "short",
    "long",
    "long",
)  # the shares of the lengths
ALIKE = (
    12  # a batch of clips is drawn among so many times its number that follow each other in length
)
MAX_FRAMES = 800  # of 10 ms, of a sound that another may follow
CAPTION_CANVAS: dict[Length, int] = {
    "word": 8,
    "short": 32,
    "long": 64,
}  # at least, lest the room tells the length


@dataclass(frozen=True)
class Turn:
    """A question about the row's picture, or about a sound, and its answer."""

    question: str
    answer: str
    loss_weight: float = 1.0
    canvas: int = 0  # positions at least, however short the answer
    spans: Sequence[
        tuple[int, int, Facts]
    ] = ()  # where the answer speaks of what: characters, facts
    sound: Tensor | None = None  # a spectrogram, (M, F)
    transcript: str = ""  # the words in the sound, for the draft at its embeddings
    # runs of the answer are open and may be too long; nothing is said in what is left over
    padding_slots: bool = False
    parts: Sequence[AnswerPart] = ()  # of a structured answer, instead of `answer`
    num_scaffolded: int = 0  # how many of the parts stand as a scaffold, with only their slots open


TRIES = 20  # rows of one source after each other that cannot be read, before the run ends
Row = tuple[Image.Image | None, Sequence[Turn | GroundingPhrase | Scene]]
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
    turns = [Turn(qa.question, qa.answer) for qa in questions(scene, rng, num_questions)]
    turns += [Turn(qa.question, qa.answer) for qa in questions(scene, rng, num_hard, LEARNED_LAST)]
    length = pick(rng, CAPTION_MIX)
    prompts = CAPTION_PROMPTS[length]
    prompt = prompts[int(rng.integers(len(prompts)))]
    text = captions(scene)[length]
    spans = caption_spans(text, scene) if length != "word" else []
    turns.append(Turn(prompt, text, CAPTION_IMPORTANCE, CAPTION_CANVAS[length], spans))
    for _ in range(num_structured):
        prompt, parts, laid_out = structured(scene, rng)
        turns.append(Turn(prompt, "", parts=parts, num_scaffolded=laid_out))
    return image, [scene, *turns, *references(scene, rng, num_references)]


def easy_vqa_row(rng: np.random.Generator, num_questions: int = 8) -> Row:
    """A picture of easy-VQA's train split, mirrored and shifted at random, with some of its
    questions."""
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


@dataclass(frozen=True)
class Sounds:
    """A source of rows of spoken sentences, each to be written down, put right, or asked about."""

    speech: Speech
    per_row: int = 7
    transcribe: float = 0.45  # share of the sounds to be written down
    refine: float = 0.35  # share to be put right; the rest is asked about

    def __call__(self, rng: np.random.Generator) -> Row:
        return None, [self._turn(rng) for _ in range(self.per_row)]

    def _turn(self, rng: np.random.Generator) -> Turn:
        sound, said = self.speech[int(rng.integers(self.speech.count))]
        while rng.random() < 0.15 and sound.shape[1] < MAX_FRAMES:
            more, words = self.speech[int(rng.integers(self.speech.count))]
            sound, said = torch.cat((sound, more), dim=1), f"{said} {words}"
        sound = augment(sound, rng)
        form = rng.random()
        if form < self.transcribe:
            return Turn(pick(rng, TRANSCRIBE_PROMPTS), said, sound=sound, transcript=said)
        if form < self.transcribe + self.refine:
            return Turn(REFINE_PROMPT, said, sound=sound, transcript=said, padding_slots=True)
        return Turn(*heard_question(said, rng), sound=sound, transcript=said)


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
            return (None if image is None else open_image(image), turns), skipped
        except (MMDiffError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            skipped.append(f"{error}"[:300])
    raise MMDiffError(
        f"{TRIES} rows of the training data after each other cannot be read; the last: {skipped[-1]}"
    )


class ConversationDataset(Dataset[Batch]):
    """Packed conversations; `sources` gives the rows of a batch, in order.

    A row whose image or sound cannot be read is left out, and the next one of its source takes its
    place.
    """

    def __init__(
        self, config: ModelConfig, tokenizer_file: Path, sources: Sequence[Source], seed: int
    ) -> None:
        self.config, self.tokenizer_file, self.sources, self.seed = (
            config,
            tokenizer_file,
            sources,
            seed,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        rows, skipped = zip(*(read_row(source, rng) for source in self.sources), strict=True)
        batch = pack(rows, self.tokenizer, self.config, rng)
        reasons = [reason for some in skipped for reason in some]
        return {**batch, SKIPPED: reasons} if reasons else batch


class RegionTextDataset(Dataset[Batch]):
    """Pictures with the thing each patch shows, phrases, and which phrase is true of which thing.

    Every batch holds each one-attribute phrase, and `phrases_each` longer ones about each picture.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer_file: Path,
        num_pictures: int,
        phrases_each: int,
        seed: int,
    ) -> None:
        self.config, self.tokenizer_file, self.seed = config, tokenizer_file, seed
        self.num_pictures, self.phrases_each = num_pictures, phrases_each

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def __getitem__(self, number: int) -> Batch:
        assert self.config.vision is not None
        rng = np.random.default_rng((self.seed, number))
        examples = [
            example(int(rng.integers(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)))
            for _ in range(self.num_pictures)
        ]
        said = [Phrase(**{name: value}) for name, values in ATTRIBUTES.items() for value in values]
        said += [Phrase(shape=shape) for shape in SHAPES] * 2  # learned last, so said more often
        said += [
            phrase
            for _, scene, own in examples
            for phrase in phrases(scene, own, self.phrases_each)
        ]
        ids = [self.tokenizer.encode(phrase.text()).ids for phrase in said]
        alone = [
            replace(scene, things=(thing,)) for _, scene, _ in examples for thing in scene.things
        ]
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


class SpeechDataset(Dataset[Batch]):
    """The spectrograms of `num_clips` clips about as long as each other, and the tokens of what is
    said."""

    def __init__(self, speech: Speech, tokenizer_file: Path, num_clips: int, seed: int) -> None:
        self.speech, self.tokenizer_file, self.num_clips, self.seed = (
            speech,
            tokenizer_file,
            num_clips,
            seed,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.tokenizer_file))

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        span = min(ALIKE * self.num_clips, self.speech.count)
        start = int(rng.integers(self.speech.count - span + 1))
        numbers = rng.choice(self.speech.by_length[start : start + span], self.num_clips)
        heard, said = zip(*(self.speech[int(number)] for number in numbers), strict=True)
        return _sound_inputs([augment(sound, rng) for sound in heard], said, self.tokenizer)


def _sound_inputs(heard: Sequence[Tensor], said: Sequence[str], tokenizer: Tokenizer) -> Batch:
    mels, lengths = pad_mels(heard)
    spelled = _pad([tokenizer.encode(text).ids for text in said], IGNORE)
    return {"input_features": mels, "feature_lengths": lengths, "said": spelled}


def patch_owners(scene: Scene, patches_per_side: int) -> Tensor:
    """Which thing each patch of the padded square shows, (P): 0 for background, else 1 + its number
    in the scene.

    A patch shows the uppermost thing that has the patch's centre in the middle 80 % of its bounding
    box.
    """
    side = max(scene.width, scene.height)
    centres = (
        (torch.arange(patches_per_side) + 0.5) / patches_per_side * side
    )  # pixels of the padded square
    x, y = centres - (side - scene.width) // 2, centres - (side - scene.height) // 2
    owner = torch.zeros(patches_per_side, patches_per_side, dtype=torch.long)
    for number, thing in enumerate(scene.things, start=1):
        across = (x - thing.centre[0]).abs() < 0.4 * thing.width
        down = (y - thing.centre[1]).abs() < 0.4 * thing.height
        owner[down[:, None] & across] = number
    return owner.flatten()


def pack(
    rows: Sequence[Row], tokenizer: Tokenizer, config: ModelConfig, rng: np.random.Generator
) -> Batch:
    """One batch: the chat prompt of each picture once, its questions and answers as branches behind
    it.

    A `GroundingPhrase` is a branch of its words alone. `named` (B, T) is 1 at their end, in answers where
    they speak of something, and at the picture's tokens where the row has its `Scene`. `facts` (N,
    K) holds what is to be told there, in reading order.
    """
    assert config.vision is not None and config.tokens.image is not None
    before, after = _prompt_parts()
    opening = tokenizer.encode(before).ids
    shown = opening + [config.tokens.image] * config.vision.tokens_per_side**2
    packed, facts = zip(
        *(
            _pack_row(turns, shown if image else opening, after, tokenizer, config, rng)
            for image, turns in rows
        ),
        strict=True,
    )
    images = [image for image, _ in rows if image is not None]
    sounds = [
        turn
        for _, turns in rows
        for turn in turns
        if isinstance(turn, Turn) and turn.sound is not None
    ]
    fills = {"input_ids": config.tokens.pad, "labels": IGNORE, "importance": 0.0}
    batch: Batch = {
        name: _pad([row[name] for row in packed], fills.get(name, 0)) for name in packed[0]
    }
    batch["attention_mask"] = _pad([[1] * len(row["input_ids"]) for row in packed], 0).bool()
    if images:
        batch["pixel_values"] = _pixels(images, config)
        batch["image_sizes"] = torch.tensor([image.size for image in images])
        batch["image_grids"] = torch.zeros(len(images), 2, dtype=torch.long)
    if sounds:
        heard = [turn.sound for turn in sounds if turn.sound is not None]
        controls = control_tokens(tokenizer, config.tokens)
        batch.update(
            _sound_inputs(
                heard, [neutralize(turn.transcript, controls) for turn in sounds], tokenizer
            )
        )
    batch["facts"] = torch.tensor([fact for row in facts for fact in row], dtype=torch.long).view(
        -1, len(FACTS)
    )
    return batch


def _pack_row(
    turns: Sequence[Turn | GroundingPhrase | Scene],
    start: list[int],
    question: str,
    tokenizer: Tokenizer,
    config: ModelConfig,
    rng: np.random.Generator,
) -> tuple[dict[str, list[int] | list[float]], list[Facts]]:
    tokens, controls = config.tokens, control_tokens(tokenizer, config.tokens)
    turns = [turn if isinstance(turn, Scene) else _harmless(turn, controls) for turn in turns]
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
        open_here: list[bool] = []
        if isinstance(turn, GroundingPhrase):
            prompt = tokenizer.encode(f"\n{turn.text}").ids
            after = tokenizer.encode(turn.after).ids if turn.after else []
            told += [None] * (len(prompt) - 1) + [turn.facts] + [None] * len(after)
            prompt += after
        elif turn.parts:
            prompt = tokenizer.encode(question.format(turn.question)).ids
            canvas, open_here, weights, about = _laid_out(turn, tokenizer, tokens, rng)
            told += [None] * len(prompt) + about
        else:
            prompt = (
                _placeholders(turn, config) + tokenizer.encode(question.format(turn.question)).ids
            )
            encoded = tokenizer.encode(turn.answer)
            answer = [*encoded.ids, tokens.eot]
            room = int(rng.choice(CANVAS_LENGTHS, p=CANVAS_ODDS))
            padding = max(room, turn.canvas, -(-len(answer) // 8) * 8) - len(answer)
            canvas = answer + [tokens.eos] * padding
            open_here = [True] * len(canvas)
            if turn.padding_slots:
                reopened, open_here = _reopened(encoded.ids, tokens.eos, rng)
                canvas, open_here, padding = [*reopened, tokens.eot], [*open_here, False], 0
            weights = [turn.loss_weight] * (len(canvas) - padding) + [PADDING_IMPORTANCE] * padding
            about = [
                next((facts for first, end, facts in turn.spans if first < stop <= end), None)
                for _, stop in encoded.offsets
            ]
            told += [None] * len(prompt) + about + [None] * (len(canvas) - len(about))
        prompt_segments = segment_ids(torch.tensor([start + prompt]), tokens)[
            0, len(start) :
        ].tolist()
        ids += prompt + canvas
        labels += [IGNORE] * len(prompt)
        labels += [token if here else IGNORE for token, here in zip(canvas, open_here, strict=True)]
        importance += [0.0] * len(prompt) + weights
        segments += prompt_segments + [prompt_segments[-1] + 1] * len(canvas)
        positions += range(len(start), len(start) + len(prompt) + len(canvas))
        branches += [branch] * (len(prompt) + len(canvas))
    row: dict[str, list[int] | list[float]] = {
        "input_ids": ids,
        "labels": labels,
        "importance": importance,
        "segment_ids": segments,
        "position_ids": positions,
        "branch_ids": branches,
        "named": [int(facts is not None) for facts in told],
    }
    return row, [facts for facts in told if facts is not None]


def _harmless(turn: Turn | GroundingPhrase, controls: frozenset[str]) -> Turn | GroundingPhrase:
    """Without control tokens in its texts, as prompts have none."""
    if isinstance(turn, GroundingPhrase):
        return replace(
            turn, text=neutralize(turn.text, controls), after=neutralize(turn.after, controls)
        )
    parts = [
        replace(
            part,
            text=neutralize(part.text, controls),
            alike=tuple(neutralize(text, controls) for text in part.alike),
        )
        for part in turn.parts
    ]
    return replace(
        turn,
        question=neutralize(turn.question, controls),
        answer=neutralize(turn.answer, controls),
        transcript=neutralize(turn.transcript, controls),
        parts=parts,
    )


def _laid_out(
    turn: Turn, tokenizer: Tokenizer, tokens: TokenIds, rng: np.random.Generator
) -> tuple[list[int], list[bool], list[float], list[Facts | None]]:
    """The canvas of a structured answer, what is open in it, how much that matters, and what it is
    about."""
    canvas: list[int] = []
    open_here: list[bool] = []
    weights: list[float] = []
    about: list[Facts | None] = []

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    def put(ids: list[int], shown: bool, weight: float, facts: Facts | None) -> None:
        canvas.extend(ids)
        open_here.extend([not shown] * len(ids))
        weights.extend([weight] * len(ids))
        about.extend([facts] * len(ids))

    for number, part in enumerate(turn.parts):
        ids = slot_ids(encode, part.text) if part.slot else encode(part.text)
        if (
            number == turn.num_scaffolded > 0
        ):  # a decision: its tokens tell it, and nothing else of the answer is seen
            canvas[:] = [
                tokens.mask if here else token
                for token, here in zip(canvas, open_here, strict=True)
            ]
            open_here[:] = [False] * len(canvas)
            put(ids[:2], False, DECISION_IMPORTANCE, None)
            put([tokens.mask] * (pick(rng, DECISION_ROOMS) - 2), True, 0.0, None)
            return canvas, open_here, weights, about
        scaffold = number < turn.num_scaffolded
        put(ids, scaffold and not part.slot, 1.0 if part.slot else LITERAL_IMPORTANCE, part.facts)
        if scaffold and part.slot:
            room = max(
                part.room, *(len(slot_ids(encode, text)) for text in (part.text, *part.alike))
            )
            put([tokens.eos] * (room - len(ids)), False, LITERAL_IMPORTANCE, None)
    whole = turn.num_scaffolded == len(turn.parts)
    put([tokens.eot], whole, LITERAL_IMPORTANCE, None)
    if not whole:
        put([tokens.eos] * int(rng.choice(CANVAS_LENGTHS)), False, PADDING_IMPORTANCE, None)
    return canvas, open_here, weights, about


def _placeholders(turn: Turn, config: ModelConfig) -> list[int]:
    """As many as the turn's sound has embeddings."""
    if turn.sound is None:
        return []
    assert config.audio is not None and config.tokens.audio is not None
    return [config.tokens.audio] * count_tokens(turn.sound.shape[1], config.audio)


def _reopened(
    ids: list[int], nothing: int, rng: np.random.Generator
) -> tuple[list[int], list[bool]]:
    """The ids with open runs that are too long, and where they are; `nothing` fills what is left
    over of a run."""
    made: list[int] = []
    is_open: list[bool] = []
    at = 0
    while at < len(ids):
        length = 1 + int(rng.random() * 3) if rng.random() < 0.25 else 0
        run = ids[at : at + length]
        if run or rng.random() < 0.08:
            run = run + [nothing] * int((rng.random() if run else 0.4 + 0.6 * rng.random()) * 3)
            made, is_open = made + run, is_open + [True] * len(run)
        if not length:
            made, is_open = [*made, ids[at]], [*is_open, False]
        at += max(length, 1)
    tail = 1 + int(rng.random() * 2)
    return made + [nothing] * tail, is_open + [True] * tail


def _shown_facts(scene: Scene, config: ModelConfig) -> list[Facts]:
    """For each of a picture's tokens, what is so of the thing that it shows."""
    assert config.vision is not None
    side, merged = config.vision.tokens_per_side, config.vision.pixel_shuffle
    owners = patch_owners(scene, config.vision.patches_per_side).view(side, merged, side, merged)
    counts = {
        name: Counter(getattr(thing, name) for thing in scene.things)
        for name in ("shape", "colour")
    }
    known = [dict(zip(FACTS, facts_of([thing], scene), strict=True)) for thing in scene.things]
    length = max(scene.width, scene.height) / side  # of a token's side, in pixels
    margins = (
        (max(scene.width, scene.height) - extent) // 2 for extent in (scene.width, scene.height)
    )
    left, top = margins
    told = []
    for token, owner in enumerate(owners.amax((1, 3)).flatten().tolist()):
        if owner == 0:
            told.append(tell({}))
            continue
        thing = scene.things[owner - 1]
        x, y = thing.centre
        here = (int((x + left) / length), int((y + top) / length)) == (token % side, token // side)
        alike = {f"of its {name}": counts[name][getattr(thing, name)] for name in counts}
        told.append(tell({**known[owner - 1], "centre": int(here), **alike}))
    return told


def _prompt_parts() -> tuple[str, str]:
    """The chat prompt of one picture and a question, before the picture and (with a {} for the
    question) after it."""
    from jinja2 import Template

    content = [{"type": "image"}, {"type": "text", "text": "{}"}]
    text = Template(CHAT_TEMPLATE).render(
        messages=[{"role": "user", "content": content}],
        bos_token="<|startoftext|>",
        add_generation_prompt=True,
    )
    before, after = text.split(IMAGE)
    return before, after


def _pixels(images: Sequence[Image.Image], config: ModelConfig) -> Tensor:
    assert config.vision is not None
    return torch.cat([make_views(image, config.vision).pixels_V3HW for image in images])


def _pad(rows: Sequence[Sequence[float]], fill: float) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
