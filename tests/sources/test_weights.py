"""Weight files: safetensors and torch files into a built-in architecture, and files that could run code."""

import io
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calipers.errors import BadReference, MissingFile, UnsafeFile, UntrustedCode
from calipers.sources.architectures import build
from calipers.sources.models import load_model, open_model

INPUTS = torch.rand((5, 1, 28, 28), generator=torch.Generator().manual_seed(0))


class Trace:
    """Leaves a trace if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def network(num_classes: int = 10) -> nn.Module:
    return build("cnn28", num_classes=num_classes, seed=1).eval()


def weights(num_classes: int = 10) -> dict[str, Tensor]:
    return dict(network(num_classes).state_dict())


def test_safetensors_give_the_network_that_was_saved(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "net.safetensors")
    target = load_model(f"file:{tmp_path / 'net.safetensors'}?arch=cnn28")
    assert torch.equal(target.logits(INPUTS), network()(INPUTS))


@pytest.mark.parametrize(
    "wrap", ["plain", "state_dict", "model_state_dict", "model", "lightning", "cohen", "compiled"]
)
def test_torch_files_are_read_in_their_usual_wrappings(tmp_path: Path, wrap: str) -> None:
    plain = weights()
    content: Any = {
        "plain": OrderedDict(plain),
        "state_dict": {"epoch": 3, "best": 0.5, "state_dict": {f"module.{k}": v for k, v in plain.items()}},
        "model_state_dict": {"model_state_dict": plain, "optimizer_state_dict": {"state": {}}},
        "model": {"model": plain, "args": {"lr": 0.1}},
        "lightning": {"state_dict": {f"net.{k}": v for k, v in plain.items()}},
        "cohen": {"arch": "x", "state_dict": {f"1.module.{k}": v for k, v in plain.items()}},
        "compiled": {f"_orig_mod.module.{k}": v for k, v in plain.items()},
    }[wrap]
    torch.save(content, tmp_path / "net.pth")
    target = load_model(f"file:{tmp_path / 'net.pth'}?arch=cnn28")
    assert torch.equal(target.logits(INPUTS), network()(INPUTS))


def test_the_number_of_classes_is_seen_in_the_weights(tmp_path: Path) -> None:
    for count in (2, 3, 100):
        save_file(weights(count), tmp_path / "net.safetensors")
        assert load_model(f"file:{tmp_path / 'net.safetensors'}?arch=cnn28").num_classes == count


def test_a_file_says_its_architecture_and_feeding_and_options_override_them(tmp_path: Path) -> None:
    told = {"arch": "cnn28", "mean": "0.25", "std": "0.5", "accuracy": json.dumps({"clean": 0.9})}
    save_file(weights(), tmp_path / "net.safetensors", metadata=told)
    reference = f"file:{tmp_path / 'net.safetensors'}"
    opened = open_model(reference)
    assert torch.equal(opened.target.logits(INPUTS), network()((INPUTS - 0.25) / 0.5))
    shown = dict(opened.description)
    assert (shown["arch"], shown["mean"], shown["std"]) == ("cnn28", "0.25", "0.5")
    assert shown["accuracy"] == "90.00% (clean)"
    assert shown["input"] == "1x28x28, values 0 to 1"
    assert "sha256" in shown["file"]
    other = load_model(f"{reference}?mean=0.5")
    assert torch.equal(other.logits(INPUTS), network()((INPUTS - 0.5) / 0.5))
    assert other.fingerprint != opened.target.fingerprint


def test_empty_metadata_mean_no_normalization(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "net.safetensors", metadata={"arch": "cnn28", "mean": "", "std": ""})
    target = load_model(f"file:{tmp_path / 'net.safetensors'}")
    assert torch.equal(target.logits(INPUTS), network()(INPUTS))


def test_the_fingerprint_is_of_the_weights_and_not_of_the_file(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "a.safetensors")
    torch.save({"state_dict": weights()}, tmp_path / "b.pt")
    changed = weights()
    changed["dense2.bias"][0] += 1e-3
    save_file(changed, tmp_path / "c.safetensors")
    a, b, c = (
        load_model(f"file:{tmp_path / name}?arch=cnn28")
        for name in ("a.safetensors", "b.pt", "c.safetensors")
    )
    assert a.fingerprint == b.fingerprint != c.fingerprint


def test_a_number_format_is_another_classifier(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "net.safetensors")
    reference = f"file:{tmp_path / 'net.safetensors'}?arch=cnn28"
    full, half = load_model(reference), load_model(reference, precision="bf16")
    assert half.precision == "bf16"
    assert half.fingerprint != full.fingerprint


def test_the_architecture_must_be_said_and_known(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "net.safetensors")
    with pytest.raises(BadReference, match="add arch= with one of cnn28, lipmlp28, .*resnet20"):
        load_model(f"file:{tmp_path / 'net.safetensors'}")
    with pytest.raises(BadReference, match="arch is 'resnet18': the built-in ones are cnn28"):
        load_model(f"file:{tmp_path / 'net.safetensors'}?arch=resnet18")
    with pytest.raises(BadReference, match=r"shape is \(3, 28, 28\), and cnn28 takes \(1, 28, 28\)"):
        load_model(f"file:{tmp_path / 'net.safetensors'}?arch=cnn28&shape=3,28,28")


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights().items() if key != name}


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (
            weights(),
            "arch=resnet20",
            "does not fit arch=resnet20 with .* classes: it has no 'conv1.weight'|'conv1.weight' has",
        ),
        (without("conv2.bias"), "arch=cnn28", "it has no 'conv2.bias' "),
        (
            {**weights(), "extra.weight": torch.ones(2)},
            "arch=cnn28",
            "it has 'extra.weight', which the architecture has not",
        ),
        (
            weights(),
            "arch=cnn28&num_classes=7",
            r"with 7 classes: 'dense2.weight' has shape \(10, 128\) and not \(7, 128\)",
        ),
        (
            {**weights(), "conv1.weight": torch.ones(16, 3, 5, 5)},
            "arch=cnn28",
            r"'conv1.weight' has shape \(16, 3, 5, 5\)",
        ),
        (
            {**weights(), "conv1.bias": torch.tensor([0.0] * 15 + [torch.nan])},
            "arch=cnn28",
            "'conv1.bias' has NaN or infinite values",
        ),
        ({"a": torch.ones(1)}, "arch=cnn28", "it has no 'conv1.weight' "),
    ],
)
def test_weights_of_another_architecture_name_the_first_entry_that_differs(
    tmp_path: Path, content: dict[str, Tensor], options: str, words: str
) -> None:
    for path in (tmp_path / "net.safetensors", tmp_path / "net.pt"):
        if path.suffix == ".pt":
            torch.save(content, path)
        else:
            save_file(content, path)
        with pytest.raises(BadReference, match=words) as caught:
            load_model(f"file:{path}?{options}")
        assert "\n" not in str(caught.value)


def test_files_of_torch_before_batch_counters_are_read(tmp_path: Path) -> None:
    net = build("resnet20", num_classes=10).eval()
    old = {
        name: tensor for name, tensor in net.state_dict().items() if not name.endswith("num_batches_tracked")
    }
    torch.save(old, tmp_path / "net.th")
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_model(f"file:{tmp_path / 'net.th'}?arch=resnet20").logits(x), net(x))


def torch_bytes(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["torch", "pickle", "nested"])
def test_an_unsafe_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "net.pth"
    raw = {
        "torch": lambda: torch_bytes({"state_dict": Trace(trace)}),
        "pickle": lambda: pickle.dumps({"state_dict": Trace(trace)}, protocol=2),
        "nested": lambda: torch_bytes({"state_dict": weights(), "args": [{"deep": Trace(trace)}]}),
    }[form]()
    path.write_bytes(raw)
    with pytest.raises(UnsafeFile, match=r"refused and nothing in it was run: it asks for \w+.mkdir"):
        load_model(f"file:{path}?arch=cnn28")
    assert not trace.exists()
    if form == "pickle":
        pickle.loads(raw)
    else:
        torch.load(path, weights_only=False)
    assert trace.exists(), "the file would not have left a trace at all"


def test_a_pickle_of_the_first_protocol_is_not_run_either(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "net.pth"
    path.write_bytes(pickle.dumps(Trace(trace), protocol=0))
    with pytest.raises(BadReference, match="is no torch file"):
        load_model(f"file:{path}?arch=cnn28")
    assert not trace.exists()


def test_a_whole_saved_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "net.pth")
    with pytest.raises(UnsafeFile, match=r"asks for calipers.*save net.state_dict\(\) alone"):
        load_model(f"file:{tmp_path / 'net.pth'}?arch=cnn28")


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "whole.pt")
    raw = (tmp_path / "whole.pt").read_bytes()
    for name, content, words in (
        ("cut.pt", raw[: len(raw) // 2], "is no torch file, or is damaged"),
        ("text.pt", b"hello", "is no torch file: it starts with b'he'"),
        ("list.pt", torch_bytes([torch.ones(1)]), "holds a list and no state_dict"),
        (
            "dict.pt",
            torch_bytes({"epoch": 3, "lr": 0.1}),
            "holds a dictionary of 'epoch', 'lr' and no state_dict",
        ),
        ("bad.safetensors", raw, "is no safetensors file, or is damaged"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadReference, match=words) as caught:
            load_model(f"file:{tmp_path / name}?arch=cnn28")
        assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(MissingFile, match=r"there is no file 'nowhere.safetensors'"):
        load_model("file:nowhere.safetensors?arch=cnn28")


def test_an_exported_program_needs_trust_and_a_shape(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(network(), (INPUTS,), dynamic_shapes=({0: batch},)), path)
    with pytest.raises(UntrustedCode, match="say --trust-code"):
        load_model(f"file:{path}?shape=1,28,28")
    with pytest.raises(BadReference, match="add shape="):
        load_model(f"file:{path}", trust_code=True)
    with pytest.raises(BadReference, match="brings its own network"):
        load_model(f"file:{path}?arch=cnn28&shape=1,28,28", trust_code=True)
    target = load_model(f"file:{path}?shape=1,28,28", trust_code=True)
    torch.testing.assert_close(target.logits(INPUTS), network()(INPUTS))
    assert target.num_classes == 10


def test_a_file_that_is_no_exported_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"hello")
    with pytest.raises(BadReference, match="cannot be opened as a torch.export program"):
        load_model(f"file:{tmp_path / 'net.pt2'}?shape=1,28,28", trust_code=True)


def test_the_public_resnet20_is_read(data_folder: Path) -> None:
    path = data_folder / "models" / "resnet20-12fca82f.th"
    opened = open_model(f"file:{path}?arch=resnet20&mean=0.485,0.456,0.406&std=0.229,0.224,0.225")
    assert opened.target.num_classes == 10
    assert opened.target.input_shape == (3, 32, 32)
    assert "12fca82f" in dict(opened.description)["file"].partition("sha256")[2]
