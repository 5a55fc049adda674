"""The documentation's pictures: what they show is true, and each is made by its command."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.special import ndtr

pytest.importorskip("matplotlib", reason="the pictures need matplotlib, which the extra `docs` brings")

ROOT = Path(__file__).resolve().parent.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calipers_pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pictures = _load()


@pytest.mark.parametrize(
    "name",
    [
        "noise",
        "regions",
        "convolution",
        "two-jaws",
        "depth",
        "bridge",
        "shattered",
        "stochastic",
        "exploding",
    ],
)
def test_each_picture_is_made_by_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "DRAWS", 100)
    monkeypatch.setattr(pictures, "DEPTHS", (1, 2, 3))
    monkeypatch.setattr(pictures, "BRIDGE_IMAGES", 5)
    monkeypatch.setattr(pictures, "BRIDGE_DRAWS", 200)
    pictures.main([name, "-o", str(tmp_path)])
    data = (tmp_path / f"{name}.png").read_bytes()
    width = int.from_bytes(data[16:20], "big")
    assert data.startswith(b"\x89PNG") and width >= 1500
    assert len(data) > 15_000
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]


def test_every_picture_is_shown_in_a_page_and_lies_beside_it() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "theory").glob("*.md")]
    shown = set()
    for page in pages:
        for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).is_file(), f"{page.name} shows {target}"
            shown.add(Path(target).stem)
    assert shown == set(pictures.PICTURES)


def test_an_unknown_picture_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        pictures.main(["nosuch", "-o", str(tmp_path)])
    assert "'nosuch'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_radius_of_the_regions_is_inside_the_smoothed_region() -> None:
    found = pictures.survey_regions()
    assert found.certificate.prediction == 0 and found.certificate.radius > 0.1
    axis = np.linspace(-7, 7, 561) * found.sigma
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    classes = pictures.four_regions(grid)
    for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False):
        moved = 0.999 * found.certificate.radius * np.array([np.cos(angle), np.sin(angle)])
        weight = np.exp(-((grid - moved) ** 2).sum(-1) / (2 * found.sigma**2))
        votes = np.bincount(classes.ravel(), weights=weight.ravel(), minlength=4)
        assert votes.argmax() == 0


def test_the_bars_are_bounded_on_the_right_side() -> None:
    found = pictures.survey_regions()
    shares = found.counts / found.counts.sum()
    assert found.certificate.p_lower < shares[0]
    assert found.certificate.p_upper > shares[1:].max()


def test_the_convolution_is_one_and_stays_above_its_cone() -> None:
    found = pictures.smooth_line()
    near = np.array([-1.0, 0.0, 0.9])
    draws = near[:, None] + found.sigma * np.random.default_rng(0).normal(size=(1, 200_000))
    votes = found.known.label(torch.from_numpy(draws.reshape(-1, 1))).numpy().reshape(draws.shape)
    np.testing.assert_allclose(
        np.interp(near, found.axis, found.smoothed), votes.mean(axis=1), atol=4 * 0.5 / np.sqrt(200_000)
    )
    slope = 1 / (np.sqrt(2 * np.pi) * found.sigma)
    assert np.all(found.smoothed >= found.height - slope * np.abs(found.axis - found.point) - 1e-12)


def test_the_three_radii_of_the_convolution_are_ordered_and_true() -> None:
    found = pictures.smooth_line()
    assert 0 < found.by_constant < found.by_theorem < found.true_distance
    assert found.by_constant == pytest.approx((found.height - 0.5) * np.sqrt(2 * np.pi) * found.sigma)
    assert ndtr(found.by_theorem / found.sigma) == pytest.approx(found.height)
    inside = np.abs(found.axis - found.point) < found.by_theorem
    assert np.all(found.smoothed[inside] > 0.5)
    ends = np.interp(found.point + found.true_distance * np.array([-1, 1]), found.axis, found.smoothed)
    assert np.abs(ends - 0.5).min() < 2e-3


def test_constants_by_depth_are_bounds_on_the_right_sides() -> None:
    found = pictures.grow_with_depth((1, 3))
    assert np.all(found.lowers < found.uppers) and np.all(found.uppers < found.products)
    assert (
        np.all(found.lowers > 1)
        and found.lowers[1] > found.lowers[0]
        and found.uppers[1] > 2 * found.uppers[0]
    )
    for depth, product in zip(found.depths, found.products, strict=True):
        layers = [layer.weight.detach().double() for layer in pictures.train_plain(depth)[1::2]]
        norms = [float(torch.linalg.matrix_norm(weight, 2)) for weight in layers]
        assert len(norms) == depth + 1
        assert product == pytest.approx(np.prod(norms), rel=1e-9)


def test_the_radii_of_the_bridge_are_readings_of_the_same_scores() -> None:
    found = pictures.cross_bridge(images=8, draws=400)
    own, loose, tight, lemma_2, votes = found.radii.values()
    assert list(found.radii) == ["network", "lemma-1", "tight-constant", "lemma-2", "theorem-1"]
    np.testing.assert_allclose(loose * 2, tight, rtol=1e-12)
    assert np.all(tight <= lemma_2) and lemma_2.max() > tight.max()
    assert loose.max() < np.sqrt(np.pi / 8) * found.sigma and tight.max() < np.sqrt(np.pi / 2) * found.sigma
    assert 0 < own.max() < 0.02 < votes.max() < 2.2 * found.sigma  # 400 votes prove 2.15 sigma at most


def test_bounds_are_written_outward() -> None:
    assert [pictures._outward(5310.2, up=True), pictures._outward(999.1, up=True)] == ["5,400", "1,000"]
    assert pictures._outward(50.9, up=False) == "50"


def test_votes_shown_are_those_of_the_network() -> None:
    from calipers import Target

    target = Target.from_decisions(
        lambda x: (x.mean(axis=(1, 2, 3)) > 0.5).astype(np.int64),
        num_classes=3,
        input_shape=(1, 4, 4),
        fingerprint="mean above a half",
    )
    image = torch.full((1, 4, 4), 0.5 + 0.25 * 1.2815515655446004 / 4)
    votes = pictures.count_votes(target, image, 1, sigma=0.25, index=3)
    assert votes.correct == pytest.approx(0.9, abs=4 * 0.3 / np.sqrt(1000))
    assert votes.rival == 0 and votes.rival_share == pytest.approx(1 - votes.correct)
    assert pictures.count_votes(target, image, 1, sigma=0.0, index=3).correct == 1.0


def test_shares_are_written_rounded_down() -> None:
    assert [pictures._percent(share) for share in (0.9999, 1.0, 0.29, 0.0)] == [
        "99 %",
        "100 %",
        "29 %",
        "0 %",
    ]
