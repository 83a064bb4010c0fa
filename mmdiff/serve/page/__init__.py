"""The page at `/`: files as they are sent, kept beside this one. It asks the server it came from and nobody else."""

from __future__ import annotations

from importlib.resources import files

# What a browser may do with the page: run its own script and style, ask its own server, show what the user gave it.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Each path of the page, with what is there and its content type."""
    found = {}
    for file in files(__name__).iterdir():
        kind = TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            found["/" if file.name == "index.html" else f"/page/{file.name}"] = (file.read_bytes(), kind)
    return found
