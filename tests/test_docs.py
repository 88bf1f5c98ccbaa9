"""The programs of the documentation run, and its links lead somewhere.

Blocks marked `python` run, those of a page one after the other in one namespace; what cannot run
(a sketch with names of the reader's own) is marked `py`.
"""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md")) + sorted(ROOT.glob("*.md"))


def name(page):
    return page.relative_to(ROOT).as_posix()


def programs(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def run_programs(page):
    namespace = {}
    for program in programs(page.read_text(encoding="utf-8")):
        exec(compile(program, name(page), "exec"), namespace)


WITH_PROGRAMS = [
    page
    for page in PAGES
    if page.name != "README.md" and programs(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("page", WITH_PROGRAMS, ids=name)
def test_programs_run(page):
    run_programs(page)


def test_the_how_to_pages_have_programs_and_sharding_has_devices():
    pages = {page.stem for page in WITH_PROGRAMS if page.parent.name == "how-to"}
    written = {page.stem for page in (ROOT / "docs" / "how-to").glob("*.md")}
    assert written - pages == {"gpu"}
    assert jax.device_count() == 8


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page):
    """On the site MkDocs checks them, anchors too; this is for those who read the repository."""
    links = re.findall(r"\]\((?!\w+:|#)([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_pictures_stand_once():
    pictures = [p for p in ROOT.rglob("*.png") if not {".venv", "site", "runs"} & {*p.parts}]
    assert len({p.read_bytes() for p in pictures}) == len(pictures) > 0
