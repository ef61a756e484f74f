"""Docstrings as Markdown: without this, `>>>` is a quotation and `<class>` is taken for HTML and not shown."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?m)^>>> .*(?:\n(?!\s*$).*)*")  # from the first prompt to the next empty line
PLACEHOLDER = re.compile(r"<(?=\w)")  # of "<class>"
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


def as_markdown(text: str) -> str:
    """A docstring with a fence around every run of examples, and placeholders escaped outside code."""
    parts = CODE.split(EXAMPLE.sub(r"```pycon\n\g<0>\n```", text))
    return "".join(part if i % 2 else PLACEHOLDER.sub("&lt;", part) for i, part in enumerate(parts))


class Docstrings(griffe.Extension):
    """Changes docstrings as they are read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
