"""`MMDiffConfig`: `ModelConfig` in the form that `transformers` saves and loads (`config.json`)."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version
from transformers import AutoConfig

from mmdiff import config as settings
from mmdiff.config import ModelConfig
from mmdiff.errors import OldPackageError

OLDEST_TRANSFORMERS = (
    "5.2"  # before it, from_pretrained cannot sort names such as connector.0 and connector.norm
)
if Version(transformers.__version__) < Version(OLDEST_TRANSFORMERS):
    # installed past the resolver, by --no-deps or a pin of another package
    raise OldPackageError("transformers", transformers.__version__, OLDEST_TRANSFORMERS)


class MMDiffConfig(transformers.PreTrainedConfig):
    """Settings of a model; `model` has them typed."""

    model_type = "mmdiff"
    settings: dict[str, Any] | None = None

    def __init__(self, settings: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.tie_word_embeddings = False
        self.use_cache = False

    @classmethod
    def of(cls, config: ModelConfig) -> MMDiffConfig:
        return cls(settings=settings.to_dict(config))

    @property
    def model(self) -> ModelConfig:
        """The typed settings; a ValueError names unknown or missing keys."""
        if self.settings is None:
            raise ValueError(
                "config.json holds no 'settings': it does not describe an mmdiff model"
            )
        return settings.from_dict(ModelConfig, self.settings)


AutoConfig.register(MMDiffConfig.model_type, MMDiffConfig)
