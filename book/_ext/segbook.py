"""What the book's pages need and the theme does not do. Nothing here changes what a page says."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.util import logging
from sphinx.util.fileutil import copy_asset

# Of MathJax only what the book's mathematics needs, and what reads it aloud: a third of the
# whole. `input/tex/extensions` are read when a formula asks for one, the fonts likewise.
MATHJAX = ["core", "input/tex", "output/chtml", "a11y/assistive-mml"]
MATHJAX_FILES = ["startup.js", *(f"{name}.js" for name in MATHJAX)]
MATHJAX_FILES += ["input/tex", "output/chtml/fonts"]
logger = logging.getLogger(__name__)


def copy_mathjax(app, error):
    """Mathematics without a network: the files travel with the book."""
    if error is None and app.builder.format == "html":
        package = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
        static = Path(app.outdir) / "_static" / "mathjax"
        for name in MATHJAX_FILES:
            source = package / name
            copy_asset(source, (static / name) if source.is_dir() else (static / name).parent)


def keep_scripts_local(app, pagename, templatename, context, doctree):
    """One copy of each script and none from another host, which would see who reads the book."""
    seen = set()
    local = []
    formulas = 'class="math' in context.get("body", "")
    for script in context.get("script_files", []):
        key = str(script.filename or script.attributes.get("body"))
        # Thebe, which the book does not use, would load itself from elsewhere.
        elsewhere = re.match(r"(https?:)?//|.*thebe", key, re.I)
        if key not in seen and not elsewhere and (formulas or "mathjax" not in key.lower()):
            local.append(script)
        seen.add(key)
    context["script_files"] = local
    if "body" in context:
        # A role that ARIA has given up, and a list that would then hold no items.
        context["body"] = re.sub(
            r' role="(doc-biblioentry"|list"(?= class="citation-list"))', "", context["body"]
        )


def lighten(app, error):
    """Files that a page loads and can do without; figures as WebP, a third smaller than PNG.

    The icons come from a font, so that the script that would draw them again goes. The fonts load
    through the style sheet; a browser refuses the preload of a page on disk.
    """
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    for picture in site.glob("_images/*.png"):
        Image.open(picture).save(picture.with_suffix(".webp"), lossless=True, method=4)
        picture.unlink()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r'<link rel="preload" as="font"[^>]*>\n?', "", text)
        text = re.sub(r'<script src="[^"]*/fontawesome/[^"]*"></script>\n?', "", text)
        text = re.sub(r'(_images/[^"/]+)\.png"', r'\1.webp"', text)
        page.write_text(text, encoding="utf-8")
    for unused in ("vendor/fontawesome/*/js", "vendor/fontawesome/*/webfonts/*.ttf", "**/*.map"):
        for path in site.glob(f"_static/{unused}"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def require_alt_text(app, doctree):
    """A figure without words is closed to some readers: a warning here fails the build."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning("image without alt text: %s", image["uri"], location=image)


def setup(app):
    app.config.mathjax_path = "mathjax/startup.js"
    app.config.mathjax3_config = {"loader": {"load": MATHJAX}}
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", lighten)
    app.connect("html-page-context", keep_scripts_local, priority=900)
    app.connect("doctree-read", require_alt_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
