"""The ASGI application: its routes, and what can be read about them.

Routes take the bare request, so that nothing is read before there is a slot for it; what their
bodies hold is described for OpenAPI all the same.
"""

from __future__ import annotations

import difflib
import gc
import html
import json
import mimetypes
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp

from mmdiff import __version__
from mmdiff.config import shown
from mmdiff.serve.errors import ApiError, Disconnected, shutting_down
from mmdiff.serve.http import metrics, route_chat, route_moondream, route_transcriptions, schemas
from mmdiff.serve.http.middleware import SecurityMiddleware
from mmdiff.serve.http.responses import EngineResponse, ReadRequest
from mmdiff.serve.http.state import AppState
from mmdiff.serve.options import ServerOptions

PAGE = Path(__file__).parents[1] / "page"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
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
    """The application and its state; engine and media workers start with its lifespan."""
    state = AppState.of(options)
    app = FastAPI(
        title="mmdiff",
        version=__version__,
        lifespan=partial(_lifespan, state),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        description="Questions about images and audio, answered by denoising",
    )
    _add_errors(app)
    _add_health(app, state)
    _add_models(app, state)
    _add_documents(app, state)
    _add_engine_routes(app, state)
    _add_page(app)
    state.metrics.registry.register(metrics.Collector(state))
    state.metrics.routes = frozenset(
        route.path for route in app.routes if isinstance(route, APIRoute)
    )
    guarded: ASGIApp = SecurityMiddleware(
        app,
        options,
        lambda code: state.limiter.rejected.update([code]),
        state.metrics.answered,
        page_files(),
    )
    # clients send headers of their own, such as X-Stainless-Lang of OpenAI's
    if options.allowed_origins:
        guarded = CORSMiddleware(
            guarded,
            allow_origins=list(options.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
            max_age=600,
        )
    return guarded, state


@asynccontextmanager
async def _lifespan(state: AppState, _: FastAPI) -> AsyncIterator[None]:
    await state.media.start()
    state.engine.start()
    gc.collect()
    # what is there to stay is not looked through again, for a tenth of a second each time
    gc.freeze()
    yield
    await state.engine.stop()
    state.media.stop()


class EngineRoute(NamedTuple):
    """A path whose requests the engine works on."""

    path: str
    read: ReadRequest
    body: type[BaseModel]
    summary: str


ENGINE_ROUTES = (
    EngineRoute(
        CHAT,
        route_chat.read,
        schemas.ChatRequest,
        "Answer a conversation with images and audio",
    ),
    EngineRoute(
        "/v1/caption",
        route_moondream.read_caption,
        schemas.CaptionRequest,
        "Describe an image",
    ),
    EngineRoute(
        "/v1/query",
        route_moondream.read_query,
        schemas.QueryRequest,
        "Answer a question about an image",
    ),
    EngineRoute(
        "/v1/audio/transcriptions",
        route_transcriptions.read,
        schemas.TranscriptionRequest,
        "Transcribe audio",
    ),
)


def _add_engine_routes(app: FastAPI, state: AppState) -> None:
    definitions: dict[str, Any] = {}  # of the bodies' schemas
    for route in ENGINE_ROUTES:
        _add_engine_route(app, state, route, definitions)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _add_engine_route(
    app: FastAPI, state: AppState, route: EngineRoute, definitions: dict[str, Any]
) -> None:
    async def respond(request: Request) -> Response:
        return EngineResponse(state, route.read)

    schema = route.body.model_json_schema(ref_template=SCHEMAS + "{model}")
    kind = "application/json"
    definitions.update(schema.pop("$defs", {}))
    if route.body is schemas.TranscriptionRequest:
        kind = "multipart/form-data"
        schema["properties"]["file"] = {"type": "string", "format": "binary"}
        schema["required"] = ["file"]
    app.add_api_route(
        route.path,
        respond,
        methods=["POST"],
        summary=route.summary,
        responses={"4XX": ERROR, "5XX": ERROR},
        operation_id=route.path.strip("/").replace("/", "_"),
        response_class=JSONResponse,
        response_model=None,
        openapi_extra={"requestBody": {"required": True, "content": {kind: {"schema": schema}}}},
    )


def _add_health(app: FastAPI, state: AppState) -> None:
    @app.get("/health", summary="Whether requests are answered")
    async def health() -> dict[str, str]:
        _check_ready(state)
        return {"status": "ok"}

    @app.get("/v1/health/ready", summary="Whether requests are answered")
    async def ready() -> dict[str, str]:
        _check_ready(state)
        return {"status": "ready"}

    @app.get("/v1/health/live", summary="Whether the server runs")
    async def live() -> dict[str, str]:
        return {"status": "live"}


def _check_ready(state: AppState) -> None:
    if state.limiter.draining:
        raise shutting_down()
    if not state.engine.ready:
        code = "engine_dead" if state.engine.restarts else "model_loading"
        raise ApiError(503, code, "the engine is not ready")


def _add_models(app: FastAPI, state: AppState) -> None:
    started = int(time.time())

    def model(name: str) -> dict[str, Any]:
        loaded = state.engine.model
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "mmdiff",
            "root": name,
            "parent": None,
            "max_model_len": loaded and loaded.max_model_len,
        }

    @app.get("/v1/models", summary="What is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in state.options.names]}

    @app.get("/v1/models/{name:path}", summary="One of the models")
    async def one_model(name: str) -> dict[str, Any]:
        return model(state.check_model(name))


def _add_documents(app: FastAPI, state: AppState) -> None:
    @app.get("/metrics", summary="Counts, in Prometheus's form")
    async def numbers() -> Response:
        return Response(metrics.text(state), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        document = dict(app.openapi())
        if prefix := request.scope.get("root_path", ""):
            document["servers"] = [{"url": prefix}]
        return JSONResponse(document)

    @app.get("/docs", summary="This API, to read", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_docs(app.openapi()), headers={"Content-Security-Policy": DOCS_POLICY})


def _docs(schema: dict[str, Any]) -> str:
    """The OpenAPI description as a page that needs no script and no network."""
    sections = []
    for path, methods in schema["paths"].items():
        for method, found in methods.items():
            sections.append(_docs_of_route(f"{method.upper()} {path}", found))
    for name, part in schema["components"]["schemas"].items():
        sections.append(_details(name, part))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>mmdiff</title>"
        f"<style>{STYLE}</style><h1>mmdiff {html.escape(schema['info']['version'])}</h1>"
        f"<p>Also as <a href=openapi.json>openapi.json</a>.</p>{''.join(sections)}</html>"
    )


def _docs_of_route(title: str, route: dict[str, Any]) -> str:
    summary = html.escape(route.get("summary", ""))
    contents = route.get("requestBody", {}).get("content", {})
    bodies = "".join(_details(kind, each["schema"]) for kind, each in contents.items())
    return f"<h2>{html.escape(title)}</h2><p>{summary}</p>{bodies}"


def _details(title: str, content: Any) -> str:
    text = html.escape(json.dumps(content, indent=1))
    return f"<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>"


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
    wrong = request.scope["path"][:200].rstrip("/").lower()
    routes = {
        route.path: min(route.methods or {"GET"})
        for route in app.routes
        if isinstance(route, APIRoute) and route.include_in_schema
    }
    if (path := ELSEWHERE.get(wrong.rpartition("/v1")[2])) is None:
        ends = [
            path
            for path in routes
            if path.removeprefix("/v1") and wrong.endswith(path.removeprefix("/v1"))
        ]
        found = ends or difflib.get_close_matches(wrong, routes, 1, 0.75)
        path = max(found, key=len, default=None)
    if path is None:
        return "; GET /docs lists what there is"
    return f"; did you mean {routes[path]} {path}?"


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
