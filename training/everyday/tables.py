"""Tables of features of everything that the namer is fitted and measured on, cached on disk.

    python -m mmdiff.training.everyday.tables --photographs clothes.tar

Broken off at any time, it goes on where it was. With `--tables` only some are made, and with
`--parts` only the first tenths of each: all drawings of a tenth of the things.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from mmdiff.training.everyday.clothes import FILE as CLOTHES_FILE
from mmdiff.training.everyday.clothes import Part, photographs
from mmdiff.training.everyday.drawings import (
    ICON_SETS,
    PNG_SETS,
    SIDE,
    UNSEEN,
    fit,
    on_background,
    on_white,
)
from mmdiff.training.everyday.features import (
    PARTS,
    Features,
    Item,
    fast,
    load_features,
    make_part,
    part_of,
)
from mmdiff.training.everyday.lite0 import lite0_tower
from mmdiff.training.everyday.renders import rendered
from mmdiff.training.everyday.sources import BY_NAME, FOLDER

ON_WHITE, ON_BACKGROUNDS = "white", "backgrounds"
NUM_BACKGROUNDS = 100  # photographs that drawings are put before
MAPS = ("blocks.4", "blocks.5", "blocks.6", "bn2")
Maker = Callable[[Path, Path, int], Iterator[Item]]


def drawn_items(name: str, style: str, folder: Path, clothes: Path, part: int) -> Iterator[Item]:
    """Drawings of a set on white, or each before a background at random."""
    drawings = rendered(name, folder)
    behind: list[Image.Image] = []
    if style == ON_BACKGROUNDS:
        for photograph, _ in zip(photographs("fit", clothes), range(NUM_BACKGROUNDS), strict=False):
            behind.append(squashed(photograph.open()))
    for number, code in enumerate(drawings.codes):
        if part_of(code) != part:
            continue
        drawing = drawings.drawing(number)
        if style == ON_WHITE:
            image = on_white(drawing)
        else:
            seeds = (*name.encode(), number)
            image = on_background(drawing, np.random.default_rng(seeds), behind)
        yield f"{name}/{number}", code, image


def clothes_items(split: Part, folder: Path, clothes: Path, part: int) -> Iterator[Item]:
    for photograph in photographs(split, clothes):
        if part_of(photograph.id) == part:
            yield photograph.id, photograph.kind, squashed(photograph.open())


def stamp_items(folder: Path, clothes: Path, part: int) -> Iterator[Item]:
    """Photographs of animals and vehicles of Tux Paint, cut out, on white, with their captions."""
    root = BY_NAME["tuxpaint"].fetch(folder) / "usr/share/tuxpaint/stamps"
    files = [*sorted(root.glob("animals/**/*.png")), *sorted(root.glob("vehicles/**/*.png"))]
    for file in files:
        drawn = {"cartoon", "toys"} & set(file.parts) or file.stem.endswith("_mirror")
        caption = file.with_suffix(".txt")
        if drawn or not caption.is_file() or part_of(file.name) != part:
            continue
        cut_out = fit(Image.open(file))
        if cut_out is not None:
            text = caption.read_text(encoding="utf-8", errors="replace").split("\n")[0]
            yield file.relative_to(root).as_posix(), text, on_white(cut_out)


def squashed(image: Image.Image) -> Image.Image:
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _makers() -> dict[str, Maker]:
    made: dict[str, Maker] = {}
    for style in (ON_WHITE, ON_BACKGROUNDS):
        for name in (*PNG_SETS, *ICON_SETS, UNSEEN):
            made[f"{name}-{style}"] = partial(drawn_items, name, style)
    splits: tuple[Part, ...] = ("fit", "choose", "validation")
    for split in splits:
        made[f"clothes-{split}"] = partial(clothes_items, split)
    made["stamps"] = stamp_items
    return made


TABLES = _makers()


def load_table(name: str, folder: Path = FOLDER, parts: int = PARTS) -> Features:
    """The first parts of a table that was made before.

    Raises:
        MMDiffError: it is not there.
    """
    return load_features(folder / "features" / name, parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--photographs", type=Path, default=CLOTHES_FILE)
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--parts", type=int, default=PARTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tower = fast(lite0_tower(options.folder, MAPS))
    wanted = list(itertools.product(range(options.parts), options.tables))
    for part, name in track(wanted, "features"):
        items = TABLES[name](options.folder, options.photographs, part)
        make_part(options.folder / "features" / name, part, tower, items)


if __name__ == "__main__":
    main()
