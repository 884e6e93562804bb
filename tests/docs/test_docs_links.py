"""The pages build, every link and anchor in them leads somewhere, and a built page asks nobody for anything."""

from __future__ import annotations

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import doc_pages as pages
import pytest
import yaml

ROOT, DOCS = pages.ROOT, pages.DOCS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; `strict` makes every warning of the generator an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


class Page(HTMLParser):
    """Ids, links and everything that a browser would fetch by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.add(tag)
        if values.get("id"):
            assert values["id"] not in self.ids, f"id {values['id']} twice"
            self.ids.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif values.get("href"):
            self.fetched.append(values["href"])
        if values.get("src"):
            self.fetched.append(values["src"])
        assert not [name for name in values if name.startswith("on")], f"{tag} has a handler"


@cache
def page(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def test_every_page_is_built_and_listed(site):
    built = {file.name for file in site.glob("*.html")} - {"404.html"}
    assert built == {f"{file.stem}.html" for file in DOCS.glob("*.md")}
    listed = re.findall(r"\b([\w-]+\.md)\b", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(file.name for file in DOCS.glob("*.md"))
    assert len(built) >= 18
    assert not (site / "generate.py").exists()


def test_every_link_of_the_built_pages_leads_to_a_page_and_its_anchor(site):
    seen = 0
    for file in site.glob("*.html"):
        for link in page(file).links:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme:
                assert urlsplit(address).scheme == "https", f"{file.name}: {link}"
                continue
            seen += 1
            target = (file.parent / unquote(address)).resolve() if address else file
            assert target.is_file(), f"{file.name}: {link} leads nowhere"
            if anchor:
                assert anchor in page(target).ids, f"{file.name}: {link}: no such heading"
    assert seen > 300


def test_a_built_page_asks_nobody_for_anything(site):
    for file in site.glob("*.html"):
        for address in page(file).fetched:
            assert not urlsplit(address).scheme, f"{file.name} fetches {address}"
            assert not address.startswith("//"), f"{file.name} fetches {address}"
            assert (file.parent / address).is_file(), f"{file.name}: {address} is not there"
        assert not {"script", "iframe", "object", "embed", "form"} & page(file).tags
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        assert not re.search(r"url\(|@import", sheet.read_text(encoding="utf-8")), sheet


def test_the_built_site_is_small(site):
    sizes = {file: file.stat().st_size for file in site.rglob("*") if file.is_file()}
    assert sum(size for file, size in sizes.items() if file.suffix != ".png") < 1_000_000
    assert {file.suffix for file in sizes} <= {".html", ".css", ".png", ".xml", ".gz"}


@pytest.mark.parametrize("file", pages.PAGES, ids=lambda file: file.name)
def test_every_link_of_the_sources_leads_somewhere_on_a_forge_too(file):
    for link in pages.links(file):
        address, anchor = urldefrag(link)
        if urlsplit(address).scheme:
            continue
        target = (file.parent / address).resolve() if address else file
        assert target.exists(), f"{file.name}: {link} leads nowhere"
        assert file.parent != DOCS or target.parent == DOCS, f"{file.name}: {link} leaves the pages"
        if anchor:
            assert anchor in pages.anchors(target), f"{file.name}: {link}: no such heading"


def test_files_named_in_the_text_exist():
    """`lab/LOG.md` and the like, in every page."""
    named = re.compile(r"(?:benchmarks|lab|recipes|requirements|dialtune|tests|notebooks)/[\w./-]*\w")
    seen = 0
    for file in pages.PAGES:
        for span in pages.spans(file):
            if re.fullmatch(named, span):
                seen += 1
                assert (ROOT / span).exists(), f"{file.name}: {span} is not there"
    assert seen >= 5


def test_a_page_starts_with_its_name_and_has_one():
    for file in DOCS.glob("*.md"):
        text = pages.without_blocks(file)
        assert text.startswith("# "), file.name
        assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1, file.name


def test_the_navigation_is_plain_yaml():
    """Tags such as !!python would run code when the file is read."""
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["strict"] is True


def test_the_reader_of_pages_sees_blocks_commands_links_and_anchors(tmp_path):
    """On a page whose content is known."""
    file = tmp_path / "p.md"
    file.write_text(
        "# A `b`: c\n\n## A b c\n\nSee [x](y.md#z) and `one\ntwo`.\n\n"
        "```bash\nA=1 one 'two three' # four\nfive \\\n  six && seven\n```\n\n```\n[no](link)\n```\n"
    )
    (block,) = pages.blocks(file, "bash")
    assert block.line == 9
    assert list(pages.commands(block)) == [["one", "two three"], ["five", "six"], ["seven"]]
    assert len(pages.blocks(file)) == 2
    assert pages.links(file) == ["y.md#z"]
    assert pages.spans(file)[-1] == "one two"
    assert pages.anchors(file) == {"a-b-c", "a-b-c-1"}
