"""Segmentation models, one file per paper."""
