"""What griffe has to be told of this repository's docstrings; `mkdocs.yml` loads it."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: A line of text, and the first item of a list right below it, no further to the left.
_LIST_BELOW = re.compile(r"^( *)(?!- |\s)(.+)\n(?=\1 *- )", re.MULTILINE)


class House(griffe.Extension):
    """Our examples stand under `Example:`, and our lists right below the text that they belong to."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Write both as griffe and Markdown know them, as soon as an object is read."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _LIST_BELOW.sub(r"\1\2\n\n", text)
