"""`--ray` on a real cluster of a head and two workers, all on this machine's loopback and behind a
token."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.serving import SLOW, Served, asking, data_url

pytestmark = [pytest.mark.slow, pytest.mark.long]
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
few = {"include_dashboard": False, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **few})
for _ in range(2):
    cluster.add_node(num_cpus=1, **few)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a user of the cluster."""
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    address = next(line for line in process.stdout if re.fullmatch(r"[\d.]+:\d+\n", line)).strip()
    yield {**environment, "RAY_ADDRESS": address}
    process.stdin.close()
    process.wait(60)


def mmdiff(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmdiff.cli.main", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_job_on_two_workers_gives_the_rows_of_one(
    cluster: dict[str, str], root: Path, tmp_path: Path
) -> None:
    source, one, two = tmp_path / "in.jsonl", tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    picture = {
        "type": "image_url",
        "image_url": {"url": data_url(root / "examples" / "shapes.png")},
    }
    bodies = [
        asking("what color is the circle?", picture, temperature=number % 2) for number in range(30)
    ]
    bodies += [{"messages": []}]
    source.write_text(
        "".join(
            json.dumps(
                {
                    "custom_id": str(number),
                    "method": "POST",
                    "url": "/v1/chat/completions",
                    "body": body,
                }
            )
            + "\n"
            for number, body in enumerate(bodies)
        )
    )
    assert mmdiff(dict(os.environ), "run-batch", "-i", source, "-o", one).returncode == 0
    done = mmdiff(
        cluster,
        "run-batch",
        "-i",
        source,
        "-o",
        two,
        "--ray",
        "--min-replicas",
        2,
        "--max-num-seqs",
        4,
    )
    assert done.returncode == 0 and "31 requests, 1 failed" in done.stderr
    assert [said(line) for line in two.open()] == [said(line) for line in one.open()]


def said(line: str) -> tuple[object, ...]:
    row = json.loads(line)
    body = row["response"]["body"]
    texts = [choice["message"]["content"] for choice in body.get("choices", [])]
    return row["id"], row["custom_id"], row["response"]["status_code"], texts, body.get("error")


def test_replicas_answer_as_one_server_does(
    cluster: dict[str, str], root: Path, tmp_path: Path
) -> None:
    served = Served(
        tmp_path / "log", "--ray", "--min-replicas", "2", "--api-key", "secret", environment=cluster
    )
    assert served.client.get("/v1/models").json()["error"]["code"] == "invalid_api_key"
    picture = {
        "type": "image_url",
        "image_url": {"url": data_url(root / "examples" / "shapes.png")},
    }
    served.client.headers["Authorization"] = "Bearer secret"
    body = asking("what color is the circle?", picture)
    engines = set()
    for _ in range(12):
        answer = served.client.post("/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"] == "red"
        engines |= {
            line
            for line in served.client.get("/metrics").text.splitlines()
            if "accepted_total " in line
        }
    assert served.client.post("/v1/chat/completions", json={"messages": []}).json()["error"]["type"]
    with served.client.stream(
        "POST", "/v1/chat/completions", json={**body, "stream": True}
    ) as stream:
        lines = [
            line.removeprefix("data: ") for line in stream.iter_lines() if line.startswith("data: ")
        ]
    assert lines.pop() == "[DONE]"
    assert (
        "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)
        == "red"
    )
    assert len(engines) > 1
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0


SHORTER = {"gen_length": 128, "block_length": 128, "steps": 128}
REPLICAS = """
import ray
from ray import serve
ray.init(log_to_driver=False, logging_level="ERROR")
states = serve.status().applications["mmdiff"].deployments["mmdiff"].replica_states
print("running", states.get("RUNNING", 0), flush=True)
"""


def test_replicas_grow_with_requests(cluster: dict[str, str], tmp_path: Path) -> None:
    served = Served(
        tmp_path / "log", "--ray", "--max-replicas", "2", "--max-num-seqs", "2", environment=cluster
    )

    def running() -> int:
        told = subprocess.run(
            [sys.executable, "-c", REPLICAS],
            env=cluster,
            capture_output=True,
            text=True,
            timeout=100,
        ).stdout
        return int(told.rpartition("running ")[2])

    assert running() == 1
    until, found = time.monotonic() + 240, 1
    with ThreadPoolExecutor(12) as pool:

        def ask() -> None:
            while found == 1 and time.monotonic() < until:
                assert served.chat(**{**SLOW, **SHORTER}).status_code in (200, 503)

        clients = [pool.submit(ask) for _ in range(12)]
        while found == 1 and time.monotonic() < until:
            time.sleep(5)
            found = running()
        for each in clients:
            each.result()
    assert found == 2
    assert served.stop() == 0


def test_the_cluster_asks_for_its_token(cluster: dict[str, str], tmp_path: Path) -> None:
    row = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    stranger = {**cluster, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = mmdiff(
        stranger, "run-batch", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--ray"
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"Ray at {cluster['RAY_ADDRESS']} cannot be reached" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "--ray", "--uds", "/tmp/socket"], "--uds"),
        (["serve", "--ray", "--min-replicas", "3", "--max-replicas", "2"], "--max-replicas 2"),
        (["serve", "--max-replicas", "2"], "--max-replicas 2 is for a cluster"),
        (
            ["run-batch", "-i", "in", "-o", "out", "--min-replicas", "2"],
            "--min-replicas 2 is for a cluster",
        ),
        (["serve", "nothing", "--ray"], "'nothing'"),
    ],
)
def test_mistakes_end_in_a_sentence(words: list[str], says: str) -> None:
    done = mmdiff({**os.environ, "RAY_ADDRESS": "127.0.0.1:9"}, *words)
    assert (
        done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    )
