"""The application: which path leads where, and what a stranger may read about it.

Routes take the bare request, so that nothing is read before there is a place for it; what their
bodies hold is written down for the OpenAPI page all the same.
"""

from __future__ import annotations

import difflib
import gc
import html
import json
import mimetypes
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from mmdiff import __version__
from mmdiff.config import shown
from mmdiff.serve.engine.client import EngineClient
from mmdiff.serve.errors import ApiError, Disconnected, shutting_down
from mmdiff.serve.http import metrics, route_chat, route_moondream, route_transcriptions, schemas
from mmdiff.serve.http.limiter import RequestLimiter
from mmdiff.serve.http.middleware import SecurityMiddleware
from mmdiff.serve.http.responses import AppState, Exchange, Perform
from mmdiff.serve.media.pool import MediaPool
from mmdiff.serve.options import ServerOptions

PAGE = Path(__file__).parents[1] / "page"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
SCHEMAS = "#/components/schemas/"
STYLE = (
    "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "pre{background:#8882;padding:1rem;overflow:auto}"
)
CHAT = "/v1/chat/completions"
ELSEWHERE = {  # paths of other interfaces, behind /v1 where they have it, and ours for the same
    "/completions": CHAT,
    "/responses": CHAT,
    "/messages": CHAT,
    "/api/chat": CHAT,
    "/api/generate": CHAT,
    "/generate": CHAT,
    "/chat": CHAT,
    "/audio/translations": "/v1/audio/transcriptions",
    "/inference": "/v1/audio/transcriptions",
    "/api/tags": "/v1/models",
    "/healthz": "/health",
    "/ping": "/health",
    "/ready": "/v1/health/ready",
    "/readyz": "/v1/health/ready",
    "/livez": "/v1/health/live",
}
ERROR = {"description": "Anything that goes wrong: an error with message, type, param and code"}


def create(options: ServerOptions) -> tuple[ASGIApp, AppState]:
    """The application and what its requests share; engine and decoders start with its lifespan."""
    house = AppState(
        options, RequestLimiter(options), EngineClient(options), MediaPool(options.media)
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await house.decoders.start()
        house.service.start()
        gc.collect()
        # what is there to stay is not looked through again, for a tenth of a second each time
        gc.freeze()
        yield
        await house.service.stop()
        house.decoders.stop()

    app = FastAPI(
        title="mmdiff",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        description="Questions about images and audio, answered by denoising",
    )
    _add_errors(app)
    _add_health(app, house)
    _add_verbs(app, house)
    _add_page(app)
    house.metrics.registry.register(metrics.Collector(house))
    house.metrics.routes = frozenset(
        route.path for route in app.routes if isinstance(route, APIRoute)
    )
    guarded: ASGIApp = SecurityMiddleware(
        app,
        options,
        lambda code: house.admission.rejected.update([code]),
        house.metrics.answered,
        page_files(),
    )
    if (
        options.allowed_origins
    ):  # clients send headers of their own, such as X-Stainless-Lang of OpenAI's
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(options.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
            max_age=600,
        )
    return guarded, house


def _add_verbs(app: FastAPI, house: AppState) -> None:
    verbs: dict[
        str, tuple[Callable[[AppState, Request], Awaitable[Perform]], type[BaseModel], str]
    ] = {
        "/v1/chat/completions": (
            route_chat.read,
            schemas.ChatRequest,
            "Answer a conversation with pictures and sounds",
        ),
        "/v1/caption": (route_moondream.read_caption, schemas.CaptionRequest, "Describe a picture"),
        "/v1/query": (
            route_moondream.read_query,
            schemas.QueryRequest,
            "Answer a question about a picture",
        ),
        "/v1/audio/transcriptions": (
            route_transcriptions.read,
            schemas.TranscriptionRequest,
            "Write down what is said",
        ),
    }
    parts: dict[str, Any] = {}  # of the bodies' schemas
    for path, (read, model, summary) in verbs.items():
        _add_verb(app, house, path, read, model, summary, parts)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document.setdefault("components", {}).setdefault("schemas", {}).update(parts)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _add_verb(
    app: FastAPI,
    house: AppState,
    path: str,
    read: Callable[[AppState, Request], Awaitable[Perform]],
    model: type[BaseModel],
    summary: str,
    parts: dict[str, Any],
) -> None:
    async def verb(request: Request) -> Response:
        return Exchange(house, lambda received: read(house, received))

    schema, kind = model.model_json_schema(ref_template=SCHEMAS + "{model}"), "application/json"
    parts.update(schema.pop("$defs", {}))
    if model is schemas.TranscriptionRequest:
        kind = "multipart/form-data"
        schema["properties"]["file"] = {"type": "string", "format": "binary"}
        schema["required"] = ["file"]
    app.add_api_route(
        path,
        verb,
        methods=["POST"],
        summary=summary,
        responses={"4XX": ERROR, "5XX": ERROR},
        operation_id=path.strip("/").replace("/", "_"),
        response_class=JSONResponse,
        response_model=None,
        openapi_extra={"requestBody": {"required": True, "content": {kind: {"schema": schema}}}},
    )


def _add_health(app: FastAPI, house: AppState) -> None:
    started = int(time.time())

    def model(name: str) -> dict[str, Any]:
        about = house.service.about or {}
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "mmdiff",
            "root": name,
            "parent": None,
            "max_model_len": about.get("max_model_len"),
        }

    def check_ready() -> None:
        if house.admission.draining:
            raise shutting_down()
        if not house.service.ready:
            code = "engine_dead" if house.service.restarts else "model_loading"
            raise ApiError(503, code, "the engine is not ready")

    @app.get("/health", summary="Whether requests are answered")
    async def health() -> dict[str, str]:
        check_ready()
        return {"status": "ok"}

    @app.get("/v1/health/ready", summary="Whether requests are answered")
    async def ready() -> dict[str, str]:
        check_ready()
        return {"status": "ready"}

    @app.get("/v1/health/live", summary="Whether the server runs")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/v1/models", summary="What is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in house.options.names]}

    @app.get("/v1/models/{name:path}", summary="One of the models")
    async def one_model(name: str) -> dict[str, Any]:
        return model(house.check_model(name))

    @app.get("/metrics", summary="Counts, in Prometheus's form")
    async def numbers() -> Response:
        return Response(metrics.text(house), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        prefix = request.scope.get("root_path", "")
        return JSONResponse({**app.openapi(), **({"servers": [{"url": prefix}]} if prefix else {})})

    @app.get("/docs", summary="This API, to read", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_docs(app.openapi()), headers={"Content-Security-Policy": DOCS_POLICY})


def _docs(schema: dict[str, Any]) -> str:
    """The OpenAPI description as a page that needs no script and no network."""
    routes = "".join(
        f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(found.get('summary', ''))}</p>"
        + "".join(
            f"<details><summary>{html.escape(kind)}</summary><pre>"
            f"{html.escape(json.dumps(content['schema'], indent=1))}</pre></details>"
            for kind, content in found.get("requestBody", {}).get("content", {}).items()
        )
        for path, methods in schema["paths"].items()
        for method, found in methods.items()
    )
    routes += "".join(
        f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(json.dumps(part, indent=1))}"
        "</pre></details>"
        for name, part in schema["components"]["schemas"].items()
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>mmdiff</title><style>{STYLE}</style>"
        f"<h1>mmdiff {html.escape(schema['info']['version'])}</h1>"
        f"<p>Also as <a href=openapi.json>openapi.json</a>.</p>{routes}</html>"
    )


def _add_errors(app: FastAPI) -> None:
    async def refusal(_: Request, error: Any) -> Response:
        return JSONResponse(error.body, error.status, headers=error.headers)

    async def http(request: Request, error: Any) -> Response:
        code, message = "invalid_request", "the request cannot be read"
        if error.status_code == 404:
            code, message = (
                "not_found",
                f"there is nothing at {shown(request.url.path)}{_nearby(app, request)}",
            )
        elif error.status_code == 405:
            takes = (error.headers or {}).get("Allow", "another method")
            code, message = "method_not_allowed", f"this path takes {takes}"
        return JSONResponse(
            ApiError(error.status_code, code, message).body,
            error.status_code,
            headers=error.headers,
        )

    async def gone(_: Request, __: Any) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(ApiError, refusal)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Disconnected, gone)


def _nearby(app: FastAPI, request: Request) -> str:
    """The route that a wrong path is likely to mean."""
    asked = request.scope["path"][:200].rstrip("/").lower()
    routes = {
        route.path: min(route.methods or {"GET"})
        for route in app.routes
        if isinstance(route, APIRoute) and route.include_in_schema
    }
    if (path := ELSEWHERE.get(asked.rpartition("/v1")[2])) is None:
        ends = [
            path
            for path in routes
            if path.removeprefix("/v1") and asked.endswith(path.removeprefix("/v1"))
        ]
        found = ends or difflib.get_close_matches(asked, routes, 1, 0.75)
        path = max(found, key=len, default=None)
    return (
        "; GET /docs lists what there is"
        if path is None
        else f"; did you mean {routes[path]} {path}?"
    )


def page_files() -> list[str]:
    """Paths of the page and what it consists of."""
    return ["/", *(f"/{file.name}" for file in PAGE.iterdir())]


def _add_page(app: FastAPI) -> None:
    """The page's files, each at its own path, with a policy that lets them use each other."""

    def add(path: str, file: Path) -> None:
        content, kind = file.read_bytes(), mimetypes.guess_type(file.name)[0]

        async def answer() -> Response:
            return Response(
                content, media_type=kind, headers={"Content-Security-Policy": PAGE_POLICY}
            )

        app.add_api_route(path, answer, methods=["GET"], include_in_schema=False)

    add("/", PAGE / "index.html")
    for file in PAGE.iterdir():
        add(f"/{file.name}", file)
