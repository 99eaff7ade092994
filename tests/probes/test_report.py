from __future__ import annotations

import base64
import copy
import csv
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from probes.compare import compare
from probes.report import SCHEMA, validate, write_report
from probes.report.page import render
from probes.report.prose import answer, findings, interval, points, probability
from probes.report.schema import dumps, plain
from probes.report.summary import summarise
from probes.report.tables import csv_tables
from probes.statistics.intervals import difference_interval, mcnemar_counts, wilson
from tccd.errors import ConfigError, DataError
from tests.browser import CHROMIUM, Browser
from tests.probes.probed import picture, probed

HOSTILE = "<script>alert('x')</script> \"&amp; $x^2$ {{ 7 * 7 }} \x07"


def change(n, right, b, c):
    low, high = difference_interval(c, b, n)
    return {
        "n": n,
        "baseline": right / n,
        "accuracy": (right + c - b) / n,
        "delta": (c - b) / n,
        "ci95": [low, high],
        "p_value": mcnemar_counts(b, c).p_value,
        "helped": c,
        "harmed": b,
    }


def cell(model, modality, layer, lost, gained=1, n=400, right=380, **more):
    low, high = difference_interval(lost, gained, n)
    accuracy = (right - lost + gained) / n
    by_task = [{"task": t, "n": n // 2, "baseline": right / n, "accuracy": accuracy} for t in ("shape", "colour")]
    return {
        "model": model,
        "modality": modality,
        "layer": layer,
        "k": 16,
        "alpha_interp": 0.0,
        "segment": "all",
        "n": n,
        "baseline": right / n,
        "accuracy": accuracy,
        "cost": (lost - gained) / n,
        "ci95": [low, high],
        "p_value": mcnemar_counts(lost, gained).p_value,
        "by_task": by_task,
        **more,
    }


def run(n, right, b, c):
    tasks = [
        {"task": name, "n": n // 2, "baseline": right / n, "accuracy": (right + c - b) / n}
        for name in ("shape yes/no", "the colour of a shape, asked at some length")
    ]
    return {
        "settings": {"layer": 3, "k": 8, "alpha_interp": 0.4, "alpha_cd": 2.0, "gate": None},
        **change(n, right, b, c),
        "balanced": change(n // 2, right // 2, b // 2, c // 2),
        "by_task": tasks,
        "chosen_on": {"n": n, "baseline": 0.8, "accuracy": 0.85},
    }


def example(model, prompt="Is there a circle?"):
    return {
        "model": model,
        "image": picture(),
        "prompt": prompt,
        "answer": "yes",
        "plain": "no",
        "tccd": "yes",
        "plain_probability": {"no": 0.6, "yes": 0.4},
        "tccd_probability": {"yes": 0.9, "no": 0.1},
    }


def result():
    models = {
        name: {
            "description": f"the {name} one",
            "accuracy": {
                "n": 800,
                "correct": right,
                "accuracy": right / 800,
                "ci95": list(wilson(right, 800)),
            },
            "blind": {"n": 800, "accuracy": 0.67},
            "parameters": 1_459_840,
        }
        for name, right in (("competing", 640), ("grounded", 784))
    }
    cells = [
        cell(model, modality, layer, lost=(60 if modality == "text" else 6) - 4 * layer)
        for model in models
        for modality in ("text", "vision")
        for layer in range(2)
    ]
    return {
        "schema": SCHEMA,
        "title": "A report",
        "created": "2026-01-31T12:00:00+00:00",
        "versions": {"tccd": "0.1.0"},
        "config": {"seed": 42},
        "models": models,
        "cells": cells,
        "ratio": {
            "competing": {"layer": 1, "ratio": 4.0, "ci95": [2.5, 7.0], "reason": None},
            "grounded": {"layer": 1, "ratio": None, "ci95": None, "reason": "not estimable: it reaches zero"},
        },
        "tccd": {"competing": run(400, 320, 10, 40), "grounded": run(400, 392, 3, 2)},
        "examples": [example("competing"), example("grounded", HOSTILE)],
        "items": {"competing": [{"id": "q1", "answer": "yes", "plain": "no", "tccd": "yes"}], "grounded": []},
    }


def compared():
    """Two models of two families, one of them with a name and labels that are long."""
    return compare(
        {"a": probed(), "b": probed("a-model-with-quite-a-long-name-7b", "qwen2_5_vl", seed=1, helped=0)}
    )


RESULTS = {"demo": result, "one": probed, "two": compared}


@pytest.fixture(scope="module", params=RESULTS)
def page(request):
    return render(plain(RESULTS[request.param]()))


class Reader(HTMLParser):
    """Open tags, text, and every attribute of a page; fails where tags don't nest."""

    VOID = frozenset(["meta", "link", "img", "br", "path", "use", "rect"])

    def __init__(self, page):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def test_json_comes_back_as_it_went(tmp_path):
    given_result = result()
    path, page_path, *tables = write_report(given_result, tmp_path / "made" / "here")
    assert json.loads(path.read_text(encoding="utf-8")) == given_result
    assert sorted(path.parent.glob("[!.]*")) == sorted([path, page_path, *tables])
    assert [t.name for t in tables] == [f"report-{t}.csv" for t in ("models", "cells", "tasks")]
    assert page_path.read_text(encoding="utf-8").lstrip().startswith("<!doctype html>")


def test_numpy_and_tuples_become_json(tmp_path):
    given_result = result()
    given_result["config"] = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": (1, np.bool_(True)),
        "d": np.int64(3),
    }
    path, *_ = write_report(given_result, tmp_path)
    assert json.loads(path.read_text())["config"] == {"a": 0.5, "b": [0, 1], "c": [1, True], "d": 3}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(json_values)
def test_dumps_is_strict_json(value):
    assert json.loads(dumps(plain(value)), parse_constant=pytest.fail) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_numbers_that_json_lacks_are_refused_with_their_place(value):
    bad = result()
    bad["items"]["competing"][0]["margin"] = value
    with pytest.raises(DataError, match=r"result\.items\.competing\[0\]\.margin"):
        validate(bad)


def test_a_result_that_is_not_one_writes_nothing(tmp_path):
    with pytest.raises(ConfigError):
        write_report({"schema": SCHEMA}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def edited(path, value):
    bad = copy.deepcopy(result())
    *parents, last = path
    target = bad
    for key in parents:
        target = target[key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return bad


@pytest.mark.parametrize(
    ("path", "value", "error", "message"),
    [
        (("schema",), "tccd-report/9", ConfigError, "expected 'tccd-report/2'"),
        (("title",), KeyError, ConfigError, "result lacks title"),
        (("created",), "yesterday", ConfigError, "expected a time"),
        (("models",), {}, DataError, "at least one model"),
        (("models", "grounded"), KeyError, DataError, "result.cells names the model 'grounded'"),
        (("models", "grounded", "accuracy", "correct"), 801, DataError, "801 of 800"),
        (("models", "grounded", "accuracy"), 0.98, ConfigError, "expected a mapping"),
        (("cells",), {}, ConfigError, "expected a list"),
        (("cells", 0, "p_value"), KeyError, ConfigError, r"result.cells\[0\] lacks p_value"),
        (("cells", 0, "modality"), "audio", ConfigError, "expected one of text, vision"),
        (("cells", 0, "layer"), 1.5, ConfigError, "whole number"),
        (("cells", 0, "layer"), True, ConfigError, "whole number"),
        (("cells", 0, "n"), 0, DataError, "expected 1 to"),
        (("cells", 0, "accuracy"), 97.0, DataError, "expected 0 to 1"),
        (("cells", 0, "cost"), -0.1, DataError, "baseline - accuracy"),
        (("cells", 0, "ci95"), [0.2, 0.1], DataError, "low <= high"),
        (("cells", 0, "ci95"), [0.2], ConfigError, r"\[low, high\]"),
        (("cells", 0, "by_task", 0, "task"), 3, ConfigError, "expected text"),
        (("cells", 0, "by_task", 1, "n"), "many", ConfigError, r"by_task\[1\].n"),
        (("tccd", "competing", "delta"), -0.1, DataError, "accuracy - baseline"),
        (("tccd", "competing", "balanced", "p_value"), 2, DataError, "expected 0 to 1"),
        (("tccd", "unknown"), {}, ConfigError, "result.tccd.unknown lacks settings"),
        (("ratio", "competing", "ratio"), "four", ConfigError, "expected a number"),
        (("examples", 0, "image"), "http://example.org/a.png", DataError, "PNG"),
        (("examples", 0, "image"), "data:image/png;base64,AAAA", DataError, "PNG"),
        (("examples", 0, "image"), "data:image/svg+xml;base64,AAAA", DataError, "PNG"),
        (("examples", 0, "model"), "third", DataError, "names the model 'third'"),
        (("items", "competing"), {}, ConfigError, "expected a list"),
        (("config", "x"), {1: 2}, DataError, "JSON keys are strings"),
        (("config", "x"), {1, 2}, DataError, "of type set"),
        (("config", "x"), "\ud800", DataError, "surrogate"),
    ],
)
def test_a_wrong_result_is_refused(path, value, error, message):
    with pytest.raises(error, match=message):
        validate(edited(path, value))


def test_nothing_measured_is_refused():
    with pytest.raises(DataError, match="nothing was measured"):
        validate({**result(), "cells": [], "tccd": {}})
    with pytest.raises(ConfigError, match="expected a mapping"):
        validate([])


def test_the_parts_are_optional():
    bare = {key: value for key, value in result().items() if key not in ("ratio", "tccd", "examples", "items")}
    validate(bare)
    Reader(render(plain(bare)))
    only_tccd = {**bare, "cells": [], "tccd": result()["tccd"]}
    validate(only_tccd)
    Reader(render(plain(only_tccd)))
    bare["cells"] = [cell("grounded", "vision", 2, 5, p_value=None)]
    del bare["models"]["grounded"]["blind"]
    validate(bare)
    Reader(render(plain(bare)))


def test_the_page_is_whole_and_reaches_for_nothing(page):
    reader = Reader(page)
    for _, attributes in reader.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert re.match(r"(#|data:|report(-\w+)?\.(json|csv)$)", attributes.get(name) or "#")
    assert not re.search(r"@import|url\((?!#)", page)
    assert reader.all("script") == []
    (policy,) = (a["content"] for a in reader.all("meta") if a.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_the_page_is_usable_without_seeing_it(page):
    reader = Reader(page)
    names = [tag for tag, _ in reader.tags]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert names.count(landmark) == 1
    levels = [int(tag[1]) for tag in names if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(attributes.get("scope") in ("row", "col", "colgroup") for attributes in reader.all("th"))
    assert all(attributes.get("alt") for attributes in reader.all("img"))
    assert all(a.get("role") == "img" and a.get("aria-label") for a in reader.all("svg"))
    assert names.count("figure") == names.count("figcaption") >= 3
    assert names.count("table") == names.count("caption") + sum(
        "aria-labelledby" in a for a in reader.all("table")
    )
    assert all(a.get("tabindex") == "0" for a in reader.all("div") if "scroll" in (a.get("class") or ""))
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in reader.tags:
        for name in ("aria-labelledby", "href"):
            target = attributes.get(name) or ""
            if name != "href" or target.startswith("#"):
                assert not target or target.lstrip("#") in ids


def test_captions_tell_n_and_the_interval(page):
    for caption in re.findall(r"<figcaption>(.*?)</figcaption>", page, re.S):
        assert re.search(r"n = \d", caption)
        assert re.search(r"95(&nbsp;|\s)%", caption)
        assert re.search("Wilson|Tango", caption)


def test_every_string_is_inert():
    hostile = plain(result())
    names = {"competing": f"competing {HOSTILE}", "grounded": "grounded"}

    def spoil(value):
        if isinstance(value, dict):
            return {names.get(k, k): spoil(v) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return value

    hostile = spoil(hostile)
    for part in ("cells", "examples"):
        for entry in hostile[part]:
            entry["model"] = names[entry["model"]]
    for entry in hostile["examples"]:
        entry.update(prompt=HOSTILE, answer=HOSTILE, plain=HOSTILE, tccd=HOSTILE)
        entry["plain_probability"] = {HOSTILE: 0.5}
    for run_ in hostile["tccd"].values():
        run_["settings"] = {HOSTILE: HOSTILE}
        run_["by_task"][0]["task"] = HOSTILE
    for entry in hostile["cells"]:
        entry["segment"] = HOSTILE
        entry["by_task"][0]["task"] = HOSTILE
    for model in hostile["models"].values():
        model["description"] = HOSTILE
    hostile["ratio"]["grounded"]["reason"] = HOSTILE
    hostile.update(title=HOSTILE, versions={HOSTILE: HOSTILE}, config={HOSTILE: HOSTILE})
    validate(hostile)
    page = render(hostile)
    reader = Reader(page)
    assert reader.all("script") == []
    assert "alert('x')" in "".join(reader.text)
    assert "{{ 7 * 7 }}" in "".join(reader.text)
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)


def test_the_page_is_the_same_from_run_to_run():
    assert render(plain(result())) == render(plain(result()))


def test_several_drawings_share_a_page_without_sharing_ids(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(drawings) >= 4
    for drawing in drawings:
        ids = set(re.findall(r'\bid="([^"]+)"', drawing))
        assert ids >= set(re.findall(r'href="#([^"]+)"', drawing)) | set(re.findall(r"url\(#([^)]+)\)", drawing))
        assert not re.search(r"#[0-9a-f]{6}\b", drawing), "a colour that doesn't follow light and dark"


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_have_contrast_in_light_and_dark(page):
    palettes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{.*?\}", page, re.S)
    ]
    assert len(palettes) == 2
    for palette in palettes:
        for name, least in (
            ("ink", 7),
            ("soft", 4.5),
            ("text", 4.5),
            ("vision", 4.5),
            ("tccd", 4.5),
            ("plain", 3),
        ):
            light, dark = sorted((luminance(palette[name]), luminance(palette["paper"])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, name


@given(st.integers(0, 60), st.integers(0, 60))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_sentences_follow_the_sign_and_the_test(b, c):
    told = {**result(), "tccd": {"grounded": run(400, 300, b, c)}}
    p_value = mcnemar_counts(b, c).p_value
    for sentence in (answer(told)[-1], next(s for s in findings(told, "grounded") if s.startswith("TCCD"))):
        if p_value >= 0.05:
            assert "no significant change" in sentence
        else:
            assert ("raised" if c > b else "lowered") in sentence
        if b > c and p_value >= 0.05:
            assert "\u2212" in sentence


def test_the_answer_of_a_realistic_result():
    text = " ".join(answer(result()))
    assert "Erasing text costs more accuracy than erasing vision: 13.8 against 0.2 points in the comp" in text
    assert "TCCD raised accuracy on held-out pictures by 7.5 points on the competing model (p = " in text
    assert "TCCD made no significant change on the grounded model (\u22120.2 points" in text
    grounded = " ".join(findings(result(), "grounded"))
    assert "not estimable: it reaches zero." in grounded
    assert "text cost 4.0 times as much as vision (95\u202f% CI 2.5 to 7.0)" in " ".join(
        findings(result(), "competing")
    )


@pytest.mark.parametrize(
    ("text", "vision", "expected"),
    [
        (60, 5, "Erasing text costs more accuracy than erasing vision"),
        (5, 60, "Erasing text costs less accuracy than erasing vision"),
        (30, 29, "can't be told apart"),
    ],
)
def test_the_answer_compares_only_what_differs(text, vision, expected):
    told = result()
    told["cells"] = [cell("grounded", "text", 0, text), cell("grounded", "vision", 0, vision)]
    assert any(expected in sentence for sentence in answer({**told, "ratio": {}}))


def test_erasing_that_helps_is_told_as_it_is():
    told = result()
    told["cells"] = [cell("grounded", "vision", 0, lost=1, gained=18)]
    assert "erasing vision at layer 0 raised accuracy by 4.2 points" in " ".join(answer({**told, "ratio": {}}))


def test_numbers_read_well():
    assert points(-0.0001) == "0.0"
    assert points(-0.0062) == "\u22120.6"
    assert points(0.0616, signed=True) == "+6.2"
    assert interval([-0.003, 0.003]) == "\u22120.3 to 0.3"
    assert probability(0.5) == "= 0.50"
    assert probability(0.0312) == "= 0.031"
    assert probability(0.00051) == "= 0.0005"
    assert re.sub(r"\s", " ", probability(3.2e-36)) == "= 3 \u00d7 10\u207b\u00b3\u2076"
    assert probability(0.0) == "< 10\u207b\u00b3\u2070\u2070"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: the page was not looked at")
    driven = Browser(tmp_path_factory.mktemp("profile"))
    yield driven
    driven.close()


OVERLAPS = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  const box = svg.getBoundingClientRect();
  const out = texts.filter(([, r]) => r.left < box.left - 2 || r.right > box.right + 2).map(([t]) => t);
  return out.concat(texts.flatMap(([a, r], i) => texts.slice(i + 1).filter(([, s]) =>
    Math.min(r.right, s.right) - Math.max(r.left, s.left) > 1 &&
    Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top) > 3).map(([b]) => a + ' on ' + b)));
})"""
CLIPPED = """[...document.querySelectorAll('h1,h2,h3,p,li,figcaption,summary,dd,dt,img')].filter(e => {
  const r = e.getBoundingClientRect();
  return r.width && !e.closest('.scroll,.skip,.words') && (r.left < -1 || r.right > innerWidth + 1);
}).map(e => e.textContent.slice(0, 40))"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 800), (1280, 900)])
def test_the_page_in_a_browser(tmp_path, browser, width, height, scheme):
    long_words = result()
    long_words["title"] = "A" * 120
    long_words["examples"][0]["prompt"] = "wordwithoutend" * 30
    long_words["examples"][0]["plain"] = "answer" * 20
    for number, shown in enumerate((result(), long_words, compared())):
        _, path, *_ = write_report(shown, tmp_path / str(number))
        browser.open(path, width, height, scheme)
        assert browser.ask("document.documentElement.scrollWidth") <= width
        assert browser.ask("document.documentElement.clientWidth") == width
        assert browser.complaints() == []
        assert browser.fetched() == [path.as_uri()]
        dark = browser.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(c => c < 60)")
        assert dark == (scheme == "dark")
        ink = browser.ask("getComputedStyle(document.querySelector('svg text')).fill")
        assert ink == browser.ask(
            "(() => { const s = document.createElement('i'); s.style.color = 'var(--soft)';"
            "document.body.append(s); return getComputedStyle(s).color })()"
        )
        smallest = browser.ask(
            "Math.min(...[...document.querySelectorAll('svg')].map(s => 10.5 * s.getScreenCTM().a))"
        )
        assert smallest >= 10, "text in a figure is smaller than ten pixels"
        assert browser.ask(OVERLAPS) == [], "texts of a figure lie on each other, or stick out of it"
        assert browser.ask(CLIPPED) == [], "a text is cut off outside of what scrolls"
        image = Image.open(io.BytesIO(browser.screenshot()))
        assert image.size == (width, height)
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20


@pytest.mark.browser
def test_a_hostile_page_runs_nothing(tmp_path, browser):
    shown = result()
    shown["title"] = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    shown["examples"][0]["prompt"] = "</p><svg onload=\"document.title='owned'\">"
    _, path, *_ = write_report(shown, tmp_path)
    browser.open(path, 800, 600, "light")
    assert browser.ask("document.title") == shown["title"]
    assert browser.fetched() == [path.as_uri()]
    assert browser.complaints() == []


@pytest.mark.browser
def test_the_page_by_keyboard(tmp_path, browser):
    _, path, *_ = write_report(compared(), tmp_path)
    browser.open(path, 1280, 900, "light")

    def press(key, code):
        for kind in ("keyDown", "keyUp"):
            browser("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    press("Tab", 9)
    assert browser.ask("document.activeElement.textContent") == "Skip to the answer"
    reached = set()
    for _ in range(200):
        shown = browser.ask(
            "(() => { const e = document.activeElement, s = getComputedStyle(e);"
            "return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)] })()"
        )
        if shown[0] == "BODY":
            break
        assert shown[1:] == ["solid", 2], f"no focus to be seen on {shown[0]}"
        reached.add(shown[0])
        press("Tab", 9)
    assert reached >= {"A", "DIV", "SUMMARY"}
    browser.ask("document.querySelector('summary').focus()")
    press("Enter", 13)
    press(" ", 32)
    opened = browser.ask("document.querySelectorAll('details[open]').length")
    press(" ", 32)
    assert opened != browser.ask("document.querySelectorAll('details[open]').length")


@pytest.mark.browser
def test_a_heat_map_can_be_read_in_light_and_dark(tmp_path, browser):
    _, path, *_ = write_report(compared(), tmp_path)
    for scheme in ("light", "dark"):
        browser.open(path, 1280, 900, scheme)
        pairs = browser.ask(
            "[...document.querySelectorAll('.heat td')].map(e => [getComputedStyle(e).backgroundColor,"
            " getComputedStyle(e).color])"
        )
        assert len({background for background, _ in pairs}) > 4
        for pair in pairs:
            channels = [re.findall(r"[\d.]+", colour)[:3] for colour in pair]
            scale = [255 if colour.startswith("color(") else 1 for colour in pair]
            hexes = [
                "#" + "".join(f"{round(float(c) * k):02x}" for c in of)
                for of, k in zip(channels, scale, strict=True)
            ]
            dark, light = sorted(map(luminance, hexes))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def test_the_page_holds_its_data():
    merged = compared()
    links = {a["download"]: a["href"] for a in Reader(render(plain(merged))).all("a") if a.get("download")}
    assert set(links) == {"report.json"} | {
        f"report-{t}.csv" for t in ("models", "cells", "tccd", "tasks", "labels", "differences")
    }
    texts = {name: base64.b64decode(link.partition(",")[2]).decode() for name, link in links.items()}
    light = json.loads(texts["report.json"])
    assert light["cells"][3]["cost"] == merged["cells"][3]["cost"]
    assert "questions" not in light
    assert "right" not in light["cells"][0]
    tables = {
        name: list(csv.DictReader(io.StringIO(text))) for name, text in texts.items() if name.endswith("csv")
    }
    assert len(tables["report-cells.csv"]) == len(merged["cells"]) + len(merged["controls"])
    assert float(tables["report-cells.csv"][0]["cost"]) == merged["cells"][0]["cost"]
    assert [row["model"] for row in tables["report-models.csv"]] == list(merged["models"])
    assert {row["advice"] for row in tables["report-models.csv"]} == {"on", "off"}
    assert len(tables["report-tccd.csv"]) == len(merged["tccd_cells"])


def test_a_label_is_no_formula_in_a_spreadsheet(tmp_path):
    shown = probed()
    shown["models"]["competing"]["truth"]["counts"] = {"=1+1": 100, "@x": 100}
    paths = {path.name: path for path in write_report(shown, tmp_path)}
    labels = [row["label"] for row in csv.DictReader(paths["report-labels.csv"].open(encoding="utf-8"))]
    assert labels[:2] == ["'=1+1", "'@x"]


def test_a_table_of_an_earlier_report_does_not_stay(tmp_path):
    write_report(probed(), tmp_path)
    assert (tmp_path / "report-tccd.csv").exists()
    mine = tmp_path / "tasks.csv"
    mine.write_text("mine")
    write_report(result(), tmp_path)
    assert not (tmp_path / "report-tccd.csv").exists()
    assert mine.read_text() == "mine"


def test_a_page_of_many_cells_questions_and_photos_stays_small():
    big = [probed(f"model-{i}", seed=i, n=400) for i in range(3)]
    for of in big:
        of["cells"] = [c | {"layer": c["layer"] + 2 * i} for i in range(14) for c in of["cells"]]
        of["tccd_cells"] = [c | {"layer": c["layer"] + 2 * i} for i in range(28) for c in of["tccd_cells"]]
        of["examples"] = [of["examples"][0] | {"image": picture((900, 600), noise=True)} for _ in range(30)]
    page = render(plain(compare({str(i): of for i, of in enumerate(big)})))
    assert len(page.encode()) < 3_000_000
    assert page.count("<img ") == 24
    assert "all in the CSV" in page


def test_an_oracle_never_goes_without_its_name():
    merged = compared()
    page = render(plain(merged))
    heads = re.findall(r"<th[^>]*>([^<]*best[^<]*)<", page)
    assert len(heads) == 3
    assert all("best (oracle upper bound)" in head for head in heads)
    assert "<b>best</b>: oracle upper bound" in page
    columns = csv_tables(merged, summarise(merged))["report-models.csv"].splitlines()[0].split(",")
    assert [c for c in columns if "best" in c] == ["delta_best_oracle_upper_bound"]


def test_text_and_vision_erased_at_layers_of_their_own():
    shown = probed()
    shown["cells"] = [c for c in shown["cells"] if (c["modality"], c["layer"]) in (("text", 1), ("vision", 2))]
    shown["controls"], shown["examples"] = [], []
    shown["ratio"]["competing"] |= {"vision_layer": 2}
    validate(shown)
    row = summarise(shown)[0]
    assert (row["text"]["layer"], row["vision"]["layer"]) == (1, 2)
    assert "text at layer 1, vision at layer 2" in answer(shown)[0]
    assert "At layer 1 (vision at layer 2) text cost 4.0 times" in " ".join(findings(shown, "competing"))
    assert {m: len(of) for m, of in row["headline"].by_dose.items()} == {"text": 3, "vision": 3}


def test_the_answer_tells_what_is_advised():
    text = "".join(Reader(render(plain(compared()))).text)
    assert re.search(r"TCCD is recommended for competing at layer.=.\d", text)
    assert "TCCD is best left off for a-model-with-quite-a-long-name-7b" in text
