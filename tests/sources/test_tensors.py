"""Batches: the inputs of a data set as tensors, in its order, with its labels."""

import numpy as np
import pytest
import torch

from calipers.errors import UsageError
from calipers.sources.array_files import arrays_to_dataset
from calipers.sources.inputs import Dataset


def _made() -> Dataset:
    images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
    return arrays_to_dataset(images, np.array([3, 1, -1, 0, 2, 1]), name="made")


def test_a_batch_has_the_inputs_in_order_with_their_labels() -> None:
    data = _made()
    images, labels = data.tensors()
    assert (images.shape, images.dtype, labels.dtype) == ((6, *data.shape), torch.float32, torch.int64)
    assert labels.tolist() == [3, 1, -1, 0, 2, 1]
    for row, image in zip(data, images, strict=True):
        assert np.array_equal(row.image, image.numpy())


@pytest.mark.filterwarnings("ignore::calipers.errors.MissingClasses")
def test_a_batch_is_the_beginning_of_the_subset_that_it_is_asked_of() -> None:
    data = _made()
    assert data.tensors(limit=2).labels.tolist() == [3, 1]
    assert data.tensors(limit=99).labels.tolist() == data.labels.tolist()
    part = data.take(skip=3).tensors(limit=2)
    assert part.labels.tolist() == [0, 2]
    assert torch.equal(part.images, data.tensors().images[3:5])
    with pytest.raises(UsageError, match="limit is 0: give at least 1"):
        data.tensors(limit=0)
