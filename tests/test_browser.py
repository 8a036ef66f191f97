"""The built book in a real browser, opened from disk as a reader without a network would."""

import shutil

import pytest
from playwright.sync_api import sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
# Without these it would look for updates, and say so on the console.
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PAGES = ["book/intro", "book/notation", "notebooks/00_pixels_and_metrics", "notebooks/01_fcn"]
PAGES += ["notebooks/02_unet", "notebooks/03_deeplab", "notebooks/04_transformers"]
PAGES += ["notebooks/05_instance_panoptic", "notebooks/06_losses", "notebooks/07_boundary_loss"]
PAGES += ["notebooks/08_multi_scale_tta", "notebooks/09_crf", "book/instructors"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; .ci/run installs it")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.mark.parametrize("page_name", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_a_page_asks_nobody_logs_no_error_and_fits_its_window(
    html, browser, page_name, width, scheme
):
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto((html / f"{page_name}.html").as_uri())
    page.wait_for_timeout(500)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert errors == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    prose = page_name in ("book/intro", "book/instructors")
    assert prose or page.locator("mjx-container").count() > 0
    context.close()
