"""The page on extending: its attack is run, and passes the contract that the page names."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from calipers.testing.attack_contract import AttackContract

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
TESTS = [name for name in dir(AttackContract) if name.startswith("test_")]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    module = ModuleType("calipers_extending")
    sys.modules[module.__name__] = module
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        exec(block, module.__dict__)  # noqa: S102  # code of our own page
    return module


@pytest.mark.parametrize("name", TESTS)
def test_the_attack_of_the_page_passes_the_contract(page: ModuleType, name: str) -> None:
    contract: AttackContract = page.TestSignNoise()
    getattr(contract, name)()
