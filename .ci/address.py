"""The course's address stands in `_config.yml`; every other mention is held to it.

    python .ci/address.py owner/name

rewrites all mentions for a fork. With `mentions`, tests/test_repository.py finds one that strayed.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SLUG = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?/[A-Za-z0-9_.-]*[A-Za-z0-9_-]"

# Places that can only mean this course, whoever owns it; a bare github.com link may be a citation.
OURS = [
    rf"colab\.research\.google\.com/github/({SLUG})",
    rf"mybinder\.org/v2/gh/({SLUG})",
    rf"git\+https://github\.com/({SLUG})",
    rf"git clone https://github\.com/({SLUG})",
    rf"github\.com/({SLUG})/actions",
    rf"(?:Repository|Issues) = \"https://github\.com/({SLUG})",
    rf"repository-code: \"?https://github\.com/({SLUG})",
]
PAGES = r"https://([A-Za-z0-9-]+)\.github\.io/([A-Za-z0-9_.-]*[A-Za-z0-9_-])"


def address(root: Path = ROOT) -> str:
    """The slug owner/name that `_config.yml` names."""
    config = (root / "_config.yml").read_text()
    return re.search(rf"^\s*url: https://github\.com/({SLUG})\s*$", config, re.M)[1]


def mentions(text: str, slug: str) -> list[str]:
    """Every owner/name by which a text means this course. Links to other projects do not count."""
    owner, name = slug.split("/")
    found = [m for pattern in OURS for m in re.findall(pattern, text)]
    found += ["/".join(m) for m in re.findall(PAGES, text)]
    for other in re.findall(rf"github\.com/({SLUG})", text):
        if other.split("/")[0] == owner or other.removesuffix(".git").split("/")[1] == name:
            found.append(other)
    return [m.removesuffix(".git") for m in found]


def files(root: Path = ROOT) -> list[Path]:
    """Tracked files and those that git would track."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [root / name for name in listed.splitlines() if (root / name).is_file()]


def move(root: Path, slug: str) -> int:
    """Rewrites every mention to `slug`; returns the number of files that changed."""
    if not re.fullmatch(SLUG, slug):
        raise SystemExit(f"REPO must look like owner/name; got {slug!r}")
    old = address(root)
    pages = ["https://{}.github.io/{}".format(*s.split("/")) for s in (old, slug)]
    changed = 0
    for path in files(root):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        moved = text.replace(old, slug).replace(*pages)
        if moved != text:
            path.write_text(moved, encoding="utf-8")
            changed += 1
    return changed


if __name__ == "__main__":
    print(f"{move(ROOT, ' '.join(sys.argv[1:]))} files now name {sys.argv[1]}")
