"""Modality maps against loops over single rows."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, Phi4MultimodalConfig

from tccd.errors import ConfigError, ModalityError, TCCDError
from tccd.modality import MODALITIES, SEGMENTS, modality_map, vision_token_ids
from tests.tiny import FAMILIES, IMAGE, PAD, VIDEO, Row, cached_tiny, inputs

TEXT, MARK = 5, 7
VISION = (IMAGE, VIDEO)


def by_loop(ids: list[int], real: list[bool], vision_ids: tuple[int, ...]) -> dict[tuple[str, str], set[int]]:
    """The positions of every segment of one row, by their definitions."""
    kept = [i for i, r in enumerate(real) if r]
    vision = [i for i in kept if ids[i] in vision_ids]
    tail = [i for i in kept if vision and i > vision[-1]]
    cut = len(tail) * 7 // 10
    return {
        ("vision", "tokens"): set(vision),
        ("vision", "span"): {i for i in kept if vision and vision[0] <= i <= vision[-1]},
        ("text", "all"): set(tail),
        ("text", "question"): set(tail[:cut]),
        ("text", "options"): set(tail[cut:]),
        ("text", "system"): {i for i in kept if vision and i < vision[0]},
    }


def assert_like_the_loop(ids: torch.Tensor, mask: torch.Tensor | None, vision_ids: tuple[int, ...]) -> None:
    found = modality_map(ids, vision_ids, mask)
    for row in range(len(ids)):
        real = [True] * ids.shape[1] if mask is None else mask[row].bool().tolist()
        expected = by_loop(ids[row].tolist(), real, vision_ids)
        assert set(expected) == {(m, s) for m in MODALITIES for s in SEGMENTS[m]}
        for (modality, segment), positions in expected.items():
            got = found.segment(modality, segment)[row].nonzero().flatten().tolist()
            assert got == sorted(positions), (modality, segment)
        assert bool(found.has_vision[row]) == bool(expected["vision", "tokens"])


@st.composite
def batches(draw):
    """Rows of any mixture of kinds, padded on one side; padding may even look like an image token."""
    kinds = st.lists(st.sampled_from([TEXT, TEXT, MARK, IMAGE, VIDEO]), max_size=14)
    rows = draw(st.lists(kinds, min_size=1, max_size=4).filter(any))
    left, filler = draw(st.booleans()), draw(st.sampled_from([PAD, IMAGE]))
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding = width - len(row)
        ids.append([filler] * padding + row if left else row + [filler] * padding)
        mask.append([0] * padding + [1] * len(row) if left else [1] * len(row) + [0] * padding)
    holes = draw(st.lists(st.integers(0, width - 1), max_size=2))  # a caller may mask what it likes
    mask = torch.tensor(mask)
    mask[:, holes] = 0
    return torch.tensor(ids), mask


@settings(deadline=None)
@given(batches())
def test_every_segment_is_that_of_a_loop_over_each_row(batch):
    assert_like_the_loop(*batch, VISION)


@settings(deadline=None)
@given(batches())
def test_segments_partition_the_real_positions_of_a_row_with_an_image(batch):
    ids, mask = batch
    found = modality_map(ids, VISION, mask)
    parts = [found.segment("text", name) for name in ("system", "question", "options")] + [found.span]
    whole = mask.bool() & found.has_vision[:, None]
    assert torch.equal(torch.stack(parts).int().sum(0), whole.int())
    assert not (found.vision & ~found.span).any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, side):
    rows = [Row(before=2, after=7), Row(images=2, after=4), Row(images=0, before=6, after=5)]
    batch = inputs(family, rows, padding_side=side)
    ids = vision_token_ids(cached_tiny(family).config)
    assert_like_the_loop(batch["input_ids"], batch["attention_mask"], ids)
    tail = modality_map(batch["input_ids"], ids, batch["attention_mask"]).tail.sum(-1).tolist()
    closing = tail[0] - 7  # the end-of-image marker, where the family has one
    assert closing in (0, 1)
    assert tail == [7 + closing, 4 + closing, 0]


def test_the_span_holds_the_markers_of_idefics3_and_the_tokens_do_not():
    batch = inputs("idefics3", [Row(before=3, after=2)])
    found = modality_map(batch["input_ids"], (IMAGE,))
    # FAKE ROW 4x IMAGE FAKE GLOBAL 4x IMAGE FAKE, after three words
    assert found.segment("vision", "tokens")[0].nonzero().flatten().tolist() == [5, 6, 7, 8, 11, 12, 13, 14]
    assert found.segment("vision", "span")[0].nonzero().flatten().tolist() == list(range(5, 15))


def test_text_between_two_images_is_neither_system_nor_tail():
    found = modality_map(torch.tensor([[TEXT, IMAGE, TEXT, TEXT, IMAGE, TEXT]]), (IMAGE,))
    assert found.system.tolist() == [[True, *[False] * 5]]
    assert found.tail.tolist() == [[*[False] * 5, True]]


def test_video_tokens_are_vision():
    batch = inputs("qwen2_5_vl", [Row(images=1, videos=1, after=3), Row(images=0, videos=1)])
    ids = vision_token_ids(cached_tiny("qwen2_5_vl").config)
    assert_like_the_loop(batch["input_ids"], batch["attention_mask"], ids)
    assert modality_map(batch["input_ids"], ids, batch["attention_mask"]).has_vision.all()


@pytest.mark.parametrize("length", [*range(1, 41), 100, 1000, 3000])
def test_the_question_is_the_first_seventy_percent_of_the_tail(length):
    found = modality_map(torch.tensor([[IMAGE] + [TEXT] * length]), (IMAGE,))
    assert found.segment("text", "question")[0].nonzero().flatten().tolist() == [*range(1, length * 7 // 10 + 1)]


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_first_segment_is_the_default(modality):
    found = modality_map(torch.tensor([[TEXT, IMAGE, MARK, IMAGE, TEXT, TEXT]]), (IMAGE,))
    assert torch.equal(found.segment(modality), found.segment(modality, SEGMENTS[modality][0]))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"image_token_id": 9}, (9,)),
        ({"image_token_index": 9, "video_token_index": 4}, (4, 9)),
        ({"image_token_id": 9, "image_token_index": 9, "video_token_id": None}, (9,)),
        ({"image_token_id": 0, "video_token_id": -1}, (0,)),
    ],
)
def test_vision_ids_are_read_from_the_config(config, expected):
    assert vision_token_ids(SimpleNamespace(**config)) == expected


def test_a_part_of_the_config_is_asked_where_the_whole_names_no_vision_token():
    config = Phi4MultimodalConfig()
    assert vision_token_ids(config) == (config.vision_config.image_token_id,) == (200010,)
    config.image_token_id = 7
    assert vision_token_ids(config) == (7,)


@pytest.mark.parametrize("config", [LlamaConfig(), SimpleNamespace(image_token_id=None)])
def test_a_config_without_a_vision_token_is_refused(config):
    with pytest.raises(ModalityError, match=rf"{type(config).__name__} names no vision token .*image_token_id"):
        vision_token_ids(config)


def test_an_image_without_its_token_is_refused_and_a_text_prompt_is_not():
    ids = torch.tensor([[TEXT, TEXT], [TEXT, MARK]])
    with pytest.raises(ModalityError, match=r"has an image but none of its vision tokens \[120\].*put the"):
        modality_map(ids, (IMAGE,), has_images=True)
    assert not modality_map(ids, (IMAGE,)).has_vision.any()


def test_an_image_token_under_the_padding_is_no_vision_token():
    ids, mask = torch.tensor([[IMAGE, TEXT, TEXT]]), torch.tensor([[0, 1, 1]])
    with pytest.raises(ModalityError, match="none of its vision tokens"):
        modality_map(ids, (IMAGE,), mask, has_images=True)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(4, dtype=torch.long), None, r"input_ids has shape \(4,\); expected \(batch, sequence\)"),
        (torch.zeros(1, 4), torch.ones(1, 5), r"attention_mask has shape \(1, 5\); expected \(1, 4\)"),
        (torch.zeros(1, 4), torch.ones(1, 1, 4, 4), r"attention_mask has shape \(1, 1, 4, 4\)"),
    ],
)
def test_wrong_shapes_are_refused(ids, mask, message):
    with pytest.raises(ModalityError, match=message):
        modality_map(ids, (IMAGE,), mask)


@pytest.mark.parametrize(
    ("modality", "segment", "message"),
    [
        ("audio", None, "unknown modality 'audio'; expected one of text, vision"),
        ("text", "span", "unknown text segment 'span'; expected one of all, question, options, system"),
        ("vision", "all", "unknown vision segment 'all'; expected one of tokens, span"),
        ("text", "", "unknown text segment ''"),
    ],
)
def test_unknown_segments_are_refused(modality, segment, message):
    found = modality_map(torch.tensor([[TEXT, IMAGE, TEXT]]), (IMAGE,))
    with pytest.raises(ConfigError, match=message) as caught:
        found.segment(modality, segment)
    assert isinstance(caught.value, TCCDError)
