"""Model and data references as a whole: what ships, what is listed, and what a list costs."""

import subprocess
import sys

import pytest

from calipers.errors import BadReference
from calipers.sources import shipped
from calipers.sources.datasets import list_datasets, load_dataset
from calipers.sources.inputs import on_grid
from calipers.sources.models import list_models, load_model, open_model
from calipers.sources.schemes import DATA_SCHEMES, MODEL_SCHEMES


def test_the_bundled_images_are_the_first_thousand_of_the_test_set(data_folder: object) -> None:
    bundled = load_dataset("bundled:fashion-mnist")
    whole = load_dataset(f"idx:{data_folder}/fashion-mnist")
    assert len(bundled) == 1000
    for here, there in zip(bundled, whole.take(limit=1000), strict=True):
        assert here.label == there.label
        assert (here.image == there.image).all()


def test_the_bundled_images_have_names_and_stand_on_the_grid() -> None:
    data = load_dataset("bundled:fashion-mnist")
    assert (data.shape, len(data), data.num_classes) == ((1, 28, 28), 1000, 10)
    assert data.class_names is not None
    assert data.class_names[9] == "Ankle boot"
    assert all(on_grid(example.image) for example in data.take(limit=50))


def test_every_bundled_model_is_listed_and_opens() -> None:
    listed = [row for row in list_models() if row.bundled]
    if not listed:
        pytest.skip("no networks are bundled yet")
    data = load_dataset("bundled:fashion-mnist")
    for row in listed:
        opened = open_model(row.reference)
        if opened.target.input_shape == data.shape:
            data.require_fit(input_shape=opened.target.input_shape, num_classes=opened.target.num_classes)
        assert row.summary.startswith(dict(opened.description)["arch"])
        assert "accuracy" in row.summary


def test_every_bundled_data_set_is_listed_and_opens() -> None:
    listed = [row for row in list_datasets() if row.bundled]
    assert "bundled:fashion-mnist" in [row.reference for row in listed]
    for row in listed:
        assert len(load_dataset(row.reference)) > 0
        assert len(row.summary) > 10


def test_every_scheme_is_listed_with_its_options() -> None:
    for rows, schemes in ((list_models(), MODEL_SCHEMES), (list_datasets(), DATA_SCHEMES)):
        told = {row.reference: row.summary for row in rows}
        for scheme in schemes:
            if scheme.name != "bundled":
                assert told[scheme.form].endswith(f"; options: {', '.join(scheme.options)}")


def test_a_bundled_name_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(BadReference, match="no bundled data is called 'mnist': there are .*fashion-mnist"):
        load_dataset("bundled:mnist")
    with pytest.raises(BadReference, match="no bundled model is called '../x'"):
        load_model("bundled:../x")


def test_lists_and_data_are_had_without_torch() -> None:
    program = (
        "import sys\n"
        "from calipers.sources.datasets import list_datasets, load_dataset\n"
        "from calipers.sources.models import list_models\n"
        "list_models(); list_datasets()\n"
        "data = load_dataset('bundled:fashion-mnist').sample(100, seed=0)\n"
        "data.require(input_shape=(1, 28, 28), num_classes=10); data.fingerprint\n"
        "print([name for name in ('torch', 'onnxruntime', 'safetensors.torch') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"clean test": 0.903, "sigma 0.25": 0.5}', "90.30% (clean test), 50.00% (sigma 0.25)"),
        ("0.75", "75.00%"),
        ("good", "good"),
        ('["a"]', '["a"]'),
    ],
)
def test_accuracies_are_said_for_people(text: str, said: str) -> None:
    assert shipped.spoken_accuracy(text) == said
