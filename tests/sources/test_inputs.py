"""Indexed inputs: digests, the grid of 8-bit levels, subsets that keep their numbers, checks against a model."""

import hashlib
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipers.errors import InvalidInput, MissingClasses, UsageError
from calipers.sources.array_files import arrays_to_dataset
from calipers.sources.inputs import Dataset, input_digest, on_grid


def numbered(labels: list[int], class_names: tuple[str, ...] | None = None) -> Dataset:
    count = len(labels)
    images = np.zeros((count, 2, 2), dtype=np.uint8)
    images[:, 0, 0] = np.arange(count) % 256
    return arrays_to_dataset(images, np.array(labels), name="made", class_names=class_names)


def test_a_digest_is_blake2b_of_type_shape_and_values() -> None:
    image = np.array([[0.0, 0.25], [0.5, 1.0]], dtype=np.float32)
    plain = b"<f4 (2, 2) " + b"".join(value.tobytes() for value in image.reshape(-1))
    assert input_digest(image) == hashlib.blake2b(plain, digest_size=16).hexdigest()


def test_a_digest_sees_one_bit_and_the_shape_and_not_the_memory_order() -> None:
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    near = image.copy()
    near[1, 1] = np.nextafter(near[1, 1], np.float32(2))
    assert input_digest(near) != input_digest(image)
    assert input_digest(image.reshape(4, 3)) != input_digest(image)
    assert input_digest(np.asfortranarray(image)) == input_digest(image)
    assert input_digest(image.astype(">f4")) == input_digest(image)


def test_eight_bit_levels_become_the_nearest_float32() -> None:
    data = arrays_to_dataset(np.arange(256, dtype=np.uint8).reshape(1, 16, 16), None, name="levels")
    for level, value in enumerate(data[0].image.reshape(-1)):
        exact = Fraction(level, 255)
        error = abs(Fraction(float(value)) - exact)
        for neighbour in (np.nextafter(value, np.float32(-1)), np.nextafter(value, np.float32(2))):
            assert error <= abs(Fraction(float(neighbour)) - exact)


def test_the_grid_holds_every_level_and_nothing_beside_it() -> None:
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    assert on_grid(levels)
    for level in levels:
        assert not on_grid(np.array([np.nextafter(level, np.float32(2))], dtype=np.float32))
    assert not on_grid(np.array([-1 / 255], dtype=np.float32))
    assert not on_grid(np.array([256 / 255], dtype=np.float32))
    assert not on_grid(np.array([np.nan, 0], dtype=np.float32))
    assert not on_grid(np.array([np.inf], dtype=np.float32))


def test_an_index_stays_the_index_in_the_whole() -> None:
    data = numbered([row % 2 for row in range(20)])
    part = data.take(skip=4, limit=10).take(skip=3, limit=4)
    assert [example.index for example in part] == [7, 8, 9, 10]
    assert [round(float(example.image[0, 0, 0]) * 255) for example in part] == [7, 8, 9, 10]
    assert [example.label for example in part] == [1, 0, 1, 0]
    again = data.sample(10, seed=3)
    for example in again:
        assert input_digest(example.image) == input_digest(data[example.index].image)


def test_subsets_share_the_fingerprint_of_the_whole() -> None:
    data = numbered([0, 1] * 8)
    assert data.take(limit=4).fingerprint == data.sample(6, seed=1).fingerprint == data.fingerprint


def test_the_fingerprint_changes_with_a_pixel_or_a_label_and_not_with_the_name() -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    base = arrays_to_dataset(images, np.array([0, 1]), name="a").fingerprint
    other = images.copy()
    other[1, 3, 3] += 1
    assert arrays_to_dataset(images.copy(), np.array([0, 1]), name="b").fingerprint == base
    assert arrays_to_dataset(other, np.array([0, 1]), name="a").fingerprint != base
    assert arrays_to_dataset(images, np.array([1, 1]), name="a").fingerprint != base
    assert arrays_to_dataset(images / 255, np.array([0, 1]), name="a").fingerprint != base


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_sample_has_each_class_in_proportion(counts: list[int], share: float, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    n = max(1, round(share * len(labels)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingClasses)
        found = numbered(labels).sample(n, seed=seed)
    indices = [example.index for example in found]
    assert len(set(indices)) == n == len(found)
    assert indices == sorted(indices)
    for label, count in enumerate(counts):
        exact = Fraction(n * count, len(labels))
        assert abs(sum(labels[index] == label for index in indices) - exact) < 1


def test_a_sample_depends_on_the_seed_alone() -> None:
    data = numbered([row % 4 for row in range(200)])
    first = [example.index for example in data.sample(20, seed=0)]
    assert first == [example.index for example in data.sample(20, seed=0)]
    assert first != [example.index for example in data.sample(20, seed=1)]


def test_a_sample_is_the_same_on_every_machine_and_for_ever() -> None:
    data = numbered([row % 2 for row in range(40)])
    assert [example.index for example in data.sample(6, seed=0)] == [6, 7, 17, 18, 24, 25]


def test_every_input_is_sampled_equally_often() -> None:
    data = numbered([0] * 40 + [1] * 10)
    drawn = np.zeros(50)
    for seed in range(400):
        drawn[data.sample(10, seed=seed).indices] += 1
    # Each of the 50 is taken with probability 1/5: 80 of 400, standard deviation 8.
    assert drawn.min() > 80 - 4.5 * 8
    assert drawn.max() < 80 + 4.5 * 8


def test_a_subset_without_some_classes_is_warned_about_by_name() -> None:
    data = numbered([0, 0, 1, 2], class_names=("ant", "bee", "cat"))
    with pytest.warns(MissingClasses, match=r"class 1 \(bee\), class 2 \(cat\)"):
        data.take(limit=2)
    with pytest.warns(MissingClasses, match=r"class 0"):
        data.take(skip=2)


def test_a_subset_with_all_classes_is_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbered([0, 1, 0, 1]).take(limit=2)
        numbered([-1, -1, -1]).take(limit=1)
        numbered([0, 1] * 10).sample(2, seed=0)


def test_subsets_that_mean_nothing_are_refused() -> None:
    data = numbered([0, 1])
    for n in (0, 3, -1):
        with pytest.raises(UsageError, match=f"sample is {n}"):
            data.sample(n, seed=0)
    with pytest.raises(UsageError, match="nothing is left"):
        data.take(skip=2)
    for skip, limit in ((-1, None), (0, 0), (0, -3)):
        with pytest.raises(UsageError, match=f"skip is {skip} and limit is {limit}"):
            data.take(skip=skip, limit=limit)
    with pytest.raises(UsageError, match="seed is -1"):
        data.sample(1, seed=-1)


def test_a_limit_beyond_the_end_takes_what_there_is() -> None:
    assert len(numbered([0, 1, 0]).take(skip=1, limit=50)) == 2


def test_data_that_fit_a_model_pass_and_others_are_named() -> None:
    data = numbered([0, 1, 4])
    data.require(input_shape=(1, 2, 2), num_classes=5)
    with pytest.raises(InvalidInput, match="inputs of shape 1x2x2, and the model takes 3x2x2"):
        data.require_fit(input_shape=(3, 2, 2), num_classes=5)
    with pytest.raises(InvalidInput, match="input 2 has label 4, and the model has classes 0 to 3"):
        data.require_fit(input_shape=(1, 2, 2), num_classes=4)
    with pytest.raises(InvalidInput, match="input 1 has values from 0 to 0.0039"):
        data.require(input_shape=(1, 2, 2), num_classes=5, bounds=(0.0, 0.001))


def test_a_label_that_is_not_in_the_subset_does_not_matter() -> None:
    with pytest.warns(MissingClasses):
        part = numbered([0, 1, 4]).take(limit=2)
    part.require_fit(input_shape=(1, 2, 2), num_classes=2)


def test_another_number_of_named_classes_than_the_model_has_is_refused() -> None:
    data = numbered([0, 1], class_names=("a", "b"))
    with pytest.raises(InvalidInput, match="2 classes by name and the model has 3"):
        data.require_fit(input_shape=(1, 2, 2), num_classes=3)


def test_labels_out_of_range_or_of_another_number_are_refused() -> None:
    with pytest.raises(InvalidInput, match="label -2 of input 1 is out of range: classes are 0 and up"):
        numbered([0, -2])
    with pytest.raises(InvalidInput, match=r"label 2 of input 1 is out of range: classes are 0 to 1"):
        numbered([0, 2], class_names=("a", "b"))
    with pytest.raises(InvalidInput, match="has 1 images and 2 labels"):
        arrays_to_dataset(np.zeros((1, 2, 2), np.uint8), np.array([0, 1]), name="made")


def test_unknown_labels_are_allowed_and_told() -> None:
    data = numbered([0, -1, 1])
    assert data[1].label == -1
    assert not data.labelled
    assert ("labels", "1 input has none") in data.describe()
    assert ("labels", "2 inputs have none") in numbered([-1, -1, 1]).describe()
    assert ("labels", "1 class") in numbered([1, 1]).describe()
