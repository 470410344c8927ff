"""The playground's files: what is served, under which policy, and that nothing in them goes around it."""

from __future__ import annotations

import re

import pytest

from trimtab.policy.page import CONTENT_SECURITY, FILES, find

POLICY = {
    "default-src": "'none'", "script-src": "'self'", "style-src": "'self'", "connect-src": "'self'",
    "img-src": "'self' data:", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'", "trusted-types": "'none'",
}  # fmt: skip


def _text(path: str) -> str:
    found = find(path)
    assert found is not None
    return found.body.decode()


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_served_with_its_type_and_the_policy(path: str) -> None:
    found = find(path)
    assert found is not None
    kind = {"/": b"text/html", ".css": b"text/css", ".js": b"text/javascript"}[
        path[path.rfind(".") :] if path != "/" else "/"
    ]
    assert found.content_type == kind + b"; charset=utf-8"
    headers = dict(found.headers)
    assert headers[b"content-security-policy"].decode() == CONTENT_SECURITY
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert b"content-type" not in headers
    assert b"content-length" not in headers


def test_policy_allows_its_own_origin_alone() -> None:
    assert dict(part.strip().split(" ", 1) for part in CONTENT_SECURITY.split(";")) == POLICY


@pytest.mark.parametrize(
    "path", ["", "/playground.html", "//", "/../policy/page.py", "/page.css/", "/report.html.jinja"]
)
def test_nothing_else_is_served(path: str) -> None:
    assert find(path) is None


def test_page_names_only_files_that_are_served() -> None:
    named = re.findall(r'\b(?:src|href)="([^"]*)"', _text("/"))
    assert {name for name in named if not name.startswith(("#", "data:"))} == {
        path[1:] for path in FILES if path != "/"
    }


def test_page_has_no_inline_script_or_style() -> None:
    page = _text("/")
    assert re.findall(r"<script[^>]*>([^<]*)<", page) == [""]
    assert "<style" not in page
    assert not re.search(r"\s(style|on[a-z]+)=", page)


def test_no_file_names_another_place() -> None:
    for path in FILES:
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]", _text(path).replace("// ", ""))


def test_script_has_no_way_to_read_text_as_html_or_to_keep_the_key() -> None:
    as_html = r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|eval\("
    stores = r"localStorage|sessionStorage|indexedDB|cookie"
    assert not re.search(f"{as_html}|{stores}", _text("/playground.js"))
