"""The repository as a whole: one address, one version, small files, a wheel with nothing extra."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from address import address, files, mentions
from conftest import ROOT

import segcourse


def strays(root):
    """Mentions of the course at another address than `_config.yml` gives."""
    slug = address(root)
    found = []
    for path in files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.name != "test_repository.py":  # its examples stray on purpose
            found += [(path.name, m) for m in mentions(text, slug) if m != slug]
    return found


def copy_tree(target):
    """The tree as a clean clone has it, with uncommitted work."""
    for path in files():
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    return target


def test_every_mention_of_the_course_names_the_address_in_the_config():
    assert strays(ROOT) == []


@pytest.mark.parametrize(
    "text",
    [
        "https://colab.research.google.com/github/some/one/blob/main/notebooks/01_fcn.ipynb",
        "https://mybinder.org/v2/gh/some/one/main",
        '%pip install -q "git+https://github.com/some/one.git"',
        "git clone https://github.com/some/one\ncd one",
        "https://github.com/some/one/actions/workflows/tests.yml/badge.svg",
        'Repository = "https://github.com/some/one"',
        'repository-code: "https://github.com/some/one"',
        "read it at https://some.github.io/one/",
    ],
)
def test_a_stray_address_is_found(text):
    assert set(mentions(text, "mine/own")) == {"some/one"}


@pytest.mark.parametrize("other", ["mine/other", "some/own"])
def test_a_plain_link_strays_when_it_shares_owner_or_name(other):
    assert mentions(f"see https://github.com/{other}/issues", "mine/own") == [other]


def test_a_link_to_another_project_is_not_a_mention():
    assert mentions("https://github.com/bowenc0221/boundary-iou-api", "mine/own") == []


def test_make_address_moves_every_mention_to_a_fork(tmp_path):
    old = address()
    fork = copy_tree(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=fork, check=True)
    command = ["make", "-s", "address", "REPO=some-one/their.fork", f"PYTHON={sys.executable}"]
    subprocess.run(command, cwd=fork, check=True, capture_output=True)
    assert address(fork) == "some-one/their.fork"
    assert strays(fork) == []
    pages = "{}.github.io/{}".format(*old.split("/"))
    texts = [path.read_bytes() for path in files(fork)]
    assert not any(word.encode() in text for text in texts for word in (old, pages))


def test_make_address_refuses_what_is_no_address(tmp_path):
    fork = copy_tree(tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=fork, check=True)
    for wrong in ["", "name", "https://example.org/owner/name"]:
        command = ["make", "-s", "address", f"REPO={wrong}", f"PYTHON={sys.executable}"]
        run = subprocess.run(command, cwd=fork, capture_output=True, text=True)
        assert run.returncode != 0 and "owner/name" in run.stderr
    assert strays(fork) == []


def test_no_file_is_over_500_kb():
    assert [p.name for p in files() if p.stat().st_size > 500_000] == []


def test_the_ci_script_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_citation_and_installed_package_agree_on_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", citation, re.M)[1] == segcourse.__version__


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    tree = copy_tree(tmp_path / "tree")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(tmp_path), str(tree)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"segcourse-{segcourse.__version__}-")
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    files = [
        p for end in ("py", "json", "pt", "npz") for p in (ROOT / "segcourse").rglob(f"*.{end}")
    ]
    assert held == {p.relative_to(ROOT).as_posix() for p in files}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_what_a_page_links_to_in_the_tree_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)|src=\"([^\"]+)\"", text)
    local = [a or b for a, b in targets if "://" not in a + b]
    assert [path for path in local if not (ROOT / path).exists()] == []
