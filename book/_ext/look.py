"""The landing page's pictures, and pictures that come late and move nothing when they come.

In a block of the class `gallery` a link to a figure of a chapter shows that very figure.
"""

import re
from pathlib import Path

import pictures
from docutils import nodes
from PIL import Image
from sphinx.util import logging

logger = logging.getLogger(__name__)


def draw_pictures(app):
    """Draw what the landing page shows, where it looks for it."""
    pictures.draw(Path(app.srcdir) / "book" / "pictures")


def fill_galleries(app, doctree, docname):
    """Put each figure that a gallery links to before the words of the link."""
    for block in doctree.findall(nodes.container):
        for link in block.findall(nodes.reference) if "gallery" in block["classes"] else ():
            # The link leads to docname.html#figure, relative to this page.
            path, _, name = link["refuri"].partition("#")
            page = (Path("/", docname).parent / path).resolve().relative_to("/").with_suffix("")
            doctree_of_page = app.env.get_doctree(str(page))
            for figure in doctree_of_page.findall(nodes.figure):
                if name in figure["ids"]:
                    link.insert(0, next(figure.findall(nodes.image)).deepcopy())
                    break
            else:
                logger.warning("gallery: %s has no figure %s", page, name, location=link)


def load_late(app, pagename, templatename, context, doctree):
    """Say how large each picture is; load all but a page's first when they come into view."""
    sources = {name: Path(app.srcdir, source) for source, name in app.builder.images.items()}
    late = ""

    def sized(match):
        nonlocal late
        source = sources.get(match["name"])
        if source is None:
            return match[0]
        width, height = Image.open(source).size
        found = f'<img{late} width="{width}" height="{height}" {match["rest"]}'
        late = ' loading="lazy"'
        return found

    pattern = r'<img (?P<rest>[^>]*src="[^"]*_images/(?P<name>[^"]+)"[^>]*>)'
    context["body"] = re.sub(pattern, sized, context.get("body", ""))


def setup(app):
    app.connect("builder-inited", draw_pictures)
    app.connect("doctree-resolved", fill_galleries)
    app.connect("html-page-context", load_late)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
