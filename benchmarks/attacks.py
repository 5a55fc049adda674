"""Attacks: calipers against foolbox, torchattacks, ART and AutoAttack on the same network, images and threads.

    python benchmarks/attacks.py pgd --model bundled:fashion-cnn28-plain --data bundled:fashion-mnist --eps 0.1
    python benchmarks/attacks.py standard --model bundled:fashion-cnn28-plain --data bundled:fashion-mnist --eps 0.1

``pgd``: 40 steps of the same size from a random point of the linf ball, on images that are classified rightly, in
batches of one size, nothing dropped; then with fallen inputs dropped. calipers' time holds its judge, which passes the
clean and the found images forward once more; the peers' robust accuracy is taken outside of their time. Contenders take
turns in rounds; what is reported are medians over rounds of the ratio to the fastest peer within the round, in
seconds of the process, since the machine may be shared; those of the clock stand beside them. Every contender runs in
a process of its own, since calipers changes how its process keeps freed memory.

``standard``: ``Standard`` before and after AutoAttack's standard version (pyautoattack), on the first images of the
data, those that are wrong already included; the ratio is that of calipers' mean to AutoAttack's, in seconds of the
process and in those of the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import environment, report
from torch import Tensor, nn

from calipers.attacks.base import AttackResult
from calipers.attacks.pgd import PGD
from calipers.attacks.standard import Standard
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

Attacked = Callable[[Tensor, Tensor], Tensor]
PEERS = ("foolbox", "torchattacks", "adversarial-robustness-toolbox", "pyautoattack")


def load(args: argparse.Namespace) -> tuple[Target, Tensor, Tensor]:
    """Load network and images."""
    target = third_party() if args.model == "pyautoattack" else load_model(args.model, device=args.device)
    data = load_dataset(args.data)
    numbers = torch.randperm(len(data), generator=torch.Generator().manual_seed(args.sample_seed)).tolist()
    items = [data[number] for number in (numbers if args.shuffle else range(len(data)))[: args.images]]
    x = torch.stack([torch.from_numpy(item.image) for item in items]).to(target.device)
    return target, x, torch.tensor([item.label for item in items], device=target.device)


def third_party() -> Target:
    """Load the undefended ResNet-18 for CIFAR-10 that pyautoattack's examples carry."""
    import pyautoattack

    folder = Path(pyautoattack.__file__).parent / "examples"
    sys.path.insert(0, str(folder))
    from resnet import ResNet18  # type: ignore[import-not-found]

    net = ResNet18()
    state = torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(state)
    return Target(net.eval(), num_classes=10, input_shape=(3, 32, 32), name="pyautoattack's ResNet-18")


def standing(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images that are classified rightly."""
    with torch.no_grad():
        return float(torch.cat([net(part).argmax(1) for part in x.split(100)]).eq(y).float().mean())


def ours(target: Target, args: argparse.Namespace, *, keep: bool) -> Attacked:
    """PGD of calipers."""
    attack = PGD(steps=args.steps, step_size=args.step_size, keep=keep)
    threat = ThreatModel(Norm.LINF, args.eps)
    return lambda x, y: attack(target, x, y, threat, seed=0).adversarial


def torchattacks_pgd(target: Target, args: argparse.Namespace) -> Attacked:
    """PGD of torchattacks."""
    import torchattacks

    attack = torchattacks.PGD(
        target.module, eps=args.eps, alpha=args.step_size * args.eps, steps=args.steps, random_start=True
    )
    return attack  # type: ignore[no-any-return]


def foolbox_pgd(target: Target, args: argparse.Namespace) -> Attacked:
    """PGD of foolbox."""
    import foolbox

    net = foolbox.PyTorchModel(target.module, bounds=target.bounds, device=target.device)
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=args.step_size * args.eps, rel_stepsize=None, steps=args.steps, random_start=True
    )
    return lambda x, y: attack(net, x, y, epsilons=args.eps)[1]


def art_pgd(target: Target, args: argparse.Namespace) -> Attacked:
    """PGD of the adversarial robustness toolbox."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        target.module,
        nn.CrossEntropyLoss(),
        target.input_shape,
        target.num_classes,
        clip_values=target.bounds,
        device_type="gpu" if target.device.type == "cuda" else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        eps=args.eps,
        eps_step=args.step_size * args.eps,
        max_iter=args.steps,
        num_random_init=1,
        batch_size=args.batch,
        verbose=False,
    )
    return lambda x, y: torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)


CONTENDERS: dict[str, Callable[[Target, argparse.Namespace], Attacked]] = {
    "calipers, nothing dropped": lambda target, args: ours(target, args, keep=True),
    "calipers": lambda target, args: ours(target, args, keep=False),
    "torchattacks": torchattacks_pgd,
    "foolbox": foolbox_pgd,
    "ART": art_pgd,
}


def rightly_classified(args: argparse.Namespace) -> tuple[Target, Tensor, Tensor]:
    """Load network and images, without those that are wrong already."""
    target, x, y = load(args)
    right = torch.cat([target.predict(part) for part in x.split(100)]) == y
    return target, x[right], y[right]


def serve(args: argparse.Namespace) -> None:
    """Attack whenever a line comes in, and answer with seconds and robust accuracy."""
    target, x, y = rightly_classified(args)
    attacked = CONTENDERS[args.serve](target, args)
    for _ in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            start, busy = time.perf_counter(), time.process_time()
            parts = [attacked(*part) for part in zip(x.split(args.batch), y.split(args.batch), strict=True)]
            seconds = {"process": time.process_time() - busy, "clock": time.perf_counter() - start}
            seconds["accuracy"] = standing(target.module, torch.cat(parts), y)
        print(json.dumps(seconds), flush=True)


class Contender:
    """A contender in a process of its own, asked once a round."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], "--serve", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.again()

    def again(self) -> dict[str, float]:
        """Run once more."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def pgd(args: argparse.Namespace) -> dict[str, Any]:
    """Compare throughput at the same steps."""
    count = len(rightly_classified(args)[1])
    contenders = {name: Contender(name) for name in CONTENDERS}
    rounds = [{name: one.again() for name, one in contenders.items()} for _ in range(args.rounds)]
    for one in contenders.values():
        one.end()
    peers = ("torchattacks", "foolbox", "ART")
    result: dict[str, Any] = {
        "what": f"PGD-{args.steps}, linf {args.eps:g}, {count} images that are right, batches of {args.batch}"
    }
    for kind in ("process", "clock"):
        result[f"median_speed_against_the_fastest_peer_by_{kind}"] = {
            name: round(
                statistics.median(min(row[peer][kind] for peer in peers) / row[name][kind] for row in rounds),
                3,
            )
            for name in contenders
        }
        result[f"median_{kind}_seconds"] = {
            name: round(statistics.median(row[name][kind] for row in rounds), 3) for name in contenders
        }
    result["robust_accuracy"] = {name: round(rounds[-1][name]["accuracy"], 4) for name in contenders}
    result["rounds"] = [{name: round(value["process"], 3) for name, value in row.items()} for row in rounds]
    return result


def standard(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the ensembles."""
    from pyautoattack import AutoAttack

    target, x, y = load(args)
    norm = Norm.parse(args.norm)
    threat = ThreatModel(norm, args.eps)

    def mine() -> tuple[list[AttackResult], dict[str, float]]:
        start, busy = time.perf_counter(), time.process_time()
        parts = zip(range(0, len(x), args.batch), x.split(args.batch), y.split(args.batch), strict=True)
        found = [
            Standard()(target, part, labels, threat, seed=0, indices=range(at, at + len(part)))
            for at, part, labels in parts
        ]
        return found, {"seconds": time.perf_counter() - start, "process_seconds": time.process_time() - busy}

    found, before = mine()
    success = torch.cat([part.success for part in found])
    result: dict[str, Any] = {
        "what": f"Standard and AutoAttack, {norm} {args.eps:g}, {len(x)} images",
        "clean_accuracy": round(standing(target.module, x, y), 4),
        "calipers": {
            "robust_accuracy": round(1 - float(success.float().mean()), 4),
            **{name: round(value, 2) for name, value in before.items()},
            "forwards_an_image": round(sum(float(part.forwards.sum()) for part in found) / len(x), 1),
            "backwards_an_image": round(sum(float(part.backwards.sum()) for part in found) / len(x), 1),
        },
    }
    if args.alone:
        return result
    names = {Norm.LINF: "Linf", Norm.L2: "L2", Norm.L1: "L1"}
    with contextlib.redirect_stdout(io.StringIO()):
        attack = AutoAttack(target.module, norm=names[norm], eps=args.eps, seed=0, device=args.device)
        start, busy = time.perf_counter(), time.process_time()
        adversarial = attack.run_standard_evaluation(x, y, batch_size=args.batch)[0]
        theirs = {"seconds": time.perf_counter() - start, "process_seconds": time.process_time() - busy}
    with torch.no_grad():
        wrong = torch.cat([target.module(part).argmax(1) for part in adversarial.split(100)]) != y
    result["autoattack"] = {
        "robust_accuracy": round(1 - float(wrong.float().mean()), 4),
        **{name: round(value, 2) for name, value in theirs.items()},
    }
    _, after = mine()
    result["calipers_again"] = {name: round(value, 2) for name, value in after.items()}
    for kind in ("process_seconds", "seconds"):
        ratio = (before[kind] + after[kind]) / 2 / theirs[kind]
        result[f"{kind}_against_autoattack"] = round(ratio, 4)
    wrong = wrong.cpu()
    result["only_calipers_found"] = int((success & ~wrong).sum())
    result["only_autoattack_found"] = int((wrong & ~success).sum())
    return result


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("pgd", "standard"))
    parser.add_argument("--model", default="bundled:fashion-cnn28-plain", help="a reference, or pyautoattack")
    parser.add_argument("--data", default="bundled:fashion-mnist")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument(
        "--shuffle", action="store_true", help="sample the images instead of taking the first"
    )
    parser.add_argument("--sample-seed", type=int, default=0)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--step-size", type=float, default=0.0625, help="as a share of eps")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--alone", action="store_true", help="leave AutoAttack out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", choices=tuple(CONTENDERS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and report."""
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)  # noqa: TID251  # the peers draw from the global generator
    if args.serve:
        serve(args)
        return
    result = pgd(args) if args.part == "pgd" else standard(args)
    shown = {"model": args.model, "data": args.data, "threads": args.threads}
    report(result | shown | {"environment": environment(*PEERS)}, args.out)


if __name__ == "__main__":
    main()
