"""Links and anchors of every page lead somewhere, messages that pages quote are said by the code, and the site builds."""

import html.parser
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not {".deps", "target", "node_modules", ".crescendo"} & set(page.relative_to(ROOT).parts)
)
SITE_PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.M | re.S)


def name(page):
    return str(page.relative_to(ROOT))


def without_code(page):
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def anchors(page):
    """Of the headings of a page, as GitHub and the site both make them."""
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", page.read_text()), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain).strip()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for link in LINK.findall(without_code(page)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no such file"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: {name(target)} has {sorted(anchors(target))}"


def test_messages_that_are_quoted_are_said_by_the_code():
    """In troubleshooting's tables, what stands under `it says` is in the sources, around what is left out (...)."""
    sources = "\n".join(
        path.read_text()
        for folder in ["crates", "controller", "curator-node", "trainer-node", "cli"]
        for path in (ROOT / folder).rglob("*.rs")
    )
    # A message may be written over two lines.
    sources = re.sub(r"\\\n\s*", "", sources)
    quoted = []
    for row in re.findall(r"^\| (.*?) \|", (ROOT / "docs/troubleshooting.md").read_text(), re.M):
        quoted += re.findall(r"`([^`]+)`", row)
    assert len(quoted) > 30
    for message in quoted:
        for piece in re.split(r"\.\.\.|KEY", message):
            piece = piece.strip()
            assert piece in sources or piece == "NaN", f"nothing says: {piece!r} (of {message!r})"


@pytest.mark.parametrize("picture", sorted((ROOT / "docs/pictures").glob("*.svg")), ids=name)
def test_pictures_are_well_formed_and_described(picture):
    root = xml.etree.ElementTree.parse(picture).getroot()
    tags = [child.tag.rpartition("}")[2] for child in root]
    assert tags[:2] == ["title", "desc"]
    assert "prefers-color-scheme: dark" in picture.read_text()
    assert "http" not in picture.read_text().replace("http://www.w3.org/2000/svg", "")


class Links(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.loaded = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in ("img", "script", "link"):
            self.loaded.append(attributes.get("src") or attributes.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_has_every_page_in_its_navigation(site):
    home = Links((site / "index.html").read_text())
    for page in SITE_PAGES:
        at = page.relative_to(ROOT / "docs").with_suffix(".html")
        at = at.with_name("index.html") if at.name == "README.html" else at
        assert (site / at).exists(), at
        assert at.name == "index.html" or str(at) in home.links, f"{at} is not in the navigation"


def test_links_of_the_site_lead_somewhere_and_nothing_is_loaded_from_elsewhere(site):
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            if "://" in link or link.startswith(("mailto:", "#", "javascript:")):
                continue
            target, _, anchor = link.partition("#")
            target = (path.parent / target).resolve()
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].ids, f"{path.name}: {link}"
        for loaded in page.loaded:
            assert "://" not in loaded and not loaded.startswith("//"), f"{path.name} loads {loaded}"
