"""Reading the field's logs: its real one gives the published numbers, a damaged one is named by its line."""

from __future__ import annotations

import gzip
import math
from dataclasses import replace
from pathlib import Path

import pytest

from calipers.errors import InvalidInput, MissingFile, UsageError
from calipers.evidence.curves import certified_curve
from calipers.evidence.records import Certificate, Prediction
from calipers.report.summary import summarize
from calipers.runs.cohen_log import ImportedLog, read_log
from calipers.runs.recertify import recertify
from calipers.runs.store import RunStore

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "log.tsv"
    path.write_text(text)
    return path


def certificates(log: ImportedLog) -> list[Certificate]:
    return [row for row in log.records if isinstance(row, Certificate)]


@pytest.fixture
def real(data_folder: Path) -> Path:
    path = data_folder / "smoothing-logs" / "cifar10-resnet110-sigma0.25-certify.tsv.gz"
    if not path.exists():
        pytest.skip("the certification log of smoothing-logs is not there")
    return path


def test_the_real_log_gives_the_published_accuracies_and_its_alpha(tmp_path: Path, real: Path) -> None:
    log = read_log(real)
    assert log.recovered is not None
    assert (log.recovered.sigma, log.recovered.n, log.recovered.alpha) == (0.25, 100_000, 0.001)
    with RunStore.open(tmp_path / "a.run", log.spec) as store:
        assert log.save(store) == 10_000
        assert log.save(store) == 0
    with RunStore.read(tmp_path / "a.run") as store:
        summary = summarize(store.certificates(), radii=[0, 0.25, 0.5, 0.75], spec=store.spec)
    assert [point.accuracy for point in summary.curve.points] == [0.7665, 0.6116, 0.4225, 0.2506]
    assert summary.curve.abstentions == 795
    assert [row[1] for row in summary.table().rows] == ["76.65", "61.16", "42.25", "25.06"]
    assert summary.curve.expected_failures == 10


def test_the_real_log_of_predictions_is_read(real: Path) -> None:
    log = read_log(real.with_name("cifar10-resnet110-l2-0.500-smoothpgd-num_128-predict.tsv.gz"))
    assert all(isinstance(row, Prediction) for row in log.records)
    assert len(log.records) == 500
    assert (log.records[1].index, log.records[1].label, log.records[1].prediction) == (20, 7, 5)
    assert log.recovered is None
    correct = sum(isinstance(row, Prediction) and row.correct for row in log.records)
    assert correct / 500 == pytest.approx(0.536)


def test_every_field_is_read_and_what_is_unknown_stays_so(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "3\t7\t7\t0.377\t1\t0:00:14.172309\n9\t2\t-1\t0.0\t0\t15.4\n")
    first, second = certificates(read_log(path))
    assert (first.index, first.label, first.prediction, first.radius) == (3, 7, 7, 0.377)
    assert (first.seconds, second.seconds) == (14.172309, 15.4)
    assert second.abstained
    assert math.isnan(first.alpha)
    assert math.isnan(first.p_lower)
    assert (first.counts, first.samples, first.budget, first.noise, first.bound) == ((), 0, 0, "", "unknown")


def test_what_the_user_knows_is_recorded(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "3\t7\t7\t0.377\t1\t1\n")
    log = read_log(path, sigma=0.25, n=1000, alpha=0.01, model="a network", data="CIFAR-10")
    (row,) = certificates(log)
    assert (row.noise, row.budget, row.alpha, row.bound) == ("Gaussian(sigma=0.25)", 1000, 0.01, "unknown")
    assert (log.spec.model, log.spec.data, log.spec.kind) == ("a network", "CIFAR-10", "import")


@pytest.mark.parametrize(
    "text",
    [
        "idx\tlabel\tpredict\tradius\tcorrect\ttime\n3\t7\t7\t0.5\t1\t1 day, 0:00:01\n",
        "\ufeffIDX\tlabel\tPredict\tradius\n3\t7\t7\t0.5\n\n",
        "idx\tlabel\tpredict\tradius\r\n3\t7\t7\t0.5\r\n",
        "radius\tpredict\tlabel\tidx\textra\n0.5\t7\t7\t3\tx\n",
        "idx\tlabel\tpredict\tradius\tcorrect\n3\t7\t7\t5e-1\tTrue\n",
    ],
)
def test_variants_of_the_format_are_read(tmp_path: Path, text: str) -> None:
    (row,) = certificates(read_log(write(tmp_path, text)))
    assert (row.index, row.label, row.prediction, row.radius) == (3, 7, 7, 0.5)


def test_days_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "3\t7\t7\t0.5\t1\t2 days, 1:00:01.5\n")
    assert certificates(read_log(path))[0].seconds == 2 * 86400 + 3601.5


def test_a_compressed_log_is_known_by_its_content_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_bytes(gzip.compress((HEADER + "3\t7\t7\t0.5\t1\t1\n").encode()))
    assert certificates(read_log(path))[0].index == 3


def test_without_labels_nothing_is_correct(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "idx\tpredict\tradius\n3\t7\t0.5\n"))
    assert certificates(log)[0].label == -1
    assert any("no labels" in note for note in log.notes)
    assert certified_curve(certificates(log), [0.5]).points[0].accuracy is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (HEADER, "no lines"),
        ("a,b,c\n1,2,3\n", "expected idx"),
        ("idx\tradius\n1\t0.5\n", "expected idx"),
        ("idx\tidx\tpredict\n1\t1\t2\n", "each once"),
        (HEADER + "1\t2\t2\t0.5\t1\t1\n2\t2\t2\n", "line 3: 3 columns and not 6"),
        (HEADER + "1\t2\t2\tnan\t0\t1\n", "line 2: radius is 'nan'"),
        (HEADER + "1\t2\t2\t-0.5\t1\t1\n", "line 2: radius is '-0.5'"),
        (HEADER + "1\t2\t2\tinf\t1\t1\n", "line 2: radius is 'inf'"),
        (HEADER + "1\t2\t2\tlarge\t1\t1\n", "line 2: radius is 'large'"),
        (HEADER + "x\t2\t2\t0.5\t1\t1\n", "line 2: index is 'x'"),
        (HEADER + "1\t2\t-2\t0.5\t0\t1\n", "line 2: prediction is '-2'"),
        (HEADER + "1\t2\t2\t0.5\t0\t1\n", "line 2: correct is '0'"),
        (HEADER + "1\t2\t-1\t0.5\t0\t1\n", "line 2: radius is 0.5 for an abstention"),
        (HEADER + "1\t2\t2\t0.5\t1\tlate\n", "line 2: time is 'late'"),
        (HEADER + "1\t2\t2\t0.5\t1\t1\n1\t2\t2\t0.5\t1\t1\n", "input 1 twice"),
    ],
)
def test_a_damaged_log_is_refused_and_the_line_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_log(write(tmp_path, text))
    assert says in str(caught.value)


def test_a_log_that_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv.gz"
    path.write_bytes(gzip.compress(HEADER.encode() * 100)[:60])
    with pytest.raises(InvalidInput, match="complete"):
        read_log(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="text"):
        read_log(path)
    with pytest.raises(MissingFile):
        read_log(tmp_path / "nowhere.tsv")


def test_a_claim_that_the_radii_contradict_is_refused(tmp_path: Path, real: Path) -> None:
    with pytest.raises(UsageError, match="lie on the lattice of alpha = 0.001"):
        read_log(real, alpha=0.01)
    path = write(tmp_path, HEADER + "3\t7\t7\t0.96\t1\t1\n")
    with pytest.raises(UsageError, match=r"allow at most 0\.953"):
        read_log(path, sigma=0.25, n=100_000, alpha=0.001)


def test_an_imported_log_is_not_recertified(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, HEADER + "3\t7\t7\t0.377\t1\t1\n"), sigma=0.25, n=1000, alpha=0.01)
    with RunStore.in_memory(log.spec) as store:
        log.save(store)
        with pytest.raises(UsageError, match="input 3 has no counts"):
            recertify(store, alpha=0.05)


def test_two_logs_do_not_share_a_file(tmp_path: Path) -> None:
    first = read_log(write(tmp_path, HEADER + "3\t7\t7\t0.377\t1\t1\n"))
    second = read_log(write(tmp_path, HEADER + "3\t7\t7\t0.378\t1\t1\n"))
    with RunStore.in_memory(first.spec) as store, pytest.raises(UsageError, match="another specification"):
        second.save(store)
    assert second.records[0].target != first.records[0].target
    assert replace(second.spec, source="") == replace(first.spec, source="")
