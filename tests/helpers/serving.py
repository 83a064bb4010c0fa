"""A server in a process of its own, as people start it, and what is sent to it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

LEAKS = re.compile(r"0x[0-9a-f]{6,}|Traceback|/work/|/usr/|/tmp/|site-packages|BytesIO")
CHAT = "/v1/chat/completions"
QUERY = "/v1/query"
CAPTION = "/v1/caption"
SPEECH = "/v1/audio/transcriptions"
SLOW = {
    "gen_length": 700,
    "block_length": 700,
    "steps": 700,
    "rule": "quota",
    "order": "random",
    "cache": "none",
}


class Served:
    """A server's process, and a client for it."""

    def __init__(
        self,
        log: Path,
        *options: str,
        wait: bool = True,
        environment: Mapping[str, str] = os.environ,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mmdiff.cli.main",
                    "serve",
                    "tiny",
                    "--port",
                    str(self.port),
                    *options,
                ],
                stderr=output,
                stdout=output,
                env={**environment, "HF_HUB_OFFLINE": "1"},
            )
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        if wait:
            self.wait()

    def wait(self, path: str = "/health", status: int = 200, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.client.get(path).status_code == status:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"{path} was never {status}: {self.log.read_text()}")

    def chat(
        self, text: str = "what color is the circle?", *, key: str | None = None, **body: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.client.post("/v1/chat/completions", json=asking(text, **body), headers=headers)

    def numbers(self, key: str | None = None) -> dict[str, float]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        lines = self.client.get("/metrics", headers=headers).text.splitlines()
        return {
            name: float(value)
            for line in lines
            if not line.startswith("#")
            for name, _, value in [line.rpartition(" ")]
        }

    def settle(self, key: str | None = None) -> dict[str, float]:
        """The numbers once nothing is in flight; every request that was let in has ended in one
        way."""
        until = time.monotonic() + 10
        while (found := self.numbers(key))[
            "mmdiff_requests_in_flight"
        ] and time.monotonic() < until:
            time.sleep(0.02)
        ends = sum(
            found[f"mmdiff_requests_{end}_total"] for end in ("completed", "failed", "cancelled")
        )
        assert found["mmdiff_requests_in_flight"] == found["mmdiff_rows_running"] == 0
        assert found["mmdiff_requests_accepted_total"] == ends
        return found

    def engine(self) -> int:
        """The process id of the engine."""
        return next(
            pid for pid, command in children(self.process.pid) if "mmdiff.serve.engine" in command
        )

    def stop(self) -> int:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def children(parent: int) -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent:
            found.append((int(folder.name), command))
    return found


def asking(text: str, *media: dict[str, Any], **body: Any) -> dict[str, Any]:
    content = [*media, {"type": "text", "text": text}] if media else text
    return {"messages": [{"role": "user", "content": content}], **body}


def data_url(path: Path, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64encode(path.read_bytes()).decode()}"
