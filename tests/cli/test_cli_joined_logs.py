"""Two logs of one classifier, certificates and an attack: imported and joined by commands, contradictions counted."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

Call = Callable[..., Any]

PROVED = """idx\tlabel\tpredict\tradius\tcorrect\ttime
0\t3\t3\t0.7\t1\t0:00:14.1
1\t8\t8\t0.6\t1\t0:00:14.1
2\t8\t-1\t0.0\t0\t0:00:14.1
3\t2\t5\t0.6\t0\t0:00:14.1
4\t2\t2\t0.3\t1\t0:00:14.1
5\t1\t1\t0.4\t1\t0:00:14.1
6\t1\t1\t0.9\t1\t0:00:14.1
7\t1\t1\t0.45\t1\t0:00:14.1
"""
"""Of 0, 1, 3 and 6 a ball beyond .5 is proved, of 3 for a wrong class; 7 is not attacked."""

FOUND = """idx\tlabel\tpredict\tbasePredict\tcorrect\ttime
0\t3\t3\t2\t1\t0:00:17.1
1\t8\t-1\t2\t0\t0:00:17.1
2\t8\t2\t2\t0\t0:00:17.1
3\t2\t5\t2\t0\t0:00:17.1
4\t2\t1\t1\t0\t0:00:17.1
5\t1\t1\t1\t1\t0:00:17.1
9\t1\t1\t1\t1\t0:00:17.1
"""
"""At l2 .5: 0 and 5 stand, 1 abstains, 2, 3 and 4 are of another class; 9 is not certified."""


def lines_of(path: Path) -> list[dict[str, str]]:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    header, *rows = text.splitlines()
    return [dict(zip(header.split("\t"), row.split("\t"), strict=True)) for row in rows]


def counted_by_hand(proved: Path, found: Path, *, size: float) -> list[int]:
    """The inputs whose certified ball holds an answer of another class: every line of one with every of the other."""
    against, certified = [], lines_of(proved)
    for above in lines_of(found):
        for below in certified:
            if below["idx"] != above["idx"] or "-1" in (below["predict"], above["predict"]):
                continue
            if below["predict"] != above["predict"] and float(below["radius"]) > size:
                against.append(int(below["idx"]))
    return sorted(against)


def scaled(log: Path, factor: float, to: Path) -> Path:
    rows = lines_of(log)
    for row in rows:
        row["radius"] = repr(factor * float(row["radius"]))
    to.write_text("\n".join("\t".join(row) for row in ([*rows[0]], *(row.values() for row in rows))) + "\n")
    return to


def contradicted(said: Any) -> list[int]:
    rows = said.json["joined"]["brackets"]["contradictions"]["records"]
    assert all(row["certificate"]["index"] == row["attempt"]["index"] for row in rows)
    return sorted(row["certificate"]["index"] for row in rows)


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    Path("proved.tsv").write_text(PROVED)
    Path("found.tsv").write_text(FOUND)
    return Path("proved.tsv"), Path("found.tsv")


def brought_in(calipers: Call, proved: Path, found: Path, *words: str) -> None:
    assert calipers("import", proved, "--target", "net", "--run", "c.sqlite").code == 0
    said = calipers("import", found, "--attacked", "l2:0.5", "--target", "net", "--run", "a.sqlite", *words)
    assert said.code == 0


def test_predictions_under_attack_are_attempts_of_the_size_that_was_allowed(
    calipers: Call, logs: tuple[Path, Path]
) -> None:
    said = calipers(
        "import", "found.tsv", "--attacked", "l2:8/255", "--target", "net", "--run", "a.sqlite", "--json"
    )
    assert said.code == 0
    assert any("'net' is your word" in note for note in said.json["notes"])
    assert said.json["attack"]["robust_accuracy"] == 3 / 7
    rows = calipers("show", "a.sqlite", "--inputs", "--json").json["inputs"]
    assert [row["success"] for row in rows] == [False, False, True, True, True, False, False]
    assert [row["undetermined"] for row in rows] == [False, True, False, False, False, False, False]
    assert [row["wins"] for row in rows] == [0, 0, 1, 1, 1, 0, 0]
    for row in rows:
        assert (row["draws"], row["target"]) == (1, "named:net")
        assert Fraction(row["distance"]) >= Fraction(8, 255) > Fraction(8 / 255), "rounded up"
        assert row["distance"] == pytest.approx(8 / 255, rel=1e-15)
        assert row["eps"] == 8 / 255
        assert row["reason"] == "imported: the distance is the size that was allowed, an upper bound"
        assert "log's author" in row["judge"]
    again = calipers("import", "found.tsv", "--attacked", "l2:8/255", "--target", "net", "--run", "a.sqlite")
    assert again.code == 0
    assert "wrong already" not in again.out, "the log does not say it"
    assert "cost an input" not in again.out
    assert "precision" not in again.out


def test_two_logs_are_joined_on_the_inputs_of_both(calipers: Call, logs: tuple[Path, Path]) -> None:
    brought_in(calipers, *logs)
    said = calipers("show", "c.sqlite", "a.sqlite", "--json")
    assert said.code == 0
    joined = said.json["joined"]
    assert (joined["inputs"], joined["only_certified"], joined["only_attacked"]) == (6, 2, 1)
    assert joined["eps"] == 0.5
    assert joined["certified"]["value"] == 2 / 6, "0 and 1; 3 is proved of a wrong class"
    assert joined["standing"]["value"] == 2 / 6, "0 and 5"
    assert joined["undetermined"] == 1
    assert contradicted(said) == counted_by_hand(*logs, size=0.5) == []
    text = calipers("show", "a.sqlite", "c.sqlite").out
    assert "certified at l2 0.5  33.33 % at least" in text
    assert "attacked at l2 0.5   33.34 % to 50.00 % at most" in text
    assert "left out             2 only certified, 1 only attacked" in text
    assert "'net', is the word of who imported the logs" in text


def test_a_contradiction_of_two_logs_is_exit_code_1(calipers: Call, logs: tuple[Path, Path]) -> None:
    proved, found = logs
    larger = scaled(proved, 2.0, Path("larger.tsv"))
    by_hand = counted_by_hand(larger, found, size=0.5)
    assert by_hand == [4], "1 abstains under attack and 2 without, 3 keeps its wrong class"
    brought_in(calipers, larger, found)
    said = calipers("show", "c.sqlite", "a.sqlite", "--json")
    assert said.code == 1
    assert contradicted(said) == by_hand
    spoken = calipers("show", "c.sqlite", "a.sqlite")
    assert spoken.code == 1
    assert "1 of 6 inputs contradict their certificate" in spoken.complaint
    assert "input 4: class 2 proved below l2 radius 0.6" in spoken.out


def test_the_largest_of_several_attacks_counts(calipers: Call, logs: tuple[Path, Path]) -> None:
    brought_in(calipers, *logs)
    other = "idx\tlabel\tpredict\n0\t3\t3\n5\t1\t7\n1\t8\t8\n"
    Path("other.tsv").write_text(other)
    assert (
        calipers("import", "other.tsv", "--attacked", "l2:0.5", "--target", "net", "--run", "b.sqlite").code
        == 0
    )
    joined = calipers("show", "c.sqlite", "a.sqlite", "b.sqlite", "--json").json["joined"]
    assert joined["standing"]["value"] == 1 / 6, "0 alone: 5 falls to the other, and 1 stays undetermined"
    assert joined["inputs"] == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("found.tsv", "--attacked", "0.5"), "'0.5' has no size"),
        (("found.tsv", "--attacked", "l7:0.5"), "l7"),
        (("found.tsv", "--attacked", "l2:-1"), "negative"),
        (("found.tsv", "--attacked", "l2:0.5", "--norm", "linf"), "norm is linf"),
        (("found.tsv", "--attacked", "l2:0.5", "--alpha", "1.5"), "alpha is 1.5"),
        (("proved.tsv", "--attacked", "l2:0.5"), "has radii"),
        (("bare.tsv", "--attacked", "l2:0.5"), "has no labels"),
        (("unknown.tsv", "--attacked", "l2:0.5"), "line 2: label is -1"),
    ],
)
def test_an_attack_log_that_makes_no_sense_is_one_line_and_leaves_no_file(
    calipers: Call, logs: tuple[Path, Path], words: tuple[str, ...], said: str
) -> None:
    Path("bare.tsv").write_text("idx\tpredict\n0\t3\n")
    Path("unknown.tsv").write_text("idx\tlabel\tpredict\n0\t-1\t3\n")
    found = calipers("import", *words)
    assert found.code == 2
    assert said in found.complaint
    assert not list(Path().rglob("*.sqlite"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--attacked", "l2:0.5"), "several values of target"),
        (("--attacked", "l2:0.5", "--target", "another"), "several values of target"),
        (("--attacked", "linf:0.5", "--target", "net"), "several values of norm"),
    ],
)
def test_logs_of_different_classifiers_or_norms_are_not_joined(
    calipers: Call, logs: tuple[Path, Path], words: tuple[str, ...], said: str
) -> None:
    assert calipers("import", "proved.tsv", "--target", "net", "--run", "c.sqlite").code == 0
    assert calipers("import", "found.tsv", *words, "--run", "a.sqlite").code == 0
    found = calipers("show", "c.sqlite", "a.sqlite")
    assert found.code == 2
    assert said in found.complaint


def test_logs_of_other_inputs_are_not_joined(calipers: Call, logs: tuple[Path, Path]) -> None:
    brought_in(calipers, *logs)
    Path("other.tsv").write_text("idx\tlabel\tpredict\n70\t3\t3\n")
    Path("label.tsv").write_text("idx\tlabel\tpredict\n0\t4\t3\n")
    for name, said in (
        ("other", "no input has a certificate and an attempt"),
        ("label", "input 0 has the label"),
    ):
        run = f"{name}.sqlite"
        words = ("--attacked", "l2:0.5", "--target", "net", "--run", run)
        assert calipers("import", f"{name}.tsv", *words).code == 0
        found = calipers("show", "c.sqlite", run)
        assert found.code == 2
        assert said in found.complaint
    assert "leave it out" in calipers("show", "c.sqlite", "a.sqlite", "--radii", "0,0.5").complaint


@pytest.fixture
def published(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    folder = data_folder / "smoothing-logs"
    if not folder.is_dir():
        pytest.skip("the logs of smoothing-logs are not there")
    monkeypatch.chdir(tmp_path)
    return (
        folder / "cifar10-resnet110-sigma0.25-certify.tsv.gz",
        folder / "cifar10-resnet110-l2-0.500-smoothpgd-num_128-predict.tsv.gz",
    )


def test_published_certificates_and_a_published_attack_agree(
    calipers: Call, published: tuple[Path, Path]
) -> None:
    """ResNet-110 on CIFAR-10 at sigma .25 against SmoothPGD with 128 draws at l2 .5 (Salman et al. 2019).

    The certificates are of all 10 000 test images (.4225 at .5), the attack of every twentieth of them: .428 and .536
    are of those 500.
    """
    brought_in(calipers, *published)
    said = calipers("show", "c.sqlite", "a.sqlite", "--json")
    assert said.code == 0
    joined = said.json["joined"]
    attacked = [int(row["idx"]) for row in lines_of(published[1])]
    assert attacked == list(range(0, 10_000, 20))
    assert (joined["inputs"], joined["only_certified"], joined["only_attacked"]) == (500, 9500, 0)
    assert (joined["certified"]["value"], joined["standing"]["value"]) == (0.428, 0.536)
    assert joined["undetermined"] == 3
    assert contradicted(said) == counted_by_hand(*published, size=0.5) == []
    (whole,) = calipers("show", "c.sqlite", "--radii", "0.5", "--json").json["summary"]["certified_accuracy"]
    assert whole["accuracy"] == 0.4225


def test_published_radii_that_are_inflated_contradict_the_published_attack(
    calipers: Call, published: tuple[Path, Path]
) -> None:
    proved, found = published
    larger = scaled(proved, 1.5, Path("larger.tsv"))
    by_hand = counted_by_hand(larger, found, size=0.5)
    assert by_hand == [40, 1660, 4640, 6980, 9620]
    brought_in(calipers, larger, found)
    said = calipers("show", "c.sqlite", "a.sqlite", "--json")
    assert said.code == 1, "with which probability the judge errs the log does not say: nothing is excused"
    assert contradicted(said) == by_hand
    assert math.isclose(said.json["joined"]["eps"], 0.5)


def test_chance_may_explain_a_few_contradictions_where_both_alphas_are_known(
    calipers: Call, published: tuple[Path, Path]
) -> None:
    proved, found = published
    words = ("--target", "net", "--alpha", "0.001", "--run")
    assert calipers("import", found, "--attacked", "l2:0.5", *words, "a.sqlite").code == 0
    for factor, code in {1.5: 0, 2.0: 1}.items():
        larger = scaled(proved, factor, Path(f"larger-{factor}.tsv"))
        assert calipers("import", larger, *words, f"c{factor}.sqlite").code == 0
        said = calipers("show", f"c{factor}.sqlite", "a.sqlite", "--json")
        told = said.json["joined"]["brackets"]["contradictions"]
        assert told["allowed"] == 5, "of Bin(500, .002) except with probability .001"
        assert told["rate"] == 0.002
        assert contradicted(said) == counted_by_hand(larger, found, size=0.5)
        assert said.code == code
