"""The built book: complete, without faults, and nothing in it asks another host for anything."""

import re
from functools import lru_cache
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from address import address
from bs4 import BeautifulSoup
from conftest import NOTEBOOKS, ROOT

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


def pages_of_the_outline():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]


@lru_cache
def soup(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


# Lints of one page


def execution_faults(page):
    faults = ["traceback"] if "Traceback (most recent call last)" in page.get_text() else []
    return faults + [str(x) for x in page.select(".system-message, .problematic, .output.stderr")]


def unlabelled_images(page):
    return [str(img)[:200] for img in page.select("img") if not img.get("alt", "").strip()]


def requests_elsewhere(page):
    """What a browser would fetch from another host as soon as the page opens."""
    found = [
        tag[attribute]
        for name, attribute in LOADED.items()
        for tag in page.select(name)
        if tag.get(attribute)
    ]
    found += [
        tag["href"]
        for tag in page.select("link[href]")
        if set(tag.get("rel", [])) & {"stylesheet", "preload", "preconnect", "icon"}
    ]
    return [url for url in found if re.match(r"(https?:)?//", url)]


def test_the_book_has_every_page_of_the_outline(html):
    assert [p for p in pages_of_the_outline() if not (html / f"{p}.html").exists()] == []


def test_every_notebook_is_in_the_outline():
    assert {f"notebooks/{name}" for name in NOTEBOOKS} <= set(pages_of_the_outline())


@pytest.mark.parametrize("lint", [execution_faults, unlabelled_images, requests_elsewhere])
def test_no_page_has_a_fault(html, lint):
    faults = {path.name: lint(soup(path)) for path in html.rglob("*.html")}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    ("lint", "fault"),
    [
        (execution_faults, "<pre>Traceback (most recent call last):</pre>"),
        (execution_faults, '<aside class="system-message">WARNING</aside>'),
        (execution_faults, '<div class="output stderr">warning</div>'),
        (unlabelled_images, '<img src="a.png">'),
        (unlabelled_images, '<img src="a.png" alt=" ">'),
        (requests_elsewhere, '<script src="https://cdn.example.org/a.js"></script>'),
        (requests_elsewhere, '<link rel="stylesheet" href="//fonts.example.org/a.css">'),
    ],
)
def test_a_fault_in_a_page_is_found(lint, fault):
    fine = '<img src="a.png" alt="A line"><script src="a.js"></script><a href="https://b.c">b</a>'
    assert lint(BeautifulSoup(fine, "html.parser")) == []
    assert lint(BeautifulSoup(fine + fault, "html.parser")) != []


def dead_links(folder):
    """Links to a page or an anchor that the folder does not hold."""
    anchors = {
        path.resolve(): {tag["id"] for tag in soup(path).select("[id]")}
        for path in folder.rglob("*.html")
    }
    dead = []
    for path in folder.rglob("*.html"):
        for link in soup(path).select("a[href]"):
            url = urlsplit(link["href"])
            if url.scheme or url.netloc or link["href"] in ("", "#"):
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path.resolve()
            known = anchors.get(target)
            if not target.exists() or (url.fragment and url.fragment not in (known or ())):
                dead.append(f"{path.name}: {link['href']}")
    return dead


def test_every_link_inside_the_book_leads_somewhere(html):
    assert dead_links(html) == []


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#here">x</a><p id="there"></p>')
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="a.html#there">x</a>')
    assert dead_links(tmp_path) == []
    (tmp_path / "c.html").write_text('<a href="b.html#gone">x</a><a href="gone.html">x</a>')
    assert dead_links(tmp_path) == ["c.html: b.html#gone", "c.html: gone.html"]


def test_each_chapter_opens_in_colab(html, name):
    links = {a["href"] for a in soup(html / "notebooks" / f"{name}.html").select("a[href]")}
    blob = f"{address()}/blob/main/notebooks/{name}.ipynb"
    colab = {link for link in links if "colab.research.google.com" in link}
    assert colab == {f"https://colab.research.google.com/github/{blob}"}


def wrong_colab_links(folder):
    """Links into Colab, on whatever page, that do not open one of the course's notebooks."""
    start = f"https://colab.research.google.com/github/{address()}/blob/main/notebooks/"
    right = {f"{start}{name}.ipynb" for name in NOTEBOOKS}
    links = [
        link["href"]
        for path in folder.rglob("*.html")
        for link in soup(path).select("a[href*='colab.research.google.com']")
    ]
    return [link for link in links if link not in right]


def test_every_link_into_colab_opens_a_notebook_of_the_course(html):
    assert wrong_colab_links(html) == []


def test_a_wrong_link_into_colab_is_found(tmp_path):
    start = f"https://colab.research.google.com/github/{address()}/blob"
    right = f'<a href="{start}/main/notebooks/01_fcn.ipynb">x</a>'
    (tmp_path / "a.html").write_text(right)
    assert wrong_colab_links(tmp_path) == []
    wrong = [f"{start}/main/01_fcn.ipynb", f"{start}/master/notebooks/01_fcn.ipynb"]
    (tmp_path / "b.html").write_text("".join(f'<a href="{link}">x</a>' for link in wrong))
    assert wrong_colab_links(tmp_path) == wrong


def test_the_sources_beside_the_book_are_its_pages_and_nothing_else(html):
    sources = html / "_sources"
    held = {p.relative_to(sources).with_suffix("").as_posix() for p in sources.rglob("*.*")}
    assert held == set(pages_of_the_outline())


def test_mathematics_needs_no_network(html):
    scripts = [
        tag.get("src", "") for tag in soup(html / "book" / "notation.html").select("script")
    ]
    (mathjax,) = [src for src in scripts if "mathjax" in src]
    folder = (html / "book" / mathjax.split("?")[0]).parent
    assert (folder / "output" / "chtml.js").exists() and list(folder.rglob("*.woff"))
