"""Report pages in a real browser: drawn, readable on a phone and in the dark, and harmless."""

import json
import time

import pytest
from browser import opened
from pages import HOSTILE, Parsed, write_results, write_terse

from tersenet.pages import report_page
from tersenet.pages.texts import shown

pytest.importorskip("plotly", reason="needs pip install 'tersenet[report]'")

PHONE = {"width": 390, "height": 844, "touch": True}
DESKTOP = {"width": 1200, "height": 900}
LIGHT_CARD, DARK_CARD = "rgb(255, 255, 255)", "rgb(24, 30, 39)"
COUNTED = """
const plots = [...document.querySelectorAll("[data-figure]")];
return plots.map((plot) => ({
  key: plot.dataset.figure,
  layers: plot.querySelectorAll("svg.main-svg").length,
  marks: plot.querySelectorAll(".point, .slice").length,
  buttons: [...plot.querySelectorAll(".modebar-btn")].map((b) => b.dataset.title),
  card: plot.querySelector("svg.main-svg").style.background,
  text: getComputedStyle(plot.querySelector(".infolayer text, text.slicetext")).fill,
  grid: plot.querySelector("path.xgrid, path.ygrid")?.style.stroke,
}));
"""
OVERLAPS = """
const found = [];
for (const plot of document.querySelectorAll("[data-figure]")) {
  const legend = plot.querySelector(".legend")?.getBoundingClientRect();
  const bar = plot.querySelector(".modebar").getBoundingClientRect();
  if (legend && legend.top < bar.bottom && legend.right > bar.left) found.push(plot.dataset.figure);
}
return found;
"""
WIDER = """
const wide = [...document.querySelectorAll("body *")].filter(
  (e) => !e.closest("svg") && e.getBoundingClientRect().right > innerWidth + 0.5);
const root = document.documentElement;
return [root.scrollWidth, root.clientWidth, innerWidth, wide.map((e) => e.outerHTML.slice(0, 80))];
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def paths(folder):
    write_results(folder / "sweep.sqlite")
    write_terse(folder / "model.terse")
    write_results(folder / "hostile.sqlite", HOSTILE, setting=f"{HOSTILE[0]}.k", trials=3)
    write_terse(folder / "hostile.terse", HOSTILE)
    sources = {
        "sweep": "sweep.sqlite",
        "model": "model.terse",
        "hostile sweep": "hostile.sqlite",
        "hostile model": "hostile.terse",
    }
    paths = {}
    for name, source in sources.items():
        paths[name] = folder / f"{name}.html"
        report_page(folder / source, paths[name])
    return paths


@pytest.fixture(scope="module")
def phone():
    with opened(**PHONE) as tab:
        yield tab


@pytest.fixture(scope="module")
def desktop():
    with opened(**DESKTOP) as tab:
        yield tab


@pytest.mark.parametrize("device", ["phone", "desktop"])
@pytest.mark.parametrize("name", ["sweep", "model", "hostile sweep", "hostile model"])
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_screen(request, paths, device, name):
    tab = request.getfixturevalue(device)
    places = Parsed.read(paths[name]).figures
    assert tab.open(paths[name]) == len(places) == 5
    assert tab.console() == []
    found = {plot["key"]: plot for plot in tab.run(COUNTED)}
    assert found.keys() == places.keys()
    for plot in found.values():
        assert plot["layers"] >= 3
        assert plot["marks"] > 0
        assert {"Save as PNG", "Save as SVG"} <= set(plot["buttons"])
    scroll_width, client_width, width, wider = tab.run(WIDER)
    assert (scroll_width, wider) == (client_width, [])
    assert width == {"phone": 390, "desktop": 1200}[device]
    assert tab.run(OVERLAPS) == []


def test_hostile_names_are_shown_as_they_are(desktop, paths):
    for name in ("hostile sweep", "hostile model"):
        desktop.open(paths[name])
        assert desktop.run(
            "return [typeof window.pwned, document.querySelectorAll('img, a:not(.modebar-btn)').length]"
        ) == ["undefined", 0]
        drawn = desktop.run(
            "return [...document.querySelectorAll('[data-figure=bits] .ytick text')].map((t) => t.textContent)"
        )
        names = [shown(name, 22) for name in HOSTILE]
        if name == "hostile model":
            names.append("plain.weight")
        assert [text.split() for text in drawn] == [name.split() for name in names]
        assert (
            desktop.run("return Object.prototype.toString.call({}.figures)") == "[object Undefined]"
        )
        assert desktop.console() == []


def test_colours_follow_light_and_dark_while_it_is_open(desktop, paths):
    for scheme, card in (("dark", DARK_CARD), ("light", LIGHT_CARD), ("dark", DARK_CARD)):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        desktop.protocol("Emulation.setEmulatedMedia", features=features)
        desktop.open(paths["model"]) if scheme == "dark" and card == DARK_CARD else None
        until(lambda card=card: {plot["card"] for plot in desktop.run(COUNTED)} == {card})
        page = brightness(desktop.run("return getComputedStyle(document.body).backgroundColor"))
        for plot in desktop.run(COUNTED):
            assert (brightness(plot["card"]) < 64) == (page < 64) == (scheme == "dark")
            if plot["key"] in ("bits", "times", "histogram"):
                assert abs(brightness(plot["text"]) - page) > 128
                assert 10 < abs(brightness(plot["grid"]) - brightness(plot["card"])) < 64
    desktop.protocol("Emulation.setEmulatedMedia", features=[])


def test_a_browser_that_prefers_dark_gets_it_from_the_start(paths):
    with opened(**PHONE, dark=True) as tab:
        tab.open(paths["sweep"])
        assert {plot["card"] for plot in tab.run(COUNTED)} == {DARK_CARD}
        assert (
            tab.run("return getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 25)"
        )


def test_a_trial_is_chosen_from_the_list_and_by_a_click(desktop, paths):
    page = Parsed.read(paths["sweep"])
    desktop.open(paths["sweep"])
    values = desktop.run("return [...document.querySelector('select').options].map((o) => o.value)")
    for value in values[1:3]:
        desktop.run(
            "const s = document.querySelector('select'); s.value = arguments[0];"
            "s.dispatchEvent(new Event('change'))",
            value,
        )
        check_chosen(desktop, page, value)
    clicked = values[5]
    x, y = desktop.run(
        """
        const plot = document.querySelector("[data-figure=accuracy]");
        plot.scrollIntoView();
        const trace = plot.data.find((t) => t.ids?.includes(arguments[0]) && t.meta !== "chosen");
        const at = trace.ids.indexOf(arguments[0]);
        const { xaxis, yaxis } = plot._fullLayout;
        const box = plot.getBoundingClientRect();
        return [box.x + xaxis._offset + xaxis.d2p(trace.x[at]), box.y + yaxis._offset + yaxis.d2p(trace.y[at])];
        """,
        clicked,
    )
    hover = "return document.querySelector('[data-figure=accuracy] .hoverlayer').textContent"
    for step in range(2):
        desktop.protocol("Input.dispatchMouseEvent", type="mouseMoved", x=x + 1 - step, y=y)
    until(lambda: f"trial {clicked}: " in desktop.run(hover))

    def click():  # again, where the page was too busy for the one before
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            desktop.protocol(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )
        time.sleep(1)
        return desktop.run("return document.querySelector('select').value") == clicked

    until(click)
    check_chosen(desktop, page, clicked)
    ring = "return document.querySelector('[data-figure=accuracy]').data.find((t) => t.meta === 'chosen').ids"
    assert desktop.run(ring) == [clicked]


def check_chosen(tab, page, value):
    variant = page.choices["trial"][value]
    note = "return document.querySelector('[data-note=trial]').textContent"
    until(lambda: tab.run(note) == variant["note"])
    expected = variant["figures"]["bits"]["data"][0]["x"]
    drawn = "return document.querySelector('[data-figure=bits]').data[0].x"
    until(lambda: tab.run(drawn) == expected)


def test_figures_are_saved_as_png_and_svg(desktop, paths, folder):
    desktop.open(paths["model"])
    desktop.protocol("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<svg")):
        title = f"Save as {kind.upper()}"
        for key in ("bits", "before"):
            saved = folder / f"tersenet-{key}.{kind}"
            desktop.run(
                "document.querySelector(`[data-figure=${arguments[0]}] [data-title='${arguments[1]}']`).click()",
                key,
                title,
            )
            until(saved.exists)
            assert saved.read_bytes().startswith(start)
    assert b"features.0.weight" in (folder / "tersenet-bits.svg").read_bytes()
    assert desktop.console() == []


def until(holds):
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.1)


def brightness(colour):
    return sum(json.loads(colour.replace("rgb(", "[").replace(")", "]"))) / 3
