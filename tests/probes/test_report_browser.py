"""The page in a browser: on a phone and a desk, light and dark, by keyboard."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image

from probes.report import write_report
from tests.browser import CHROMIUM, Browser
from tests.probes.reports import compared, luminance, result


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
