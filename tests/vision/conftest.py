from pathlib import Path

import pytest

from mmdiff.config import VisionConfig


@pytest.fixture(scope="session")
def llada_v(root: Path) -> Path:
    """LLaDA-V at a tiny size: pictures in, views and embeddings of the published code out."""
    return root / "tests" / "reference" / "llada-v"


@pytest.fixture(scope="session")
def anyres() -> VisionConfig:
    """The tower and the tiling of that reference."""
    return VisionConfig(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=384,
        patch_size=14,
        grids=tuple((columns, rows) for columns in range(1, 7) for rows in range(1, 7)),
        max_base_areas=4,
    )


@pytest.fixture(scope="session")
def small() -> VisionConfig:
    """Four patches a side, one view."""
    return VisionConfig(
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        layout="pad",
    )
