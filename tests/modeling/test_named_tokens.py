"""Named tokens hold the backbone's own word vectors, and pointers say where a word's names are."""

import pytest
import torch

from mmdiff.modeling.named_tokens import (
    NamedPositions,
    NamedTokenConnector,
    NameLexicon,
    PointerInput,
    likeliest,
    pointer,
    position_waves,
)

SIDE, WIDTH, FEATURES, VOCABULARY = 3, 8, 5, 20
NAME_IDS = [[3], [4, 5], [6]]  # dog, polar bear, cat


@pytest.fixture
def connector() -> NamedTokenConnector:
    torch.manual_seed(0)
    return NamedTokenConnector(FEATURES, WIDTH, SIDE, NAME_IDS)


def sure_of(name: int) -> NamedPositions:
    """Every position of one image has one name."""
    probabilities = torch.zeros(1, SIDE * SIDE, len(NAME_IDS))
    probabilities[..., name] = 1
    return likeliest(probabilities, 2)


def test_a_sure_name_is_its_word_vector(connector: NamedTokenConnector) -> None:
    words = torch.randn(VOCABULARY, WIDTH)
    assert torch.allclose(connector.mixture(sure_of(0), words)[0, 0], words[3])
    both = (words[4] + words[5]) / 2
    assert torch.allclose(connector.mixture(sure_of(1), words)[0, 0], both)


def test_likeliest_names_are_mixed(connector: NamedTokenConnector) -> None:
    words = torch.randn(VOCABULARY, WIDTH)
    named = likeliest(torch.tensor([0.6, 0.1, 0.3]).expand(1, 9, 3), 2)
    mixed = connector.mixture(named, words)
    assert torch.allclose(mixed[0, 4], 0.6 * words[3] + 0.3 * words[6])


def test_sizes_at_the_start(connector: NamedTokenConnector) -> None:
    torch.manual_seed(1)
    words = 0.02 * torch.randn(VOCABULARY, WIDTH)
    connector.start(words)
    features = connector.project(connector.norm(torch.randn(500, FEATURES)))
    size = words.square().mean().sqrt()
    assert 0.15 < features.square().mean().sqrt() / size < 0.6
    assert torch.allclose(connector.waves_PD.square().mean().sqrt() / size, torch.tensor(0.5))
    embeds = connector(torch.randn(2, SIDE * SIDE, FEATURES), sure_of(2), words)
    assert embeds.shape == (2, SIDE * SIDE, WIDTH)


def test_word_vectors_are_learned_through_the_image(connector: NamedTokenConnector) -> None:
    words = torch.randn(VOCABULARY, WIDTH, requires_grad=True)
    connector(torch.randn(1, 9, FEATURES), sure_of(0), words).sum().backward()
    assert words.grad is not None
    assert words.grad[3].abs().sum() > 0 and words.grad[6].abs().sum() == 0


def test_positions_differ() -> None:
    waves = position_waves(7, 64)
    assert waves.shape == (49, 64)
    assert torch.cdist(waves, waves).fill_diagonal_(9).min() > 0.5


def test_words_find_the_names_that_contain_them() -> None:
    lexicon = NameLexicon(
        ["dog", "polar bear", "bear", "cherries"], [["puppy"], [], ["teddy"], ["cherry"]]
    )
    assert lexicon.names_of("Dogs") == [0] and lexicon.names_of("puppies") == [0]
    assert lexicon.names_of("bear") == [1, 2]
    assert lexicon.names_of("cherry") == [3] and lexicon.names_of("hotdog") == []
    text = "Is there a polar bear, or the DOG?"
    found = [(text[start:end], names) for start, end, names in lexicon.spans(text)]
    assert found == [("polar", [1]), ("bear", [1, 2]), ("DOG", [0])]


def test_a_pointer_says_how_much_and_where() -> None:
    probabilities = torch.zeros(1, 9, 3)
    probabilities[0, 2, 1] = 0.8  # the right upper corner
    made = pointer(likeliest(probabilities, 2), 0, [1], SIDE)
    expected = torch.tensor([0.2, 0.08, 2 / 3, -2 / 3])
    assert torch.allclose(made, expected, atol=1e-5)
    assert pointer(likeliest(probabilities, 2), 0, [0], SIDE).tolist() == [0, 0, 0, 0]


def test_words_without_a_pointer_stay_as_they_are() -> None:
    module, embeds = PointerInput(WIDTH), torch.randn(1, 4, WIDTH)
    pointers = torch.zeros(1, 4, 4)
    pointers[0, 2] = torch.tensor([0.5, 0.1, 0.2, 0.3])
    made = module(embeds, pointers)
    assert torch.equal(made[:, :2], embeds[:, :2]) and torch.equal(made[:, 3], embeds[:, 3])
    assert not torch.equal(made[:, 2], embeds[:, 2])
