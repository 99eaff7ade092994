"""Every bad input we could think of, through the real `tccd` command: none may end in a traceback or be accepted.

    python -m tests.bad_inputs                 # all of them, with a table at the end
    python -m tests.bad_inputs --every 10      # a sample
    python -m tests.bad_inputs --only banks    # those whose group or name holds a text

Exit code 1 if a command did what it may not. Each case is a fork of this process, so it costs no import.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # bad names are not to be looked up
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork

from tests.bad_inputs import banks, coverage, models, options, pictures, places, questions, reports, routes
from tests.bad_inputs.case import Case, Outcome, run
from tests.bad_inputs.world import ZOO, World

WARM = (
    "datasets.packaged_modules",
    "faiss",
    "jinja2",
    "matplotlib.figure",
    "probes.advise",
    "probes.compare",
    "probes.coverage.report",
    "probes.replacement",
    "probes.report",
    "sklearn.cluster",
    "statsmodels.stats.api",
    "tccd.centroids.fit",
    "tccd.decoding.huggingface",
    "tccd.routing.training",
)
GROUPS = (options, banks, models, questions, pictures, reports, places, routes, coverage)


def warm_up() -> None:
    """Import what the commands import; they are forks and find it there."""
    for module in WARM:
        importlib.import_module(module)
    from tccd.loading import load_model

    load_model(str(ZOO / "llava-grounded"))


def every_case(world: World) -> list[Case]:
    """All bad inputs, and the good ones between them."""
    return [case for group in GROUPS for case in group.cases(world)]


def show(outcomes: Sequence[Outcome]) -> None:
    """Print a table by group, and what went wrong."""
    verdicts = sorted({outcome.verdict for outcome in outcomes})
    print(f"{'':12}" + "".join(f"{verdict:>24}" for verdict in (*verdicts, "wrong")))
    for group in dict.fromkeys(outcome.case.group for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.case.group == group]
        found = Counter(outcome.verdict for outcome in mine)
        wrong = sum(not outcome.right for outcome in mine)
        print(f"{group:12}" + "".join(f"{found[verdict]:>24}" for verdict in verdicts) + f"{wrong:>24}")
    for outcome in outcomes:
        if not outcome.right:
            told = outcome.stderr.strip().splitlines()[-1:] or [""]
            print(f"\n{outcome.case.group}: {outcome.case.name}: {outcome.verdict}")
            print(f"  tccd {' '.join(map(str, outcome.case.args))[:600]}")
            print(f"  {(outcome.message if outcome.verdict == 'another reason' else told[0])[:600]}")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bad_inputs")
    parser.add_argument("--every", type=int, default=1, help="run one case of so many")
    parser.add_argument("--only", default="", help="run cases whose group or name holds this")
    parser.add_argument("--verbose", action="store_true", help="print each message")
    args = parser.parse_args()
    warm_up()
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="tccd-world-") as folder:
        world = World(Path(folder))
        cases = every_case(world)
        bad = sum(not case.good for case in cases)
        chosen = [case for case in cases[:: args.every] if args.only in f"{case.group} {case.name}"]
        for case in chosen:
            outcomes.append(run(case))
            if args.verbose:
                last = outcomes[-1]
                print(f"{last.seconds:6.2f} {last.verdict:10} {case.name}: {last.message[:300]}", flush=True)
    show(outcomes)
    wrong = sum(not outcome.right for outcome in outcomes)
    asked = [outcome for outcome in outcomes if not outcome.case.good]
    found = Counter(outcome.verdict for outcome in asked)
    print(f"\n{bad} bad inputs in all; {len(asked)} were tried: {found['refused']} refused with a reason,")
    print(f"{found['accepted']} accepted by mistake, {found['traceback']} ended in a traceback")
    good = sum(outcome.right for outcome in outcomes if outcome.case.good)
    print(
        f"{good + len(world.controls)} of {len(outcomes) - len(asked) + len(world.controls)} sound inputs passed"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
