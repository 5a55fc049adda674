"""The bench: what a specification refers to is loaded once, and not sent to another process."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_network

from calipers.runs.bench import Bench
from calipers.runs.spec import RunSpec


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    values = np.random.default_rng(3).integers(0, 256, (9, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=values, y=np.arange(9) % 3)
    return RunSpec(
        kind="certify",
        model="python:toy_network:three_classes",
        data=f"npz:{tmp_path / 'images.npz'}",
        method="VoteCertifier()",
        norm="l2",
        noise="Gaussian(sigma=0.25)",
        votes="hard",
        skip=2,
        limit=5,
    )


def test_the_measured_classifier_is_smoothed_and_the_base_is_not(spec: RunSpec) -> None:
    subject = Bench(spec, device="cpu", trust_code=True).subject()
    assert subject.target.fingerprint != subject.base.fingerprint
    assert subject.target.fingerprint in subject.identity
    assert [example.index for example in subject.data] == [2, 3, 4, 5, 6]


def test_inputs_have_the_place_label_and_digest_of_the_data_set(spec: RunSpec) -> None:
    rows = Bench(spec, device="cpu", trust_code=True).inputs()
    assert [(index, label) for index, label, _ in rows] == [(2, 2), (3, 0), (4, 1), (5, 2), (6, 0)]
    assert len({digest for _, _, digest in rows}) == 5


def test_the_clean_answers_that_are_right_are_those_of_the_base(spec: RunSpec) -> None:
    bench = Bench(spec, device="cpu", trust_code=True)
    images = torch.stack([torch.from_numpy(example.image) for example in bench.subject().data])
    found = toy_network.three_classes()(images).argmax(1).tolist()
    right = sum(one == label for one, (_, label, _) in zip(found, bench.inputs(), strict=True))
    assert 0 < right < 5
    assert bench.clean_correct() == right
    assert bench.clean_wrong() == tuple(
        index for one, (index, label, _) in zip(found, bench.inputs(), strict=True) if one != label
    )


def test_another_process_gets_the_inputs_and_loads_the_model_for_itself(spec: RunSpec) -> None:
    bench = Bench(spec, device="cpu", trust_code=True)
    bench.inputs()
    sent = pickle.loads(pickle.dumps(bench))
    assert sent._subject is None
    assert sent._inputs == bench.inputs()
    assert sent.subject().identity == bench.subject().identity


def test_a_bench_beside_another_shares_what_is_loaded(spec: RunSpec) -> None:
    bench = Bench(spec, device="cpu", trust_code=True)
    bench.inputs()
    other = bench.aside(replace(spec, method="VoteCertifier(n=200)"))
    assert other.subject() is bench.subject()
    assert other.inputs() is bench.inputs()
