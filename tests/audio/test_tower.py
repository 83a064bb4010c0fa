"""The Whisper encoder and the connectors: published outputs, and rows of a batch that do not know
of each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mmdiff.audio.connector import CONNECTORS, DualAdapter, StackConnector, count_tokens
from mmdiff.audio.log_mel import pad_mels
from mmdiff.audio.tower import WhisperTower, encoder_state, sinusoids, whisper_config
from mmdiff.config import AudioConfig
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import load_whisper

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
DUAL = AudioConfig(**SMALL, connector="dual", taps=(0, 1, 2, 3), num_queries=8, qformer_heads=2)
STACK = AudioConfig(**SMALL)


def rename(name: str) -> str:
    """DIFFA's published names to ours."""
    table = {
        "acoustic_connector.layer_prompts.": "acoustic.queries.",
        "acoustic_connector.proj.0.": "acoustic.norm.",
        "acoustic_connector.proj.1.": "acoustic.proj.",
        "acoustic_connector.qformer.layer.": "acoustic.layers.",
        "acoustic_connector.": "acoustic.",
        "attention.self.query": "attn.q_proj",
        "attention.self.key": "attn.k_proj",
        "attention.self.value": "attn.v_proj",
        ".attention.output.LayerNorm": ".norms.0",
        "crossattention.output.LayerNorm": "norms.1",
        "attention.output.dense": "attn.o_proj",
        ".crossattn": ".cross_attn",
        ".attn": ".self_attn",
        "intermediate.dense": "mlp.0",
        "output.dense": "mlp.2",
        "output.LayerNorm": "norms.2",
        "semantic_connector.linear_connector.": "semantic.layers.",
        "semantic_connector.layernorm.": "semantic.layers.4.",
        "semantic_connector.": "semantic.",
    }
    for published, ours in table.items():
        name = name.replace(published, ours)
    return name


@pytest.fixture(scope="module")
def diffa(root: Path) -> tuple[DualAdapter, dict[str, Tensor]]:
    folder = root / "tests" / "reference" / "diffa"
    adapter = DualAdapter(DUAL, 48)
    adapter.load_state_dict(
        {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    )
    return adapter.eval(), load_file(folder / "outputs.safetensors")


def test_dual_adapter_gives_the_published_outputs(
    diffa: tuple[DualAdapter, dict[str, Tensor]],
) -> None:
    adapter, outputs = diffa
    taps = [outputs[f"hidden_states.{i}"] for i in DUAL.taps]
    with torch.no_grad():
        acoustic = adapter.acoustic(taps, torch.ones(taps[0].shape[:2], dtype=torch.bool))
        features = outputs["last_hidden_state"]
        semantic = torch.stack(
            adapter.semantic(features, torch.ones(features.shape[:2], dtype=torch.bool))
        )
    torch.testing.assert_close(acoustic, outputs["acoustic"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(semantic, outputs["semantic"], rtol=1e-4, atol=1e-4)


def published_encoder(layers: int = 4) -> WhisperEncoder:
    torch.manual_seed(0)
    sizes = WhisperConfig(
        d_model=32, encoder_layers=layers, encoder_attention_heads=2, encoder_ffn_dim=64
    )
    encoder = WhisperEncoder(sizes).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    encoder.embed_positions.weight.data = sinusoids(1500, 32)
    return encoder


@torch.no_grad()
def test_whole_windows_give_what_transformers_gives() -> None:
    encoder, tower = published_encoder(), WhisperTower(DUAL).eval()
    tower.load_state_dict(
        encoder_state({f"model.encoder.{k}": v for k, v in encoder.state_dict().items()}, tower)
    )
    mels = torch.randn(2, 80, 3000)
    states, valid = tower(mels, torch.tensor([3000, 3000]))
    wanted = encoder(mels, output_hidden_states=True)
    assert valid.all() and len(states) == 5
    for ours, theirs in zip(
        states, [*wanted.hidden_states[:4], wanted.last_hidden_state], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_penultimate_layer_is_one_layer_fewer_without_a_norm() -> None:
    encoder = published_encoder()
    fewer = AudioConfig(**{**SMALL, "num_hidden_layers": 3}, final_norm=False)
    tower = WhisperTower(fewer).eval()
    tower.load_state_dict(encoder_state(encoder.state_dict(), tower))
    mels = torch.randn(1, 80, 3000)
    wanted = encoder(mels, output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(
        tower(mels, torch.tensor([3000]))[0][-1], wanted, rtol=1e-4, atol=1e-4
    )


def test_positions_are_whispers() -> None:
    from transformers.models.whisper.modeling_whisper import sinusoids as published

    torch.testing.assert_close(sinusoids(1500, 384), published(1500, 384))


@pytest.mark.parametrize("config", [STACK, DUAL], ids=["stack", "dual"])
@torch.no_grad()
def test_a_row_of_a_batch_is_the_row_alone(config: AudioConfig) -> None:
    torch.manual_seed(0)
    tower, connector = WhisperTower(config).eval(), CONNECTORS[config.connector](config, 48).eval()
    for parameter in tower.parameters():
        nn.init.normal_(parameter, std=0.1)
    clips = [torch.randn(80, frames) for frames in (9, 101, 64, 37, 200, 8)]
    together = connector(*tower(*pad_mels(clips)))
    for clip, embeds in zip(clips, together, strict=True):
        (alone,) = connector(*tower(*pad_mels([clip])))
        assert embeds.shape == alone.shape == (count_tokens(clip.shape[1], config), 48)
        torch.testing.assert_close(embeds, alone, rtol=1e-4, atol=1e-5)


def test_twelve_and_a_half_embeddings_per_second() -> None:
    assert [count_tokens(frames, STACK) for frames in (1, 8, 9, 100, 3000)] == [1, 1, 2, 13, 375]
    assert [count_tokens(frames, DUAL) for frames in (8, 3000)] == [8 + 1, 8 + 375]
    assert isinstance(CONNECTORS["stack"](STACK, 8), StackConnector)


def test_published_sizes() -> None:
    turbo = {
        "model_type": "whisper",
        "d_model": 1280,
        "encoder_ffn_dim": 5120,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "num_mel_bins": 128,
        "max_source_positions": 1500,
    }
    with torch.device("meta"):
        tower = WhisperTower(whisper_config(turbo))
    assert sum(p.numel() for p in tower.parameters()) == 636_968_960 - 1500 * 1280
    with pytest.raises(CheckpointError, match="'llama' is no Whisper model"):
        whisper_config({"model_type": "llama"})


def test_a_published_checkpoint_gives_its_encoder(tmp_path: Path) -> None:
    """A folder as `transformers` writes it, with the decoder that is not needed, in half
    precision."""
    torch.manual_seed(0)
    published = (
        WhisperModel(
            WhisperConfig(
                d_model=32,
                encoder_layers=2,
                encoder_attention_heads=2,
                encoder_ffn_dim=64,
                decoder_layers=1,
                decoder_attention_heads=2,
                decoder_ffn_dim=64,
                num_mel_bins=128,
                vocab_size=64,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )
        )
        .half()
        .eval()
    )
    published.save_pretrained(tmp_path)
    tower = load_whisper(tmp_path, ctc_drafts=True, frames_per_token=8).eval()
    assert (
        tower.config.ctc_drafts
        and tower.config.frames_per_token == 8
        and tower.config.num_mels == 128
    )
    mels = torch.randn(1, 128, 3000)
    with torch.no_grad():
        (features,), _ = tower(mels, torch.tensor([3000]))
        states = published.float().encoder(mels, output_hidden_states=True)
        torch.testing.assert_close(features, states.last_hidden_state, rtol=1e-2, atol=5e-3)
        penultimate = load_whisper(tmp_path, num_hidden_layers=1, final_norm=False).eval()
        (features,), _ = penultimate(mels, torch.tensor([3000]))
        torch.testing.assert_close(features, states.hidden_states[-2], rtol=1e-2, atol=5e-3)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged"):
        load_whisper(tmp_path)


def test_weights_that_do_not_fit_are_named() -> None:
    tower = WhisperTower(STACK)
    state = published_encoder(layers=3).state_dict()
    with pytest.raises(CheckpointError, match=r"layers\.3\.self_attn"):
        encoder_state(state, tower)
    with pytest.raises(CheckpointError, match="no Whisper encoder"):
        encoder_state({"a": torch.zeros(1)}, tower)


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="split_windows"):
        WhisperTower(STACK)(torch.zeros(1, 80, 3002), torch.tensor([3002]))
