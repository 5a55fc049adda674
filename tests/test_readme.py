"""README and tutorial: their Python runs, and their commands are ones that the command line understands."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperCommand, TyperGroup

from calipers.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "how-to-choose.md"]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def _lines(page: Path) -> list[list[str]]:
    """Split each line of the shell blocks into words."""
    return [shlex.split(line) for block in _blocks(page, "sh") for line in block.splitlines() if line.strip()]


def _run(code: str, folder: Path) -> str:
    (folder / "block.py").write_text(code, "utf-8")
    done = subprocess.run(
        [sys.executable, "block.py"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


README = _blocks(ROOT / "README.md", "python")


def _shown(page: Path) -> list[str]:
    """The lines that a page says its Python prints."""
    after = re.findall(r"^```python\n.*?^```\n\n```text\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    return [line for block in after for line in block.splitlines()]


def _readme_certifies(said: list[str], code: str) -> None:
    assert len([line for line in code.splitlines() if line]) <= 10
    rows = [line.split() for line in said]
    assert [row[:2] for row in rows] == [["0", "9"], ["1", "2"], ["2", "1"], ["3", "1"], ["4", "6"]]
    assert sum(row[1] == row[2] for row in rows) >= 4
    # 1 000 votes at sigma 0.25 prove 2.428 sigma at most (two-sided, alpha 0.001)
    assert all(0.0 <= float(row[3]) <= 0.6073 for row in rows)
    assert max(float(row[3]) for row in rows) > 0.6


def _readme_attacks(said: list[str], code: str) -> None:
    shown = _shown(ROOT / "README.md")
    assert [said[0], said[1], said[3]] == [shown[0], shown[1], shown[3]]
    assert said[2] in (shown[2], "()")  # on a busy machine the time of that check may not suffice


def _readme_brackets(said: list[str], code: str) -> None:
    rows = [[float(word) for word in line.split()] for line in said]
    assert [row[:2] for row in rows] == [[0, 9], [1, 2], [2, 1], [3, 1], [4, 6]]
    assert all(0.3 < lower < upper < 4 for _, _, lower, upper in rows)


@pytest.mark.parametrize(
    ("number", "says"),
    [(0, _readme_certifies), (1, _readme_attacks), (2, _readme_brackets)],
    ids=["certifies", "attacks", "brackets"],
)
def test_each_python_block_of_the_readme_runs_by_itself(
    tmp_path: Path, number: int, says: Callable[[list[str], str], None]
) -> None:
    assert len(README) == 3
    says(_run(README[number], tmp_path).splitlines(), README[number])


def test_the_python_of_the_tutorial_trains_certifies_and_attacks(tmp_path: Path) -> None:
    training, certifying, attacking = _blocks(ROOT / "docs" / "tutorial.md", "python")
    (tmp_path / "boots.py").write_text(training, "utf-8")
    _run("import boots\nboots.train()\n", tmp_path)
    prediction, correct, reached, samples = _run(certifying, tmp_path).split()
    assert (prediction, correct, reached) == ("8", "True", "True")
    assert 100 <= int(samples) <= 2000
    jaws, robust, red = _run(attacking, tmp_path).splitlines()
    index, lower, upper = re.findall(r"[\d.]+\d", jaws)
    assert index == "802" and 1.3 < float(lower) < 1.9 < float(upper) < 3.2
    fooled = re.match(r"AttackResult\((\d+) of 20 inputs fooled", robust)
    assert fooled is not None and 7 <= int(fooled[1]) <= 13
    assert re.fullmatch(r"Diagnosis\(\d+ of \d+ inputs fall; \d+ of 24 findings red, \d+ open\)", red)


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.stem)
def test_every_command_is_understood(page: Path) -> None:
    commands = [words[1:] for words in _lines(page) if words[0] == "calipers"]
    assert commands
    for words in commands:
        _parse(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["certify", "bundled:a", "bundled:b", "--sigma", "0.25", "--nosuch"], "--nosuch"),
        (["predict", "bundled:a", "bundled:b"], "sigma"),
        (["certfy"], "certfy"),
        (["train", "noise"], "(?i)data|output|sigma"),
    ],
)
def test_a_command_that_is_not_understood_is_found_out(words: list[str], said: str) -> None:
    with pytest.raises(Exception, match=said):
        _parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_options_named_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`(--[a-z0-9-]+)", text))
    known = {option for leaf in _leaves(_root()) for part in leaf.params for option in part.opts}
    assert named - known == set()


def _root() -> TyperGroup:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return root


def _parse(words: list[str]) -> None:
    """Read the words of a command as the command line does, and run nothing."""
    command: TyperGroup | TyperCommand = _root()
    rest = list(words)
    while isinstance(command, TyperGroup):
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, rest)


def _leaves(command: TyperGroup | TyperCommand) -> list[TyperGroup | TyperCommand]:
    if not isinstance(command, TyperGroup):
        return [command]
    return [command, *(leaf for child in command.commands.values() for leaf in _leaves(child))]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    called = {words[1] for page in PAGES for words in _lines(page) if words[0] == "make"}
    assert "demo" in called
    assert called - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert links
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
