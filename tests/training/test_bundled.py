"""The networks that ship do what their cards say, on the images that ship."""

import json
from pathlib import Path

import pytest
import torch

import calipers
from calipers.attacks.pgd import PGD
from calipers.certificates.lipschitz.margin import certify_margins
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.sources.shipped import metadata, shipped_file
from calipers.threat.threat_model import Norm, ThreatModel

ADVERSARIAL = "fashion-cnn28-adversarial"
LIPSCHITZ = ("fashion-lipschitz", "cifar10-lipschitz")
NAMES = ("fashion-cnn28-plain", "fashion-cnn28-noise-0.25", "fashion-cnn28-noise-0.50")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_network_is_as_accurate_as_its_metadata_say(name: str) -> None:
    told = metadata(shipped_file(name, suffix=".safetensors", what="model"))
    sigma = float(told["sigma"])
    claims = {key.split(", ")[1]: value for key, value in json.loads(told["accuracy"]).items()}
    data = load_dataset("bundled:fashion-mnist")
    target = load_model(f"bundled:{name}")
    images = torch.stack([torch.from_numpy(data.pixels.read(index)) for index in range(1000)])
    labels = torch.tensor(data.labels)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for key, scale in {"clean": 0.0, f"noise sigma {sigma:g}": sigma}.items():
        if key not in claims:
            continue
        answers = torch.cat([target.predict(part) for part in torch.split(images + scale * noise, 250)])
        measured = (answers == labels).double().mean().item()
        assert measured == pytest.approx(claims[key], abs=0.035)  # three standard errors of 1 000 images


def test_the_shipped_lipschitz_network_certifies_what_its_metadata_say() -> None:
    told = metadata(shipped_file("fashion-lipschitz", suffix=".safetensors", what="model"))
    claims = {key.split(", ")[1]: value for key, value in json.loads(told["accuracy"]).items()}
    assert claims["clean"] >= 0.88
    assert claims["certified at l2 0.25"] >= 0.79
    data = load_dataset("bundled:fashion-mnist")
    target = load_model("bundled:fashion-lipschitz")
    bound = lipschitz_upper_bound(target.module, target.input_shape)
    images = torch.stack([torch.from_numpy(data.pixels.read(index)) for index in range(1000)])
    with torch.inference_mode():
        margins = certify_margins(target.module(images).double().numpy(), bound.differences, slack=1e-5)
    right = margins.prediction == data.labels
    assert right.mean() == pytest.approx(claims["clean"], abs=0.035)
    assert (right & (margins.radius >= 0.25)).mean() == pytest.approx(
        claims["certified at l2 0.25"], abs=0.035
    )


def test_the_network_trained_under_attack_withstands_what_its_metadata_say() -> None:
    told = metadata(shipped_file(ADVERSARIAL, suffix=".safetensors", what="model"))
    claims = {key.split(", ")[1]: value for key, value in json.loads(told["accuracy"]).items()}
    data = load_dataset("bundled:fashion-mnist")
    images = torch.stack([torch.from_numpy(data.pixels.read(index)) for index in range(200)])
    labels = torch.tensor(data.labels[:200])
    withstood = {}
    for name in (ADVERSARIAL, "fashion-cnn28-plain"):
        found = PGD(steps=10)(
            load_model(f"bundled:{name}"), images, labels, ThreatModel(Norm.LINF, 0.1), seed=0
        )
        withstood[name] = (~found.success).double().mean().item()
    claimed = claims["PGD-40 within linf 0.1"]
    assert withstood[ADVERSARIAL] == pytest.approx(claimed, abs=0.09)  # three standard errors of 200 images
    assert withstood["fashion-cnn28-plain"] < 0.02
    assert claims["clean"] > claimed > 0.7


@pytest.mark.parametrize("name", LIPSCHITZ)
def test_the_constant_on_the_card_of_a_shipped_lipschitz_network_is_what_its_weights_prove(name: str) -> None:
    path = shipped_file(name, suffix=".safetensors", what="model")
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    target = load_model(f"bundled:{name}")
    proved = lipschitz_upper_bound(target.module, target.input_shape).upper
    assert 0.99 < proved <= card["lipschitz_upper_bound"] * (1 + 1e-6)
    assert proved < 1.05


def test_all_checkpoints_that_ship_are_under_12_megabytes_together() -> None:
    sizes = [path.stat().st_size for path in Path(calipers.__file__).parent.rglob("*.safetensors")]
    assert len(sizes) >= 18
    assert sum(sizes) < 12_000_000


@pytest.mark.parametrize("name", (*NAMES, *LIPSCHITZ, ADVERSARIAL))
def test_a_card_and_the_metadata_of_the_weights_agree(name: str) -> None:
    path = shipped_file(name, suffix=".safetensors", what="model")
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    told = metadata(path)
    assert card["accuracy"] == json.loads(told["accuracy"])
    assert card["images"] == (50_000 if name.startswith("cifar10") else 60_000)
    for field, value in card["recipe"].items():
        assert f"{field}={value!r}" in told["recipe"]
