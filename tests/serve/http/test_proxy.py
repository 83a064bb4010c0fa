"""Behind nginx, with its defaults and with docs/deploy/nginx.conf, and asked from pages
elsewhere."""

import asyncio
import http.server
import json
import shutil
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from mmdiff.serve.http.app import create
from mmdiff.serve.options import ServerOptions
from tests.helpers.serving import Served, asking, data_url, free_port

NGINX = shutil.which("nginx") or ("/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else None)
CHROMIUM = shutil.which("chromium")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed; see .ci/run")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="chromium is not installed; see .ci/run"
)
KEY = "a-key-for-tests"
DEFAULTS = "server { listen 80; location / { proxy_pass http://127.0.0.1:8000; } }"
WRAPPED = """
user root;
pid {0}/pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;
    uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;
    {1}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[str, int], str]]:
    """Start nginx with the servers of a configuration, before a port; gives its address."""
    started: list[subprocess.Popen[bytes]] = []

    def start(servers: str, port: int) -> str:
        free = free_port()
        servers = servers.replace("listen 80;", f"listen 127.0.0.1:{free};")
        conf = tmp_path / "nginx.conf"
        conf.write_text(
            WRAPPED.format(tmp_path, servers.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
        )
        assert NGINX is not None
        started.append(
            subprocess.Popen(
                [NGINX, "-p", tmp_path, "-c", conf, "-e", tmp_path / "errors", "-g", "daemon off;"]
            )
        )
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                httpx.get(f"http://127.0.0.1:{free}/none", trust_env=False)
                return f"http://127.0.0.1:{free}"
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError((tmp_path / "errors").read_text())

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(
        tmp_path_factory.mktemp("keyed") / "log",
        "--api-key",
        KEY,
        "--allowed-origins",
        "https://app.example",
    )
    yield served
    assert served.stop() == 0


def test_pages_files_are_served_to_any_origin_and_nothing_else_is(
    server: Served, root: Path
) -> None:
    """As through a proxy that passes on another Host than the browser's."""
    headers = {"Origin": "http://example.test"}
    for path in ("/", "/app.js", "/style.css", "/media.js", "/icon.svg"):
        assert server.client.get(path, headers=headers).status_code == 200, path
        assert server.client.head(path, headers=headers).status_code == 200
    body = asking("what?")
    refused = server.client.post("/v1/chat/completions", json=body, headers=headers)
    assert (
        refused.status_code == 403 and "'http://example.test'" in refused.json()["error"]["message"]
    )
    assert "Host" in refused.json()["error"]["message"] and "--allowed-origins" in refused.text
    for site, status in (
        ("same-origin", 200),
        ("same-site", 403),
        ("cross-site", 403),
        ("none", 403),
    ):
        answer = server.client.post(
            "/v1/chat/completions", json=body, headers={**headers, "Sec-Fetch-Site": site}
        )
        assert answer.status_code == status, site


def test_a_proxys_prefix_is_the_root_path(server: Served) -> None:
    headers = {"X-Forwarded-Prefix": "/some/path/"}
    document = server.client.get("/openapi.json", headers=headers).json()
    assert document["servers"] == [{"url": "/some/path"}]
    assert "servers" not in server.client.get("/openapi.json").json()
    assert (
        server.client.get("/some/path/v1/models", headers=headers).status_code == 200
    )  # left on, or taken off
    assert "href=openapi.json" in server.client.get("/docs", headers=headers).text
    for odd in (
        "//evil.example",
        "https://evil.example",
        "/a b",
        "/" + "a" * 500,
        '/"><script>',
        "/a" * 50,
    ):
        answer = server.client.get("/openapi.json", headers={"X-Forwarded-Prefix": odd})
        assert answer.status_code == 200 and "servers" not in answer.json()


def asked(method: str, path: str, **sent: Any) -> httpx.Response:
    """What an application with a key and an allowed origin answers, without an engine behind it."""
    made = create(ServerOptions(api_keys=(KEY,), allowed_origins=("https://app.example",)))[0]

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(made)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost:8000"
        ) as client:
            return await client.request(method, path, **sent)

    return asyncio.run(ask())


def test_a_prefix_opens_no_path() -> None:
    for prefix in ("/v1", "/health", "/v1/models", "/v1/health", "/v1/health/live"):
        for path in (
            "/v1/models",
            "/metrics",
            "/v1/models/health",
            "/v1/metrics",
            "/health/v1/models",
        ):
            answer = asked("GET", path, headers={"X-Forwarded-Prefix": prefix})
            assert answer.status_code == 401, (prefix, path)


def test_clients_in_allowed_pages_may_send_headers_of_their_own() -> None:
    names = (
        "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-retry-count,"
        "x-stainless-package-version,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout,"
        "openai-organization,openai-project,user-agent"
    )
    headers = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": names}
    path = "/v1/chat/completions"
    found = asked("OPTIONS", path, headers={**headers, "Origin": "https://app.example"})
    assert (
        found.status_code == 200
        and found.headers["access-control-allow-origin"] == "https://app.example"
    )
    allowed = found.headers["access-control-allow-headers"].replace(" ", "").lower().split(",")
    assert set(names.split(",")) <= set(allowed)
    for origin in (
        "https://evil.example",
        "http://app.example",
        "null",
        "https://app.example.evil.example",
    ):
        refused = asked("OPTIONS", path, headers={**headers, "Origin": origin})
        assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
        real = asked(
            "POST",
            path,
            json=asking("a"),
            headers={"Origin": origin, "Authorization": f"Bearer {KEY}"},
        )
        assert real.status_code == 403 and "access-control-allow-origin" not in real.headers
    for key, status in (("wrong", 401), (KEY, 503)):  # no engine is running here
        answer = asked(
            "POST",
            path,
            json=asking("a"),
            headers={"Origin": "https://app.example", "Authorization": f"Bearer {key}"},
        )
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_a_browsers_password_is_asked_for_behind_a_proxy() -> None:
    basic = b64encode(f"anybody:{KEY}".encode()).decode()
    assert (
        asked(
            "GET", "/", headers={"Authorization": f"Basic {basic}", "Host": "example.com"}
        ).status_code
        == 200
    )


@needs_nginx
@needs_browser
@pytest.mark.long
def test_the_page_works_behind_nginxs_defaults(
    server: Served, nginx: Callable[[str, int], str], browser: Browser, root: Path
) -> None:
    page = browser.new_page()
    page.goto(f"{nginx(DEFAULTS, server.port)}/")
    expect(page.locator("#not-running")).to_have_count(0)
    page.get_by_label("Image").set_input_files(root / "examples" / "shapes.png")
    page.get_by_label("Question", exact=True).fill("what color is the circle?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#text")).to_have_text("red", timeout=60_000)
    page.close()


@needs_nginx
@needs_browser
@pytest.mark.long
@pytest.mark.parametrize("below", ["/", "/mmdiff/"])
def test_the_page_works_behind_our_configuration(
    keyed: Served, nginx: Callable[[str, int], str], browser: Browser, root: Path, below: str
) -> None:
    address = nginx((root / "docs" / "deploy" / "nginx.conf").read_text(), keyed.port)
    context = browser.new_context(http_credentials={"username": "anybody", "password": KEY})
    page = context.new_page()
    page.goto(f"{address}{below}")
    page.get_by_label("Image").set_input_files(root / "examples" / "shapes.png")
    page.get_by_label("Question", exact=True).fill("what color is the circle?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#text")).to_have_text("red", timeout=60_000)
    expect(page.locator("#curl")).to_contain_text(f"{address}{below}v1/chat/completions")
    page.goto(f"{address}{below}docs")
    assert page.get_by_role("link", name="openapi.json").count() == 1
    page.get_by_role("link", name="openapi.json").click()
    page.wait_for_url(f"{address}{below}openapi.json")
    document = json.loads(page.locator("pre").inner_text())
    assert document.get("servers", [{"url": "/"}])[0]["url"] == below.rstrip("/") or below == "/"
    context.close()


@needs_nginx
@pytest.mark.long
def test_streams_large_bodies_and_many_requests_pass_our_configuration(
    keyed: Served, nginx: Callable[[str, int], str], root: Path
) -> None:
    address = nginx((root / "docs" / "deploy" / "nginx.conf").read_text(), keyed.port)
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(
        base_url=f"{address}/mmdiff", headers=headers, timeout=60, trust_env=False
    ) as client:
        slow = asking(
            "what?",
            stream=True,
            diffusing=True,
            gen_length=64,
            block_length=64,
            steps=64,
            rule="quota",
            cache="none",
        )
        arrived = []
        with client.stream("POST", "/v1/chat/completions", json=slow) as answer:
            assert answer.headers["x-request-id"]
            for line in answer.iter_lines():
                arrived += [time.monotonic()] if line.startswith("data: ") else []
        assert len(arrived) > 20 and arrived[-1] - arrived[0] > 5 * (arrived[1] - arrived[0])
        audio = {"file": ("a.wav", b"\0" * (24 << 20))}
        assert client.post("/v1/audio/transcriptions", files=audio).status_code == 400
        audio = {"file": ("a.wav", b"\0" * (40 << 20))}
        assert client.post("/v1/audio/transcriptions", files=audio).status_code == 413
        picture = {
            "type": "image_url",
            "image_url": {"url": data_url(root / "examples" / "shapes.png")},
        }
        for _ in range(20):
            answer = client.post(
                "/v1/chat/completions", json=asking("what color is the circle?", picture)
            )
            assert answer.json()["choices"][0]["message"]["content"] == "red"
        assert client.head("/health").status_code == 200
        assert client.get("/v1/models", headers={"Authorization": ""}).status_code == 401


@needs_browser
@pytest.mark.long
def test_the_page_says_so_when_its_script_does_not_run(server: Served, browser: Browser) -> None:
    for way in ("without a script", "with a file missing"):
        context = browser.new_context(java_script_enabled=way != "without a script")
        page = context.new_page()
        page.route("**/media.js", lambda route: route.abort())
        page.goto(server.url)
        expect(page.locator("#not-running")).to_be_visible(timeout=10_000)
        context.close()


PAGE = """<!doctype html><script type="module">
const headers = { "Content-Type": "application/json", Authorization: "Bearer %s",
  "X-Stainless-Lang": "js", "X-Stainless-Arch": "unknown", "X-Stainless-OS": "Unknown",
  "X-Stainless-Runtime": "browser:chrome", "X-Stainless-Package-Version": "6.0.0",
  "X-Stainless-Retry-Count": "0", "X-Stainless-Timeout": "600" };
const messages = [{ role: "user", content: "what color is a red circle?" }];
const body = JSON.stringify({ model: "tiny", messages });
try {
  const answer = await fetch("%s/v1/chat/completions", { method: "POST", headers, body });
  document.title = answer.status + " " + answer.headers.get("x-request-id").length;
} catch (error) { document.title = "refused"; }
</script>"""


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize("allowed", [True, False])
def test_openais_headers_are_sent_from_a_page_elsewhere(
    serve: Callable[..., Served], browser: Browser, allowed: bool
) -> None:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    ) as elsewhere:
        origin = f"http://127.0.0.1:{elsewhere.server_port}"
        served = serve(
            "--api-key", KEY, "--allowed-origins", origin if allowed else "https://other.example"
        )

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write((PAGE % (KEY, served.url)).encode())

            def log_message(self, *arguments: Any) -> None:
                pass

        elsewhere.RequestHandlerClass = Handler
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.goto(origin)
        page.wait_for_function("document.title !== ''", timeout=60_000)
        assert page.title() == ("200 24" if allowed else "refused")
        page.close()
        elsewhere.shutdown()
