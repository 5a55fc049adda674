"""Lipschitz constants of networks from both sides, and what they certify in l2 on whole test sets.

    python benchmarks/lipschitz_networks.py --cifar FOLDER --out benchmarks/results/lipschitz-networks.json

The data lie in ../shared/data; FOLDER holds CIFAR-10 (JPEG) unpacked. What is absent is left out, and named. With
``--only NAME`` that network alone is measured, and its entry of the file that is there already replaced.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from environment import environment, report

SHARED = Path("../shared/data")
FASHION = f"idx:{SHARED}/fashion-mnist?split=test"
RESNET20 = (
    f"file:{SHARED}/models/resnet20-12fca82f.th?arch=resnet20&mean=0.485,0.456,0.406&std=0.229,0.224,0.225"
)
RADII = "36/255,0.25,72/255,108/255,0.5"
NETWORKS = {
    "bundled:fashion-cnn28-plain": (FASHION, f"0,0.0025,0.005,0.01,{RADII}"),
    "bundled:fashion-lipschitz": (FASHION, f"0,{RADII}"),
    RESNET20: ("cifar", f"0,2e-10,{RADII}"),
    "bundled:cifar10-lipschitz": ("cifar", f"0,{RADII}"),
}
RULES = ("best", "per-coordinate", "vector", "last-layer", "softmax")


def calipers(*arguments: str) -> Any:
    """Run a command and read what it answers."""
    command = [sys.executable, "-m", "calipers", *arguments, "--json", "--quiet"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def certified(model: str, data: str, radii: str, *options: str) -> Any:
    """Certify every image of a data set, and read the run at some radii."""
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "net.sqlite")
        calipers("certify", model, data, "--lipschitz", "--run", run, *options)
        return calipers("show", run, "--radii", radii)


def places(data: str, cifar: Path | None) -> tuple[str, str]:
    """Give the reference of a data set as it is read here, and as it is shown."""
    return (f"folder:{cifar}/test", "folder:cifar10/test") if data == "cifar" else (data, data)


def replace_one(model: str, cifar: Path | None, out: Path) -> None:
    """Measure one network again, and put it in the place of its entry."""
    data, radii = NETWORKS[model]
    found = network(model, *places(data, cifar), radii) | {"environment": environment("numpy", "scipy")}
    result = json.loads(out.read_text(encoding="utf-8"))
    result["networks"] = [
        found if old["lipschitz"]["described"]["model"] == model else old for old in result["networks"]
    ]
    report(result, out)


def network(model: str, data: str, shown: str, radii: str) -> dict[str, Any]:
    """Bound a network from both sides, and certify with the bound."""
    found = {
        "commands": [
            f"calipers lipschitz '{model}' --json",
            f"calipers certify '{model}' '{shown}' --lipschitz --run net.sqlite",
            f"calipers show net.sqlite --radii {radii} --json",
        ],
        "lipschitz": calipers("lipschitz", model),
        "certified": certified(model, data, radii)["summary"],
    }
    found["certified"]["asked"]["data"] = shown
    return found


def forms() -> dict[str, Any]:
    """Certify 1 000 bundled images by each form of Theorem 0."""
    radii = f"0,{RADII}"
    found = {
        rule: certified("bundled:fashion-lipschitz", "bundled:fashion-mnist", radii, "--rule", rule)
        for rule in RULES
    }
    rows = {rule: one["summary"]["certified_accuracy"] for rule, one in found.items()}
    return {
        "command": "calipers certify bundled:fashion-lipschitz bundled:fashion-mnist --lipschitz --rule RULE",
        "images": 1000,
        "radii": [row["radius"] for row in rows["best"]],
        "certified": {rule: [row["certified"] for row in one] for rule, one in rows.items()},
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 (JPEG), unpacked: a folder that holds test/")
    parser.add_argument("--only", choices=tuple(NETWORKS), help="the only network that is measured")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        if arguments.out is None:
            parser.error("--only replaces an entry of a file: name it with --out")
        replace_one(arguments.only, arguments.cifar, arguments.out)
        return
    networks, absent = [], []
    for model, (data, radii) in NETWORKS.items():
        if (data == "cifar" and arguments.cifar is None) or not SHARED.is_dir():
            absent.append(model)
            continue
        networks.append(network(model, *places(data, arguments.cifar), radii))
    result = {
        "what": "Lipschitz constants of networks from both sides, layer by layer, and what they certify in l2",
        "networks": networks,
        "left out, for lack of data": absent,
        "forms of Theorem 0": forms(),
        "environment": environment("numpy", "scipy"),
    }
    report(result, arguments.out)


if __name__ == "__main__":
    main()
