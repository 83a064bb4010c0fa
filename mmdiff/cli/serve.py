"""`mmdiff serve` and `run-batch`: a model over HTTP, or for a file of requests."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from mmdiff.cli.flags import (
    Device,
    MaxNumSeqs,
    MaxReplicas,
    MinReplicas,
    Model,
    OnRay,
    SpeechModel,
    flags_of,
    with_flags,
)
from mmdiff.cli.inputs import check_sources, refuse
from mmdiff.cli.outputs import print_outcome
from mmdiff.serve.options import Replicas, ServerOptions


@with_flags(options=flags_of(ServerOptions))
def serve(
    options: ServerOptions,
    limit_mm_per_prompt: Annotated[
        str | None,
        typer.Option(help='Images and audio of a request, such as {"image": 4, "audio": 1}.'),
    ] = None,
    on_ray: OnRay = False,
    min_replicas: MinReplicas = None,
    max_replicas: MaxReplicas = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's clients ask for it."""
    from mmdiff.serve.http.server import serve as run_server

    given = os.environ.get("MMDIFF_API_KEY")
    if given is not None and not given.strip():
        raise refuse("MMDIFF_API_KEY is empty; put a key into it, or unset it")
    counts = _media_counts(limit_mm_per_prompt)
    options = dataclasses.replace(
        options,
        api_keys=(*options.api_keys, *(given or "").split()),
        max_images=counts["image"],
        max_audios=counts["audio"],
    )
    options.check()
    raise typer.Exit(run_server(options, _replicas(on_ray, min_replicas, max_replicas)))


def run_batch(
    source: Annotated[
        Path,
        typer.Option("--input-file", "-i", help="JSONL, one request a line, in OpenAI's form."),
    ],
    out: Annotated[
        Path,
        typer.Option("--output-file", "-o", help="JSONL; what is in it already is not done again."),
    ],
    model: Model = "tiny",
    speech_model: SpeechModel = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(help="What requests call the model; may be given again.")
    ] = None,
    allowed_media_domains: Annotated[
        list[str] | None, typer.Option(help="Domains to fetch media from; none by default.")
    ] = None,
    device: Device = None,
    max_num_seqs: MaxNumSeqs = 16,
    on_ray: OnRay = False,
    min_replicas: MinReplicas = None,
    max_replicas: MaxReplicas = None,
) -> None:
    """Answer a file of requests. However it is broken off, the same command goes on."""
    from mmdiff.serve.batch import in_process

    check_sources([source], [out])
    names, domains = tuple(served_model_name or ()), tuple(allowed_media_domains or ())
    replicas = _replicas(on_ray, min_replicas, max_replicas)
    options = in_process.local_options(model, names, device, max_num_seqs, domains, speech_model)
    if replicas is None:
        outcome = in_process.run_batch(source, out, options)
    else:
        from mmdiff.serve import ray

        outcome = ray.run_batch(source, out, options, replicas)
    print_outcome(outcome, "requests", out)


def _replicas(on_ray: bool, least: int | None, most: int | None) -> Replicas | None:
    """None without a cluster."""
    if not on_ray:
        for name, number in (("min", least), ("max", most)):
            if number is not None:
                raise refuse(
                    f"--{name}-replicas {number} is for a cluster; add --ray, or leave it out"
                )
        return None
    least = least or 1
    if most is not None and most < least:
        raise refuse(f"--max-replicas {most} is less than --min-replicas {least}; raise it")
    return Replicas(least, most or least)


def _media_counts(given: str | None) -> dict[str, int]:
    """vLLM's --limit-mm-per-prompt."""
    counts = {"image": 4, "audio": 1}
    try:
        found = json.loads(given or "{}")
    except json.JSONDecodeError:
        found = None
    if (
        not isinstance(found, dict)
        or not found.keys() <= counts.keys()
        or not all(isinstance(count, int) and count >= 0 for count in found.values())
    ):
        raise refuse(
            f"--limit-mm-per-prompt {given!r} does not fit; give JSON such as {json.dumps(counts)}"
        )
    return {**counts, **found}
