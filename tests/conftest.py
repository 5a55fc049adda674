"""What every test shares: one thread a worker, shapes checked at run time, the folder of larger data.

Nothing is seeded here: a test that draws says from which seed.
"""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

sys.path.insert(0, str(ROOT / "tests"))  # made_records, which several folders use

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read by torch when it is first imported, and by the processes that a test starts.
    os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def _modules_with_shapes() -> list[str]:
    """Name the modules that import jaxtyping when they are loaded.

    The others import torch late or for the type checker alone, so that their annotations name things which
    beartype could not find.
    """
    return sorted(
        ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in (SOURCE / "calipers").rglob("*.py")
        if path.name != "__init__.py"
        and any(line.startswith("from jaxtyping import") for line in path.read_text("utf-8").splitlines())
    )


install_import_hook(_modules_with_shapes(), "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; torch is asked only if a chosen test wants one."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Give the folder of larger data: CALIPERS_DATA or ../shared/data; without it the test is skipped."""
    named = os.environ.get("CALIPERS_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder of larger data at {folder}; set CALIPERS_DATA to its path")
    return folder
