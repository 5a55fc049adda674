"""What the verbs answer: tables and JSON, the same numbers in both, also of runs in progress and of no labels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.main import get_command

from calipers.cli.measured_run import _part, this_command
from calipers.runs.run import Progress
from calipers.runs.store import Measured, RunStore

Call = Callable[..., Any]


@pytest.fixture
def certified(calipers: Call, workplace: Path, quick: list[str]) -> Path:
    assert calipers(*quick, "--run", "one.sqlite").code == 0
    return Path("one.sqlite")


def test_certify_shows_what_it_will_measure_before_it_measures(
    calipers: Call, workplace: Path, quick: list[str]
) -> None:
    said = calipers(*quick)
    assert said.code == 0
    shown = said.err
    assert re.search(r" 1 thread:|, [2-9]\d* threads:", shown)
    for word in (
        "cli_networks:three_classes",
        "1x4x4",
        "12 of 30",
        "3 classes",
        "Gaussian(sigma=0.25)",
        "fp32",
    ):
        assert word in shown
    assert "plan       cpu fp32 batch=100" in shown
    assert "7,200 forwards" in shown, "12 inputs of 100 + 500 draws"


def test_the_table_says_what_the_records_say(calipers: Call, certified: Path) -> None:
    with RunStore.read(certified) as store:
        rows = store.certificates()
    right = sum(row.correct for row in rows)
    far = sum(row.correct and row.radius >= 0.25 for row in rows)
    text = calipers("show", certified).out
    table = {line.split()[0]: line.split()[-1] for line in text.splitlines() if re.match(r"0(\.\d+)? ", line)}
    assert (table["0"], table["0.25"]) == (str(right), str(far))
    assert f"12 x 0.001 = {12 * 0.001:g} expected" in text
    assert f"{sum(row.abstained for row in rows)} of 12" in text
    payload = calipers("show", certified, "--json").json
    points = {point["radius"]: point["certified"] for point in payload["summary"]["certified_accuracy"]}
    assert (points[0.0], points[0.25]) == (right, far)
    assert payload["summary"]["abstentions"] == sum(row.abstained for row in rows)
    assert (payload["done"], payload["total"], payload["finished"]) == (12, 12, True)


def test_clean_accuracy_stands_beside(calipers: Call, certified: Path) -> None:
    from cli_networks import three_classes

    with np.load("images.npz") as file:
        images, labels = torch.from_numpy(file["x"][:12]).float() / 255, file["y"][:12]
    right = int((three_classes()(images).argmax(1).numpy() == labels).sum())
    assert f"clean accuracy  {right} of 12" in calipers("show", certified).out
    found = calipers("show", certified, "--json").json["clean_accuracy"]
    assert found == {"correct": right, "inputs": 12}


def test_json_is_one_object_and_everything_else_is_on_standard_error(
    calipers: Call, workplace: Path, quick: list[str]
) -> None:
    said = calipers(*quick, "--json")
    assert said.code == 0
    assert said.json["kind"] == "certify"
    assert "plan" in said.err
    silent = calipers(*quick, "--json", "--quiet")
    assert silent.err == ""
    assert silent.json["summary"] == said.json["summary"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("models",),
        ("datasets",),
        ("runs",),
        ("show", "one.sqlite"),
        ("recertify", "one.sqlite"),
        ("runs", "nowhere"),
    ],
)
def test_every_verb_answers_in_json(calipers: Call, certified: Path, arguments: tuple[str, ...]) -> None:
    Path("runs").mkdir()
    said = calipers(*arguments, "--json")
    failed = arguments == ("runs", "nowhere")
    assert said.code == (2 if failed else 0)
    assert ("error" in said.json) is failed


def test_an_error_in_json_has_its_kind_and_its_exit_code(calipers: Call, workplace: Path) -> None:
    said = calipers("show", "nowhere.sqlite", "--json")
    assert said.json["error"]["kind"] == "MissingFile"
    assert said.json["error"]["exit_code"] == said.code == 2
    assert said.json["error"]["message"] in said.complaint


def test_a_fault_of_calipers_is_one_line_too(
    calipers: Call, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a fault\nof two lines")

    monkeypatch.setattr("calipers.runs.catalog.list_models", broken)
    said = calipers("models")
    assert said.code == 2
    assert (
        said.complaint
        == "calipers: unexpected ZeroDivisionError: a fault of two lines; run again with --debug"
    )
    assert "Traceback" in calipers("models", "--debug").err


def test_rows_of_inputs_round_radii_down(calipers: Call, certified: Path) -> None:
    with RunStore.read(certified) as store:
        rows = store.certificates()
    lines = calipers("show", certified, "--inputs").out.splitlines()
    start = next(
        number for number, line in enumerate(lines) if line.startswith("input ") and "radius" in line
    )
    table = [line.split() for line in lines[start + 1 : start + 13]]
    assert [int(line[0]) for line in table] == [row.index for row in rows]
    for line, row in zip(table, rows, strict=True):
        shown = float(line[4])
        assert shown <= row.radius < shown + 0.01
        assert {"right": row.correct, "wrong": not row.correct, "abstains": row.abstained}[line[3]]
    payload = calipers("show", certified, "--inputs", "--json").json
    assert [row["radius"] for row in payload["inputs"]] == [row.radius for row in rows]
    assert payload["inputs"][0]["counts"] == list(rows[0].counts)


def test_runs_stand_side_by_side_at_the_same_radii(calipers: Call, certified: Path, quick: list[str]) -> None:
    assert calipers(*quick, "--run", "two.sqlite", "--bound", "one-sided").code == 0
    said = calipers("show", "one.sqlite", "two.sqlite", "--radii", "0,0.25")
    lines = [line for line in said.out.splitlines() if line.startswith(("one.sqlite ", "two.sqlite "))]
    assert len(lines) == 2
    assert "0.25" in said.out.splitlines()[1]
    assert len(calipers("show", "one.sqlite", "two.sqlite", "--json").json["runs"]) == 2


def test_runs_of_two_norms_are_not_put_into_one_table(
    calipers: Call, certified: Path, quick: list[str]
) -> None:
    assert calipers(*quick, "--run", "two.sqlite", "--noise", "laplace").code == 0
    said = calipers("show", "one.sqlite", "two.sqlite")
    assert said.code == 2
    assert "l1, l2" in said.complaint


@pytest.mark.parametrize("limit", [["--time", "10s"], ["--time=10s"]])
def test_the_command_to_go_on_with_has_no_time_limit(
    limit: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/calipers", "certify", "a b", *limit, "--jobs", "2"])
    assert this_command() == "calipers certify 'a b' --jobs 2"


def test_a_run_that_ran_out_of_time_says_so_and_goes_on(
    calipers: Call, workplace: Path, quick: list[str]
) -> None:
    said = calipers(*quick, "--run", "one.sqlite", "--time", "0.001")
    assert said.code == 0
    assert "calipers: warning: out of time: 0 of 12 inputs are in one.sqlite; to go on:" in said.err
    assert "no input is finished yet" in said.out
    assert "0/12" in calipers("runs", ".").out
    assert calipers(*quick, "--run", "one.sqlite").code == 0
    assert "unfinished" not in calipers("show", "one.sqlite").out
    assert "12/12" in calipers("runs", ".").out


def test_a_run_in_progress_is_shown_as_what_it_is(calipers: Call, certified: Path) -> None:
    with RunStore.read(certified) as store, RunStore.open("half.sqlite", store.spec) as half:
        half.note("started", {"total": 12})
        rows = store.certificates()[:5]
        half.append(Measured(f"{row.index:032x}", [row]) for row in rows)
    said = calipers("show", "half.sqlite")
    assert "unfinished: 5 of 12 inputs" in said.out
    payload = calipers("show", "half.sqlite", "--json").json
    assert (payload["finished"], payload["done"], payload["total"]) == (False, 5, 12)
    assert payload["summary"]["inputs"] == 5
    assert "half.sqlite is unfinished: 5 of 12" in calipers("show", "half.sqlite", "one.sqlite").out


def test_the_same_command_finds_its_file_again(calipers: Call, workplace: Path, quick: list[str]) -> None:
    first = calipers(*quick, "--json").json
    again = calipers(*quick, "--json")
    assert "nothing is left to do" in again.err
    assert again.json["run"] == first["run"]
    assert Path(first["run"]).parent == Path("runs")
    assert calipers(*quick, "--alpha", "0.01", "--json").json["run"] != first["run"]


def test_recertify_stands_beside_the_run_and_can_be_kept(calipers: Call, certified: Path) -> None:
    said = calipers(
        "recertify", certified, "--alpha", "0.05", "--bound", "one-sided", "--save", "other.sqlite"
    )
    assert "the run: two-sided, alpha 0.001" in said.out
    assert "read again: one-sided, alpha 0.05" in said.out
    with RunStore.read("other.sqlite") as store, RunStore.read(certified) as before:
        pairs = list(zip(store.certificates(), before.certificates(), strict=True))
    assert {new.alpha for new, _ in pairs} == {0.05}
    assert all(new.counts == old.counts for new, old in pairs)
    assert any(new.radius > old.radius for new, old in pairs)
    assert "one-sided" in calipers("show", "other.sqlite").out


def test_decided_counts_are_not_read_by_a_fixed_bound(
    calipers: Call, workplace: Path, quick: list[str]
) -> None:
    said = calipers(*quick, "--decide", "0.1,0.25", "--run", "one.sqlite")
    assert said.code == 0
    assert "at most" in said.err
    told = calipers("show", "one.sqlite", "--json").json["summary"]["certified_accuracy"]
    assert [point["radius"] for point in told] == [0.0, 0.1, 0.25], "nothing was drawn for larger radii"
    assert (
        "anytime"
        in calipers("recertify", "one.sqlite", "--alpha", "0.01", "--json").json["after"]["asked"]["theorem"]
    )


def test_predict_counts_right_wrong_and_abstentions(
    calipers: Call, workplace: Path, quick: list[str]
) -> None:
    payload = calipers("predict", *quick[1:], "--json").json
    found = payload["predictions"]
    with RunStore.read(payload["run"]) as store:
        rows = store.predictions()
    assert found["correct"] == sum(row.correct for row in rows)
    assert found["abstentions"] == sum(row.abstained for row in rows)
    assert found["correct"] + found["wrong"] + found["abstentions"] == found["inputs"] == 12
    text = calipers("show", payload["run"], "--inputs").out
    assert f"{found['correct']} of 12" in text


def test_a_plain_function_that_decides_is_certified(
    calipers: Call, workplace: Path, quick: list[str]
) -> None:
    said = calipers(*[word.replace("three_classes", "decisions") for word in quick], "--json")
    assert said.code == 0, said.err
    assert said.json["summary"]["inputs"] == 12


def test_soft_votes_laplace_and_sound_noise_are_certified(
    calipers: Call, workplace: Path, quick: list[str]
) -> None:
    soft = calipers(*quick, "--votes", "soft", "--lemma", "lemma-1", "--json").json
    assert "Lemma 1" in soft["summary"]["asked"]["theorem"]
    laplace = calipers(*quick, "--noise", "laplace", "--json").json
    assert (laplace["summary"]["norm"], laplace["spec"]["noise"]) == ("l1", "Laplace(spread=0.25)")
    sound = calipers(*quick, "--sound", "--json").json
    assert sound["spec"]["noise"] == "RoundedGaussian(sigma=0.25)"


def test_sound_noise_refuses_images_off_its_grid(calipers: Call, workplace: Path, quick: list[str]) -> None:
    np.savez("images.npz", x=np.full((12, 1, 4, 4), 0.3, dtype=np.float32), y=np.arange(12) % 3)
    said = calipers(*quick, "--sound")
    assert said.code == 2
    assert "1/255 grid" in said.complaint
    assert not Path("runs").exists()


def test_inputs_without_labels_are_certified_and_nothing_is_called_right(
    calipers: Call, workplace: Path, quick: list[str]
) -> None:
    with np.load("images.npz") as file:
        np.savez("images.npz", x=file["x"][:12])
    said = calipers(*quick, "--run", "one.sqlite")
    assert said.code == 0, said.err
    assert "inputs certified" in said.out
    assert "certified %" not in said.out
    assert calipers("show", "one.sqlite", "--json").json["clean_accuracy"] is None


def test_estimate_says_the_cost_and_runs_nothing(calipers: Call, workplace: Path, quick: list[str]) -> None:
    said = calipers(*quick, "--estimate", "--json")
    assert said.json["forwards"] == 12 * 600
    assert said.json["seconds"] == pytest.approx(12 * 600 / said.json["forwards_per_second"])
    assert not Path("runs").exists()
    assert "7,200" in calipers(*quick, "--estimate").out


def test_sizes_are_read_as_people_write_them(calipers: Call, workplace: Path, quick: list[str]) -> None:
    payload = calipers(*quick, "--sigma", "64/256", "--json").json
    assert payload["spec"]["noise"] == "Gaussian(sigma=0.25)"


def test_models_and_datasets_list_what_ships_and_what_could_be_named(calipers: Call, workplace: Path) -> None:
    for verb, form in (("models", "file:model.safetensors?arch=NAME"), ("datasets", "npz:images.npz")):
        text = calipers(verb).out
        assert "bundled:" in text
        assert form in text
        found = calipers(verb, "--json").json[verb]
        assert {row["bundled"] for row in found} == {True, False}


def test_runs_lists_runs_and_passes_over_other_files(calipers: Call, certified: Path) -> None:
    Path("runs").mkdir()
    certified.rename("runs/one.sqlite")
    Path("runs/notes.txt").write_text("notes")
    listed = calipers("runs", "--json").json["runs"]
    assert [(row["run"], row["done"], row["total"]) for row in listed] == [("runs/one.sqlite", 12, 12)]


def test_the_page_of_the_command_line_names_every_option() -> None:
    from calipers.cli.main import app

    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    missing = [
        f"{verb} {option}"
        for verb, command in _verbs(get_command(app), ())
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and f"`{option}" not in page
    ]
    assert missing == []


@pytest.mark.parametrize("words", [(), ("certify",), ("train", "noise")])
def test_help_needs_no_network_and_says_its_options(calipers: Call, words: tuple[str, ...]) -> None:
    said = calipers(*words, "--help")
    assert said.code == 0
    assert "--help" in said.out


def _verbs(command: Any, words: tuple[str, ...]) -> list[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        return [(" ".join(words), command)]
    return [pair for name, inner in below.items() for pair in _verbs(inner, (*words, name))]


def test_every_verb_has_help_in_one_line_and_every_option_a_text(calipers: Call) -> None:
    from calipers.cli.main import app

    for verb, command in _verbs(get_command(app), ()):
        assert command.get_short_help_str(200).endswith("."), verb
        assert json.dumps(calipers(*verb.split(), "--help").code) == "0"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{verb} {parameter.name}"


def test_a_reading_of_an_unfinished_run_says_so_and_is_kept_as_unfinished(
    calipers: Call, certified: Path
) -> None:
    with RunStore.read(certified) as store:
        spec, rows = store.spec, store.certificates()
    with RunStore.open(Path("part.sqlite"), spec) as store:
        store.note("started", {"total": 12})
        store.append(Measured(f"{row.index:032x}", [row]) for row in rows[:5])
    said = calipers("recertify", "part.sqlite", "--alpha", "0.05", "--save", "reading.sqlite")
    assert said.code == 0
    assert "unfinished: 5 of 12 inputs" in said.out
    assert "unfinished: 5 of 12 inputs" in calipers("show", "reading.sqlite").out
    found = calipers("recertify", "part.sqlite", "--alpha", "0.05", "--json").json
    assert (found["done"], found["total"], found["finished"]) == (5, 12, False)
    assert "unfinished" not in calipers("recertify", certified, "--alpha", "0.05").out
    exported = json.loads(calipers("export", "part.sqlite", "--to", "json").out)
    assert (exported["done"], exported["total"]) == (5, 12)


def test_a_radius_that_no_votes_can_prove_is_warned_about(calipers: Call, workplace: Path) -> None:
    words = (
        "certify",
        "python:cli_networks:three_classes",
        "npz:images.npz",
        "--sigma",
        "0.25",
        "--n",
        "1000",
    )
    more = ("--trust-code", "--no-compile", "--limit", "2")
    said = calipers(*words, "--decide", "0.25,1.5", *more)
    assert said.code == 0, said.err
    assert "prove 0.593 at most" in said.err
    assert "at most: no input" not in calipers(*words, "--decide", "0.25,0.5", *more).err


def test_an_attack_is_as_far_as_its_inputs_are_however_many_questions_it_has_asked() -> None:
    at = Progress(done=20, total=100, fresh=20, samples=90_000, seconds=5.0)
    certify = SimpleNamespace(kind="certify", method="VoteCertifier()")
    counted = SimpleNamespace(bench=SimpleNamespace(spec=certify), draws=1000)
    attacked = SimpleNamespace(
        bench=SimpleNamespace(spec=SimpleNamespace(kind="attack", method="PGD()")), draws=1
    )
    assert _part(at, counted) == 0.9  # type: ignore[arg-type]
    assert _part(at, attacked) == 0.2  # type: ignore[arg-type]


def test_one_input_is_told_in_the_singular(calipers: Call, workplace: Path, quick: list[str]) -> None:
    single = [*quick, "--limit", "1", "--run", "one.sqlite"]
    said = calipers(*single, "--time", "0.001")
    assert "out of time: 0 of 1 input is in one.sqlite" in said.err
    assert "subset of npz:images.npz (1 input) has no input of class" in said.err
    assert "unfinished: 0 of 1 input" in calipers("show", "one.sqlite").out
    assert calipers(*single).code == 0
    assert (
        calipers("export", "one.sqlite", "--to", "tsv", "--output", "one.tsv").out == "1 record in one.tsv\n"
    )
