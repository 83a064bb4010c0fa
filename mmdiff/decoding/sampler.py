"""The one denoising loop: rows of canvases, and rules that choose positions.

Semantics are LLaDA's (arXiv 2502.09992; ML-GSAI/LLaDA `generate.py`): a quota of commits per step,
blocks from left to right, committed tokens are final. Added: a row stops as soon as everything
before its end token is decided, every row has its own seed, rows may start short and grow, rows
join and leave between steps, and a row never depends on its neighbours. Which positions are
committed is decided in commit_rules.py, what is computed for it in kv_cache.py.

Shapes: B rows, A rows still at work, G canvas positions, N eligible positions of the active rows in
reading order, S positions whose logits are asked for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from numbers import Integral
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.config import DecodingConfig, TokenIds, shown
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.commit_rules import ORDERS, Proposal, RemaskingRule, make_rule, rule_name
from mmdiff.decoding.schedule import SCHEDULES, even_shares
from mmdiff.errors import MMDiffError

# DAEDAL's first stage (arXiv 2508.00819): a canvas is long enough when its last positions expect
# the end.
END_WINDOW = 32  # positions
END_EXPECTED = 0.5  # mean probability of the end tokens there
GROWTH = 8  # positions


class Predict(Protocol):
    """A model with its prompts: logits (S, V) at the True positions of `select_AG`, for the canvas
    ids of some rows.

    For a rule that reads tokens as if they were hidden, the positions of `hidden_AG` follow, in
    reading order too.
    """

    def __call__(
        self, ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor, hidden_AG: Tensor | None = None
    ) -> Tensor: ...


@runtime_checkable
class Batch(Predict, Protocol):
    """A `Predict` whose rows can change between steps."""

    @property
    def passes_B(self) -> Tensor:
        """How many passes through the backbone each row took part in."""
        ...

    @property
    def prompt_length_B(self) -> Tensor:
        """Positions of each row's prompt."""
        ...

    def take(self, rows_A: Tensor) -> None:
        """Keep these rows only, in this order; a row may be named several times."""
        ...

    def join(self, other: Batch) -> None:
        """Take the rows of another batch of the same kind behind these."""
        ...


class Constraint(Protocol):
    """What may stand in the open positions of one row, whatever the model says."""

    def decide(
        self,
        ids_G: Tensor,
        places: Sequence[int],
        logits_NV: Tensor,
        temperature: float,
        draws: torch.Generator,
    ) -> Tensor:
        """Ids (N) for the places, of which any part may be committed; the logits (N, V) lose in
        place what may not."""
        ...

    def expand(self, here_G: Tensor) -> Tensor:
        """The positions (G) to be committed, and those that are only decided together with one of
        them."""
        ...

    def forced(self, ids_G: Tensor) -> dict[int, int]:
        """The open positions that nothing is left to decide about, and what must stand there."""
        ...


def seed_of(value: object, row: int = 0) -> int:
    """The seed of a row, `row` places behind that of the first one.

    Raises:
        MMDiffError: the value is no whole number of 64 bits, signed or not.
    """
    if (
        not isinstance(value, Integral)
        or isinstance(value, bool)
        or not -(2**63) <= int(value) < 2**64
    ):
        raise MMDiffError(
            f"seed={shown(value)} does not fit: it must be a whole number of 64 bits, from -2^63 to "
            "2^64 - 1"
        )
    seed = int(value) + row
    return seed if seed < 2**64 else seed - 2**64


def denoise(
    predict: Predict,
    canvas: Canvas,
    decoding: DecodingConfig,
    tokens: TokenIds,
    seeds: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
) -> Iterator[Canvas]:
    """Yield the canvas after every step until all rows are finished; arguments and errors as of
    `Sampler`."""
    batch = Sampler(predict, canvas, decoding, tokens, seeds, limits)
    while batch.working:
        yield batch.step()


class FinishedSequences(NamedTuple):
    """Rows that have left: their names, their canvases, and the passes that each took part in."""

    names: list[int]
    canvas: Canvas
    passes: list[int]
    constraints: list[Constraint | None]


class Sampler:
    """Rows being denoised together: each step is one pass for all that are not finished.

    Between steps rows may `join`, and those that are finished may `pop_finished`.
    """

    def __init__(
        self,
        predict: Predict,
        canvas: Canvas,
        decoding: DecodingConfig,
        tokens: TokenIds,
        seeds: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
        constraints: Sequence[Constraint | None] | None = None,
    ) -> None:
        """
        Args:
            predict: logits at the positions that may be committed now; nothing else is computed.
            canvas: what is fixed and what is open.
            decoding: its `gen_length` is not read here, the canvas has its own.
            seeds: one per row, for temperature and random order; row number by default.
            limits: positions that each row may grow to, where the model expects its answer to be
                longer.
            constraints: of each row, or None; a row that has one ends when nothing is open, end
                tokens or not.

        Raises:
            MMDiffError: fewer steps than blocks, or another number of seeds than of rows.
        """
        num_rows = len(canvas.ids_BG)
        seeds = range(num_rows) if seeds is None else seeds
        if len(seeds) != num_rows:
            raise MMDiffError(f"{len(seeds)} seeds for {num_rows} rows; give one seed per row")
        self.predict, self.canvas, self.decoding, self.tokens = predict, canvas, decoding, tokens
        self.rule, self.order = make_rule(decoding), ORDERS[decoding.order]
        self.names = list(range(num_rows))  # of the rows, also when others have left
        self.generators = [torch.Generator().manual_seed(seed_of(seed)) for seed in seeds]
        self.constraints = [None] * num_rows if constraints is None else list(constraints)
        self.quotas_BS = plan_quotas(canvas, decoding)
        self.steps_B = torch.zeros(
            num_rows, dtype=torch.long, device=canvas.ids_BG.device
        )  # of each row so far
        self.growth_B = torch.zeros_like(self.steps_B)  # those of them in which it grew
        self.limits_B = (
            canvas.length_B if limits is None else torch.tensor(limits, device=canvas.ids_BG.device)
        )
        self.growing_B = canvas.length_B < self.limits_B
        self._banned = torch.tensor(tokens.never, dtype=torch.long, device=canvas.ids_BG.device)
        self._end_ids = (tokens.eos, tokens.eot) if decoding.stop else ()
        self._next_name = num_rows

    @property
    def working(self) -> bool:
        """Whether any row is not finished."""
        return not bool(self._finished().all())

    def step(self, expired: Collection[int] = ()) -> Canvas:
        """One pass, and what it decides.

        Args:
            hurried: names of rows that cannot wait longer; all of their open positions are decided
                at once.
        """
        rows_A = (~self._finished()).nonzero()[:, 0]
        if not len(rows_A):  # a scaffold may leave nothing to decide
            return self.canvas
        hurried_A = self._named(expired)[rows_A]
        part, growing_A = self.canvas.select(rows_A), self.growing_B[rows_A] & ~hurried_A
        eligible_AG = part.eligible(self.decoding.block_length) & ~growing_A[:, None]
        eligible_AG |= part.open_BG & hurried_A[:, None]
        tail_AG = part.tail(END_WINDOW) & growing_A[:, None]
        logits_SV, logits_MV, decided_AG = self._predict(part, rows_A, eligible_AG, tail_AG)
        counts = zip(rows_A.tolist(), eligible_AG.sum(dim=1).tolist(), strict=True)
        draws = [(self.generators[row], count) for row, count in counts]
        asked_AG = eligible_AG | tail_AG
        if growing_A.any():
            self._grow(
                rows_A[growing_A],
                logits_SV[tail_AG[asked_AG]].split(tail_AG.sum(1)[growing_A].tolist()),
            )
        logits_NV = logits_SV[eligible_AG[asked_AG]]
        ids_N = self._draw(part, rows_A, eligible_AG, logits_NV, draws)
        places_A1 = (self.steps_B - self.growth_B)[rows_A, None].clamp(
            max=self.quotas_BS.shape[1] - 1
        )
        votes = Proposal(
            part,
            eligible_AG,
            logits_NV,
            ids_N,
            self.quotas_BS[rows_A].gather(1, places_A1)[:, 0],
            self.decoding.block_length,
            draws,
            [self.names[row] for row in rows_A.tolist()],
            decided_AG,
            logits_MV,
        )
        here_AG = self.rule(votes, self.order(votes)) | eligible_AG & hurried_A[:, None]
        if constrained := self._constrained(rows_A):
            here_AG = here_AG.clone()
            for number, constraint in constrained:
                here_AG[number] = constraint.expand(here_AG[number]) & eligible_AG[number]
        ids_AG = part.ids_BG.masked_scatter(eligible_AG, ids_N)
        steps_A = self.steps_B[rows_A]
        self.canvas = self.canvas.commit(rows_A, here_AG, ids_AG, votes.confidence_AG, steps_A)
        if isinstance(self.rule, RemaskingRule):
            taken_back_AG = (
                self.rule.remask(votes, self.canvas.select(rows_A)) & ~hurried_A[:, None]
            )
            self.canvas = self.canvas.reopen(rows_A, taken_back_AG, self.tokens.mask)
        for number, constraint in self._constrained(rows_A):
            self._commit_forced(rows_A[number : number + 1], constraint)
        self.steps_B[rows_A] = steps_A + 1
        self.growth_B[rows_A] += growing_A
        return self.canvas

    def join(self, other: Sampler) -> list[int]:
        """Take over the rows of another one; gives their names. The other is used up.

        Raises:
            MMDiffError: its settings are others.
        """
        if other.decoding != self.decoding:
            raise MMDiffError(
                f"rows with other settings cannot join: {other.decoding} is not {self.decoding}"
            )
        assert isinstance(self.predict, Batch) and isinstance(other.predict, Batch)
        self.predict.join(other.predict)
        names = [self._next_name + number for number in range(len(other.names))]
        self._next_name += len(names)
        self.names, self.generators = self.names + names, self.generators + other.generators
        self.constraints = self.constraints + other.constraints
        self.canvas = self.canvas.concatenated(other.canvas)
        width = max(self.quotas_BS.shape[1], other.quotas_BS.shape[1])
        self.quotas_BS = torch.cat(
            [F.pad(each.quotas_BS, (0, width - each.quotas_BS.shape[1])) for each in (self, other)]
        )
        self.steps_B, self.growth_B, self.limits_B, self.growing_B = (
            torch.cat(pair) for pair in zip(self._row_state(), other._row_state(), strict=True)
        )
        return names

    def pop_finished(self, abort: Collection[int] = ()) -> FinishedSequences:
        """Let the finished rows go.

        Args:
            also: names of rows that go as they are, because nobody waits for them any more.
        """
        assert isinstance(self.predict, Batch)
        finished_B = self._finished() | self._named(abort)
        gone_A, rest_A = (here_B.nonzero()[:, 0] for here_B in (finished_B, ~finished_B))
        passes = self.predict.passes_B[gone_A.cpu()].tolist()
        names, constraints = (
            [each[row] for row in gone_A.tolist()] for each in (self.names, self.constraints)
        )
        finished = FinishedSequences(names, self.canvas.select(gone_A), passes, constraints)
        if finished.names:
            self.predict.take(rest_A)
            self.canvas, self.quotas_BS = self.canvas.select(rest_A), self.quotas_BS[rest_A]
            self.names, self.generators, self.constraints = (
                [each[row] for row in rest_A.tolist()]
                for each in (self.names, self.generators, self.constraints)
            )
            self.steps_B, self.growth_B, self.limits_B, self.growing_B = (
                each[rest_A] for each in self._row_state()
            )
        return finished

    def _named(self, names: Collection[int]) -> Tensor:
        return torch.tensor(
            [name in names for name in self.names], dtype=torch.bool, device=self.steps_B.device
        )

    def _row_state(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.steps_B, self.growth_B, self.limits_B, self.growing_B

    def _finished(self) -> Tensor:
        ended_B, full_B = self.canvas.finished(self._end_ids), self.canvas.finished(())
        free = [constraint is None for constraint in self.constraints]
        free_B = torch.tensor(free, dtype=torch.bool, device=full_B.device)
        return torch.where(free_B, ended_B, full_B)

    def _constrained(self, rows_A: Tensor) -> list[tuple[int, Constraint]]:
        """The active rows that have constraints, by their number among the active ones."""
        given = ((number, self.constraints[row]) for number, row in enumerate(rows_A.tolist()))
        return [(number, constraint) for number, constraint in given if constraint is not None]

    def _draw(
        self,
        part: Canvas,
        rows_A: Tensor,
        eligible_AG: Tensor,
        logits_NV: Tensor,
        draws: Sequence[tuple[torch.Generator, int]],
    ) -> Tensor:
        """What would be committed at the eligible positions; the logits lose what may not."""
        temperature, constrained = self.decoding.temperature, dict(self._constrained(rows_A))
        if not constrained:
            return sample(logits_NV, self.tokens.mask, temperature, draws)
        drawn = []
        for number, chunk_NV in enumerate(logits_NV.split([count for _, count in draws])):
            if number in constrained and len(chunk_NV):
                places = eligible_AG[number].nonzero()[:, 0].tolist()
                drawn.append(
                    constrained[number].decide(
                        part.ids_BG[number], places, chunk_NV, temperature, draws[number][0]
                    )
                )
            else:
                drawn.append(sample(chunk_NV, self.tokens.mask, temperature, [draws[number]]))
        return torch.cat(drawn)

    def _commit_forced(self, row_1: Tensor, constraint: Constraint) -> None:
        """Commit what nothing is left to decide about, without a pass."""
        forced = constraint.forced(self.canvas.ids_BG[row_1[0]])
        if forced:
            ids_1G, here_1G = (
                self.canvas.ids_BG[row_1].clone(),
                torch.zeros_like(self.canvas.open_BG[row_1]),
            )
            ids_1G[0, list(forced)] = torch.tensor(list(forced.values()), device=ids_1G.device)
            here_1G[0, list(forced)] = True
            sure_1G = torch.ones_like(self.canvas.confidence_BG[row_1])
            self.canvas = self.canvas.commit(row_1, here_1G, ids_1G, sure_1G, self.steps_B[row_1])

    def _predict(
        self, part: Canvas, rows_A: Tensor, eligible_AG: Tensor, tail_AG: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at the eligible positions and the tails, those at what the rule looks back at, and
        where that is."""
        reads = self.rule.needs if isinstance(self.rule, RemaskingRule) else None
        decided_AG = torch.zeros_like(eligible_AG)
        if reads is not None:
            decided_AG = _decided(part, eligible_AG, self.decoding.block_length)
        asked_AG = eligible_AG | tail_AG
        if reads == "hidden" and decided_AG.any():
            both_SV = self._usable(self.predict(part.ids_BG, rows_A, asked_AG, decided_AG))
            count = int(asked_AG.sum())
            return both_SV[:count], both_SV[count:], decided_AG
        select_AG = asked_AG | decided_AG
        both_SV = self._usable(self.predict(part.ids_BG, rows_A, select_AG))
        return both_SV[asked_AG[select_AG]], both_SV[decided_AG[select_AG]], decided_AG

    def _usable(self, logits_SV: Tensor) -> Tensor:
        logits_SV = logits_SV.float().index_fill(1, self._banned, -torch.inf)
        return (
            logits_SV if self.decoding.top_k is None else keep_top_k(logits_SV, self.decoding.top_k)
        )

    def _grow(self, rows_A: Tensor, tails: Sequence[Tensor]) -> None:
        """Lengthen the rows whose tails (n, V) do not expect the end; the others have their
        length."""
        ends = torch.tensor((self.tokens.eos, self.tokens.eot), device=rows_A.device).unique()
        expected = [_end_expected(tail_NV, ends) for tail_NV in tails]
        length_A = self.canvas.length_B[rows_A]
        wanted_A = torch.minimum(length_A + GROWTH, self.limits_B[rows_A])
        short_A = torch.tensor([share < END_EXPECTED for share in expected], device=rows_A.device)
        self.canvas = self.canvas.extended(
            rows_A, torch.where(short_A, wanted_A, length_A), self.tokens.mask
        )
        self.growing_B[rows_A] = short_A & (wanted_A < self.limits_B[rows_A])
        quotas_BS = plan_quotas(self.canvas.select(rows_A), self.decoding)
        width = max(quotas_BS.shape[1], self.quotas_BS.shape[1])
        self.quotas_BS = F.pad(self.quotas_BS, (0, width - self.quotas_BS.shape[1]))
        self.quotas_BS[rows_A] = F.pad(quotas_BS, (0, width - quotas_BS.shape[1]))


def _end_expected(tail_NV: Tensor, end_ids: Tensor) -> float:
    """The mean probability of the end tokens over the last positions, those counted at whose
    likeliest token is one."""
    probs_NV = tail_NV.softmax(dim=-1)
    expects_N = torch.isin(tail_NV.argmax(dim=-1), end_ids).flip(0).cumprod(0).flip(0)
    return float((probs_NV[:, end_ids].sum(1) * expects_N).mean())


def _decided(part: Canvas, eligible_AG: Tensor, block_length: int) -> Tensor:
    """Positions of each row's current block (A, G) that were decided here."""
    numbers_G = torch.arange(eligible_AG.shape[1], device=eligible_AG.device) // block_length
    block_A1 = eligible_AG.int().argmax(dim=1, keepdim=True) // block_length
    return (numbers_G == block_A1) & (part.step_BG >= 0) & eligible_AG.any(1, keepdim=True)


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
        draws: one generator and its number of positions per row, so that a row's noise depends on
            its seed alone.
    """
    noisy_NV = logits_NV.index_fill(1, torch.tensor(mask_id, device=logits_NV.device), -torch.inf)
    if temperature > 0:
        noise_NV = (
            torch.cat(
                [
                    torch.empty(n, logits_NV.shape[1], dtype=torch.float64).exponential_(
                        generator=generator
                    )
                    for generator, n in draws
                ]
            )
            .log()
            .neg()
        )
        exact = (
            torch.device("cpu") if logits_NV.device.type == "mps" else logits_NV.device
        )  # MPS has no float64
        noisy_NV = noisy_NV.to(exact).double() + temperature * noise_NV.to(exact)
    return noisy_NV.argmax(dim=-1).to(logits_NV.device)


def plan_quotas(canvas: Canvas, decoding: DecodingConfig) -> Tensor:
    """How many positions each row commits at each step (B, S), by the schedule within every block.

    Steps are shared evenly over the blocks; neither need divide the other.
    """
    blocks, schedule = (
        canvas.open_BG.split(decoding.block_length, dim=1),
        SCHEDULES[decoding.schedule],
    )
    if decoding.steps < len(blocks) and rule_name(decoding) == "quota":
        raise MMDiffError(
            f"steps={decoding.steps} is fewer than the {len(blocks)} blocks of length {decoding.block_length}; "
            f"raise steps or block_length"
        )
    block_steps = [max(1, share) for share in even_shares(decoding.steps, len(blocks))]
    rows = [
        [
            quota
            for block, steps in zip(row, block_steps, strict=True)
            for quota in schedule(block, steps)
            if quota
        ]
        for row in torch.stack([block.sum(dim=1) for block in blocks], dim=1).tolist()
    ]
    longest = max(map(len, rows), default=0)
    padded = [row + [0] * (max(longest, 1) - len(row)) for row in rows]
    return torch.tensor(padded, device=canvas.ids_BG.device)
