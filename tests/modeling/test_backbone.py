"""The backbone equals the published implementation, and padding, segments and branches keep rows
apart."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmdiff.config import PRESETS, BackboneConfig
from mmdiff.modeling.attention import attention, build_attention_mask, rotary_tables, rotate
from mmdiff.modeling.backbone import Backbone
from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_weights
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.onednn_linear import OneDNNLinear, use_onednn

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def backbone(**changes: object) -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(**{**SMALL, "num_key_value_heads": 4, **changes})  # type: ignore[arg-type]
    return Backbone(config).eval()


@torch.no_grad()
def logits(
    model: Backbone, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor | None = None
) -> Tensor:
    return model.lm_head(model(model.embed_tokens(ids_BT), positions_BT, mask))


def test_logits_equal_the_published_llada(reference: Path) -> None:
    expected = load_file(reference / "llada-mha" / "forward.safetensors")
    folder = reference / "llada-mha"
    model = MMDiffModel(MMDiffConfig.of(config_of(folder))).eval()
    load_weights(model, CheckpointTensors(folder))
    with torch.no_grad():
        got = model(expected["input_ids"]).logits
    torch.testing.assert_close(got, expected["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("preset", "total"), [("llada-8b", 8_015_581_184)])
def test_published_sizes_on_the_meta_device(preset: str, total: int) -> None:
    with torch.device("meta"):
        model = Backbone(PRESETS[preset].backbone)
    assert sum(p.numel() for p in model.parameters()) == total


def test_a_backbone_from_scratch_is_what_its_parts_draw() -> None:
    """Versions of transformers differ in which modules they hand to a model of another package to
    initialise."""
    config = PRESETS["tiny"]
    torch.manual_seed(0)
    model = MMDiffModel(MMDiffConfig.of(config))  # builds its backbone first
    torch.manual_seed(0)
    wanted = Backbone(config.backbone).state_dict()
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


def test_grouped_query_attention_is_attention_with_repeated_heads() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    repeated = attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), None)
    torch.testing.assert_close(attention(q, k, v, None), repeated)


def test_rotation_keeps_relative_positions() -> None:
    """Scores depend on the distance alone, so left padding changes nothing."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 4, 16), torch.randn(1, 1, 4, 16)
    here = rotary_tables(torch.arange(4)[None], 16, 500_000.0)
    there = rotary_tables(torch.arange(4)[None] + 700, 16, 500_000.0)
    scores = [rotate(q, tables) @ rotate(k, tables).transpose(-1, -2) for tables in (here, there)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_ntk_scaling_stretches_slow_turns_and_spares_fast_ones() -> None:
    def turns(factor: float) -> Tensor:
        return rotary_tables(torch.tensor([[1]]), 16, 1e4, factor)[1][0, 0, 0, 8:].asin()

    plain, stretched = turns(1.0), turns(4.0)
    torch.testing.assert_close(plain[0], stretched[0])
    torch.testing.assert_close(plain[7] / stretched[7], torch.tensor(4.0))
    assert (stretched[1:] < plain[1:]).all()


@pytest.mark.parametrize("options", [{}, {"num_key_value_heads": 2}, {"qkv_bias": True}])
def test_a_padded_row_is_the_row_alone(options: dict[str, object]) -> None:
    model = backbone(**options)
    ids = torch.randint(0, 40, (1, 5))
    alone = logits(model, ids, torch.arange(5)[None])
    padded_ids = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), dim=1)
    valid = torch.tensor([[False] * 3 + [True] * 5])
    positions = (valid.cumsum(1) - 1).clamp(min=0)
    padded = logits(
        model,
        padded_ids,
        positions,
        build_attention_mask(valid, torch.zeros_like(padded_ids), "full"),
    )
    assert padded.isfinite().all()
    torch.testing.assert_close(padded[:, 3:], alone, rtol=1e-5, atol=1e-5)


def test_full_attention_is_bidirectional() -> None:
    model = backbone()
    ids = torch.randint(1, 40, (1, 6))
    changed = ids.clone()
    changed[0, 5] = 0
    positions = torch.arange(6)[None]
    assert not torch.allclose(
        logits(model, ids, positions)[0, 0], logits(model, changed, positions)[0, 0]
    )


def test_segment_causal_prompts_do_not_see_what_follows() -> None:
    model = backbone(attention_pattern="segment-causal")
    ids, segments = torch.randint(0, 40, (1, 9)), torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3]])
    valid, positions = torch.ones(1, 9, dtype=torch.bool), torch.arange(9)[None]
    whole = logits(model, ids, positions, build_attention_mask(valid, segments, "segment-causal"))
    for end in (2, 5, 7):
        mask = build_attention_mask(valid[:, :end], segments[:, :end], "segment-causal")
        torch.testing.assert_close(
            logits(model, ids[:, :end], positions[:, :end], mask), whole[:, :end]
        )


def test_branches_equal_separate_rows() -> None:
    """Packed questions behind a shared beginning: each gets what it gets alone."""
    model = backbone(attention_pattern="segment-causal")
    ids = torch.randint(0, 40, (1, 10))
    segments = torch.tensor([[0, 0, 1, 1, 2, 3, 3, 2, 2, 3]])
    branches = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6]])
    valid = torch.ones(1, 10, dtype=torch.bool)
    packed = logits(
        model, ids, positions, build_attention_mask(valid, segments, "segment-causal", branches)
    )
    for branch in (1, 2):
        own = (branches[0] == 0) | (branches[0] == branch)
        mask = build_attention_mask(valid[:, own], segments[:, own], "segment-causal")
        torch.testing.assert_close(
            logits(model, ids[:, own], positions[:, own], mask), packed[:, own]
        )


def test_visibility_by_the_slow_rule() -> None:
    """Against the rule spelled out for every pair, over random segments, branches and padding."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        segments = torch.randint(0, 3, (2, 7), generator=generator)
        branches = torch.randint(0, 3, (2, 7), generator=generator)
        valid = torch.rand(2, 7, generator=generator) < 0.7
        got = build_attention_mask(valid, segments, "segment-causal", branches)
        assert got is not None
        for b in range(2):
            for i in range(7):
                for j in range(7):
                    sees = valid[b, j] and segments[b, j] <= segments[b, i]
                    sees = sees and branches[b, j] in (0, branches[b, i])
                    assert bool(got[b, 0, i, j]) == bool(sees or i == j)


def test_parameters_are_named_as_in_llama() -> None:
    assert "layers.1.self_attn.o_proj.weight" in backbone().state_dict()
    assert {name.split(".")[0] for name in backbone().state_dict()} == {
        "embed_tokens",
        "layers",
        "lm_head",
        "norm",
    }


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5), (2, 400)])
def test_the_way_for_processors_gives_the_same_numbers(shape: tuple[int, int]) -> None:
    plain, suited = backbone(), backbone()
    use_onednn(suited)
    assert type(suited.lm_head) is OneDNNLinear
    assert suited.state_dict().keys() == plain.state_dict().keys()
    ids = torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(shape[1]).expand(shape)
    torch.testing.assert_close(
        logits(suited, ids, positions), logits(plain, ids, positions), rtol=1e-4, atol=1e-5
    )
