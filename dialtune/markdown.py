"""Text of data into Markdown that shows it and does nothing: no markup, no HTML, no mention of a person or an issue."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKUP = re.compile(r"[\\`*_{}\[\]<>|#~$&!^]")


def plain(text: str) -> str:
    r"""The text on one line, with everything that Markdown, HTML or a forge would act on made harmless.

    >>> plain("<b> *a* | @me")
    '\\<b\\> \\*a\\* \\| @<!-- -->me'
    """
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split())).replace("@", "@<!-- -->")


def code(text: str) -> str:
    """The text on one line as code, in which nothing is acted on; a backtick becomes a quote.

    >>> code("a`b")
    "`a'b`"
    """
    shown = " ".join(text.split()).replace("`", "'").replace("|", "¦")
    return f"`{shown}`" if shown else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; empty without rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
