"""Functions in methods: kept by names from which they are found again, or not stored at all."""

import pickle

import pytest
import torch
from torch import nn

from calipers.errors import UsageError
from calipers.gradients.named import NamedFunction, as_function, name_of, register


def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Holder:
    @staticmethod
    def tripled(x: torch.Tensor) -> torch.Tensor:
        return 3 * x

    def method(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_function_of_a_module_is_known_by_its_place() -> None:
    found = as_function(doubled)
    assert name_of(found) == f"{__name__}:doubled"
    assert float(found(torch.tensor(2.0))) == 4
    assert as_function(name_of(found)) == found
    assert name_of(as_function(Holder.tripled)) == f"{__name__}:Holder.tripled"
    assert as_function(found) is found


def test_a_name_survives_pickling_and_printing() -> None:
    register("doubled-in-tests", doubled)
    found = as_function("doubled-in-tests")
    assert pickle.loads(pickle.dumps(found)) == found
    assert repr(found) == "'doubled-in-tests'"
    assert as_function(doubled).name == "doubled-in-tests"


@pytest.mark.parametrize(
    "given", [lambda x: x, Holder().method, torch.nn.ReLU()], ids=["lambda", "bound", "object"]
)
def test_what_nothing_finds_again_works_and_is_not_stored(given) -> None:
    found = as_function(given)
    assert found is given
    with pytest.raises(UsageError, match="cannot be stored"):
        name_of(found)


def test_a_module_is_written_with_the_hash_of_its_weights() -> None:
    layer = nn.Linear(2, 2)
    register("layer-in-tests", layer)
    name = name_of(as_function(layer))
    assert name.startswith("layer-in-tests#")
    assert NamedFunction(name) == NamedFunction("layer-in-tests")
    with torch.no_grad():
        layer.weight += 1
    assert name_of(NamedFunction("layer-in-tests")) != name
    with pytest.raises(UsageError, match="other weights"):
        NamedFunction(name)


def test_a_name_means_one_function() -> None:
    register("one-in-tests", doubled)
    register("one-in-tests", doubled)
    with pytest.raises(UsageError, match="already names another"):
        register("one-in-tests", Holder.tripled)
    for name in ("", "1st", "a b", "a=b", "a:b", "a(b)"):
        with pytest.raises(UsageError, match="cannot name a function"):
            register(name, doubled)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing", "no function is named 'nothing': known are .*identity"),
        ("no.such.module:name", "raised ModuleNotFoundError"),
        (f"{__name__}:missing", "has no function missing"),
        (f"{__name__}:__name__", "has no function __name__"),
        ("a b:c", "no function is named"),
        ("doubled#00", "no function is named"),
    ],
)
def test_a_name_of_nothing_is_an_error_in_one_line(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        NamedFunction(name)
    assert "\n" not in str(caught.value)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(Exception, match="3"):
        as_function(3)


def test_however_many_names_there_are_the_error_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "calipers.gradients.named._REGISTERED", {f"surrogate-{each:012d}": abs for each in range(50)}
    )
    with pytest.raises(
        UsageError, match="no function is named 'nowhere': known are .* and 42 more; or"
    ) as told:
        as_function("nowhere")
    assert len(str(told.value)) < 300
