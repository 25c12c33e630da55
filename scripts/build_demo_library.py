#!/usr/bin/env python3
"""Lays out the demo's subject library and photographs from the unpacked downloads.

Output: OUT/subjects/{index.json,*.webp} and OUT/photos/{index.json,*.png|jpg}; docs/own-pictures.md has the format.
"""

import argparse
import json
import pathlib
import shutil
import sys
import zipfile

GROUPS = ["Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"]

# Words that take no article, or are plural without looking like it.
BARE = {
    "bread", "broccoli", "garlic", "bacon", "butter", "salt", "popcorn", "spaghetti", "sushi", "oden", "fondue", "cooking",
    "ginger root", "meat on bone", "cooked rice", "curry rice", "shaved ice", "ice", "ice cream", "soft ice cream", "mate",
    "sake", "pouring liquid", "bubble tea", "fire", "fog", "foggy", "wood", "coral", "rice", "custard", "camping",
    "canned food", "tennis", "bowling", "ice hockey", "field hockey", "lacrosse", "ping pong", "badminton",
    "performing arts", "yarn", "thread", "soap", "dna", "stained tissue", "confetti", "high voltage", "mount fuji",
    "leafy green", "green salad", "oily fish", "sheaf of rice",
}
SINGULAR_IN_S = {
    "bus", "minibus", "trolleybus", "cactus", "lotus", "hibiscus", "octopus", "platypus", "hippopotamus", "rhinoceros",
    "compass", "abacus", "tennis", "bus stop", "cutlass", "dress", "christmas tree", "oncoming bus", "glass",
    "drinking glass", "wine glass", "cocktail glass", "walrus", "rosette", "kiss", "sunglass", "tumbler glass",
    "magnifying glass", "couscous", "funeral urn", "wilderness", "eyeglass", "headless", "ellipsis", "t-rex",
}

# Photographs of scikit-image that show no person and that a word or two describes wherever they are cropped.
# All are in the public domain or CC0, as scikit-image's data module says of each.
PHOTOS = {
    "rocket.jpg": "a launch pad at dusk",
    "coffee.png": "a coffee cup",
    "grass.png": "grey grass",
    "gravel.png": "grey gravel",
    "brick.png": "grey bricks",
    "hubble_deep_field.jpg": "deep space",
    "moon.png": "the grey moon",
    "coins.png": "old coins",
    "ihc.png": "stained tissue",
}


def noun_phrase(name: str) -> str:
    if name in BARE or name.startswith(("the ", "statue of liberty")):
        return "the statue of liberty" if name == "statue of liberty" else name
    first_part = name.split(" with ")[0].split(" of ")[0].split(" and ")[0]
    last = first_part.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is", "os")) and last not in SINGULAR_IN_S
    if plural or " and " in name:
        return name
    sounds_like_vowel = name[0] in "aeiou" and not name.startswith(("eu", "uni", "one", "ukulele"))
    return ("an " if sounds_like_vowel else "a ") + name


def code_points(emoji: str, keep_selectors: bool) -> str:
    return "-".join(f"{ord(c):x}" for c in emoji if keep_selectors or ord(c) != 0xFE0F)


def build_subjects(pictures: pathlib.Path, names: pathlib.Path, out: pathlib.Path) -> int:
    out.mkdir(parents=True)
    table = json.loads((names / "data-by-emoji.json").read_text(encoding="utf-8"))
    entries = []
    for emoji, facts in table.items():
        if facts["group"] not in GROUPS:
            continue
        for keep_selectors in (True, False):
            source = pictures / "assets" / f"{code_points(emoji, keep_selectors)}.webp"
            if source.is_file():
                break
        else:
            continue
        name = facts["name"].lower().replace("’", "").replace("'", "").replace("ñ", "n")
        subject_id = facts["slug"].replace("_", "-")
        shutil.copyfile(source, out / f"{subject_id}.webp")
        entries.append(
            {"id": subject_id, "name": name, "group": facts["group"], "file": f"{subject_id}.webp", "words": noun_phrase(name)}
        )
    entries.sort(key=lambda entry: entry["id"])
    (out / "index.json").write_text(json.dumps(entries, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(entries)


def build_photos(wheel: pathlib.Path, out: pathlib.Path) -> int:
    out.mkdir(parents=True)
    entries = []
    with zipfile.ZipFile(wheel) as archive:
        for file, words in PHOTOS.items():
            (out / file).write_bytes(archive.read(f"skimage/data/{file}"))
            entries.append({"id": file.rsplit(".", 1)[0], "file": file, "words": words})
    (out / "index.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return len(entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("pictures", "names", "wheel", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    subjects = build_subjects(args.pictures, args.names, args.out / "subjects")
    photos = build_photos(args.wheel, args.out / "photos")
    if subjects < 800 or photos != len(PHOTOS):
        sys.exit(f"build_demo_library: only {subjects} subjects and {photos} photographs found; the packages have changed")
    print(f"{subjects} subjects, {photos} photographs")


if __name__ == "__main__":
    main()
