"""The one denoising loop: sequences with open positions, and rules that choose among these.

Semantics are LLaDA's (arXiv 2502.09992; ML-GSAI/LLaDA `generate.py`): a quota of commits per step,
blocks from left to right, committed tokens are final. Added: a sequence stops as soon as everything
before its end token is decided, every one has its own seed, may start short and grow, joins and
leaves between steps, and never depends on its neighbours. Which positions are committed is decided
in commit_rules.py, what is computed for it in kv_cache.py.

Shapes: B sequences, A of them still at work, G canvas positions, N eligible positions of the active
sequences in reading order, M decided ones that a rule looks back at, S positions whose logits are
asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mmdiff.config import DecodingConfig, TokenIds, shown
from mmdiff.decoding import sequence
from mmdiff.decoding.canvas import Array, Canvas, stacked
from mmdiff.decoding.commit_rules import ORDERS, EditingRule, Proposal, RemaskingRule, make_rule
from mmdiff.decoding.sequence import Constraint
from mmdiff.errors import MMDiffError

# DAEDAL's first stage (arXiv 2508.00819): a canvas is long enough when its last positions expect
# the end.
END_WINDOW = 32  # positions
END_EXPECTED = 0.5  # mean probability of the end tokens there
GROWTH = 8  # positions


class Predict(Protocol):
    """Logits (S, V) at the True positions of `select_AG`, for the canvas ids of some prompts.

    Ids and positions are on the host. For a rule that reads tokens as if they were hidden, the
    positions of `hidden_AG` follow, in reading order too.
    """

    def __call__(
        self,
        ids_AG: Array,
        prompts: Sequence[Any],
        select_AG: Array,
        hidden_AG: Array | None = None,
        /,
    ) -> Tensor: ...


@runtime_checkable
class Runner(Predict, Protocol):
    """A `Predict` with the prompts that it was made for; it serves those of its kind from others,
    too."""

    @property
    def prompts(self) -> Sequence[Any]:
        """Each has its `length` in positions, and the `passes` that it took part in."""


def seed_of(value: object, row: int = 0) -> int:
    """The seed of a sequence, `row` positions behind that of the first one.

    Raises:
        MMDiffError: the value is no whole number of 64 bits, signed or not.
    """
    if (
        not isinstance(value, Integral)
        or isinstance(value, bool)
        or not -(2**63) <= int(value) < 2**64
    ):
        raise MMDiffError(
            f"seed={shown(value)} does not fit: it must be a whole number of 64 bits, from -2^63 "
            "to 2^64 - 1"
        )
    seed = int(value) + row
    if seed >= 2**64:  # it begins again from 0
        seed -= 2**64
    return seed


def denoise(
    predict: Predict,
    canvas: Canvas,
    decoding: DecodingConfig,
    tokens: TokenIds,
    seeds: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
) -> Iterator[Canvas]:
    """Yield the canvas after every step until all sequences are finished; arguments and errors as
    of `Sampler`."""
    sampler = Sampler(predict, canvas, decoding, tokens, seeds, limits)
    while sampler.working:
        yield sampler.step()


class FinishedSequences(NamedTuple):
    """Sequences that have left: their names, their canvases, and the passes that each took part
    in."""

    names: list[int]
    canvas: Canvas
    passes: list[int]
    constraints: list[Constraint | None]


@dataclass(frozen=True)
class Asked:
    """Positions (A, G) whose logits a step asks for, by what they are for."""

    eligible_AG: Array
    tail_AG: Array
    decided_AG: Array
    hidden: bool  # whether the decided ones are asked for as if they were hidden

    @property
    def select_AG(self) -> Array:
        decided_AG = self.decided_AG & (not self.hidden)
        return np.asarray(self.eligible_AG | self.tail_AG | decided_AG)

    def logits_at(self, here_AG: Array, logits_SV: Tensor) -> Tensor:
        """Of the logits at all that was selected, those at some positions."""
        here_S = here_AG[self.select_AG]
        if here_S.all():
            return logits_SV[: len(here_S)]
        return logits_SV[torch.from_numpy(np.flatnonzero(here_S)).to(logits_SV.device)]


class Sampler:
    """Sequences being denoised together: each step is one pass for all that are not finished.

    Between steps others may be added (`add`), and those that are finished leave (`pop_finished`).
    """

    def __init__(
        self,
        runner: Predict,
        canvas: Canvas,
        decoding: DecodingConfig,
        tokens: TokenIds,
        seeds: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
        constraints: Sequence[Constraint | None] | None = None,
    ) -> None:
        """
        Args:
            runner: logits at the positions that may be committed now; nothing else is computed.
            canvas: what is fixed and what is open.
            decoding: its `gen_length` is not read here, the canvas has its own.
            seeds: one per sequence, for temperature and random order; its number by default.
            limits: positions that each may grow to, where the model expects its answer to be
                longer.
            constraints: of each, or None; a sequence that has one ends when nothing is open, end
                tokens or not.

        Raises:
            MMDiffError: fewer steps than blocks, or another number of seeds than of sequences.
        """
        count, lengths = len(canvas.ids_BG), canvas.length_B.tolist()
        seeds = range(count) if seeds is None else seeds
        if len(seeds) != count:
            raise MMDiffError(f"{len(seeds)} seeds for {count} rows; give one seed per row")
        self.runner, self.decoding, self.tokens = runner, decoding, tokens
        self.rule, self.order = make_rule(decoding), ORDERS[decoding.order]
        self._next_name, device = count, canvas.ids_BG.device
        self._end_ids = (tokens.eos, tokens.eot) if decoding.stop else ()
        self._banned = torch.tensor(tokens.never, dtype=torch.long, device=device)
        prompts: Sequence[Any] = runner.prompts if isinstance(runner, Runner) else range(count)
        self.running = list[sequence.Sequence]()
        for row, length in enumerate(lengths):
            each = sequence.Sequence(
                row,
                prompts[row],
                canvas.ids_BG[row, :length].numpy(force=True).copy(),
                canvas.open_BG[row, :length].numpy(force=True).copy(),
                canvas.confidence_BG[row, :length].numpy(force=True).copy(),
                canvas.step_BG[row, :length].numpy(force=True).copy(),
                canvas.ids_BG.shape[1],
                length if limits is None else limits[row],
                torch.Generator().manual_seed(seed_of(seeds[row])),
                None if constraints is None else constraints[row],
            )
            if decoding.block_origin == "sequence":
                each.offset = int(prompts[row].length) % decoding.block_length
            each.plan(decoding)
            self.running.append(each)

    @property
    def names(self) -> list[int]:
        """Of the sequences here; one keeps its name when others leave."""
        return [each.name for each in self.running]

    @property
    def canvas(self) -> Canvas:
        """All sequences as they stand, on the host."""
        return sequence.stack(self.running)

    @property
    def working(self) -> bool:
        """Whether any sequence is not finished."""
        return any(not each.finished(self._end_ids) for each in self.running)

    def step(self, expired: Collection[int] = ()) -> Canvas:
        """One pass, and what it decides.

        Args:
            expired: names of sequences past their deadline; all of their open positions are decided
                at once.
        """
        active = [each for each in self.running if not each.finished(self._end_ids)]
        if not active:  # a scaffold may leave nothing to decide
            return self.canvas
        for each in active:
            each.expired = each.expired or each.name in expired
        asked = self._ask(active)
        logits_SV = self._process(self._forward(active, asked), active)
        canvas = sequence.stack(active, logits_SV.device)
        votes = self._propose(active, canvas, asked, logits_SV)
        # Past a deadline all that is open is decided.
        expired_A1 = canvas.open_BG.new_tensor([[each.expired] for each in active])
        here_AG = self.rule(votes, self.order(votes)) | (votes.eligible_AG & expired_A1)
        here_AG = _expand(active, here_AG, votes.eligible_AG)
        after = canvas.commit(here_AG, votes.chosen_AG, votes.confidence_AG, votes.steps_A)
        if isinstance(self.rule, RemaskingRule):
            back_AG = self.rule.remask(votes, after) & ~expired_A1
            after = after.reopen(back_AG, self.tokens.mask)
        held_A = torch.zeros_like(votes.steps_A)
        if isinstance(self.rule, EditingRule):
            after, held_A = self.rule.edit(votes, after)
        self._update(active, after, held_A, self._too_short(asked, logits_SV))
        return self.canvas

    def add(self, other: Sampler) -> list[int]:
        """Take over the sequences of another one; gives their names. The other is used up.

        Raises:
            MMDiffError: its settings are others.
        """
        if other.decoding != self.decoding:
            raise MMDiffError(
                f"rows with other settings cannot join: {other.decoding} is not {self.decoding}"
            )
        for number, each in enumerate(other.running):
            each.name = self._next_name + number
        self._next_name += len(other.running)
        self.running += other.running
        return other.names

    def pop_finished(self, abort: Collection[int] = ()) -> FinishedSequences:
        """Let the finished sequences go.

        Args:
            abort: names of sequences that go as they are.
        """
        gone = list[sequence.Sequence]()
        for each in self.running:
            if each.name in abort or each.finished(self._end_ids):
                each.cut()
                gone.append(each)
        self.running = [each for each in self.running if each not in gone]
        return FinishedSequences(
            [each.name for each in gone],
            sequence.stack(gone),
            [each.prompt.passes for each in gone],
            [each.constraint for each in gone],
        )

    def _ask(self, active: Sequence[sequence.Sequence]) -> Asked:
        """Where this step needs logits."""
        needs = getattr(self.rule, "needs", None)  # of a rule that remasks
        length = self.decoding.block_length
        for each in active:
            each.advance(length)
        eligible_AG = stacked([each.eligible(length) for each in active], False)
        tail_AG = stacked([each.tail(END_WINDOW) for each in active], False)
        decided_AG = np.zeros_like(eligible_AG)
        if needs is not None:
            decided_AG = stacked([each.decided(length) for each in active], False)
        if needs == "decided":
            decided_AG &= _replaceable(active)
        return Asked(eligible_AG, tail_AG, decided_AG, needs == "hidden" and bool(decided_AG.any()))

    def _forward(self, active: Sequence[sequence.Sequence], asked: Asked) -> Tensor:
        ids_AG = stacked([each.ids_G for each in active], -1)
        prompts = [each.prompt for each in active]
        hidden = (asked.decided_AG,) if asked.hidden else ()
        return self.runner(ids_AG, prompts, asked.select_AG, *hidden)

    def _process(self, logits_SV: Tensor, active: Sequence[sequence.Sequence]) -> Tensor:
        """Without what is banned, and of the rest the likeliest."""
        logits_SV = logits_SV.float().index_fill(1, self._banned, -torch.inf)
        if self.decoding.top_k is not None:
            logits_SV = keep_top_k(logits_SV, self.decoding.top_k)
        # A constraint decides on the host, and so does the rest of the step then: this transfer is
        # its only one.
        if any(each.constraint is not None for each in active):
            return logits_SV.cpu()
        return logits_SV

    def _propose(
        self, active: Sequence[sequence.Sequence], canvas: Canvas, asked: Asked, logits_SV: Tensor
    ) -> Proposal:
        """What would be committed at the eligible positions."""
        counts = asked.eligible_AG.sum(1).tolist()
        draws = [(each.generator, count) for each, count in zip(active, counts, strict=True)]
        logits_NV = asked.logits_at(asked.eligible_AG, logits_SV)
        decided_MV = logits_SV[int(asked.select_AG.sum()) :]
        if not asked.hidden:
            decided_MV = asked.logits_at(asked.decided_AG, logits_SV)

        def up(values: Any) -> Tensor:
            return torch.as_tensor(values).to(logits_SV.device, non_blocking=True)

        return Proposal(
            canvas,
            up(asked.eligible_AG),
            logits_NV,
            self._draw(active, asked, logits_NV, draws),
            up([each.quota for each in active]),
            up([each.steps for each in active]),
            self.decoding.block_length,
            draws,
            [each.name for each in active],
            up(asked.decided_AG),
            up(stacked([each.ids_G for each in active], -1)[asked.decided_AG]),
            decided_MV,
            self.tokens.mask,
            up([each.offset for each in active]),
            up([each.steps - each.entered for each in active]),
        )

    def _draw(
        self,
        active: Sequence[sequence.Sequence],
        asked: Asked,
        logits_NV: Tensor,
        draws: Sequence[tuple[torch.Generator, int]],
    ) -> Tensor:
        """Ids (N) at the eligible positions; the logits lose what a constraint does not allow."""
        mask, temperature = self.tokens.mask, self.decoding.temperature
        if all(each.constraint is None for each in active):
            return sample(logits_NV, mask, temperature, draws)
        drawn, chunks = list[Tensor](), logits_NV.split([count for _, count in draws])
        for row, (each, chunk_NV) in enumerate(zip(active, chunks, strict=True)):
            if each.constraint is None or not len(chunk_NV):
                drawn.append(sample(chunk_NV, mask, temperature, [draws[row]]))
                continue
            at = (torch.from_numpy(each.ids_G), np.flatnonzero(asked.eligible_AG[row]).tolist())
            drawn.append(each.constraint.decide(*at, chunk_NV, temperature, each.generator))
        return torch.cat(drawn)

    def _too_short(self, asked: Asked, logits_SV: Tensor) -> Tensor:
        """Of the growing sequences, whether their last positions do not expect the end."""
        counts = [count for count in asked.tail_AG.sum(1).tolist() if count]
        if not counts:
            return torch.zeros(0, device=logits_SV.device)
        tails = asked.logits_at(asked.tail_AG, logits_SV).split(counts)
        ends = sorted({self.tokens.eos, self.tokens.eot})
        return torch.stack([_end_expected(tail_NV, ends) for tail_NV in tails]) < END_EXPECTED

    def _update(
        self, active: Sequence[sequence.Sequence], after: Canvas, held_A: Tensor, short_A: Tensor
    ) -> None:
        """Bring the host up to date: the one transfer of a step."""
        told = (after.packed().flatten(), held_A.long(), short_A.long())
        packed = torch.cat(told).numpy(force=True)
        size = 4 * after.ids_BG.numel()
        ids_AG, open_AG, bits_AG, step_AG = packed[:size].reshape(4, *after.ids_BG.shape)
        sure_AG, held = bits_AG.astype(np.int32).view(np.float32), packed[size:].tolist()
        short = iter(held[len(active) :])
        for row, each in enumerate(active):
            each.update(ids_AG[row], open_AG[row], sure_AG[row], step_AG[row])
            each.held = bool(held[row])
            if each.growing:
                each.grow(GROWTH * next(short), self.tokens.mask)
                each.plan(self.decoding)
            each.commit_forced()
            each.steps += 1


def _replaceable(active: Sequence[sequence.Sequence]) -> Array:
    """All positions of sequences without a constraint: what one has decided holds other tokens to
    it, and is never replaced."""
    return stacked([each.open_G | (each.constraint is None) for each in active], False)


def _expand(active: Sequence[sequence.Sequence], here_AG: Tensor, eligible_AG: Tensor) -> Tensor:
    """With what constraints only decide together with what is to be committed."""
    for row, each in enumerate(active):
        if each.constraint is not None:
            # What is committed must be eligible, whatever it is decided together with.
            here_AG[row] = each.constraint.expand(here_AG[row]) & eligible_AG[row]
    return here_AG


def _end_expected(tail_NV: Tensor, end_ids: Sequence[int]) -> Tensor:
    """The mean probability of the end tokens over the last positions, those counted at whose
    likeliest token is one."""
    ends = torch.tensor(end_ids, device=tail_NV.device)
    expects_N = torch.isin(tail_NV.argmax(dim=-1), ends).flip(0).cumprod(0).flip(0)
    return (tail_NV.softmax(dim=-1)[:, ends].sum(1) * expects_N).mean()


def keep_top_k(logits_SV: Tensor, count: int) -> Tensor:
    """The logits with all but each position's likeliest ids at minus infinity; ties with the last
    one stay."""
    least_S1 = logits_SV.topk(min(count, logits_SV.shape[1]), dim=-1).values[:, -1:]
    return logits_SV.masked_fill(logits_SV < least_S1, -torch.inf)


def sample(
    logits_NV: Tensor,
    mask_id: int,
    temperature: float,
    draws: Sequence[tuple[torch.Generator, int]],
) -> Tensor:
    """Draw an id (N) for every position, never the mask.

    The noise is added in float64 as minus the logarithm of an exponential draw, which does not
    saturate: float32 uniforms would cut off the tail (arXiv 2409.02908).

    Args:
        draws: one generator and its number of positions per sequence, so that a sequence's noise
            depends on its seed alone.
    """
    noisy_NV = logits_NV.index_fill(1, torch.tensor(mask_id, device=logits_NV.device), -torch.inf)
    if temperature > 0:
        noise = []
        for generator, count in draws:
            drawn = torch.empty(count, logits_NV.shape[1], dtype=torch.float64)
            noise.append(drawn.exponential_(generator=generator))
        # MPS has no float64.
        exact = "cpu" if logits_NV.device.type == "mps" else logits_NV.device
        noise_NV = torch.cat(noise).log().neg().to(exact)
        noisy_NV = noisy_NV.to(exact).double() + temperature * noise_NV
    return noisy_NV.argmax(dim=-1).to(logits_NV.device)
