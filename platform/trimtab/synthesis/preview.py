"""``--preview``: a few groups in the terminal, best answer first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trimtab.console import show
from trimtab.schemas import RankedGroup, Response

if TYPE_CHECKING:
    from rich.table import Table

SHOWN_CHARS = 400


def show_groups(groups: Sequence[RankedGroup]) -> None:
    """Print a table for each group."""
    for group in groups:
        show(table_of(group))


def table_of(group: RankedGroup) -> Table:
    """A group as a table: rank, role, and the answer with what the model wrote in bold."""
    from rich.markup import escape
    from rich.table import Table

    title = escape(" ".join(group.prompt.split())[:SHOWN_CHARS])
    table = Table("rank", "role", "answer", title=title, title_justify="left", show_lines=True, expand=True)
    for rank, response in enumerate(group.responses, start=1):
        table.add_row(str(rank), response.role, _marked(response))
    return table


def _marked(response: Response) -> str:
    """The answer, shortened around the place where the model took over."""
    from rich.markup import escape

    given, written = response.text[: response.num_prefill_chars], response.text[response.num_prefill_chars :]
    cut = "… " if len(given) > SHOWN_CHARS // 2 else ""
    rest = " …" if len(written) > SHOWN_CHARS else ""
    return f"{cut}{escape(given[-SHOWN_CHARS // 2 :])}[bold]{escape(written[:SHOWN_CHARS])}[/bold]{rest}"
