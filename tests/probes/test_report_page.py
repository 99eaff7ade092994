"""The page: whole, inert, the same from run to run, and usable without seeing it."""

from __future__ import annotations

import itertools
import re

import pytest

from probes.compare import compare
from probes.report import validate
from probes.report.page import render
from probes.report.schema import plain
from probes.report.sections import csv_tables
from tests.probes.probed import picture, probed
from tests.probes.reports import HOSTILE, RESULTS, Reader, compared, luminance, result


@pytest.fixture(scope="module", params=RESULTS)
def page(request):
    return render(plain(RESULTS[request.param]()))


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
        assert re.search(r"n(&nbsp;| )=(&nbsp;| )\d", caption)
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
    columns = csv_tables(merged)["report-models.csv"].splitlines()[0].split(",")
    assert [c for c in columns if "best" in c] == ["delta_best_oracle_upper_bound"]
