"""How the documentation is built: `nox -s docs`."""

from importlib.metadata import version as version_of

project = "trio_p2p"
author = "the trio_p2p developers"
release = version = version_of("trio-p2p")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"trio_p2p {version}"

# Docstrings name things in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
