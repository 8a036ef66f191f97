"""What the book's pages need and the theme does not do. Nothing here changes what a page says."""

import re
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx.util import logging
from sphinx.util.fileutil import copy_asset

MATHJAX = "tex-svg-full.js"  # the one file of MathJax that loads no other
logger = logging.getLogger(__name__)


def copy_mathjax(app, error):
    """Mathematics without a network: the file travels with the book."""
    if error is None and app.builder.format == "html":
        package = Path(find_spec("sphinx-mathjax-offline").origin).parent
        copy_asset(package / "static" / "mathjax" / MATHJAX, Path(app.outdir) / "_static")


def keep_scripts_local(app, pagename, templatename, context, doctree):
    """One copy of each script and none from another host, which would see who reads the book."""
    seen = set()
    local = []
    for script in context.get("script_files", []):
        key = str(script.filename or script.attributes.get("body"))
        # Thebe, which the book does not use, would load itself from elsewhere.
        if key not in seen and not re.match(r"(https?:)?//|.*thebe", key, re.I):
            local.append(script)
        seen.add(key)
    context["script_files"] = local
    if "body" in context:
        # matplotlib's to_jshtml asks another host for icons that the theme already has.
        context["body"] = re.sub(
            r'<link rel="stylesheet"\s+href="https?://[^"]*font-awesome[^>]*>', "", context["body"]
        )


def drop_font_preloads(app, error):
    """The fonts load through the style sheet; a browser refuses the preload of a page on disk."""
    if error is None and app.builder.format == "html":
        for page in Path(app.outdir).rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            page.write_text(re.sub(r'<link rel="preload" as="font"[^>]*>\n?', "", text), "utf-8")


def require_alt_text(app, doctree):
    """A figure without words is closed to some readers: a warning here fails the build."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning("image without alt text: %s", image["uri"], location=image)


def setup(app):
    app.config.mathjax_path = MATHJAX
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", drop_font_preloads)
    app.connect("html-page-context", keep_scripts_local, priority=900)
    app.connect("doctree-read", require_alt_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
