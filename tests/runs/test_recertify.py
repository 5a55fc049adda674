"""Recertifying: another question of stored counts gives what a run with that question would have given."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calipers.certificates.smoothing.certifier import SoftCertifier, VoteCertifier
from calipers.certificates.smoothing.plan import ExecutionPlan
from calipers.certificates.smoothing.stopping import DecideRadii
from calipers.errors import Unsound, UsageError
from calipers.evidence.records import Certificate
from calipers.runs.descriptions import changed
from calipers.runs.exports import export
from calipers.runs.measure import measure, prepare
from calipers.runs.recertify import recertify
from calipers.runs.run import Progress, carry_out, run
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore

Make = Callable[..., Certificate]


@pytest.fixture
def toy(tmp_path: Path) -> RunSpec:
    generator = np.random.default_rng(3)
    values = generator.integers(0, 256, (12, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=values, y=np.arange(12) % 3)
    return RunSpec(
        kind="certify",
        model="python:toy_network:three_classes",
        data=f"npz:{tmp_path / 'images.npz'}",
        method=repr(VoteCertifier(n=400)),
        norm="l2",
        noise="Gaussian(sigma=0.25)",
        votes="hard",
    )


def measured(spec: RunSpec) -> RunStore:
    store = RunStore.in_memory(spec)
    store.settle({"plan": ExecutionPlan(100, channels_last=False).to_json()})  # none is measured
    run(spec, store, trust_code=True)
    return store


def timeless(rows: list[Certificate]) -> list[Certificate]:
    return [replace(row, seconds=0.0) for row in rows]


def test_a_reading_of_counts_equals_a_run_with_that_question(toy: RunSpec) -> None:
    with measured(toy) as store:
        found = recertify(store, alpha=0.05, bound="one-sided")
    asked = replace(toy, method=repr(VoteCertifier(n=400, alpha=0.05, bound="one-sided")))
    with measured(asked) as store:
        assert timeless(found.certificates) == timeless(store.certificates())
    assert found.spec.method == asked.method
    assert any(row.radius > 0 for row in found.certificates)


def test_a_reading_of_mean_scores_equals_a_run_with_that_question(toy: RunSpec) -> None:
    soft = replace(toy, method=repr(SoftCertifier(n=400, lemma="lemma-1")), votes="soft", norm="linf")
    with measured(soft) as store:
        found = recertify(store, alpha=0.05, bound="hoeffding")
    asked = replace(
        soft, method=repr(SoftCertifier(n=400, lemma="lemma-1", alpha=0.05, mean_bound="hoeffding"))
    )
    with measured(asked) as store:
        assert timeless(found.certificates) == timeless(store.certificates())


def test_the_same_question_gives_the_same_certificates_also_in_another_norm(toy: RunSpec) -> None:
    with measured(replace(toy, norm="linf")) as store:
        assert recertify(store).certificates == store.certificates()


def test_counts_that_stopped_early_are_read_by_anytime_bounds_alone(toy: RunSpec) -> None:
    early = replace(toy, method=repr(VoteCertifier(n=2000, stopping=DecideRadii((0.1,)))))
    with measured(early) as store:
        rows = store.certificates()
        assert min(row.samples for row in rows) < 2000
        assert recertify(store).certificates == rows
        looser = recertify(store, alpha=0.05).certificates
        assert all("anytime" in row.theorem for row in looser)
        assert sum(row.radius for row in looser) > sum(row.radius for row in rows)
        with pytest.raises(Unsound, match="DecideRadii"):
            recertify(store, alpha=0.05, validity="fixed")


def test_a_fixed_run_may_be_read_by_the_weaker_anytime_bound(toy: RunSpec) -> None:
    with measured(toy) as store:
        weaker = recertify(store, validity="anytime")
        assert all(
            a.radius <= b.radius for a, b in zip(weaker.certificates, store.certificates(), strict=True)
        )
        assert weaker.spec.hash != recertify(store).spec.hash, "the two readings cannot share a file"


def test_counts_cut_short_of_their_budget_are_refused(spec: RunSpec, certificate: Make) -> None:
    short = certificate(1, counts=(0, 0, 0, 900, 50, 0, 0, 0, 0, 0, 0), samples=950)
    with RunStore.in_memory(spec) as store:
        store.append([Measured("0" * 32, [short])])
        with pytest.raises(Unsound, match="1000 samples that were declared"):
            recertify(store)


def test_what_was_imported_without_counts_is_refused_with_the_reason(
    spec: RunSpec, certificate: Make
) -> None:
    with RunStore.in_memory(spec) as store:
        store.append([Measured("0" * 32, [certificate(4, counts=(), selection=(), p_lower=math.nan)])])
        with pytest.raises(UsageError, match="input 4 has no counts"):
            recertify(store)


def test_an_empty_run_is_refused(spec: RunSpec) -> None:
    with RunStore.in_memory(spec) as store, pytest.raises(UsageError, match="no certificates"):
        recertify(store)


@pytest.mark.parametrize(
    ("alpha", "bound", "validity"),
    [(0.0, None, None), (1.5, None, None), (None, "three-sided", None), (None, None, "sometimes")],
)
def test_a_question_that_means_nothing_is_refused(
    spec: RunSpec, certificate: Make, alpha: float | None, bound: str | None, validity: str | None
) -> None:
    with RunStore.in_memory(spec) as store:
        store.append([Measured("0" * 32, [certificate(1, counts=(0, 0, 0, 900, 50, 50, 0, 0, 0, 0, 0))])])
        with pytest.raises(UsageError):
            recertify(store, alpha=alpha, bound=bound, validity=validity)


def test_a_reading_is_saved_as_a_run_of_its_own(tmp_path: Path, toy: RunSpec) -> None:
    with measured(toy) as source:
        before = source.certificates()
        found = recertify(source, alpha=0.01)
        assert source.certificates() == before
    with RunStore.open(tmp_path / "new.run", found.spec) as store:
        assert found.save(store) == 12
        assert found.save(store) == 0
        assert store.certificates() == found.certificates
        assert store.facts()["target"] == found.facts["target"]
        assert recertify(store, alpha=0.001).certificates == before, "a reading can be read again"
    with RunStore.in_memory(toy) as other, pytest.raises(UsageError, match="another specification"):
        found.save(other)


def test_the_changed_method_is_the_method_with_the_change() -> None:
    method = VoteCertifier(n0=7, n=1000, stopping=DecideRadii((0.1 + 0.2, 1e-5)))
    text = changed(repr(method), {"alpha": 1e-7, "bound": "one-sided"})
    assert text == repr(replace(method, alpha=1e-7, bound="one-sided"))
    with pytest.raises(UsageError, match="no field colour"):
        changed(repr(method), {"colour": 1})


def test_no_torch_is_loaded(tmp_path: Path, toy: RunSpec) -> None:
    with measured(toy) as source, RunStore.open(tmp_path / "a.run", toy) as store:
        store.append(Measured(f"{row.index:032x}", [row]) for row in source.certificates())
    code = (
        "import sys\nfrom calipers.runs.recertify import recertify\nfrom calipers.runs.store import RunStore\n"
        f"assert len(recertify(RunStore.read({str(tmp_path / 'a.run')!r}), alpha=0.01).certificates) == 12\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_reading_of_an_unfinished_run_is_unfinished(tmp_path: Path, toy: RunSpec) -> None:
    with RunStore.in_memory(toy) as store:
        store.settle({"plan": ExecutionPlan(100, channels_last=False).to_json()})  # none is measured
        prepared = prepare(toy, store, trust_code=True)
        with pytest.raises(KeyboardInterrupt):
            carry_out(prepared.tasks, store, measure, prepared.bench, on_progress=_stop_after(5))
        done = len(store)
        assert 0 < done < 12
        found = recertify(store, alpha=0.05)
    path = tmp_path / "reading.run"
    with RunStore.open(path, found.spec) as saved:
        assert found.save(saved) == done
        assert found.save(saved) == 0
        assert saved.progress() == (done, 12)
        assert [sitting.event for sitting in saved.sittings()] == ["recertified"]
        export(saved, tmp_path / "reading.json", to="json")
    exported = json.loads((tmp_path / "reading.json").read_text())
    assert (exported["done"], exported["total"]) == (done, 12)
    with measured(toy) as store:
        whole = recertify(store)
    with RunStore.in_memory(whole.spec) as saved:
        whole.save(saved)
        assert saved.progress() == (12, 12)


def _stop_after(inputs: int) -> Callable[[Progress], None]:
    def stop(at: Progress) -> None:
        if at.fresh >= inputs:
            raise KeyboardInterrupt

    return stop
