"""Reference code for a course on image segmentation."""

__version__ = "0.1.0"
