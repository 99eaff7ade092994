"""Which releases of transformers this was tested with."""

from __future__ import annotations

import re
import warnings
from functools import cache

import transformers

#: The lowest and the newest release that the tests ran under.
TESTED = "5.16", "5.24"


def is_newer(version: str) -> bool:
    """Whether a release came after the newest one that was tested; a patch of that one did not.

    Args:
        version: as in "5.24.1".
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    newest = tuple(map(int, TESTED[1].split(".")))
    return found is None or (int(found[1]), int(found[2])) > newest


@cache
def warn_of_transformers() -> None:
    """Warn, once per process, of a transformers that is newer than what was tested."""
    if is_newer(transformers.__version__):
        lowest, newest = TESTED
        warnings.warn(
            f"transformers {transformers.__version__} is newer than what tccd was tested with ({lowest} to "
            f"{newest}); pip install 'transformers=={newest}.*', or check the answers",
            stacklevel=3,
        )
