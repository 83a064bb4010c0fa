"""The lists of names are read, and every line of them means what it says."""

from pathlib import Path

import pytest

from mmdiff.errors import MMDiffError
from mmdiff.training.everyday.imagenet import imagenet_names, read_overrides
from mmdiff.training.everyday.names import (
    CLOTHES,
    Name,
    everyday_names,
    is_thing,
    names_by_code,
    read_names,
)
from mmdiff.training.everyday.sources import BY_NAME
from mmdiff.training.everyday.wordnet import Synset, WordNet

HERE = BY_NAME["google"].is_here() and BY_NAME["noto"].is_here() and BY_NAME["wordnet"].is_here()
needs_packages = pytest.mark.skipif(not HERE, reason="runs/everyday is not filled")


def test_the_list_is_well_formed() -> None:
    lines = read_names()
    names = [name for _, name, _, _ in lines]
    emoji = [each for _, _, _, listed in lines for each in listed]
    assert len(names) == len(set(names)) >= 800
    assert len(emoji) == len(set(emoji))
    assert set(CLOTHES.values()) <= set(names)


@pytest.mark.parametrize("text", ["dog", "[animal]\ndog | puppy | dog | more", "[animal]\n| puppy"])
def test_a_line_that_does_not_fit_is_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "names.txt"
    file.write_text(text)
    with pytest.raises(MMDiffError, match="write name | aliases | emoji"):
        read_names(file)


def test_a_line_without_emoji_means_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("# a comment\n[animal]\nguide dog\nskirt | | -\n")
    assert read_names(file) == [
        ("animal", "guide dog", [], ["guide-dog"]),
        ("animal", "skirt", [], []),
    ]


def test_aliases_match() -> None:
    name = Name("dog", ("puppy",), "mammal", ())
    assert name.matches("Dog") and name.matches("puppy") and not name.matches("cat")


def test_overrides_of_imagenet() -> None:
    listed = read_overrides()
    assert set(listed) <= set(range(1000))
    assert listed[151] == "dog" and listed[265] == "poodle" and listed[134] == "crane bird"


def test_wordnet_goes_up_and_finds_plurals() -> None:
    synsets = {
        1: Synset(("dog", "domestic dog"), (2,)),
        2: Synset(("canine",), (3,)),
        3: Synset(("carnivore",), ()),
    }
    wordnet = WordNet(synsets, {"dog": (1,), "canine": (2,)})
    assert wordnet.meanings("Dogs") == (1,)
    assert wordnet.meanings("unknown") == ()
    assert wordnet.ancestors(1) == [2, 3]
    assert wordnet.ancestors(1, 1) == [2]


@needs_packages
def test_all_emoji_of_the_list_are_known() -> None:
    listed = {each for _, _, _, emoji in read_names() for each in emoji}
    names = everyday_names()
    shown = {name.name: name for name in names}
    assert len(names_by_code()) > 1400
    missing = []
    for _, name, _, emoji in read_names():
        if len(shown[name].codes) != len(emoji):
            missing.append(name)
    assert missing == [] and len(listed) > 900
    assert sum(is_thing(code) for code in names_by_code()) > 840


@needs_packages
def test_every_class_of_imagenet_has_an_everyday_name() -> None:
    pytest.importorskip("timm")
    names = imagenet_names()
    assert len(names) == 1000 and len(set(names)) < 750
    assert names[281] == "cat" and names[817] == "sports car" and names[340] == "zebra"
