"""Hooks of the documentation's site: what lies outside docs/ is named instead of linked, and folders are listed."""

import os
import posixpath
import re

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


# Folders of the navigation that stand for their pages, the overview first.
FOLDERS = ("decisions/", "runbooks/")


def on_config(config):
    pages = {folder: pages_of(config.docs_dir, folder) for folder in FOLDERS}
    config.nav = [listed(entry, pages) for entry in config.nav]
    return config


def pages_of(docs_dir, folder):
    names = sorted(name for name in os.listdir(os.path.join(docs_dir, folder)) if name.endswith(".md") and name != "README.md")
    return [f"{folder}README.md", *(f"{folder}{name}" for name in names)]


def listed(entry, pages):
    """The navigation with each such folder replaced by its pages."""
    if isinstance(entry, list):
        return [listed(one, pages) for one in entry]
    if isinstance(entry, dict):
        return {
            name: pages[value] if isinstance(value, str) and value in pages else listed(value, pages)
            for name, value in entry.items()
        }
    return entry


def on_page_markdown(markdown, page, **_):
    here = posixpath.dirname(page.file.src_uri)

    def name_outsiders(link):
        text, target = link.groups()
        path = target.partition("#")[0]
        if "://" in target or not path:
            return link.group(0)
        found = posixpath.normpath(posixpath.join("docs", here, path))
        if found.startswith("docs/"):
            return link.group(0)
        plain = text.strip("`")
        return f"`{found}`" if plain in found else f"{text} (`{found}`)"

    return LINK.sub(name_outsiders, markdown)
