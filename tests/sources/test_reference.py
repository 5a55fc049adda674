"""References: parts, options and what is said when one of them is wrong."""

from pathlib import Path

import pytest

from calipers.errors import BadReference, CalipersError, MissingFile
from calipers.sources.reference import Reference, parse_reference
from calipers.sources.schemes import DATA_SCHEMES, MODEL_SCHEMES


def model(text: str) -> Reference:
    return parse_reference(text, MODEL_SCHEMES, what="model")


def said(text: str, what: str = "model") -> str:
    with pytest.raises(BadReference) as caught:
        parse_reference(text, MODEL_SCHEMES if what == "model" else DATA_SCHEMES, what=what)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_parts_of_a_reference_are_read() -> None:
    found = model(" file:a/b.pt?arch=cnn28&mean=0.5,1/4&shape=3,32,32&num_classes=7&layout=NHWC ")
    assert (found.scheme, found.path, found.text[-4:]) == ("file", "a/b.pt", "NHWC")
    assert found.numbers("mean") == (0.5, 0.25)
    assert found.shape() == (3, 32, 32)
    assert found.integer("num_classes") == 7
    assert found.choice("layout", {"nhwc": "last"}) == "last"
    assert found.option("std") is None
    assert found.numbers("std") is None


def test_a_path_may_hold_colons_and_a_function() -> None:
    assert model("python:package.module:factory?shape=4").path == "package.module:factory"


def test_a_reference_inside_a_reference_has_all_that_follows() -> None:
    inner = "file:net.th?arch=resnet20&mean=0.5,0.4,0.3&std=0.2"
    found = model(f"iclr2018:lid?weights=parts&network={inner}")
    assert found.options == (("weights", "parts"), ("network", inner))
    assert model(inner).numbers("mean") == (0.5, 0.4, 0.3)
    assert model("iclr2018:lid?network=timm:a?weights=b").option("weights") is None
    assert "write weights= before it" in said("iclr2018:lid?network=bundled:a&weights=parts")
    assert "option 'network' has no value" in said("iclr2018:lid?network=")


def test_an_unknown_scheme_lists_the_known_ones_and_the_nearest() -> None:
    message = said("tim:resnet18")
    assert "did you mean timm:?" in message
    assert all(f"{scheme.name}:" in message for scheme in MODEL_SCHEMES)


def test_a_bare_file_is_told_its_scheme(tmp_path: Path) -> None:
    for name, scheme in (("net.pt", "file"), ("net.onnx", "onnx")):
        path = tmp_path / name
        path.write_bytes(b"x")
        assert f"did you mean {scheme}:{path}?" in said(str(path))
    assert f"did you mean folder:{tmp_path}?" in said(str(tmp_path), what="data")
    (tmp_path / "t10k-images-idx3-ubyte.gz").touch()
    assert f"did you mean idx:{tmp_path}?split=train?" in said(f"{tmp_path}?split=train", what="data")


def test_data_where_a_model_belongs_is_called_data() -> None:
    assert "npz: names data" in said("npz:images.npz")
    assert "file: names a model" in said("file:a.pt", what="data")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("iclr2018:thermometerweights=parts", "iclr2018:thermometer?weights=parts"),
        ("iclr2018:lid/undefended&weights=parts", "iclr2018:lid/undefended?weights=parts"),
        ("iclr2018:lid&weights=p?network=timm:a", "iclr2018:lid?weights=p&network=timm:a"),
        ("iclr2018:lid,network=file:n.th?arch=resnet20", "iclr2018:lid?network=file:n.th?arch=resnet20"),
        ("file:n.th,arch=cnn28,mean=0.1,0.2;std=0.3", "file:n.th?arch=cnn28&mean=0.1,0.2&std=0.3"),
        ("file:n.th:arch=cnn28?mean=0.5", "file:n.th?arch=cnn28&mean=0.5"),
        ("python:nets:build shape=1,4,4", "python:nets:build?shape=1,4,4"),
    ],
)
def test_options_without_a_question_mark_are_shown_with_it(text: str, meant: str) -> None:
    assert said(text).endswith(f": write  {meant}")
    parse_reference(meant, MODEL_SCHEMES, what="model")


def test_options_of_data_without_a_question_mark_are_shown_with_it(tmp_path: Path) -> None:
    assert said(f"idx:{tmp_path}split=train", what="data").endswith(f"write  idx:{tmp_path}?split=train")
    assert said("folder:a,size=9,crop=8", what="data").endswith("write  folder:a?size=9&crop=8")
    message = said("folder:a,colour=3", what="data")
    assert "folder: has no option 'colour': known are labels, size" in message
    assert "options stand behind a ?, and there is no 'a,colour=3'" in message
    message = said("bundled:fashion-mnist split=test", what="data")
    assert message.endswith("bundled: takes no options, and 'split' is one: leave it out")


def test_a_path_may_hold_what_looks_like_an_option(tmp_path: Path) -> None:
    there = tmp_path / "run,arch=1.th"
    there.touch()
    assert model(f"file:{there}?arch=cnn28").path == str(there)
    for missing in ("file:run_arch=1.th", "file:lr=0.1.th", "file:=1"):
        assert model(missing).path == missing.removeprefix("file:")
    assert parse_reference("npz:max=3.npz", DATA_SCHEMES, what="data").path == "max=3.npz"


def test_how_many_inputs_is_said_to_the_command() -> None:
    for text in ("folder:a?limit=5", "folder:a,limit=5", "bundled:fashion-mnist?limit=5"):
        assert "has no option 'limit': give the command --limit N" in said(text, what="data")


def test_a_misspelt_option_suggests_the_nearest() -> None:
    assert "did you mean 'arch'?" in said("file:net.pt?arhc=cnn28")
    assert "did you mean 'labels'?" in said("folder:x?label=a", what="data")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("file:", "names nothing"),
        ("file:a?arch", "has no value"),
        ("file:a?arch=", "has no value"),
        ("file:a?arch=b&arch=c", "given twice"),
        ("bundled:x?mean=1", "takes no options"),
        ("", "is no model reference"),
        ("bundled", "is no model reference"),
    ],
)
def test_a_broken_reference_says_what_is_broken(text: str, word: str) -> None:
    assert word in said(text)


@pytest.mark.parametrize(
    "options",
    ["mean=a", "mean=1,,2", "mean=1/0", "mean=nan", "mean=inf", "mean=1e999"],
)
def test_numbers_that_are_none_are_refused(options: str) -> None:
    with pytest.raises(BadReference, match="mean is "):
        model(f"file:a?{options}").numbers("mean")


def test_options_out_of_range_are_refused_with_their_value() -> None:
    with pytest.raises(BadReference, match="num_classes is '1': give at least 2"):
        model("file:a?num_classes=1").integer("num_classes", least=2)
    with pytest.raises(BadReference, match="shape is '3,0'"):
        model("file:a?shape=3,0").shape()
    with pytest.raises(BadReference, match=r"layout is 'chn': give one of nchw, nhwc"):
        model("file:a?layout=chn").choice("layout", {"nchw": "", "nhwc": ""})


def test_a_missing_empty_or_wrong_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match="there is no file"):
        model(f"file:{tmp_path}/none.pt").file()
    (tmp_path / "empty.pt").touch()
    with pytest.raises(MissingFile, match="is empty"):
        model(f"file:{tmp_path}/empty.pt").file()
    with pytest.raises(MissingFile, match="is a folder"):
        model(f"file:{tmp_path}").file()


def test_a_missing_empty_or_wrong_folder_is_told_apart(tmp_path: Path) -> None:
    def folder(path: Path) -> Path:
        return parse_reference(f"folder:{path}", DATA_SCHEMES, what="data").folder()

    with pytest.raises(MissingFile, match="there is no folder"):
        folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFile, match="is empty"):
        folder(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(MissingFile, match="is a file"):
        folder(tmp_path / "file")
    assert folder(tmp_path) == tmp_path


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.pt").write_bytes(b"x")
    assert model("file:~/a.pt").file() == tmp_path / "a.pt"


def test_every_error_of_a_reference_ends_a_program_with_two() -> None:
    with pytest.raises(CalipersError) as caught:
        model("nothing")
    assert caught.value.exit_code == 2
