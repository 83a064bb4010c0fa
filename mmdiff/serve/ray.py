"""Replicas on a Ray cluster: the server behind Ray Serve, and batch jobs over Ray Data.

A replica is the whole server but for its port: its own limits, engine and media workers. Ray
decides where replicas run, starts new ones as requests grow, and replaces those that fail. Without
a cluster at RAY_ADDRESS one is started on this machine, on its loopback address; tokens are
required inside a cluster unless RAY_AUTH_MODE says otherwise.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from starlette.types import ASGIApp

from mmdiff.errors import MMDiffError, require_extra
from mmdiff.serve.batch import run
from mmdiff.serve.batch.asgi_client import AsgiResponse
from mmdiff.serve.batch.in_process import URLS, connect, identity
from mmdiff.serve.batch.input import Line, Request
from mmdiff.serve.batch.journal import Row
from mmdiff.serve.batch.worker_pool import JobOutcome
from mmdiff.serve.http.state import AppState
from mmdiff.serve.options import Replicas, ServerOptions

log = logging.getLogger("mmdiff.serve")
NAME = "mmdiff"  # of the application
HEALTH_SECONDS = 60.0  # for which a replica may be without an engine before it is replaced
LOOK_SECONDS = 2.0  # between looks at the state of the replicas
UNBOUNDED = 10_000  # requests that Ray sends a replica at once, which has limits of its own
_states: list[AppState] = []  # of the replica in this process


class Replica:
    """A replica as Ray sees it."""

    async def check_health(self) -> None:
        """Waits for the engine; a replica that never gets one is replaced."""
        engine = _states[-1].engine
        while not engine.ready:
            if engine.given_up.is_set():
                raise RuntimeError(engine.unloadable or "the engine died again and again")
            await asyncio.sleep(0.05)


class BatchWorker:
    """A copy of the model that answers batches of requests."""

    def __init__(self, options: ServerOptions) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._connection = connect(options)
        self._post: run.Post = self._wait(self._connection.__aenter__())

    def __call__(self, requests: dict[str, Any]) -> dict[str, list[Any]]:
        answers = self._wait(self._answers(requests))
        return {
            "number": list(requests["number"]),
            "status": [status for status, _ in answers],
            "body": [json.dumps(body) for _, body in answers],
        }

    async def _answers(self, requests: dict[str, Any]) -> list[AsgiResponse]:
        each = zip(requests["url"], requests["body"], requests["name"], strict=True)
        posts = [self._post(url, json.loads(body), name) for url, body, name in each]
        return await asyncio.gather(*posts)

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def serve(options: ServerOptions, replicas: Replicas) -> int:
    """Serve until it is stopped; gives the exit code.

    Raises:
        MMDiffError: no replica starts, or Ray is missing or cannot be reached.
    """
    from mmdiff.modeling.hub import find

    if options.uds is not None:
        raise MMDiffError(f"--uds {options.uds} is for one machine; leave it out with --ray")
    find(options.model)  # a name that is wrong is reported here, not by a replica
    ray = _connect()
    from ray import serve as ray_serve

    # as Ctrl-C; the second one ends this at once
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        ray_serve.start(http_options={"host": options.host, "port": options.port})
        replica = _deployment(ray, ray_serve, options, replicas)
        ray_serve.run(replica.bind(), name=NAME, route_prefix="/")
        log.info(
            "mmdiff serves %s on http://%s:%d, with %d to %d replicas",
            ", ".join(options.names),
            options.host,
            options.port,
            *replicas,
        )
        _watch(ray_serve)
    except KeyboardInterrupt:
        return 0
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise MMDiffError(f"the replicas do not start: {str(error).splitlines()[0]}") from None
    finally:
        ray_serve.shutdown()
        ray.shutdown()


def _deployment(ray: Any, ray_serve: Any, options: ServerOptions, replicas: Replicas) -> Any:
    decorate = ray_serve.deployment(
        name=NAME,
        ray_actor_options=_resources(ray, options),
        max_ongoing_requests=UNBOUNDED,
        autoscaling_config={
            "min_replicas": replicas.least,
            "initial_replicas": replicas.least,
            "max_replicas": replicas.most,
            "target_ongoing_requests": options.max_num_seqs,
        },
        graceful_shutdown_timeout_s=options.shutdown_timeout,
        health_check_timeout_s=HEALTH_SECONDS,
    )
    return decorate(ray_serve.ingress(_builder(options))(Replica))


def _watch(ray_serve: Any) -> NoReturn:
    """
    Raises:
        MMDiffError: no replica is left.
    """
    while True:
        time.sleep(LOOK_SECONDS)
        application = ray_serve.status().applications.get(NAME)
        if application is None or application.status in ("DEPLOY_FAILED", "NOT_STARTED"):
            raise MMDiffError("no replica is left; `ray logs` has their messages")


def run_batch(source: Path, out: Path, options: ServerOptions, replicas: Replicas) -> JobOutcome:
    """Answer a file of requests with the models of a cluster; `in_process.run_batch` has one model.

    Raises:
        MMDiffError: as of `run.run_batch`, or Ray is missing or cannot be reached.
    """
    return asyncio.run(
        run.run_batch(
            source, out, _by_ray_data(options, replicas), urls=URLS, settings=identity(options)
        )
    )


def _by_ray_data(options: ServerOptions, replicas: Replicas) -> run.RowSource:
    async def respond(requests: Iterable[run.BatchItem]) -> AsyncGenerator[list[Row], None]:
        ray = _connect()
        from ray import data

        data.DataContext.get_current().enable_progress_bars = False  # the job has its own
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        items = list(requests)
        lines = [line for line, _ in items]
        size = options.max_num_seqs
        dataset = data.from_items(
            [_ray_item(number, *item) for number, item in enumerate(items)],
            override_num_blocks=-(-len(items) // size),
        )
        answers = dataset.map_batches(
            BatchWorker,
            fn_constructor_args=(options,),
            batch_size=size,
            **_resources(ray, options),
            compute=data.ActorPoolStrategy(  # two batches a copy: one begins while the other ends
                min_size=replicas.least,
                max_size=replicas.most,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
        )
        try:
            for finished in answers.iter_batches(batch_size=None, batch_format="numpy"):
                yield _rows(lines, finished)
        finally:
            ray.shutdown()

    return respond


def _ray_item(number: int, line: Line, request: Request) -> dict[str, Any]:
    return {
        "number": number,
        "url": request.url,
        "name": run.request_id(line),
        "body": json.dumps(run.with_seed(request, line)),
    }


def _rows(lines: Sequence[Line], finished: dict[str, Any]) -> list[Row]:
    each = zip(finished["number"], finished["status"], finished["body"], strict=True)
    return [
        run.response_row(lines[number], (int(status), json.loads(body)))
        for number, status, body in each
    ]


def _builder(options: ServerOptions) -> Callable[[], ASGIApp]:
    def build() -> ASGIApp:
        from mmdiff.serve.http.app import create
        from mmdiff.serve.ray import _states  # of the replica's process, not what was sent there

        app, state = create(options)
        _states.append(state)
        return app

    return build


def _connect() -> Any:
    """Ray, connected to the cluster at RAY_ADDRESS or to one of its own."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # these are read when Ray is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    cluster = os.environ.get("RAY_ADDRESS")
    if not cluster:  # as on other systems than Linux, Ray then binds to loopback
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = require_extra("ray", "ray", "--ray")
    try:
        ray.init(address=cluster or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason, where = str(error).splitlines()[0], cluster or "this machine"
        raise MMDiffError(f"Ray at {where} cannot be reached: {reason}") from None
    return ray


def _resources(ray: Any, options: ServerOptions) -> dict[str, Any]:
    """What one copy of the model uses: a GPU where there are any, else a core."""
    if options.device in (None, "cuda") and ray.cluster_resources().get("GPU", 0) >= 1:
        return {"num_gpus": 1, "num_cpus": 1}
    return {"num_cpus": options.threads or 1}
