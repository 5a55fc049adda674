"""User code: run only when it is trusted, found from the current folder, and its faults told in one line."""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from calipers.errors import BadReference, TargetError, UntrustedCode, UsageError
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model, open_model
from calipers.target import Access

Writer = Callable[[str], str]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """Write a module of the user's into the current folder, and give its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = iter(range(100))

    def write(text: str) -> str:
        name = f"user_module_{abs(hash(tmp_path)) % 10**8}_{next(names)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    return write


LINEAR = """
    import torch
    from torch import nn

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
"""


def test_code_is_not_run_until_it_is_trusted(written: Writer, tmp_path: Path) -> None:
    name = written("import os; os.mkdir('trace')\n\ndef build():\n    pass\n")
    for load in (load_model, load_dataset):
        with pytest.raises(UntrustedCode, match=r"runs code of yours, .*build\(\): say --trust-code"):
            load(f"python:{name}:build")
    assert not (tmp_path / "trace").exists()
    with pytest.raises(BadReference):
        load_model(f"python:{name}:build", trust_code=True)
    assert (tmp_path / "trace").exists()


def test_a_module_is_fed_and_its_classes_are_counted(written: Writer) -> None:
    name = written(LINEAR)
    opened = open_model(f"python:{name}:build?shape=3,2,2&mean=0.5&std=0.25", trust_code=True)
    target = opened.target
    assert (target.num_classes, target.input_shape, target.access) == (5, (3, 2, 2), Access.GRADIENTS)
    x = torch.rand((4, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    net = sys.modules[name].build()
    assert torch.equal(target.logits(x), net((x - 0.5) / 0.25))
    assert dict(opened.description)["code"].endswith(f"{name}.py:build")
    assert load_model(f"python:{name}:build?shape=3,2,2", trust_code=True).fingerprint != target.fingerprint


def test_the_shape_of_the_data_serves_where_none_is_said(written: Writer) -> None:
    name = written(LINEAR)
    with pytest.raises(BadReference, match="add shape="):
        load_model(f"python:{name}:build", trust_code=True)
    assert load_model(f"python:{name}:build", trust_code=True, input_shape=(3, 4, 1)).input_shape == (3, 4, 1)
    with pytest.raises(BadReference, match="cannot take inputs of shape"):
        load_model(f"python:{name}:build", trust_code=True, input_shape=(3, 4, 4))


def test_a_package_under_the_current_folder_is_importable(written: Writer, tmp_path: Path) -> None:
    name = written(LINEAR)
    package = tmp_path / f"package_{name}"
    package.mkdir()
    (package / "nets.py").write_text((tmp_path / f"{name}.py").read_text())
    assert load_model(f"python:{package.name}.nets:build?shape=12", trust_code=True).num_classes == 5


def test_a_model_in_training_mode_is_refused(written: Writer) -> None:
    name = written(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5))\n"
    )
    with pytest.raises(TargetError, match=r"is in training mode.*: call .eval\(\)"):
        load_model(f"python:{name}:build?shape=3,2,2", trust_code=True)


def test_one_class_is_refused(written: Writer) -> None:
    name = written(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).eval()\n"
    )
    with pytest.raises(UsageError, match="num_classes is 1"):
        load_model(f"python:{name}:build?shape=3,2,2", trust_code=True)
    with pytest.raises(TargetError, match="gives one class"):
        load_model(f"python:{name}:build?shape=3,2,2&num_classes=10", trust_code=True)


def test_a_target_of_decisions_says_all_of_itself(written: Writer) -> None:
    name = written("""
        import numpy as np
        from calipers.target import Target

        def build():
            return Target.from_decisions(
                lambda x: (x[:, 0] > 0.5).astype(int), num_classes=2, input_shape=(3,), fingerprint="threshold 0.5"
            )
    """)
    target = load_model(f"python:{name}:build", trust_code=True)
    assert target.access is Access.DECISIONS
    assert target.predict(torch.tensor([[0.75, 0, 0], [0.25, 0, 0]])).tolist() == [1, 0]
    with pytest.raises(BadReference, match="leave out mean, shape"):
        load_model(f"python:{name}:build?mean=0.5&shape=3", trust_code=True)
    with pytest.raises(UsageError, match="precision is bf16"):
        load_model(f"python:{name}:build", trust_code=True, precision="bf16")


def test_a_scikit_learn_classifier_is_a_target(written: Writer) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    name = written("""
        import hashlib, pickle
        import numpy as np
        from sklearn.neighbors import KNeighborsClassifier
        from calipers.target import Target

        def data():
            generator = np.random.default_rng(0)
            y = np.arange(60) % 3
            return (y[:, None] * 0.3 + 0.1 + 0.05 * generator.random((60, 4))).astype("float32"), y

        def build():
            x, y = data()
            fitted = KNeighborsClassifier(3).fit(x, y)
            digest = hashlib.sha256(pickle.dumps(fitted)).hexdigest()
            return Target.from_decisions(fitted.predict, num_classes=3, input_shape=(4,), fingerprint=digest)
    """)
    target = load_model(f"python:{name}:build", trust_code=True)
    data = load_dataset(f"python:{name}:data", trust_code=True)
    data.require(input_shape=target.input_shape, num_classes=target.num_classes, bounds=target.bounds)
    images = torch.from_numpy(np.stack([example.image for example in data]))
    assert target.predict(images).tolist() == data.labels.tolist()
    assert load_model(f"python:{name}:build", trust_code=True).fingerprint == target.fingerprint


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            "raise ValueError('two\\nlines')",
            r"build\(\) raised ValueError: two lines \(user_module_\w+.py, line 2\)",
        ),
        ("return 1 / 0", r"raised ZeroDivisionError: .* line 2\)"),
        ("raise SystemExit(3)", r"raised SystemExit: 3"),
        (
            "import not_installed_anywhere",
            r"build\(\) raised ModuleNotFoundError: No module named 'not_installed",
        ),
        ("return {}", "returned a dict: return an nn.Module in eval mode, or a calipers Target"),
        ("return None", "returned a NoneType"),
    ],
)
def test_faults_of_the_users_code_are_told_in_one_line(written: Writer, body: str, words: str) -> None:
    name = written(f"def build():\n    {body}\n")
    with pytest.raises(BadReference, match=words) as caught:
        load_model(f"python:{name}:build?shape=3", trust_code=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "import not_installed_anywhere",
            "importing .* raised ModuleNotFoundError: No module named 'not_installed",
        ),
        ("def build(:", "raised SyntaxError"),
        ("raise RuntimeError('at import')", "raised RuntimeError: at import"),
        ("other = 1", "has no function 'build'"),
        ("build = 1", "has something that is no function, called 'build'"),
    ],
)
def test_faults_of_the_users_module_are_told_in_one_line(written: Writer, text: str, words: str) -> None:
    name = written(text)
    with pytest.raises(BadReference, match=words) as caught:
        load_model(f"python:{name}:build?shape=3", trust_code=True)
    assert "\n" not in str(caught.value)


def test_an_error_of_calipers_keeps_its_kind(written: Writer) -> None:
    name = written("""
        from torch import nn
        from calipers.target import Target

        def build():
            return Target(nn.Linear(3, 2), num_classes=2, input_shape=(3,))
    """)
    with pytest.raises(TargetError, match="in training mode"):
        load_model(f"python:{name}:build", trust_code=True)


def test_a_module_that_is_not_there_is_told_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(BadReference, match=f"there is no module 'no_such_module' in {tmp_path}"):
        load_model("python:no_such_module.inner:build", trust_code=True)


@pytest.mark.parametrize("path", ["module", "a b:build", "module:", ":build", "module:build()"])
def test_a_path_that_names_no_function_is_told_the_form(path: str) -> None:
    with pytest.raises(BadReference, match="write python:package.module:f"):
        load_model(f"python:{path}", trust_code=True)


def test_the_path_of_a_file_is_turned_into_a_module() -> None:
    with pytest.raises(BadReference, match="python:examples.net:function"):
        load_model("python:./examples/net.py:build", trust_code=True)


def test_a_file_of_the_current_folder_is_named_without_its_ending(written: Writer) -> None:
    name = written("def build():\n    pass\n")
    with pytest.raises(BadReference, match=rf"a file is named without .py, python:{name}:function$"):
        load_model(f"python:{name}.py:build", trust_code=True)


def test_a_function_gives_data(written: Writer) -> None:
    name = written("""
        import numpy as np

        def pair():
            return np.full((2, 4, 4, 3), 51, dtype=np.uint8), [1, 0]

        def unlabelled():
            return np.zeros((2, 4, 4)), None

        def wrong():
            return [1, 2, 3]
    """)
    data = load_dataset(f"python:{name}:pair", trust_code=True)
    assert data.shape == (3, 4, 4)
    assert data[0].image[0, 0, 0] == np.float32(0.2)
    assert data.labels.tolist() == [1, 0]
    assert load_dataset(f"python:{name}:unlabelled", trust_code=True)[1].label == -1
    with pytest.raises(BadReference, match=r"returned a list: return \(images, labels\)"):
        load_dataset(f"python:{name}:wrong", trust_code=True)
