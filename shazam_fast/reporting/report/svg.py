"""Figures as SVG in the report's page.

matplotlib rather than a plotting library in JavaScript: the page stays small (plotly.js alone is 3 MB), needs no
script, prints sharply, and opens in any browser. Texts stay texts: they can be searched, and names in any script are
drawn with the reader's fonts.
"""

import io
import warnings
from typing import Any
from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


def to_svg(figure: Any, name: str) -> str:
    """A matplotlib figure as an SVG element; `name`, of a-z, 0-9 and "-", sets its ids apart from other figures'."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": "shazam_fast"}):
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's browser has the fonts
        figure.savefig(content, format="svg", metadata={"Date": None})
    return _for_page(ElementTree.fromstring(content.getvalue()), name)


def _for_page(root: ElementTree.Element, name: str) -> str:
    """Serialised SVG without metadata and style sheet, its ids made unique in the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        if target := element.attrib.pop(f"{{{XLINK}}}href", ""):
            element.set("href", f"#{name}-{target.removeprefix('#')}")
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif value.startswith("url(#"):
                element.set(key, f"url(#{name}-{value.removeprefix('url(#')}")
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
    root.set("xmlns", SVG)
    return ElementTree.tostring(root, encoding="unicode")
