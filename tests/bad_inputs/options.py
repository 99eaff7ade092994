"""Values of options that are out of range, of the wrong type, or do not fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.bad_inputs.case import Case
from tests.bad_inputs.world import World

GROUP = "options"
NUMBERS = ("", "x", "1.5.2", "nan", "inf")

FIT: dict[str, tuple[Any, ...]] = {
    "k": (0, -1, 1.5, "x", "", 10**6, 10**30, 10**3000),
    "images": (0, -3, "many", ""),
    "seed": (-1, "x"),
    "backend": ("cuml", "", "faiss-gpu"),
    "layers": ("", "audio=3", "text=", "text=99", "text=-1", "text=3-1", "text=1,text=2", "text=1.5", "12=text",
               "text=1;vision=2", "all=all", "text==1", "vision", "text=1,,2", "text=9999999999", "text=1,9-"),
    "prompt": ("", " ", "<image>", "is there <image> here?", "\udcff", "word " * 3000),
    "split": ("train",),
    "data_revision": ("main",),
    "column": ("x", "=x", "prompt=question", ["image=a", "image"]),
    "batch_size": (0, -1, "x"),
    "dtype": ("int8", "float64", "half", ""),
    "device": ("gpu", "cuda", "cuda:99", "cuda:x", "mps", "", "cpu:7", "meta", "xla", "quantum"),
    "revision": ("main", ""),
    "data": ("", "/proc/nope", "./photoss", "nope.jsonl", "a/b/c", "nobody/nothing", "easy-vqq", "photos:train"),
    "model": ("", "./modell", "/proc/nope", "model/config.jsn", "nobody/nothing", "../model\n", "a" * 300),
}  # fmt: skip
PROBE: dict[str, tuple[Any, ...]] = {
    "alphas": ("", "x", "2", "-1", "nan", "0,,1", "0;1"),
    "alpha_cd": ("x", "nan", "inf", "1,,2"),
    "reference": (
        "",
        "x",
        "no-vision,",
        "no-vision,no-vision",
        "no-vision=1",
        "blank-image=",
        "blank-image=x",
        "noised-image=1000",
        "noised-image=-1",
        "early-exit=x",
        "early-exit=99",
        "prompt",
        "prompt=",
        "no-vision+",
        "x*no-vision",
        "0*no-vision",
        "1e9999*no-vision",
        "no-vision+no-vision",
        ["no-vision", "no-vision"],
    ),
    "layers": ("5", "99", "text=3", "audio=1", ""),
    "segments": ("text", "text=foo", "audio=all", "text=all,text=all", "vision=question", "text=", ""),
    "limit": (0, -1, "x"),
    "seed": (-1, "x"),
    "prompt": ("", " "),
    "batch_size": (0,),
    "revision": ("main",),
    "split": ("test",),
    "data_revision": ("main",),
    "column": ("prompt=question", "nothing=prompt", "answer=", "image="),
}
GENERATE: dict[str, tuple[Any, ...]] = {
    "reference": (
        "",
        " ",
        "grey",
        "TEXT-CENTROID",
        "no_vision",
        "no-vision",
        "no-vision;prompt",
        "text-centroid,",
        "text-centroid,text-centroid",
        "text-centroid=1",
        "mean-vision=2",
        "prompt",
        "a" * 5000,
        "\udcff",
        "x*text-centroid",
        "0*text-centroid",
        "1*2*text-centroid",
        "1e400*text-centroid",
        "-text-centroid",
    ),
    "weights": ("", "x", "0", "nan", "inf", "1,2", "1,", "1;2", "1e300"),
    "other_prompt": ("", "look away"),
    "text_only": (True,),
    "seed": (0, -1, "x"),
    "fitted_on": ("another", ""),
    "alpha_cd": NUMBERS,
    "alpha_interp": (*NUMBERS, "-0.1", "1.1"),
    "beta": (*NUMBERS, "-1", "1.5"),
    "gate": ("foo", ""),
    "gate_threshold": NUMBERS,
    "gate_ramp": ("nan", "-1"),
    "tokens": ("last",),
    "layer": ("x", -1, 3, 5, 99, "", "text=", "audio=1", "vision=2", "text=1,text=1", "text=1;vision=2", 10**30),
    "max_new_tokens": (0, -1, "x", 10**6, 10**30),
    "prompt": ("", "  ", "<image>", ["is there a circle?", "what is <image>?"], "\udcff", "word " * 3000),
    "image": (None, "", "/proc/nope", "/", "/dev/null"),
    "revision": ("main",),
    "batch_size": (0,),
    "dtype": ("int8",),
    "device": ("cuda:99",),
}


#: Of `tccd generate` without a bank: a reference by what is wrong with its setting, or beside it.
ALONE: tuple[dict[str, Any], ...] = (
    *({"reference": f"blank-image={value}"} for value in ("", " ", "gray!", "#12", "256", "/", "/proc/nope", "=")),
    *({"reference": f"noised-image={value}"} for value in ("", "x", "-1", "1000", "5.5", "\u00b2", 10**30)),
    *(
        {"reference": f"early-exit={value}"}
        for value in ("", "middle", "-2", "5", "99", "3-1", "1-9", "1-", 10**30)
    ),
    {"reference": "text-centroid"},
    {"reference": "vision-centroid,no-vision"},
    {"reference": "mean-vision"},
    {"reference": "prompt"},
    {"reference": "prompt", "other_prompt": " "},
    {"reference": "prompt", "other_prompt": "<image>"},
    {"reference": "prompt", "other_prompt": "\udcff"},
    {"reference": "prompt", "other_prompt": "word " * 3000},
    {"reference": "prompt", "other_prompt": "word " * 3000, "text_only": True},
    {"reference": "no-vision", "seed": 1},
    {"reference": "no-vision", "layer": 1},
    {"reference": "no-vision", "alpha_interp": 0.5},
    {"reference": "no-vision,early-exit", "weights": "1"},
    {"reference": "2*no-vision,early-exit", "weights": "1,1"},
    {"reference": "no-vision", "alpha_cd": "nan"},
    {"reference": "no-vision", "fitted_on": "llava-grounded"},
)


def _probes(world: World) -> dict[str, tuple[list[str], str]]:
    """Probes whose options do not fit each other, and what the message has to name."""
    return {
        "probe with a beta and no contrast": (world.probe(beta="2", alpha_cd="1"), "beta"),
        "probe with beta nan": (world.probe(beta="nan", alpha_cd="1"), "beta"),
        "probe with threshold x": (world.probe(alpha_cd="1", gate="margin", gate_threshold="x"), "threshold"),
        "probe with threshold nan": (world.probe(alpha_cd="1", gate="margin", gate_threshold="nan"), "threshold"),
        "probe with no strength of a reference": (world.probe(reference="no-vision", alpha_cd=""), "strength"),
        "probe with neither bank nor reference": (world.probe(bank=None), "reference"),
        "probe with a bank's reference and no bank": (world.probe(bank=None, reference="mean-vision"), "bank"),
        "probe at layers without a bank": (world.probe(bank=None, reference="no-vision", layers="1"), "layers"),
        "probe with controls without a bank": (
            [*world.probe(bank=None, reference="no-vision"), "--controls"],
            "controls",
        ),
        "probe with segments without a bank": (
            world.probe(bank=None, reference="no-vision", segments="text=all"),
            "segments",
        ),
        "probe with an unknown gate": (world.probe(alpha_cd="1", gate="x"), "gate"),
        "probe with one bank twice": (world.probe(bank=[world.bank, world.bank]), "once"),
        "probe with banks of two models": (world.probe(bank=[world.bank, world.other_bank]), "model"),
        "probe with another model's bank": (world.probe(bank=world.other_bank), "model"),
        "probe of pictures without answers": (world.probe(data=world.photos), "answer"),
    }


def cases(world: World) -> Iterator[Case]:
    """All of them."""
    for command, table in ((world.fit, FIT), (world.probe, PROBE), (world.generate, GENERATE)):
        for option, values in table.items():
            for value in values:
                shown = repr(value) if len(repr(value)) < 50 else repr(value)[:40] + "..."
                yield Case(GROUP, f"{command.__name__} --{option} {shown}", command(**{option: value}))
    for given in (
        *ALONE,
        {"reference": f"blank-image={world.manifest}"},
        {"reference": f"blank-image={world.bank}"},
    ):
        shown = ", ".join(f"{name} {str(value)[:40]!r}" for name, value in given.items())
        yield Case(GROUP, f"generate without a bank, {shown}", world.generate(bank=None, **given))
    yield Case(GROUP, "generate without a bank", world.generate(bank=None), good=True)
    manifest = {"data": world.manifest, "prompt": "from-data"}
    together: dict[str, tuple[list[str], str]] = {
        "fit on a manifest with a split": (world.fit(**manifest, split="train"), "split"),
        "fit on a manifest with a revision": (world.fit(**manifest, data_revision="v1"), "revision"),
        "fit on digits with columns": (world.fit(data="digits", column="image=x"), "columns"),
        "fit on digits of another split": (world.fit(data="digits", split="validation"), "split"),
        "fit on easy-vqa of another split": (world.fit(data="easy-vqa", split="dev"), "split"),
        "fit without layers and with k": (world.fit(layers=None), "--layers"),
        "fit without layers and with a backend": (world.fit(layers=None, k=None, backend="sklearn"), "--layers"),
        "fit of nothing": (world.fit(layers=None, k=None, no_vision_mean=True), "nothing to fit"),
        "fit of a mean and a value": ([*world.fit(), "--vision-mean", "yes"], "argument"),
        "generate with a vision mean alone": (world.generate(bank=world.mean), "text centroids"),
        "probe with a vision mean alone": (world.probe(bank=world.mean), "bank|centroid|entr"),
        "more centroids than rows to come": (world.fit(k=200, layers="text=1", images=2), "centroid|rows"),
        "prompts from stdin and beside it": (world.generate(prompt=["-", "what?"]), "no other"),
        "generate with another model's bank": (world.generate(bank=world.other_bank), "model"),
        "advise with one fold": (["probe", "advise", world.report, "--folds", "1"], "folds"),
        "advise with more folds than pictures": (["probe", "advise", world.report, "--folds", "9999"], "folds"),
        "advise with folds x": (["probe", "advise", world.report, "--folds", "x"], "folds"),
        "advise with a negative seed": (["probe", "advise", world.report, "--seed", "-1"], "seed"),
        "advise on a model that is not there": (["probe", "advise", world.report, "--model", "x"], "model"),
        "compare one report": (["probe", "compare", world.report, "--out", world.fresh()], "two"),
        "compare a report with itself": (
            ["probe", "compare", world.report, world.report, "--out", world.fresh()], ""
        ),
        "compare into a report": (
            ["probe", "compare", world.report, world.other_report, "--out", world.report], "replace"
        ),
        "compare without reports": (["probe", "compare", "--out", world.fresh()], "REPORT"),
        "verify with another model": (["bank", "verify", world.bank, "--model", world.other], "model"),
        "import arrays at several layers": (world.import_npz(layers="text=1,2,vision=2"), "one layer"),
        "import arrays at all layers": (world.import_npz(layers="all"), "one layer"),
        "import arrays at a layer too many": (world.import_npz(layers="text=1,vision=99"), "layer"),
        "import arrays of one modality": (world.import_npz(layers="text=1"), "vision"),
        "no such command": (["fitt"], "command"),
        "no such subcommand": (["probe", "replace"], "command"),
        "no such option": (["fit", "--modell", "x"], "option"),
        "a needed option is missing": (world.fit(model=None), "--model"),
        "an option without a value": ([*world.fit(), "--k"], "--k"),
        "one argument too many": ([*world.fit(), "more"], "argument"),
        "an option given as another": (["bank", "show", "--model", "x"], "option"),
    }  # fmt: skip
    together |= _probes(world)
    for name, (args, says) in together.items():
        yield Case(GROUP, name, args, says)
        if name.startswith(("advise on", "probe with another", "fit on digits of")):
            yield Case(GROUP, f"{name}, as JSON", [*args, "--json"], says)
