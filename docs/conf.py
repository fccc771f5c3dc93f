"""Configuration of the documentation: ``make docs``."""

from __future__ import annotations

from importlib_metadata import version as installed_version

project = "ebmcore"
author = "The ebmcore authors"
copyright = "2026, The ebmcore authors"
release = version = installed_version("ebmcore")

extensions = [
    "ebmcore.sphinxext",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/**/*.ipynb", "gallery/**/*.py", "gallery/**/*.md5"]
suppress_warnings = ["config.cache"]  # the gallery's configuration holds objects
default_role = "py:obj"  # `name` in docstrings

html_theme = "furo"
html_title = f"ebmcore {release}"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # names of functions, not their addresses
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "ignore_pattern": "demo\\.py",  # the job of `make demo`, which pictures nothing
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "abort_on_example_error": True,
}
