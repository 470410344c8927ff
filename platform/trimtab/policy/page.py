"""The playground's files, as the gate serves them: one page at ``/``, its style and its script.

The page holds no text of a model when it is served, needs no key, and may only speak to the server that it came from.
Its policy also makes the browser refuse any script that would read text as HTML (Trusted Types without a policy).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from trimtab.html import TEMPLATES

CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)
FILES = {
    "/": ("playground.html", b"text/html; charset=utf-8"),
    "/page.css": ("page.css", b"text/css; charset=utf-8"),
    "/playground.css": ("playground.css", b"text/css; charset=utf-8"),
    "/playground.js": ("playground.js", b"text/javascript; charset=utf-8"),
}


@dataclass(frozen=True)
class Page:
    """A file to answer with."""

    content_type: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = HEADERS
    """What stands in the response besides the type and the length."""


@lru_cache(maxsize=64)
def find(path: str) -> Page | None:
    """The file that is served at exactly this path; None: none is."""
    if path not in FILES:
        return None
    name, content_type = FILES[path]
    return Page(content_type, (TEMPLATES / name).read_bytes())
