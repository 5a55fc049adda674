"""`calipers demo`: both jaws on what ships with the package, in about a minute and a half."""

from __future__ import annotations

import shlex
from dataclasses import replace

from calipers.cli import options
from calipers.cli.answers import describe_run, text_of_run
from calipers.cli.attack_options import attack_spec
from calipers.cli.console import speaking
from calipers.cli.measured_run import Manner, measure_to_file

__all__ = ["demo"]

MODEL = "bundled:fashion-cnn28-noise-0.25"
DATA = "bundled:fashion-mnist"
SIGMA = "0.25"
INPUTS = 100
DRAWS = 10_000
RADII = (0.0, 0.25, 0.5, 0.75)
BARS = 20


def demo(
    run: options.RunFile = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Close both jaws on bundled images of a smoothed bundled network, in about a minute and a half on two cores.

    From below, noisy votes prove a radius for each image; from above, an attack finds the nearest image that is
    answered otherwise. No network and no files are needed. The run is stored like any other: the same command shows it
    again at once.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.report.summary import compare, summarize
        from calipers.runs.descriptions import build_certifier
        from calipers.runs.recertify import recertify
        from calipers.runs.store import RunStore

        above = attack_spec(
            model=MODEL,
            data=DATA,
            norm="l2",
            eps=None,
            attack=None,
            gradient=None,
            sigma=SIGMA,
            noise="gaussian",
            draws=100,
            rule="majority",
            quantize=False,
            precision="fp32",
            device="cpu",
            seed=0,
            skip=0,
            limit=None,
            sample=INPUTS,
            trust_code=False,
        )
        spec = replace(
            above,
            kind="bracket",
            attack=above.method,
            method=repr(build_certifier(f"VoteCertifier(n={DRAWS})")),
        )
        say.note(
            f"both jaws on {INPUTS} Fashion-MNIST images: certified from below by {DRAWS:,} noisy copies of each, then "
            "attacked from above:"
        )
        path = measure_to_file(say, spec, Manner(path=run, compile_allowed=False))
        with RunStore.read(path) as store:
            payload, text = describe_run(store, radii=RADII), text_of_run(store, radii=RADII, most=BARS)
            declared = store.certificates()
            other = recertify(store, bound="one-sided")
        curves = {
            "two-sided, as declared": summarize(declared, radii=RADII, spec=spec).curve,
            "one-sided, same counts": summarize(other.certificates, radii=RADII, spec=other.spec).curve,
        }
        shown = shlex.quote(str(path))
        following = [
            f"calipers show {shown} --inputs",
            f"calipers recertify {shown} --alpha 0.01",
            "calipers certify bundled:fashion-cnn28-noise-0.50 bundled:fashion-mnist --sigma 0.5 --n 10000 --limit 100",
        ]
        say.answer(
            payload
            | {
                "one_sided": summarize(other.certificates, radii=RADII, spec=other.spec).to_dict(),
                "next": following,
            },
            "",
            text,
            "",
            summarize(declared, radii=RADII, spec=spec).text(),
            "",
            compare(curves).text(),
            "",
            "next: each image's radius; another question of the same counts, at once; the network with more noise:",
            *(f"  {line}" for line in following),
        )
