"""Judge every architecture and write docs/families.md: `python -m tests.census`.

With names (`python -m tests.census llava gemma4`) only their rows are judged, and changed on the page. Ends with 1
if a row is neither exact nor refused. Some architectures need timm.
"""

from __future__ import annotations

import os
import sys
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from tests.census.architectures import Architecture, architectures
from tests.census.judge import Verdict, judge
from tests.census.page import PAGE, read, written


def main(names: list[str]) -> int:
    """Judge the named rows (all of them without a name), show them, and write them into the page."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    everyone = architectures()
    rows = [row for row in everyone if not names or {row.name, row.key} & set(names)]
    if not rows:
        sys.exit(f"no row of the census is called {' or '.join(names)}")
    verdicts: dict[Architecture, Verdict] = {}
    for row in rows:
        began = time.perf_counter()
        verdicts[row] = one = judge(row)
        took = time.perf_counter() - began
        print(
            f"{row.name:40} {one.outcome:9} {one.error:8.1e} {one.noise:8.1e} {took:5.1f} s  {one.reason}",
            flush=True,
        )
        for scene in one.left_out:
            print(f"{'':40} left out: {scene}")
    failed = [row.name for row, one in verdicts.items() if one.outcome not in ("exact", "refused")]
    exact = sum(one.outcome == "exact" for one in verdicts.values())
    print(f"{len(rows)} rows: {exact} exact, {len(rows) - exact - len(failed)} refused, {len(failed)} neither")
    before = read(PAGE.read_text()) if names else {}
    both = {row: verdicts.get(row) or before.get(row.name) for row in everyone}
    known = {row: one for row, one in both.items() if one is not None}
    PAGE.write_text(written(known, ".".join(transformers.__version__.split(".")[:2])))
    if failed:
        print("neither exact nor refused:", ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
