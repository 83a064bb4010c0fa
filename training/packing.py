"""Packed conversations: rows of an image and the branches behind it, as tensors.

A packed row is one image with several questions behind it, each a branch that sees the image and
itself only (`attention.build_attention_mask`), so the image is encoded once for all of them. A row
of audio has no image, and in each branch a clip of its own.

Shapes: B rows, T positions, R branches of a row, N positions where facts are told, K facts, M mels
and F frames (10 ms) of a clip.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from mmdiff.audio.connector import count_tokens
from mmdiff.audio.log_mel import pad_mels
from mmdiff.config import ModelConfig, TokenIds
from mmdiff.structured.schema.serialize import slot_ids
from mmdiff.tokens import CHAT_TEMPLATE, IMAGE, control_tokens, neutralize, segment_ids
from mmdiff.training.batches import TrainingBatch
from mmdiff.training.forward_process import IGNORE
from mmdiff.training.tiny.questions import FACTS, Facts, GroundingPhrase, facts_of, tell
from mmdiff.training.tiny.scenes import Scene, pick
from mmdiff.training.tiny.structured import AnswerPart
from mmdiff.vision.preprocess import make_views

# Of an end-of-text token behind an answer, against 1 for the answer's own tokens.
PADDING_IMPORTANCE = 0.1
LITERAL_IMPORTANCE = 0.3  # of what the structure of an answer tells,
DECISION_IMPORTANCE = 3.0  # and of where it is decided
# Positions from a decision on; if they told its answer, nothing else would be learned.
DECISION_LENGTHS = range(18, 27)
CANVAS_LENGTHS = (8, 16, 32)  # positions; an answer too long for one gets more
CANVAS_ODDS = (0.75, 0.1, 0.15)


@dataclass(frozen=True)
class Turn:
    """A question about the row's image, or about a clip of audio, and its answer."""

    question: str
    answer: str
    loss_weight: float = 1.0
    canvas: int = 0  # positions at least, however short the answer
    # Where the answer speaks of what: characters, facts.
    spans: Sequence[tuple[int, int, Facts]] = ()
    mel: Tensor | None = None  # a log-mel spectrogram, (M, F)
    transcript: str = ""  # the words in the clip, for CTC at its embeddings
    # Runs of the answer are open and may be too long; nothing is said in what is left over.
    padding_slots: bool = False
    parts: Sequence[AnswerPart] = ()  # of a structured answer, instead of `answer`
    num_scaffolded: int = 0  # how many of the parts stand as a scaffold, with only their slots open


Row = tuple[Image.Image | None, Sequence[Turn | GroundingPhrase | Scene]]


def pack(
    rows: Sequence[Row], tokenizer: Tokenizer, config: ModelConfig, rng: np.random.Generator
) -> TrainingBatch:
    """One batch: the chat prompt of each image once, its questions and answers as branches behind
    it.

    A `GroundingPhrase` is a branch of its words alone. `named` (B, T) is 1 at their end, in answers
    where they speak of something, and at the image's tokens where the row has its `Scene`. `facts`
    (N, K) holds what is to be told there, in reading order.
    """
    assert config.vision is not None and config.tokens.image is not None
    packed = []
    images = []
    clips = []
    for image, turns in rows:
        start, after = _prompt_parts(image is not None, turns, tokenizer, config)
        if image is not None:
            images.append(image)
        packed.append(_pack_row(turns, start, after, tokenizer, config, rng))
        clips += [turn for turn in turns if isinstance(turn, Turn) and turn.mel is not None]
    batch = _pad_rows(packed, config.tokens)
    if images:
        batch["pixel_values"] = pixels(images, config)
        batch["image_sizes"] = torch.tensor([image.size for image in images])
        batch["image_grids"] = torch.zeros(len(images), 2, dtype=torch.long)
    if clips:
        batch.update(_clip_inputs(clips, tokenizer, config))
    return batch


def _clip_inputs(turns: Sequence[Turn], tokenizer: Tokenizer, config: ModelConfig) -> TrainingBatch:
    controls = control_tokens(tokenizer, config.tokens)
    mels, words = [], []
    for turn in turns:
        assert turn.mel is not None
        mels.append(turn.mel)
        words.append(neutralize(turn.transcript, controls))
    return audio_inputs(mels, words, tokenizer)


def audio_inputs(
    mels: Sequence[Tensor], transcripts: Sequence[str], tokenizer: Tokenizer
) -> TrainingBatch:
    """Padded spectrograms of some clips, and the tokens of what is said in them."""
    padded, lengths = pad_mels(mels)
    said = pad([tokenizer.encode(text).ids for text in transcripts], IGNORE)
    return {"input_features": padded, "feature_lengths": lengths, "said": said}


@dataclass
class _Branch:
    """A question or phrase behind the start of a row, token by token: the prompt, and the canvas of
    its answer."""

    prompt: list[int]
    canvas: list[int] = field(default_factory=list)
    open_here: list[bool] = field(default_factory=list)  # where the canvas is learned
    weights: list[float] = field(default_factory=list)  # of the canvas
    facts: list[Facts | None] = field(default_factory=list)  # told at prompt and canvas


@dataclass
class _PackedRow:
    """A row, position by position."""

    ids: list[int]
    labels: list[int]
    importance: list[float]
    segments: list[int]
    positions: list[int]
    branches: list[int]
    facts: list[Facts | None]

    @classmethod
    def of(cls, start: list[int], facts: list[Facts | None], tokens: TokenIds) -> _PackedRow:
        """A row without branches."""
        length = len(start)
        segments = segment_ids(torch.tensor([start]), tokens)[0].tolist()
        return cls(
            list(start),
            [IGNORE] * length,
            [0.0] * length,
            segments,
            list(range(length)),
            [0] * length,
            facts,
        )

    def add(self, number: int, branch: _Branch, start: list[int], tokens: TokenIds) -> None:
        """Put a branch behind those that are there; its positions go on from the start's."""
        prompt, canvas = branch.prompt, branch.canvas
        length = len(prompt) + len(canvas)
        segments = segment_ids(torch.tensor([start + prompt]), tokens)[0, len(start) :].tolist()
        self.ids += prompt + canvas
        self.labels += [IGNORE] * len(prompt)
        for token, is_open in zip(canvas, branch.open_here, strict=True):
            self.labels.append(token if is_open else IGNORE)
        self.importance += [0.0] * len(prompt) + branch.weights
        self.segments += segments + [segments[-1] + 1] * len(canvas)
        self.positions += range(len(start), len(start) + length)
        self.branches += [number] * length
        self.facts += branch.facts


def _pad_rows(rows: Sequence[_PackedRow], tokens: TokenIds) -> TrainingBatch:
    """Rows of one length, and all their facts in reading order."""
    named, lengths = [], []
    facts: list[Facts] = []
    for row in rows:
        named.append([int(each is not None) for each in row.facts])
        lengths.append([1] * len(row.ids))
        facts += filter(None, row.facts)
    return {
        "input_ids": pad([row.ids for row in rows], tokens.pad),
        "labels": pad([row.labels for row in rows], IGNORE),
        "importance": pad([row.importance for row in rows], 0.0),
        "segment_ids": pad([row.segments for row in rows], 0),
        "position_ids": pad([row.positions for row in rows], 0),
        "branch_ids": pad([row.branches for row in rows], 0),
        "named": pad(named, 0),
        "attention_mask": pad(lengths, 0).bool(),
        "facts": torch.tensor(facts, dtype=torch.long).view(-1, len(FACTS)),
    }


def _pack_row(
    turns: Sequence[Turn | GroundingPhrase | Scene],
    start: list[int],
    question: str,
    tokenizer: Tokenizer,
    config: ModelConfig,
    rng: np.random.Generator,
) -> _PackedRow:
    tokens, controls = config.tokens, control_tokens(tokenizer, config.tokens)
    asked: list[Turn | GroundingPhrase] = []
    facts: list[Facts | None] = [None] * len(start)
    for turn in turns:
        if isinstance(turn, Scene):
            facts = _facts_of_image(turn, start, config)
        else:
            asked.append(_harmless(turn, controls))
    row = _PackedRow.of(start, facts, tokens)
    for number, turn in enumerate(asked, start=1):
        if isinstance(turn, GroundingPhrase):
            branch = _phrase_branch(turn, tokenizer)
        elif turn.parts:
            branch = _structured_branch(turn, question, tokenizer, config, rng)
        else:
            branch = _answer_branch(turn, question, tokenizer, config, rng)
        row.add(number, branch, start, tokens)
    return row


def _phrase_branch(phrase: GroundingPhrase, tokenizer: Tokenizer) -> _Branch:
    """The words of a phrase, what it names at the last of them, and the words behind it."""
    prompt = tokenizer.encode(f"\n{phrase.text}").ids
    after = []
    if phrase.after:
        after = tokenizer.encode(phrase.after).ids
    facts: list[Facts | None] = [None] * (len(prompt) + len(after))
    facts[len(prompt) - 1] = phrase.facts
    return _Branch(prompt + after, facts=facts)


def _structured_branch(
    turn: Turn, question: str, tokenizer: Tokenizer, config: ModelConfig, rng: np.random.Generator
) -> _Branch:
    prompt = _placeholders(turn, config) + tokenizer.encode(question.format(turn.question)).ids
    canvas, open_here, weights, about = _laid_out(turn, tokenizer, config.tokens, rng)
    facts: list[Facts | None] = [None] * len(prompt)
    return _Branch(prompt, canvas, open_here, weights, facts + about)


def _answer_branch(
    turn: Turn, question: str, tokenizer: Tokenizer, config: ModelConfig, rng: np.random.Generator
) -> _Branch:
    """An answer as text on a canvas of a random length."""
    tokens = config.tokens
    prompt = _placeholders(turn, config) + tokenizer.encode(question.format(turn.question)).ids
    encoded = tokenizer.encode(turn.answer)
    answer = [*encoded.ids, tokens.eot]
    length = int(rng.choice(CANVAS_LENGTHS, p=CANVAS_ODDS))
    padding = max(length, turn.canvas, -(-len(answer) // 8) * 8) - len(answer)
    canvas = answer + [tokens.eos] * padding
    open_here = [True] * len(canvas)
    if turn.padding_slots:
        reopened, open_here = _reopened(encoded.ids, tokens.eos, rng)
        canvas, open_here = [*reopened, tokens.eot], [*open_here, False]
        padding = 0
    weights = [turn.loss_weight] * (len(canvas) - padding) + [PADDING_IMPORTANCE] * padding
    facts: list[Facts | None] = [None] * len(prompt)
    for _, stop in encoded.offsets:
        facts.append(_spoken_of(turn.spans, stop))
    facts += [None] * (len(prompt) + len(canvas) - len(facts))
    return _Branch(prompt, canvas, open_here, weights, facts)


def _spoken_of(spans: Sequence[tuple[int, int, Facts]], stop: int) -> Facts | None:
    """What an answer speaks of at the token that ends before a character."""
    for first, end, facts in spans:
        if first < stop <= end:
            return facts
    return None


def _facts_of_image(scene: Scene, start: list[int], config: ModelConfig) -> list[Facts | None]:
    """What is told at the image's tokens of a row's start."""
    shown = iter(_shown_facts(scene, config))
    facts: list[Facts | None] = []
    for token in start:
        facts.append(next(shown) if token == config.tokens.image else None)
    return facts


def _harmless(turn: Turn | GroundingPhrase, controls: frozenset[str]) -> Turn | GroundingPhrase:
    """Without control tokens in its texts, as prompts have none."""
    if isinstance(turn, GroundingPhrase):
        return replace(
            turn, text=neutralize(turn.text, controls), after=neutralize(turn.after, controls)
        )
    parts = []
    for part in turn.parts:
        alike = [neutralize(text, controls) for text in part.alike]
        parts.append(replace(part, text=neutralize(part.text, controls), alike=tuple(alike)))
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
        # A decision: its tokens tell it, and nothing else of the answer is seen.
        if number == turn.num_scaffolded > 0:
            for at, is_open in enumerate(open_here):
                if is_open:
                    canvas[at] = tokens.mask
            open_here[:] = [False] * len(canvas)
            put(ids[:2], False, DECISION_IMPORTANCE, None)
            put([tokens.mask] * (pick(rng, DECISION_LENGTHS) - 2), True, 0.0, None)
            return canvas, open_here, weights, about
        scaffold = number < turn.num_scaffolded
        put(ids, scaffold and not part.slot, 1.0 if part.slot else LITERAL_IMPORTANCE, part.facts)
        if scaffold and part.slot:
            length = max(part.length, len(ids))
            for text in part.alike:
                length = max(length, len(slot_ids(encode, text)))
            put([tokens.eos] * (length - len(ids)), False, LITERAL_IMPORTANCE, None)
    whole = turn.num_scaffolded == len(turn.parts)
    put([tokens.eot], whole, LITERAL_IMPORTANCE, None)
    if not whole:
        put([tokens.eos] * int(rng.choice(CANVAS_LENGTHS)), False, PADDING_IMPORTANCE, None)
    return canvas, open_here, weights, about


def _placeholders(turn: Turn, config: ModelConfig) -> list[int]:
    """As many as the turn's clip has embeddings."""
    if turn.mel is None:
        return []
    assert config.audio is not None and config.tokens.audio is not None
    return [config.tokens.audio] * count_tokens(turn.mel.shape[1], config.audio)


def _reopened(
    ids: list[int], nothing: int, rng: np.random.Generator
) -> tuple[list[int], list[bool]]:
    """The ids with open runs that are too long, and where they are; `nothing` fills what is left
    over of a run."""
    made: list[int] = []
    is_open: list[bool] = []
    at = 0
    while at < len(ids):
        length = 0
        if rng.random() < 0.25:
            length = 1 + int(rng.random() * 3)
        run = ids[at : at + length]
        if run or rng.random() < 0.08:
            share = rng.random() if run else 0.4 + 0.6 * rng.random()
            run = run + [nothing] * int(share * 3)
            made += run
            is_open += [True] * len(run)
        if not length:
            made.append(ids[at])
            is_open.append(False)
        at += max(length, 1)
    tail = 1 + int(rng.random() * 2)
    return made + [nothing] * tail, is_open + [True] * tail


def patch_owners(scene: Scene, patches_per_side: int) -> Tensor:
    """Which thing each patch of the padded square shows, (P): 0 for background, else 1 + its number
    in the scene.

    A patch shows the uppermost thing that has the patch's centre in the middle 80 % of its bounding
    box.
    """
    side = max(scene.width, scene.height)
    # In pixels of the padded square.
    centres = (torch.arange(patches_per_side) + 0.5) / patches_per_side * side
    x, y = centres - (side - scene.width) // 2, centres - (side - scene.height) // 2
    owner = torch.zeros(patches_per_side, patches_per_side, dtype=torch.long)
    for number, thing in enumerate(scene.things, start=1):
        across = (x - thing.centre[0]).abs() < 0.4 * thing.width
        down = (y - thing.centre[1]).abs() < 0.4 * thing.height
        owner[down[:, None] & across] = number  # over what is below
    return owner.flatten()


def _shown_facts(scene: Scene, config: ModelConfig) -> list[Facts]:
    """For each of an image's tokens, what is so of the thing that it shows."""
    assert config.vision is not None
    side, merged = config.vision.tokens_per_side, config.vision.pixel_shuffle
    owners = patch_owners(scene, config.vision.patches_per_side).view(side, merged, side, merged)
    counts = {}
    for name in ("shape", "colour"):
        counts[name] = Counter(getattr(thing, name) for thing in scene.things)
    known = [dict(zip(FACTS, facts_of([thing], scene), strict=True)) for thing in scene.things]
    length = max(scene.width, scene.height) / side  # of a token's side, in pixels
    left = (max(scene.width, scene.height) - scene.width) // 2
    top = (max(scene.width, scene.height) - scene.height) // 2
    told = []
    for token, owner in enumerate(owners.amax((1, 3)).flatten().tolist()):
        if owner == 0:
            told.append(tell({}))
            continue
        thing = scene.things[owner - 1]
        x, y = thing.centre
        here = (int((x + left) / length), int((y + top) / length)) == (token % side, token // side)
        alike = {}
        for name in counts:
            alike[f"of its {name}"] = counts[name][getattr(thing, name)]
        told.append(tell({**known[owner - 1], "centre": int(here), **alike}))
    return told


def _prompt_parts(
    with_image: bool,
    turns: Sequence[Turn | GroundingPhrase | Scene],
    tokenizer: Tokenizer,
    config: ModelConfig,
) -> tuple[list[int], str]:
    """The chat prompt before a row's questions as tokens, and after them, with a {} for the
    question."""
    assert config.vision is not None and config.tokens.image is not None
    before, after = _template_parts()
    if with_image:
        placeholders = [config.tokens.image] * config.vision.tokens_per_side**2
        return tokenizer.encode(before).ids + placeholders, after
    if any(isinstance(turn, Turn) and turn.mel is not None for turn in turns):
        return tokenizer.encode(before).ids, after
    # New lines and the words behind them are one text to the tokenizer.
    header = before.rstrip("\n")
    return tokenizer.encode(header).ids, before[len(header) :] + after.removeprefix("\n")


def _template_parts() -> tuple[str, str]:
    """The chat prompt of one image and a question, before the image and (with a {} for the
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


def pixels(images: Sequence[Image.Image], config: ModelConfig) -> Tensor:
    """The views of some images, one after another."""
    assert config.vision is not None
    return torch.cat([make_views(image, config.vision).pixels_V3HW for image in images])


def pad(rows: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Rows of one length: those that are shorter are filled up behind."""
    width = max(map(len, rows))
    filled = []
    for row in rows:
        filled.append([*row, *[fill] * (width - len(row))])
    return torch.tensor(filled)
