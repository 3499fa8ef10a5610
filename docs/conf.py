"""Sphinx: `make docs` builds these pages into build/docs, every warning an error."""

import sys
from pathlib import Path

import mfmd

sys.path.insert(0, str(Path(__file__).parent))

project = "mfmd"
author = "the authors of mfmd"
release = version = mfmd.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "config_keys", "command_help", "docstrings"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
root_doc = "index"

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

nitpicky = True
nitpick_ignore_regex = [("py:.*", r".*")]  # types in docstrings are words, not references; links of the pages are checked all the same

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"

html_theme = "furo"
html_title = "mfmd"
html_static_path = ["_static"]
html_css_files = ["mfmd.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style, pygments_dark_style = "friendly", "monokai"
linkcheck_timeout = 20
