"""What the site does to texts on their way: brackets beside brackets are no links, and `Example:` is code."""

import re
from typing import Any

import griffe


def without_links(text: str) -> str:
    """`[B, T] [C]` as it stands, which Markdown takes for a link."""
    return re.sub(r"\](\s*)\[", r"]\1\\[", text)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page of error messages quotes arrays."""
    return without_links(markdown) if page.file.src_uri == "errors.md" else markdown


class Examples(griffe.Extension):
    """Docstrings say `Example:`, which griffe calls `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Text and examples of one docstring."""
        if obj.docstring is None:
            return
        text, *example = re.split(r"^(Example:\n)", obj.docstring.value, maxsplit=1, flags=re.MULTILINE)
        obj.docstring.value = without_links(text) + "".join(example).replace("Example:\n", "Examples:\n", 1)
