"""The constant of a model reference: any reference that the catalog knows, in a process that loaded nothing yet."""

from __future__ import annotations

import subprocess
import sys


def test_a_defense_s_reference_is_known_though_nothing_loaded_the_catalog_before() -> None:
    code = (
        "from calipers.runs.lipschitz import measure_constant\nmeasure_constant('iclr2018:none', samples=0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert "no defense of ICLR 2018 is called 'none'" in done.stderr
