"""Hooks of the documentation's site: what lies outside docs/ is named instead of linked, and runbooks are listed."""

import os
import posixpath
import re

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_config(config):
    folder = os.path.join(config.docs_dir, "runbooks")
    names = sorted(name for name in os.listdir(folder) if name.endswith(".md") and name != "README.md")
    pages = ["runbooks/README.md", *(f"runbooks/{name}" for name in names)]
    config.nav = [listed(entry, pages) for entry in config.nav]
    return config


def listed(entry, pages):
    """The navigation with the folder of runbooks replaced by its pages."""
    if isinstance(entry, list):
        return [listed(one, pages) for one in entry]
    if isinstance(entry, dict):
        return {name: pages if value == "runbooks/" else listed(value, pages) for name, value in entry.items()}
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
