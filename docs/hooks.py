"""What building the site adds to MkDocs: formulas, files of the repository, nothing from elsewhere.

Formulas become MathML, which browsers draw without a script. Pictures, programs and pages that
stand outside docs/ are taken into the site where a page links to them, so that each stands once in
the repository and links are right there too. A page that would load anything from another host
is an error.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "validation/faults.md",
)  # outside docs/, pages nevertheless

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(?=[)#])")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_LOADS = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=[\"']?(https?:)?//[^>]*>")


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside docs/ that pages link to."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for page in list(files.documentation_pages()):
        for link in _LINK.findall(page.content_string):
            path = _in_repository(page, link)
            outside = not path.startswith("docs/") and path not in PAGES
            if outside and (ROOT / path).is_file() and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links within the repository into links within the site."""

    def on_site(match: re.Match) -> str:
        path = _in_repository(page.file, match[1]).removeprefix("docs/")
        return posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(on_site, markdown)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Draw the formulas."""
    return _FORMULA.sub(lambda match: _mathml(match[2], match[1] == "div", page), content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse what would be loaded from elsewhere."""
    if loaded := _LOADS.search(output):
        raise PluginError(f"{page.file.src_uri} loads from another host: {loaded[0]}")
    return output


def _in_repository(page: Any, link: str) -> str:
    folder = "" if page.src_uri in PAGES else "docs"
    return posixpath.normpath(posixpath.join(folder, posixpath.dirname(page.src_uri), link))


def _mathml(tex: str, block: bool, page: Any) -> str:
    tex = html.unescape(tex).strip()
    drawn = convert(tex, display="block" if block else "inline")
    # What the converter does not know is left in the formula as it was written.
    if unknown := re.search(r">\\\w+|merror|>&amp;<", drawn):
        raise PluginError(f"{page.file.src_uri}: cannot draw {unknown[0].lstrip('>')} in {tex}")
    return drawn
