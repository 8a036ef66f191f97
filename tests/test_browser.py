"""The built book in a real browser: every page, from a server on this machine and from disk.

A check looks at an opened page and returns the faults it finds. Each is tried on a small page that
has exactly that fault.
"""

import http.server
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files

import pytest
from conftest import ROOT
from playwright.sync_api import Page

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
DESKTOP, PHONE = 1280, 390  # px
MEGABYTE = 1_000_000

BUILT = ROOT / "_build" / "html"


def pages(site):
    """All pages but templates of the theme, and the one that only leads to another."""
    found = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    return [path for path in found if not path.startswith("_static/") and path != "index.html"]


PAGES = pages(BUILT)


@dataclass
class Visit:
    """An opened page, what it asked for, how many bytes came, and what it said on the console."""

    page: Page
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    transferred: int = 0

    def listen(self):
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else 0)
        network = self.page.context.new_cdp_session(self.page)
        network.on("Network.loadingFinished", self.count)
        network.send("Network.enable")

    def count(self, event):
        self.transferred += event["encodedDataLength"]

    def settle(self):
        """Wait until formulas, fonts and figures are there; what moves has arrived."""
        self.page.evaluate(
            """async () => {
                await window.MathJax?.startup?.promise;
                for (const image of document.images) image.loading = "eager";
                await Promise.all([...document.images].map(i => i.decode().catch(() => 0)));
                await document.fonts.ready;
            }"""
        )
        self.page.add_style_tag(content="* { transition: none !important; }")

    def show(self, width, scheme):
        self.page.set_viewport_size({"width": width, "height": 844})
        self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        # The small pages below have no theme.
        self.page.wait_for_function(
            f"['{scheme}', undefined].includes(document.documentElement.dataset.theme)",
            polling=50,  # ms; a busy machine draws no frames, which would be the default
        )


@contextmanager
def visit(browser, url):
    with browser.new_context(reduced_motion="reduce") as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        context.set_default_timeout(120_000)  # ms; a machine that does much else is slow
        found = Visit(context.new_page())
        found.show(DESKTOP, "light")
        found.listen()
        found.page.goto(url)
        found.settle()
        yield found


@contextmanager
def served(folder):
    """The address of a server of a folder on this machine; it compresses nothing."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def server(html):
    with served(html) as address:
        yield address


# Checks of an opened page


def asked_elsewhere(visit):
    """What a page asks of others tells them who reads it, and is missing without a network."""
    here = re.match(r"file:|https?://[^/]*/", visit.page.url)[0]
    return [url for url in visit.asked if not url.startswith((here, "data:", "blob:"))]


def console_errors(visit):
    return visit.errors


def over_three_megabytes(visit):
    size = visit.transferred / MEGABYTE
    return [f"{size:.2f} MB transferred"] if size > 3 else []


def too_wide(visit):
    faults = []
    for width in (DESKTOP, PHONE):
        visit.show(width, "light")
        if (found := visit.page.evaluate("document.documentElement.scrollWidth")) > width:
            faults.append(f"{found} px wide in a window of {width} px")
    visit.show(DESKTOP, "light")
    return faults


def undescribed_figures(visit):
    """Figures of the text say what they show: a sentence, not a file name."""
    return visit.page.evaluate(
        """() => [...document.querySelectorAll("main img, main svg, main canvas")]
            .filter(e => e.checkVisibility() && !e.closest("[aria-hidden=true], button, a"))
            .filter(e => !e.closest("mjx-container, [role=img] *"))
            .map(e => [e, e.getAttribute("alt") ?? e.getAttribute("aria-label")
                ?? e.querySelector(":scope > title")?.textContent ?? ""])
            .filter(([e, words]) => words.trim().length < 40 || !words.includes(" "))
            .map(([e, words]) => `${e.tagName}: "${words}"`)"""
    )


def unset_formulas(visit):
    """Formulas that still stand there as TeX, or in which MathJax found an error."""
    return visit.page.evaluate(
        """() => [...document.querySelectorAll(".math")]
            .filter(e => !e.querySelector("mjx-container") || e.querySelector("mjx-merror"))
            .map(e => e.textContent)"""
    )


# In code, thousands of words have few styles: one word of each stands for all, the others lose
# their tag. Else axe takes half a minute for a chapter.
THIN_OUT = """() => {
    const seen = new Set();
    for (const word of document.querySelectorAll("pre span:not(:has(*))")) {
        const box = word.closest("div.highlight, div.output") ?? word.parentElement;
        const kind = word.cloneNode().outerHTML + box.className;
        if (seen.has(kind)) word.replaceWith(word.textContent);
        seen.add(kind);
    }
}"""
AXE_RUN = """async (wcag) => {
    const options = {runOnly: wcag, resultTypes: ["violations"], preload: false};
    const found = await axe.run(document, options);
    return found.violations.flatMap(rule =>
        rule.nodes.map(node => `${rule.id}: ${node.html.slice(0, 200)}`));
}"""


def open_everything(page):
    """Hidden answers, boxes, and the menus of the header, which else close each other."""
    page.evaluate(
        """() => {
            for (const details of document.querySelectorAll("details")) details.open = true;
            for (const closed of document.querySelectorAll("[aria-expanded=false]")) {
                closed.dataset.bsAutoClose = "false";
                closed.click();
            }
            for (const hidden of document.querySelectorAll(".toggle-hidden > button"))
                hidden.click();
        }"""
    )


def inaccessible(visit):
    """Violations of WCAG 2.2 AA that axe finds: as it opens, then with all disclosures open."""
    page = visit.page
    page.evaluate(AXE)
    page.evaluate(THIN_OUT)
    faults = [f"light, closed: {fault}" for fault in page.evaluate(AXE_RUN, WCAG)]
    open_everything(page)
    for name, width, scheme in [
        ("dark, open", DESKTOP, "dark"),
        ("phone, light, open", PHONE, "light"),
    ]:
        visit.show(width, scheme)
        faults += [f"{name}: {fault}" for fault in page.evaluate(AXE_RUN, WCAG)]
    visit.show(DESKTOP, "light")
    return faults


FOCUS = """() => {
    const look = e => {
        const {boxShadow, borderColor, backgroundColor} = getComputedStyle(e);
        return [boxShadow, borderColor, backgroundColor].join();
    };
    const shown = e => {
        let opacity = 1;
        for (let x = e; x; x = x.parentElement) opacity *= getComputedStyle(x).opacity;
        const box = e.getBoundingClientRect();
        return opacity > 0.5 && box.width > 0 && box.bottom > 0 && box.top < innerHeight
            && box.right > 0 && box.left < innerWidth;
    };
    const kinds = "a[href], button, input, select, textarea, summary, [role=slider], [tabindex]";
    const wanted = new Map();
    for (const e of document.querySelectorAll(kinds))
        if (e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length
            && !e.disabled && e.getAttribute("tabindex") !== "-1")
            wanted.set(e, look(e));
    const reached = new Set();
    const faults = [];
    window.focusStep = () => {
        const e = document.activeElement;
        if (e === document.body || reached.has(e)) return false;
        reached.add(e);
        const {outlineStyle, outlineWidth} = getComputedStyle(e);
        const ring = outlineStyle === "auto"
            || outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
        if (!shown(e) || !(ring || look(e) !== wanted.get(e)))
            faults.push(`focus unseen: ${e.outerHTML.slice(0, 200)}`);
        return true;
    };
    window.focusFaults = () => {
        for (const e of wanted.keys())
            if (!reached.has(e)) faults.push(`not reached: ${e.outerHTML.slice(0, 200)}`);
        return faults;
    };
}"""


def lost_to_the_keyboard(visit, width=DESKTOP):
    """What Tab does not reach, and where the reader cannot see that it did."""
    page = visit.page
    visit.show(width, "light")
    page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
    page.evaluate(FOCUS)
    page.keyboard.press("Tab")
    while page.evaluate("focusStep()"):
        page.keyboard.press("Tab")
    faults = page.evaluate("focusFaults()")
    visit.show(DESKTOP, "light")
    return faults


def deaf_disclosures(visit):
    """Hidden answers and boxes that Enter does not open and close again."""
    faults = []
    state = "e => e.matches('summary') ? e.parentElement.open : e.ariaExpanded ?? e.className"
    for control in visit.page.locator("summary:visible, .toggle-button:visible").all():
        before = control.evaluate(state)
        control.press("Enter")
        between = control.evaluate(state)
        control.press("Enter")
        if between == before or control.evaluate(state) != before:
            faults.append(control.inner_text())
    return faults


def deaf_sliders(visit):
    """Sliders that the arrow keys do not move, or that move and change nothing in their figure."""
    faults = []
    value = "e => e.ariaValueNow ?? e.value"
    for slider in visit.page.locator("input[type=range]:visible, [role=slider]:visible").all():
        figure = slider.locator("xpath=ancestor::*[self::figure or self::section][1]")
        slider.evaluate("e => e.style.opacity = 0")  # its knob is no figure
        slider.press("Home")
        before = slider.evaluate(value), figure.screenshot()
        slider.press("End")
        visit.page.wait_for_timeout(100)
        after = slider.evaluate(value), figure.screenshot()
        slider.evaluate("e => e.style.opacity = 1")
        if before[0] == after[0]:
            faults.append("does not move")
        elif before[1] == after[1]:
            faults.append("changes nothing")
    return faults


def deaf_copy_buttons(visit):
    """The first copy button of a page copies its code when Enter is pressed."""
    button = visit.page.locator("button.copybtn").first
    if not button.count():
        return []
    code = visit.page.locator(button.get_attribute("data-clipboard-target")).inner_text()
    button.press("Enter")
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    return [] if copied.strip() == code.strip() else [f"copied {copied!r}"]


FROM_A_SERVER = [
    over_three_megabytes,
    too_wide,
    undescribed_figures,
    unset_formulas,
    lost_to_the_keyboard,
    partial(lost_to_the_keyboard, width=PHONE),
    deaf_disclosures,
    deaf_copy_buttons,
    deaf_sliders,
    inaccessible,
    asked_elsewhere,
    console_errors,
]
FROM_DISK = [
    too_wide,
    unset_formulas,
    deaf_disclosures,
    deaf_sliders,
    asked_elsewhere,
    console_errors,
]


def faults(visit, checks):
    """The faults of a page, by check; an expected result is {}."""
    found = {getattr(check, "__name__", "on a phone"): check(visit) for check in checks}
    return {name: some for name, some in found.items() if some}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_from_a_server_has_no_fault(browser, server, path):
    with visit(browser, f"{server}/{path}") as found:
        assert faults(found, FROM_A_SERVER) == {}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_from_disk_has_no_fault(browser, html, path):
    with visit(browser, (html / path).as_uri()) as found:
        assert faults(found, FROM_DISK) == {}


def test_all_pages_of_the_book_were_visited(html):
    assert pages(html) == PAGES
    assert {"book/intro.html", "search.html", "genindex.html"} <= set(PAGES)


def test_the_address_of_the_book_leads_to_its_first_page(browser, server):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{server}/index.html")
        page.wait_for_url("**/book/intro.html")


def test_the_whole_book_is_small(html):
    assert sum(p.stat().st_size for p in html.rglob("*") if p.is_file()) <= 40 * MEGABYTE


# What only one page needs to show, since all have the same header


@pytest.fixture(params=["server", "disk"])
def chapter(request, browser, html, server):
    root = server if request.param == "server" else html.as_uri()
    with visit(browser, f"{root}/notebooks/03_deeplab.html") as found:
        yield found


def test_search_finds_atrous_by_keyboard_alone(chapter):
    page = chapter.page
    page.keyboard.press("Control+k")
    page.keyboard.type("atrous")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=atrous*")
    page.wait_for_selector("#search-results li a")
    page.wait_for_selector("#search-results .search-summary:has-text('found')")
    links = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
    assert any("/03_deeplab.html" in link for link in links)
    assert faults(chapter, [asked_elsewhere, console_errors, inaccessible]) == {}


def test_the_theme_is_switched_by_keyboard_and_kept_on_the_next_page(chapter):
    page = chapter.page
    switch = page.locator("button.theme-switch-button:visible")
    theme = "document.documentElement.dataset.theme"
    seen = set()
    for _ in range(3):
        switch.press("Enter")
        seen.add((page.evaluate("document.documentElement.dataset.mode"), page.evaluate(theme)))
    assert seen == {("light", "light"), ("dark", "dark"), ("auto", "light")}
    while page.evaluate("document.documentElement.dataset.mode") != "dark":
        switch.press("Enter")
    page.goto(page.url.replace("03_deeplab", "01_fcn"))
    assert page.evaluate(theme) == "dark"


@pytest.mark.parametrize("opener", ["primary-toggle", "secondary-toggle"])
def test_the_sidebars_of_a_phone_open_by_keyboard_and_are_accessible(chapter, opener):
    chapter.show(PHONE, "light")
    side = opener.removesuffix("-toggle")
    first = chapter.page.locator(f".bd-sidebar-{side} a").last
    assert not first.is_visible()
    chapter.page.locator(f"button.{opener}:visible").press("Enter")
    first.wait_for(state="visible")
    chapter.page.evaluate(AXE)
    chapter.page.evaluate(THIN_OUT)
    assert chapter.page.evaluate(AXE_RUN, WCAG) == []


def test_the_search_box_is_accessible(chapter):
    chapter.page.keyboard.press("Control+k")
    chapter.page.evaluate(AXE)
    chapter.page.evaluate(THIN_OUT)
    for width, scheme in [(DESKTOP, "dark"), (PHONE, "light")]:
        chapter.show(width, scheme)
        assert chapter.page.evaluate(AXE_RUN, WCAG) == []


# The checks themselves

ALT = "Two curves that rise and then stay at a level"
GOOD = f"""
<h1>Title</h1> <p>Text with a <a href="#here">link</a>.</p> <p id="here">Here.</p>
<figure id="moving"><img alt="{ALT}" src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAAC">
<label>Steps <input type="range" max="9" value="0"
  oninput="this.closest('figure').querySelector('output').textContent = this.value"></label>
<output>0</output></figure>
<details><summary>Why?</summary><p>Because.</p></details>
<pre id="code">x = 1</pre><button class="copybtn" data-clipboard-target="#code" onclick=
  "navigator.clipboard.writeText(document.querySelector('#code').innerText)">Copy</button>
"""
ALL_CHECKS = [*FROM_A_SERVER]


@contextmanager
def small_page(browser, folder, body):
    head = "<!doctype html><html lang='en'><title>A page</title><link rel='icon' href='data:,'>"
    (folder / "page.html").write_text(f"{head}<body><main>{body}</main></body></html>")
    (folder / "large.txt").write_text("x" * 3 * MEGABYTE)
    with served(folder) as address, visit(browser, f"{address}/page.html") as found:
        yield found


def test_a_good_page_has_no_fault(browser, tmp_path):
    with small_page(browser, tmp_path, GOOD) as found:
        assert faults(found, ALL_CHECKS) == {}


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        (asked_elsewhere, "<h1>", '<link rel="stylesheet" href="http://127.0.0.1:9/a.css"><h1>'),
        (console_errors, "<h1>", "<script>console.error('Oh')</script><h1>"),
        (console_errors, "<h1>", "<script>gone()</script><h1>"),
        (console_errors, "<h1>", "<script src='gone.js'></script><h1>"),
        (over_three_megabytes, "<h1>", "<script>fetch('large.txt')</script><h1>"),
        (too_wide, "<h1>", "<h1 style='width: 400px'>"),
        (undescribed_figures, ALT, "figure_1.png"),
        (undescribed_figures, ALT, "a_long_name_of_a_file_without_any_words.png"),
        (undescribed_figures, "<h1>", "<canvas></canvas><h1>"),
        (undescribed_figures, "<h1>", "<svg role='img'><path d='M0 0h9v9z'/></svg><h1>"),
        (unset_formulas, "<h1>", r"<span class='math'>\(x^2\)</span><h1>"),
        (lost_to_the_keyboard, "<h1>", "<style>a { outline: none }</style><h1>"),
        (lost_to_the_keyboard, "<h1>", "<style>.copybtn { opacity: 0 }</style><h1>"),
        (
            lost_to_the_keyboard,
            "<h1>",
            "<style>a { position: fixed; left: -9em }</style><h1>",
        ),
        (
            lost_to_the_keyboard,
            "<h1>",
            "<button id='a' onfocus='b.focus()'>a</button><a id='b' href='#b'>b</a>"
            "<script>addEventListener('keydown', () => a.blur())</script><h1>",
        ),
        (deaf_disclosures, "<summary", "<summary onkeydown='event.preventDefault()'"),
        (deaf_sliders, "<input ", "<input onkeydown='event.preventDefault()' "),
        (deaf_sliders, ".textContent", ".title"),
        (deaf_copy_buttons, "writeText(", "writeText('no' + "),
        (inaccessible, f'alt="{ALT}"', ""),
        (inaccessible, "<p>Text", "<p style='color: #aaa'>Text"),
        (inaccessible, "<p>Because", "<p style='color: #aaa'>Because"),
        (inaccessible, "<h1>", "<style>@media (width < 400px) {p {color: #aaa}}</style><h1>"),
        (
            inaccessible,
            "<h1>",
            "<style>@media (prefers-color-scheme: dark) {p {color: #aaa}}</style><h1>",
        ),
        (inaccessible, "Steps <input", "<input"),
        (
            inaccessible,
            "x = 1",
            "<span style='color: #000'>x</span> <span style='color: #aaa'>= 1</span>",
        ),
    ],
)
def test_a_fault_in_a_page_is_found(browser, tmp_path, check, old, new):
    assert old in GOOD
    with small_page(browser, tmp_path, GOOD.replace(old, new, 1)) as found:
        found.page.wait_for_timeout(100)
        assert faults(found, [check]) != {}


def test_every_check_has_a_broken_page():
    marks = test_a_fault_in_a_page_is_found.pytestmark
    (broken,) = [mark.args[1] for mark in marks if mark.name == "parametrize"]
    tried = {check.__name__ for check, *_ in broken}
    assert {check.__name__ for check in ALL_CHECKS if not isinstance(check, partial)} == tried
