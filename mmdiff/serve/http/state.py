"""What all requests of an application share."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmdiff.config import shown
from mmdiff.serve.engine.client import EngineClient
from mmdiff.serve.engine.messages import ModelInfo
from mmdiff.serve.errors import ApiError, model_loading
from mmdiff.serve.http.limiter import RequestLimiter
from mmdiff.serve.http.metrics import Metrics
from mmdiff.serve.media.pool import MediaPool
from mmdiff.serve.options import ServerOptions


@dataclass
class AppState:
    """The application's parts."""

    options: ServerOptions
    limiter: RequestLimiter
    engine: EngineClient
    media: MediaPool
    metrics: Metrics = field(default_factory=Metrics)

    @classmethod
    def of(cls, options: ServerOptions) -> AppState:
        media = MediaPool(options.media)
        return cls(options, RequestLimiter(options), EngineClient(options), media)

    @property
    def model(self) -> ModelInfo:
        """What the engine says of its model; refused while there is none."""
        if self.engine.model is None:
            raise model_loading()
        return self.engine.model

    def check_model(self, name: str | None) -> str:
        """The name that an answer carries."""
        if name is not None and name not in self.options.names:
            known = ", ".join(self.options.names)
            raise ApiError(
                404,
                "model_not_found",
                f"the model {shown(name)} is not served here; use {known}",
                "model",
            )
        return name or self.options.names[0]
