"""The folder of submissions: whose notebooks are where, read without trusting any of it.

    NAME.ipynb, NAME_07_boundary_loss.ipynb    a flat folder: a student for each NAME
    NAME/.../*.ipynb                           a folder for each student, as nbgrader and Moodle do

A symbolic link is never followed, and only regular files are read, up to a size.
"""

import hashlib
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from segcourse.grading.report import plain

CHAPTERS = ("07_boundary_loss", "08_multi_scale_tta", "09_crf")
CHAPTER = re.compile(rf"[ _-]+({'|'.join(CHAPTERS)})([ _-]*\(?\d+\)?)?$")
IGNORED = (".", "__MACOSX")
# Most bytes of a notebook, and of all that a student hands in; most notebooks of a student.
SIZE, TOTAL, FILES = 50 << 20, 200 << 20, 20
# What a program takes for an option, and what Windows takes for a device.
UNFIT = re.compile(r"-|(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@dataclass
class Submission:
    """What one student handed in.

    `student` is how reports call the student, `key` what files of the student are called.
    """

    student: str
    key: str
    folder: Path  # that names are told relative to
    paths: list[Path]
    faults: list[str] = field(default_factory=list)  # why something was not read
    notebooks: dict[str, bytes] = field(default_factory=dict)

    def read(self) -> None:
        """Read the notebooks; what cannot be read becomes a fault."""
        self.notebooks, self.faults = {}, []
        room = TOTAL
        for path in self.paths[:FILES]:
            name = path.relative_to(self.folder).as_posix()
            try:
                content = _content(path, min(SIZE, room))
                self.notebooks[plain(name)] = content
                room -= len(content)
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                self.faults.append(f"{plain(name)} was not read: {reason}")
        if len(self.paths) > FILES:
            self.faults.append(f"only the first {FILES} notebooks were read")

    def digest(self) -> str:
        """Changes with all that was handed in."""
        return digest(*(part for item in self.notebooks.items() for part in item), *self.faults)


def find(folder: Path) -> tuple[list[Submission], list[str]]:
    """The students of a folder, and the names of entries that are nobody's notebooks."""
    paths: dict[str, list[Path]] = {}
    others = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(IGNORED):
            continue
        if path.is_dir() and not path.is_symlink():
            paths.setdefault(path.name, []).extend(_notebooks(path))
        elif path.suffix == ".ipynb" or path.is_symlink():
            name = CHAPTER.sub("", path.name.removesuffix(".ipynb"))
            paths.setdefault(name, []).append(path)
        else:
            others.append(plain(path.name))
    keys = {name: _key(name) for name in paths}
    twice = {key for key, n in Counter(key.casefold() for key in keys.values()).items() if n > 1}
    found = []
    for name in paths:
        key = keys[name] if keys[name].casefold() not in twice else f"{keys[name]}-{_short(name)}"
        student = name if plain(name) == name else f"{plain(name)} [{_short(name)}]"
        found.append(Submission(student, key, folder, paths[name]))
    return found, others


def digest(*parts: str | bytes) -> str:
    """A fingerprint of all parts, and of where each of them ends."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        total.update(b"%d:%b" % (len(data), data))
    return total.hexdigest()


def _notebooks(folder: Path) -> list[Path]:
    """All below a folder, and folders that cannot be read; links to folders are not followed."""
    found, todo = [], [folder]
    while todo:  # a folder may be deeper than Python recurses
        here = todo.pop()
        try:
            entries = list(os.scandir(here))
        except OSError:
            found.append(here)
            continue
        for entry in entries:
            if entry.name.startswith(IGNORED):
                continue
            if entry.is_dir(follow_symlinks=False):
                todo.append(Path(entry))
            elif entry.name.endswith(".ipynb"):
                found.append(Path(entry))
    return sorted(found)


def _content(path: Path, most: int) -> bytes:
    """The bytes of a regular file."""
    if path.is_symlink():
        raise ValueError("it is a symbolic link")
    # Neither a link that has just come here, nor a pipe that would keep us waiting.
    flags = (
        getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    with open(os.open(path, os.O_RDONLY | flags), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no file")
        if facts.st_size > most:
            raise ValueError(f"it is larger than {most >> 20} MB; clear its outputs")
        return file.read(most)


def _key(name: str) -> str:
    """A name that every file system takes, and that no other student gets."""
    safe = re.sub(r"[^\w .@+()-]", "_", plain(name)).strip(" .")
    if safe == name and len(safe.encode()) <= 100 and not UNFIT.match(safe):
        return safe
    return f"{safe.lstrip('-')[:40] or 'student'}-{_short(name)}"


def _short(name: str) -> str:
    return digest(name)[:8]
