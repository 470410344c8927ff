"""Retake the README's picture of the playground from a running endpoint: ``python -m tests.screenshot URL KEY OUT``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.browser import browser

WIDTH_PX = 1200
PROMPT = "My neighbour's music is too loud at night. What can I do about it?"
ENDED = "document.getElementById('stop').getAttribute('aria-disabled') === 'true'"
ANSWER_S = 180


def take(url: str, secret: str, out: Path, prompt: str = PROMPT) -> None:
    """Ask a prompt under the first two configurations and write what the page then looks like.

    Args:
        url: where the endpoint's page is; an API's base URL will do.
        secret: a key that may choose harmless and uncensored.
    """
    page = f"{url.rstrip('/').removesuffix('/v1')}/"
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as tab:
        tab.show(page, WIDTH_PX, dark=False)
        tab.click("#key")
        tab.write(secret)
        tab.press("Enter")
        tab.wait("document.querySelectorAll('#columns article').length > 0")
        tab.click("#prompt")
        tab.write(prompt)
        tab.press("Enter", control=True)
        tab.wait(ENDED, ANSWER_S)
        problems = tab.evaluate("document.querySelectorAll('.problem:not([hidden])').length")
        assert problems == 0, tab.evaluate("document.body.innerText")
        tab.evaluate("document.activeElement.blur()")
        tab.picture(out)


if __name__ == "__main__":
    take(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
