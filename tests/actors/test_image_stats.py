"""Statistics of images: what they must say of pictures that anyone can picture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from actors.image_stats import (
    ImageSums,
    brightness,
    color_entropy,
    edge_density,
    near_duplicates,
    saturation,
    thinned,
)

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 20), st.just(3))
IMAGES = SIZES.flatmap(lambda shape: arrays(np.uint8, shape))
PER_IMAGE = (edge_density, color_entropy, brightness, saturation)
HIGHEST = {edge_density: 1, color_entropy: 9, brightness: 1, saturation: 1}


@pytest.mark.parametrize("stat", PER_IMAGE)
@given(images=IMAGES)
def test_a_number_is_in_its_range_and_an_image_s_own(stat, images):
    """In whatever batch an image is, and however it is mirrored."""
    found = stat(images)
    assert found.shape == (len(images),)
    assert (found >= 0).all() and (found <= HIGHEST[stat] + 1e-6).all()
    alone = np.concatenate([stat(image[None]) for image in images])
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stat(images[:, ::-1, ::-1]), found, rtol=1e-5, atol=1e-6)


@given(images=IMAGES, order=st.randoms(use_true_random=False))
def test_near_duplicates_are_counted_over_pairs(images, order):
    count = len(images)
    found = near_duplicates(images)
    assert 0 <= found <= count * (count - 1) // 2
    shuffled = list(range(count))
    order.shuffle(shuffled)
    assert near_duplicates(images[shuffled]) == found
    assert near_duplicates(np.repeat(images[:1], count, axis=0)) == count * (count - 1) // 2
    assert near_duplicates(np.concatenate([images, images])) >= count


@given(color=st.tuples(*[st.integers(0, 255)] * 3))
def test_a_flat_image_has_no_edges_and_one_colour(color):
    flat = np.full((2, 9, 7, 3), color, np.uint8)
    assert edge_density(flat).tolist() == color_entropy(flat).tolist() == [0, 0]
    assert near_duplicates(flat) == 1


def test_known_pictures():
    black, white = np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 16, 16, 3), 255, np.uint8)
    assert brightness(black)[0] == 0
    assert brightness(white)[0] == pytest.approx(1)
    assert saturation(white)[0] == saturation(black)[0] == 0
    red = white.copy()
    red[..., 1:] = 0
    assert saturation(red)[0] == 1
    board = white.copy()
    board[:, ::2, ::2] = board[:, 1::2, 1::2] = 0
    assert edge_density(board)[0] == 1
    assert color_entropy(board)[0] == pytest.approx(1)  # two colours, half and half
    assert near_duplicates(np.concatenate([black, white])) == 0
    spotted = white.copy()
    spotted[0, 3, 4] = 0
    assert near_duplicates(np.concatenate([spotted, white])) == 1


def test_an_image_of_any_size_costs_the_same():
    assert thinned(np.zeros((2, 384, 384, 3), np.uint8)).shape == (2, 128, 128, 3)
    assert thinned(np.zeros((1, 24, 20, 3), np.uint8)).shape == (1, 24, 20, 3)
    assert max(thinned(np.zeros((1, 1024, 700, 3), np.uint8)).shape) <= 2 * 128


@given(images=IMAGES, cut=st.integers(0, 5))
def test_sums_of_workers_make_the_means_of_all_images(images, cut):
    """However groups are dealt out."""
    groups = [images[:cut], images[cut:], images]
    together = ImageSums.of(groups)
    apart = ImageSums.of(groups[:1]) + ImageSums.of(groups[1:])
    assert together.means() == pytest.approx(apart.means())
    assert together.images == 2 * len(images)
    every = np.concatenate(groups)
    for stat in PER_IMAGE:
        assert together.means()[stat.__name__] == pytest.approx(stat(every).mean(), rel=1e-5, abs=1e-6)
    pairs = sum(len(group) * (len(group) - 1) // 2 for group in groups)
    assert ("near_duplicates" in together.means()) == (pairs > 0)
    if pairs:
        duplicates = sum(near_duplicates(group) for group in groups if len(group))
        assert together.means()["near_duplicates"] == duplicates / pairs
    assert ImageSums.of([]).means() == {}
