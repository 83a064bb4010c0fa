"""Small changes to the code that the tests must notice: boundaries, signs, dropped conditions,
wrong defaults.

A change is the file, a text that stands in it exactly once, what stands there instead, and the
tests: the near ones are quick and stand beside the code, the wide ones are run where the near ones
notice nothing. A change that nothing can tell from the original has the reason instead, and is not
tried. Keep the old texts short, so that they last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Change(NamedTuple):
    file: str
    old: str
    new: str
    near: str  # arguments of pytest
    wide: str = ""
    why: str = ""  # it is equivalent


def of(file: str, near: str, wide: str, changes: Sequence[tuple[str, ...]]) -> list[Change]:
    """Changes of one file: old text, new text, and the reason where it is equivalent."""
    return [Change(file, old, new, near, wide, *why) for old, new, *why in changes]


CACHES = "tests/decoding/test_kv_cache.py tests/decoding/test_model_runner.py"
LOADING = (
    "tests/modeling/test_checkpoint.py tests/modeling/test_checkpoint_folder.py "
    "tests/modeling/test_families.py tests/modeling/test_published.py "
    "tests/modeling/test_llada_v.py"
)
SERVED = (
    "tests/serve/test_faults.py tests/serve/http/test_bad_input.py "
    "-k 'key or browser or full_server or everywhere or hardly'"
)

CHANGES: list[Change] = [
    *of(
        "mmdiff/decoding/commit_rules.py",
        "tests/decoding/test_commit_rules.py",
        "tests/decoding/test_sampler.py",
        [
            ("self.logits_NV.gather(1, self.ids_N[:, None])[:, 0]", "self.logits_NV.amax(-1)"),
            ("best_N2[:, 0] - best_N2[:, 1]", "best_N2[:, 0]"),
            ("-votes.scatter(torch.arange", "votes.scatter(torch.arange"),
            (
                "self.eligible_AG.int().argmax(1, keepdim=True)",
                "self.eligible_AG.int().argmin(1, keepdim=True)",
            ),
            ("votes.confidence_AG >= self.threshold", "votes.confidence_AG > self.threshold"),
            ("Threshold(\n        0.9 if", "Threshold(\n        0.95 if"),
            ("self.factor / (ranks_AG + 2)", "self.factor / (ranks_AG + 1)"),
            ("before_AG <= self.gamma", "before_AG < self.gamma"),
            ("(sorted_AG.cumsum(1) - sorted_AG)", "(sorted_AG.cumsum(1))"),
            ("votes.places_AG % votes.block_length", "votes.places_AG"),
            ("stride // self.base)", "stride // self.base - 1)"),
            ("near: float = 0.75", "near: float = 0.7"),
            ("votes.confidence_AG >= self.near", "votes.confidence_AG > self.near"),
            (
                "_first(votes.scatter(votes.uniform_N), votes.eligible_AG, 1)",
                "_first(votes.scatter(votes.uniform_N), votes.eligible_AG, votes.quota_A[:, None])",
            ),
            (" - votes.quota_A[:, None]", " - votes.quota_A[:, None] - 1"),
            ("(after.step_BG >= 0) & votes.block_AG", "(after.step_BG >= 0)"),
            ("_first(-after.confidence_BG", "_first(after.confidence_BG"),
            ("torch.minimum(count_A1, commits_A1 - 1)", "torch.zeros_like(count_A1)"),
            ("(commits_A1 + 7) // 8", "commits_A1 // 8"),
            ("self.least // 2", "0"),
            ("votes.confidence_AG > mean_A[:, None]", "votes.confidence_AG >= mean_A[:, None]"),
            (".clamp(min=1), 1.0)", ".clamp(min=1), 0.0)"),
            ("_first(drop_AG, votes", "_first(-drop_AG, votes"),
            ("self.top = dict(zip(votes.names, top_AG, strict=True))", "pass"),
            ("votes.commits(after) - 1)", "0)"),
            ("votes.commits(after) - 1)", "votes.commits(after))"),
            ("likely_AG < self.keep", "likely_AG > self.keep"),
            ("_first(-likely_AG", "_first(likely_AG"),
            (".clamp(self.least, self.most)", ".clamp(max=self.most)"),
            ("share: float = 0.7", "share: float = 0.8"),
            ("votes.confidence_AG > self.take", "votes.confidence_AG >= self.take"),
            (
                "(allowed_AG & eligible_AG) | ((ranks_AG == 0) & eligible_AG)",
                "allowed_AG & eligible_AG",
            ),
            ("dim=1, descending=True, stable=True", "dim=1, descending=False, stable=True"),
        ],
    ),
    *of(
        "mmdiff/decoding/schedule.py",
        "tests/decoding/test_commit_rules.py",
        "",
        [
            ("shift: float = 1 / 3", "shift: float = 1 / 2"),
            ("math.pi / 2 * (part + 1)", "math.pi / 2 * part"),
            ("base + (part < extra)", "base + (part <= extra)"),
            ("if part < parts - 1 else left", "if part < parts else left"),
            ("total * share + 1e-9", "total * share + 0.5"),
        ],
    ),
    *of(
        "mmdiff/decoding/sampler.py",
        "tests/decoding/test_sampler.py",
        (
            "tests/decoding/test_commit_rules.py tests/decoding/test_batching.py -k 'rules or "
            "grow or ragged or guesses or none-'"
        ),
        [
            ("each.tail(END_WINDOW)", "each.tail(END_WINDOW // 2)"),
            ("self.order(votes)) | (votes.eligible_AG & expired_A1)", "self.order(votes))"),
            (
                "constraint.expand(here_AG[row]) & eligible_AG[row]",
                "constraint.expand(here_AG[row])",
            ),
            (
                "self.rule.remask(votes, after) & ~expired_A1",
                "self.rule.remask(votes, after)",
            ),
            ("votes.confidence_AG, votes.steps_A)", "votes.confidence_AG, votes.steps_A + 1)"),
            ("self._next_name += len(other.running)", "self._next_name += 1"),
            ("self.running += other.running", "self.running = other.running + self.running"),
            ("each.name in abort or each.finished", "each.finished"),
            ("temperature, [draws[row]]", "temperature, [draws[0]]"),
            ("logits_SV[int(asked.select_AG.sum()) :]", "logits_SV[: -int(asked.select_AG.sum())]"),
            ("logits_SV < least_S1", "logits_SV <= least_S1"),
            ("GROWTH * next(short)", "GROWTH"),
            (" < END_EXPECTED\n", " > END_EXPECTED\n"),
            ("END_EXPECTED = 0.5", "END_EXPECTED = 0.6"),
            (".flip(0).cumprod(0).flip(0)", ".cumprod(0)"),
            ("expects_N).mean()", "expects_N).max()"),
            ("temperature * noise_NV", "noise_NV"),
            (
                "dtype=torch.float64)\n            noise",
                "dtype=torch.float32)\n            noise",
                (
                    "torch draws them in double precision on a processor, and rounds what is as "
                    "small as it should be"
                ),
            ),
            ("(tokens.eos, tokens.eot) if decoding.stop", "(tokens.eos,) if decoding.stop"),
            (
                "active = [each for each in self.running if not each.finished(self._end_ids)]",
                "active = list(self.running)",
            ),
            ("seeds = range(count) if", "seeds = [0] * count if"),
        ],
    ),
    *of(
        "mmdiff/decoding/kv_cache.py",
        f"{CACHES} -k 'published or leave or exact or parts'",
        "tests/decoding/test_kv_cache.py tests/decoding/test_prefix_cache.py -k 'store or quota'",
        [
            ("slot.block_G.cumsum() > 0", "slot.block_G"),
            ("return slot.block_G\n", "return slot.open_G & slot.block_G\n"),
            ("slot.open_before_G | slot.open_G", "slot.open_G"),
            ("interval: int | None = 8", "interval: int | None = 9"),
            ("slot.age >= self.interval", "slot.age > self.interval"),
            (" or slot.entered", ""),
            ("slot.entered or slot.grown", "slot.entered"),
            ("np.ones_like(slot.open_G)", "slot.open_G"),
            ("before[:, :, self.slots.index(slot), :, :kept]", "before[:, :, row, :, :kept]"),
            ("if self.slots == slots and columns >= length:", "if self.slots == slots:"),
            ("if isinstance(self.rows, Tensor):", "if not isinstance(self.rows, Tensor):"),
            ("if indices != list(range(run.start, run.stop)):", "if False:"),
            ("1 if anew_A[row] else slot.age + 1", "0 if anew_A[row] else slot.age + 1"),
            ("1 if anew_A[row] else slot.age + 1", "1 if anew_A[row] else slot.age"),
            (
                "columns_AG = np.zeros(len(slots), dtype=bool), select_AG.copy()",
                "columns_AG = np.zeros(len(slots), dtype=bool), np.zeros_like(select_AG)",
                (
                    "every cache's columns hold the open positions of the block, and rows in a "
                    "hurry are computed anew"
                ),
            ),
            (
                "columns_AG & (ids_AG != PAD_POSITION)",
                "columns_AG",
                (
                    "more is computed, but nothing looks at an absent column, and growth makes a "
                    "row stale"
                ),
            ),
            ("                break\n", "                continue\n"),
            ("length != self.length\n", "length < self.length\n"),
            ("block != self.block, length", "block < self.block, length"),
            ("self.open_G[: len(ids_G)]\n", "(ids_G == mask_id)[: len(self.open_G)]\n"),
            (
                "return both[0][:, :, : self.total], both[1]",
                "return both[1][:, :, : self.total], both[0]",
            ),
        ],
    ),
    *of(
        "mmdiff/decoding/model_runner.py",
        (
            f"{CACHES} tests/decoding/test_prefix_cache.py -k 'published or leave or exact or "
            "parts or store or shifted'"
        ),
        (
            "tests/decoding/test_kv_cache.py tests/decoding/test_prefix_cache.py "
            "tests/decoding/test_batching.py -k 'store or quota'"
        ),
        [
            ("(anew_A == anew).nonzero()", "(anew_A == True).nonzero()"),
            ("first = min(ends, default=0)", "first = max(ends, default=0)"),
            (" and not model.backbone.shifted\n", "\n"),
            ("exact[-1])", "exact[0])"),
            (
                "if decoding.refresh is not None:",
                "if decoding.refresh:",
                "a refresh of 0 steps is refused by the settings",
            ),
            ("if name not in exact:", "if name == exact[0]:"),
        ],
    ),
    *of(
        "mmdiff/structured/constraint/slots.py",
        "tests/structured/test_slots.py tests/structured/test_distinct.py",
        "tests/structured/test_extraction.py tests/structured/test_validity.py",
        [
            (
                "value = np.append(np.where(automaton.accepts_S, 0.0, NEVER), NEVER)",
                "value = np.append(np.zeros(len(automaton.accepts_S)), NEVER)",
            ),
            (
                "values = [np.append(np.where(automaton.accepts_S, 0.0, NEVER), NEVER)]",
                "values = [np.append(np.zeros(len(automaton.accepts_S)), NEVER)]",
            ),
            (" and self._accepts(class_L, asked, best_N)", ""),
            (
                "len(asked) == open_L.sum()\n            and self",
                "self",
                (
                    "an open position that is not asked for has no class, and what has none is "
                    "not accepted"
                ),
            ),
            ("    if all_but:\n        row_V", "    if not all_but:\n        row_V"),
            ("if not np.isfinite(rows_NV[np.arange(len(asked)), best_N]).all()", "if False"),
            ("if not np.isfinite(best_NC[allowed_LC[asked]]).all()", "if False"),
            ("np.where(allowed_LC, 0.0, NEVER)", "np.zeros(allowed_LC.shape)"),
            ("np.where(allowed_LC[asked], best_NC, NEVER)", "best_NC"),
            ("class_L[: self.solid][open_L[: self.solid]] = SOLID", "pass"),
            ("return solid and self.automaton.accepts", "return self.automaton.accepts"),
            ("if not all_but and len(tokens) == 1", "if len(tokens) == 1"),
            ("if open_L[position]:", "if True:"),
            ("if open_L.all() and len(asked) == self.length:", "if open_L.all():"),
            (
                "if open_L.all() and len(self.values) > 1:",
                "if open_L.all() and len(self.values) > 2:",
            ),
            ("open_L & (left_KL == left_KL[0])", "(left_KL == left_KL[0])"),
            (
                "((self.ids_KL == ids_L) | open_L).all(1)",
                "((self.ids_KL == ids_L) | open_L).any(1)",
            ),
            ("gain_K[choices] = sums", "gain_K[: len(sums)] = sums"),
            ("gain_K = gain_K / temperature + _gumbel", "gain_K = gain_K * temperature + _gumbel"),
            (
                "row_M[columns] = gain_K / temperature + _gumbel",
                "row_M[columns] = gain_K + _gumbel",
            ),
            ("left_K & ~np.isin(columns, others)", "left_K"),
            ("apart_K if apart_K.any() else left_K", "apart_K"),
            (
                "each is not None and other != number",
                "each is not None",
                (
                    "a slot that holds a value has only that one left, and keeps it for want of "
                    "another"
                ),
            ),
            ("if open_L.any():\n                taken", "if open_L.all():\n                taken"),
            ("found = assignment(gain_NM)\n", "found = gain_NM.argmax(1)\n"),
            ("not (open_L.all() and allowed_K.sum() > 1)", "not open_L.all()"),
            ("if rows > columns:", "if rows >= columns:"),
            ("price_M[~open_M] -= step", "price_M[~open_M] += step"),
            ("if finite[np.arange(rows), found_N].all():", "if True:"),
            ("-np.log(-np.log(", "np.log(-np.log("),
            ("            if not np.isfinite(row_V[tokens]).all():\n", "            if False:\n"),
            ("positions_N[first:end] - slot.first", "positions_N[first:end] * 1"),
            (
                "(slot.first, slot.first + slot.length))",
                "(slot.first, slot.first + slot.length - 1))",
            ),
            ("isinstance(slot, ChoiceSlot) and bool", "bool"),
            (
                "open_L).items():\n                    found[slot.first + position]",
                "open_L).items():\n                    found[position]",
            ),
            ("score_LC[position] + values[position + 1]", "score_LC[position] + values[position]"),
            (
                "_log_masses(values / np.float64(temperature), starts)",
                "_log_masses(values, starts)",
            ),
            (
                "automaton.members(chosen)][None] / np.float64(temperature)",
                "automaton.members(chosen)][None]",
            ),
            ("                row_V[others] = NEVER\n", ""),
            ("posinf=WORST", "posinf=-WORST"),
            ("neginf=-WORST", "neginf=WORST"),
            ("row_V[members] / np.float64(temperature)", "row_V[members]"),
            ("score_LC[position][:, None] + value[automaton.next_CS]", "value[automaton.next_CS]"),
        ],
    ),
    *of(
        "mmdiff/structured/constraint/token_dfa.py",
        "tests/structured/test_slots.py",
        "tests/structured/test_token_dfa.py",
        [
            (
                "SOLID:\n            return classes != self.pad_class",
                "SOLID:\n            return classes == self.pad_class",
            ),
            (
                "all_but = 2 * int(fits_V.sum()) > len(fits_V)",
                "all_but = 2 * int(fits_V.sum()) < len(fits_V)",
            ),
            ("(self.class_V >= 0) & classes_C[self.class_V]", "classes_C[self.class_V]"),
            ("sizes > BIG)", "sizes >= BIG)"),
            ("if state >= 0 and chosen >= 0:", "if chosen >= 0:"),
            ("if state >= 0 and chosen >= 0:", "if state >= 0:"),
            ("return state >= 0 and bool(self.accepts_S[state])", "return state >= 0"),
        ],
    ),
    *of(
        "mmdiff/serve/http/limiter.py",
        (
            "tests/serve/test_parts.py tests/serve/http/test_limiter.py -k 'rows or counted or "
            "limiter'"
        ),
        "",
        [
            ("if not self._waiting and self.free >= count:", "if self.free >= count:"),
            ("self._waiting and self.free >= count", "self._waiting and self.free > count"),
            ("self.give(count if granted else 0)", "self.give(0)"),
            ("self.give(count if granted else 0)", "self.give(count)"),
            ("            self.give(count if granted else 0)\n", "            pass\n"),
            ("turn.done() and not turn.cancelled()", "turn.done()"),
            ("wanted > self.free", "wanted >= self.free"),
            ("cancelled = turn.done()", "cancelled = False"),
            ("options.max_num_seqs + options.max_num_queued_reqs", "options.max_num_queued_reqs"),
            (
                "(asyncio.CancelledError, Disconnected, GeneratorExit)",
                "(asyncio.CancelledError, GeneratorExit)",
            ),
            ("self.in_flight >= self.most", "self.in_flight > self.most"),
            ("self.by_key[key] >= most", "self.by_key[key] > most"),
            ("if most and self", "if self"),
            ("                del self.by_key[key]\n", "                pass\n"),
            ("if self.draining:", "if self.draining and not ready:"),
            ("if not ready:", "if False:"),
            ("            self.capacity.give(sequences)\n", "            pass\n"),
            ("            self.running -= 1\n", "            pass\n"),
            ("self.options.overload_status_code", "503"),
            ("self.rejected[refusal.code] += 1", "pass"),
            ("if error.status < 500:", "if error.status <= 500:"),
            ("asyncio.timeout(self.options.queue_timeout)", "asyncio.timeout(None)"),
        ],
    ),
    *of(
        "mmdiff/serve/http/middleware.py",
        "tests/serve/test_parts.py tests/serve/http/test_middleware.py -k 'reader or middleware'",
        SERVED,
        [
            (
                "        self._check_origin(path, method, headers)\n        return digest",
                "        return digest",
            ),
            (' or "*" in self.options.allowed_origins', ""),
            ("path in self.files and method in", "method in"),
            (
                'and method in ("GET", "HEAD"):',
                ":",
            ),
            ('== "same-origin"', '!= "cross-site"'),
            (" or host in self.hosts", ""),
            ("PREFIX.fullmatch(prefix)", "PREFIX.match(prefix)"),
            (
                '"GET" if scope["method"] == "HEAD" else',
                '"GET" if scope["method"] == "OPTIONS" else',
            ),
            ("if not any(right)", "if not all(right)"),
            ("REQUEST_ID.fullmatch(given)", "REQUEST_ID.match(given)"),
            ("self.options.on_loopback and not known", "not known"),
            ("LOCAL_HOST.fullmatch(", "LOCAL_HOST.match("),
            ("if len(values) != 1", "if len(values) < 1"),
            ('partition(b":")[2]', 'partition(b":")[0]'),
            ("b64decode(key, validate=True)", "b64decode(key)"),
            ("int(length) > self.options.max_body", "int(length) >= self.options.max_body"),
            ("self.got > self.options.max_body", "self.got >= self.options.max_body"),
            (" + self.got / self.options.body_rate", ""),
            ("self.got += len(", "self.got = len("),
            ("error.status in (401, 403)", "error.status in (401,)"),
            ("headers.setdefault(name, value)", "headers[name] = value"),
            ('                headers["Connection"] = "close"\n', "                pass\n"),
            ("if self.status is not None:", "if False:"),
            ("if error.status == 401:", "if error.status in (401, 403):"),
            ("if path in OPEN_PATHS:", "if path.startswith(OPEN_PATHS):"),
            (
                "asyncio.timeout(self.options.reader_timeout)",
                "asyncio.timeout(self.options.queue_timeout)",
            ),
            ('None if "gone" in state', 'None if "gone" not in state'),
            ("status or 499", "status or 200"),
            (" and not has_body", ""),
            ('b"content-length", b"transfer-encoding")', 'b"content-length",)'),
            ('state["id"] = given if', 'state["id"] = secrets.token_hex(12) if'),
            ("return digest.hex()[:12]", 'return ""'),
            ("drained < DRAINED_BYTES", "drained > DRAINED_BYTES"),
            (
                '        if message["type"] == "http.disconnect":\n            raise',
                "        if False:\n            raise",
            ),
            ("not length.isdigit()", "length.isdigit()"),
        ],
    ),
    *of(
        "mmdiff/modeling/checkpoint.py",
        "tests/modeling/test_checkpoint_details.py tests/modeling/test_checkpoint.py "
        "tests/modeling/test_checkpoint_folder.py "
        "tests/modeling/test_chat_format.py",
        LOADING,
        [
            ("sources.keys() - expected.keys()", "expected.keys() - sources.keys()"),
            ("sorted(expected.keys() - sources.keys())", "[]"),
            (
                "if tensor.shape != expected[target].shape:",
                "if tensor.dim() != expected[target].dim():",
            ),
            ("made = tensor.to(dtype)", "made = tensor"),
            ("        if _is_finite(tensor):\n", "        if not _is_finite(tensor):\n"),
            ("if not _is_finite(made):", "if False:"),
            ("if tensor.dtype not in WEIGHT_TYPES:", "if False:"),
            ("all(map(torch.isfinite", "any(map(torch.isfinite"),
            ("if not _names_end_of_turn(folder):", "if False:"),
            ("use_onednn(model)\n", "pass\n"),
            ("    refuse_adapter(folder)\n", ""),
            ("trust_remote_code=False", "trust_remote_code=True"),
        ],
    ),
    *of(
        "mmdiff/modeling/checkpoint_folder.py",
        "tests/modeling/test_checkpoint_details.py tests/modeling/test_checkpoint.py "
        "tests/modeling/test_checkpoint_folder.py "
        "tests/modeling/test_chat_format.py",
        LOADING,
        [
            ("Path(file).name != file or ", ""),
            (
                "not isinstance(listed, dict)\n        or not listed\n        or",
                "not isinstance(listed, dict)\n        or",
            ),
            ("if single.is_file() and SINGLE not in listed.values():", "if single.is_file():"),
            ("if listed.keys() <= set(held):", "if listed.keys() >= set(held):"),
            ("if name not in held_by[file]", "if name in held_by[file]"),
            ("len(names) - most", "len(names)"),
            ("return first if len(names) <= most", "return first if len(names) < most"),
            (' + sorted(folder.glob("*.pt")):', ":"),
            ("if not isinstance(value, dict):", "if isinstance(value, list):"),
            ("            if not is_fresh:\n", "            if is_fresh:\n"),
        ],
    ),
    *of(
        "mmdiff/modeling/layouts/published_config.py",
        "tests/modeling/test_checkpoint_details.py tests/modeling/test_published.py",
        LOADING,
        [
            ('("n_kv_heads", "num_key_value_heads",', '("n_kv_heads",'),
            ('("embedding_size", "vocab_size")', '("vocab_size", "embedding_size")'),
            ('"n_heads", "num_attention_heads"),\n    "rms', '"hidden_size"),\n    "rms'),
            ('("max_sequence_length", ', '("sequence_length", '),
            ('_REQUIRED = (\n    "vocab_size",', "_REQUIRED = ("),
            (
                "vocab_size > max(usual.eot, usual.mask) and mask in (None, usual.mask)",
                "mask in (None, usual.mask)",
            ),
            (
                "vocab_size > max(usual.eot, usual.mask) and mask in (None, usual.mask)",
                "vocab_size > max(usual.eot, usual.mask)",
            ),
            ("    if token is None:\n        raise", "    if token is False:\n        raise"),
            ("if not 0 <= token < vocab_size:", "if not 0 <= token <= vocab_size:"),
            (
                '_either(_id(published, "eot_token_id"), eos)',
                '_either(_id(published, "eot_token_id"), mask)',
            ),
            (
                "    if token is None:\n        return otherwise",
                "    if not token:\n        return otherwise",
            ),
            ("range(max(columns, 1), last_columns + 1)", "range(max(columns, 1), last_columns)"),
            ("range(max(rows, 1), last_rows + 1)", "range(max(columns, 1), last_rows + 1)"),
            ("itertools.product(across, down)", "itertools.product(down, across)"),
            ("(width // side, height // side)", "(height // side, width // side)"),
            ("if not 0 < len(grids)", "if not 0 <= len(grids)"),
            ("each > 0 and each % side == 0", "each > 0"),
            ("patches is None or", "patches is not None or"),
        ],
    ),
    *of(
        "mmdiff/modeling/layouts/siglip.py",
        "tests/modeling/test_checkpoint_details.py tests/modeling/test_published.py",
        LOADING,
        [('found["num_hidden_layers"] -= 1', 'found["num_hidden_layers"] -= 0')],
    ),
    *of(
        "mmdiff/modeling/layouts/family.py",
        "tests/modeling/test_checkpoint_details.py tests/modeling/test_families.py",
        LOADING,
        [('    "tie_word_embeddings": OFF,\n', '    "tie_word_embeddings": (True,),\n')],
    ),
    *of(
        "mmdiff/modeling/layouts/settings.py",
        "tests/modeling/test_checkpoint_details.py tests/modeling/test_families.py",
        LOADING,
        [
            ("        if key in family.read:\n            continue\n", ""),
            (
                "elif value and not is_bookkeeping(key, value)",
                "elif value is True and not is_bookkeeping(key, value)",
            ),
            ('published.get("use_sliding_window") is False', "True"),
            ("        return not value\n", "        return True\n"),
            ("return all(each in accepted", "return any(each in accepted"),
            ("if any(rope.values()) or not all(", "if not all("),
            ('kind in (None, "default") for', "kind is not None or True for"),
            ("if any(theta != found[0] for theta in found):", "if False:"),
        ],
    ),
    *of(
        "mmdiff/modeling/layouts/bookkeeping.py",
        "tests/modeling/test_checkpoint_details.py tests/modeling/test_families.py",
        LOADING,
        [("    if _MATHS_WORDS.search(key):\n        return False\n", "")],
    ),
    *of(
        "mmdiff/modeling/layouts/llada.py",
        "tests/modeling/test_checkpoint_details.py tests/modeling/test_families.py",
        LOADING,
        [
            ('        "rope": (True,),\n', '        "rope": (False,),\n'),
            ('return "d_model" in published', 'return "d_model" not in published'),
            (
                'attn_norm\\.(.*)": r"backbone.layers.\\1.input_layernorm',
                'attn_norm\\.(.*)": r"backbone.layers.\\1.post_attention_layernorm',
            ),
            (
                'ff_proj\\.(.*)": r"backbone.layers.\\1.mlp.gate_proj',
                'ff_proj\\.(.*)": r"backbone.layers.\\1.mlp.up_proj',
            ),
        ],
    ),
    *of(
        "mmdiff/serve/media/worker.py",
        "tests/serve/media/test_worker.py",
        "tests/serve/http/test_bad_input.py -k images",
        [
            (" or max(width, height) > limits.aspect * min(width, height)", ""),
            ("width * height > limits.pixels:", "width * height >= limits.pixels:"),
            ("frames > limits.frames", "frames >= limits.frames"),
            ("max(width, height) > limits.side", "width > limits.side"),
        ],
    ),
    *of(
        "mmdiff/serve/engine/process.py",
        "tests/serve/engine/test_process.py",
        "tests/serve/test_faults.py -k too_long",
        [
            (
                'finish_reason="length" if full or row.expired else',
                'finish_reason="length" if full else',
            ),
            ("group.rows[name].expired = True", "pass"),
        ],
    ),
    *of(
        "audio/ctc.py",
        "tests/audio/test_ctc_probability.py tests/audio/test_ctc.py",
        "",
        [
            ("max(before.probability, probability)", "min(before.probability, probability)"),
            ("if token == last and token != blank:", "if token == last:"),
            ("        last = token\n", "        last = last if token == blank else token\n"),
            (".softmax(-1).max(-1)", ".sigmoid().max(-1)"),
        ],
    ),
    *of(
        "vision/anyres.py",
        "tests/vision/test_preprocess.py",
        "",
        [
            ("SHRINK_ABOVE = 1.1", "SHRINK_ABOVE = 1.3"),
            ("effective, effective - width * height", "effective, width * height - effective"),
            ("scale = min(width", "scale = max(width"),
            ("size[0] / size[1] > columns / rows", "size[0] / size[1] < columns / rows"),
            (
                "margin = (rows - max(1, int(size[1] * (columns / size[0]))))",
                "margin = (rows - int(size[1] * (columns / size[0])))",
            ),
            ("max_base_areas * side**2", "max_base_areas * side"),
            ("rows * (columns + config.newline)", "(rows + config.newline) * columns"),
        ],
    ),
    *of(
        "mmdiff/structured/regular/numbers.py",
        "tests/structured/test_numbers_formats.py",
        "",
        [
            ("max(-high, 1), -low)", "max(-high, 0), -low)"),
            (">= 10**MOST_DIGITS", "> 10**MOST_DIGITS"),
            (
                "if most < least or (most == least and (above or below)):",
                "if most < least:",
                "what is at least and at most an open bound is nothing, with or without this",
            ),
            ("low = _tame(low, ROUND_CEILING)", "low = _tame(low, ROUND_FLOOR)"),
            ("len(most) - len(least) > 1", "len(most) - len(least) > 2"),
            ("room = min(places, FREE_DIGITS - whole)", "room = min(places, FREE_DIGITS)"),
            ('fraction.rstrip("0")', "fraction"),
            ("10 ** (places - written)", "10 ** places"),
            ("    if opened:\n        after = NOTHING", "    if False:\n        after = NOTHING"),
            ("least, above = zero, bool(sign)", "least, above = zero, False"),
        ],
    ),
    *of(
        "mmdiff/serve/batch/journal.py",
        "tests/serve/batch/test_journal.py",
        "tests/serve/batch/test_in_process.py -k 'not killed'",
        [
            (" and not is_transient(row)", ""),
            (' and row["id"] not in kept', ""),
            ("self._file.truncate(self._size)", "pass"),
            ("if spans == kept and size < end:", "if size < end:"),
            ("            self._size += len(line)\n", "            self._size = len(line)\n"),
            ("if rows and not known:", "if rows and known:"),
            ("if there != sorted(", "if there == sorted("),
            ("            failed += is_failed", "            failed = is_failed"),
            ("self.failed += is_failed(row)", "self.failed += 1"),
            ('if not line.endswith(b"\\n"):', "if False:"),
            ("START.startswith(line)", "False"),
        ],
    ),
    *of(
        "mmdiff/serve/engine/detokenizer.py",
        "tests/serve/test_parts.py -k told",
        "tests/serve/http/test_chat.py -k stream",
        [
            ('settled.rstrip("\\ufffd")', "settled"),
            ("(text[: min(found)], True)", "(text[: max(found)], True)"),
            ("default=1) - 1", "default=1) - 2"),
            ("text.find(stop)) >= 0]", "text.find(stop)) > 0]"),
            ("range(min(longest, len(text)), 0, -1)", "range(1, min(longest, len(text)) + 1)"),
            (
                "        return self._new(text.rstrip())\n\n    def finish",
                "        return self._new(text)\n\n    def finish",
            ),
        ],
    ),
    *of(
        "mmdiff/decoding/prefix_cache.py",
        "tests/decoding/test_prefix_cache.py tests/modeling/test_weights_version.py",
        "",
        [
            ("self.misses += found is None", "self.misses += found is not None"),
            (
                "key, first, blocks = version, 0,",
                'key, first, blocks = b"", 0,',
                "what other weights made was dropped when the version was asked for",
            ),
            ("mels[:, :length]) for mels", "mels) for mels"),
            ("if version != self._version:", "if version < self._version:"),
        ],
    ),
    *of(
        "mmdiff/modeling/processor.py",
        "tests/modeling/test_processor.py",
        "",
        [
            ("[pad_id] * pad + row.ids", "row.ids + [pad_id] * pad"),
            ("[0] * pad + [1] * len(row.ids)", "[1] * len(row.ids) + [0] * pad"),
            ("if num_images == 1:", "if num_images <= 2:"),
            ('left_out = value is None and name != "return_tensors"', "left_out = value is None"),
            ("        if name not in OPTIONS:\n", "        if False:\n"),
            ("if self.media_first:", "if not self.media_first:"),
            ("mel.shape[1], self._audio", "mel.shape[0], self._audio"),
        ],
    ),
    *of(
        "mmdiff/decoding/sequence.py",
        "tests/decoding/test_sampler.py",
        (
            "tests/decoding/test_commit_rules.py tests/decoding/test_batching.py -k 'rules or "
            "grow or ragged or guesses or none-'"
        ),
        [
            ("self.length < self.limit and not self.expired", "self.length < self.limit"),
            (
                "        if self.expired:\n            return",
                "        if False:\n            return",
            ),
            ("self.steps - self.growth", "self.steps"),
            ("self.growth += 1", "self.growth = 1"),
            ("self.constraint is None and any(", "any("),
            ("= 1.0, self.steps", "= 1.0, self.steps + 1"),
            ("min(more, self.limit - self.length)", "more"),
            ("self._in_block(self.step_G >= 0,", "self._in_block(~self.open_G,"),
            ("decoding.steps < len(blocks)", "decoding.steps <= len(blocks)"),
            ("max(1, steps)) if quota]", "max(1, steps))]"),
            ("max(1, steps)", "steps"),
        ],
    ),
]
