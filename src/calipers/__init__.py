"""calipers measures how robust a classifier really is: certificates from below, attacks from above.

The names below are imported when they are first used: `import calipers` costs nothing and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calipers.attacks.apgd import APGD
    from calipers.attacks.base import Attack
    from calipers.attacks.ddn import DDN
    from calipers.attacks.fmn import FMN
    from calipers.attacks.judge import Judge
    from calipers.attacks.pgd import PGD
    from calipers.attacks.standard import Standard
    from calipers.certificates.base import Certifier
    from calipers.certificates.lipschitz.certifier import LipschitzCertifier
    from calipers.certificates.lipschitz.network import lipschitz_upper_bound
    from calipers.certificates.smoothing.certifier import SoftCertifier, VoteCertifier, VotePredictor
    from calipers.certificates.smoothing.noise import Gaussian, Laplace, Noise, RoundedGaussian, Uniform
    from calipers.certificates.smoothing.smoothed import smooth
    from calipers.certificates.smoothing.stopping import DecideRadii, FixedBudget
    from calipers.diagnostics.diagnose import diagnose
    from calipers.diagnostics.prescribe import prescribe
    from calipers.evidence.bracket import Bracket, bracket
    from calipers.evidence.records import Attempt, Certificate
    from calipers.gradients.bpda import BPDA
    from calipers.gradients.eot import EOT
    from calipers.gradients.estimator import Autograd
    from calipers.gradients.finite_differences import NES, SPSA
    from calipers.gradients.reparameterization import Reparameterization
    from calipers.runs.catalog import load_model
    from calipers.runs.spec import RunSpec
    from calipers.runs.store import RunStore
    from calipers.sources.datasets import load_dataset
    from calipers.sources.inputs import Dataset
    from calipers.target.target import Access, Target
    from calipers.threat.threat_model import ABSTAIN, Norm, Targeted, ThreatModel, Untargeted

__version__ = "0.1.0"

__all__ = [
    "ABSTAIN",
    "APGD",
    "BPDA",
    "DDN",
    "EOT",
    "FMN",
    "NES",
    "PGD",
    "SPSA",
    "Access",
    "Attack",
    "Attempt",
    "Autograd",
    "Bracket",
    "Certificate",
    "Certifier",
    "Dataset",
    "DecideRadii",
    "FixedBudget",
    "Gaussian",
    "Judge",
    "Laplace",
    "LipschitzCertifier",
    "Noise",
    "Norm",
    "Reparameterization",
    "RoundedGaussian",
    "RunSpec",
    "RunStore",
    "SoftCertifier",
    "Standard",
    "Target",
    "Targeted",
    "ThreatModel",
    "Uniform",
    "Untargeted",
    "VoteCertifier",
    "VotePredictor",
    "bracket",
    "diagnose",
    "lipschitz_upper_bound",
    "load_dataset",
    "load_model",
    "prescribe",
    "smooth",
]

# Where each name lives: the imports above, for the interpreter.
_HOMES = {
    "calipers.attacks.apgd": ("APGD",),
    "calipers.attacks.base": ("Attack",),
    "calipers.attacks.ddn": ("DDN",),
    "calipers.attacks.fmn": ("FMN",),
    "calipers.attacks.judge": ("Judge",),
    "calipers.attacks.pgd": ("PGD",),
    "calipers.attacks.standard": ("Standard",),
    "calipers.certificates.base": ("Certifier",),
    "calipers.certificates.lipschitz.certifier": ("LipschitzCertifier",),
    "calipers.certificates.lipschitz.network": ("lipschitz_upper_bound",),
    "calipers.certificates.smoothing.certifier": ("SoftCertifier", "VoteCertifier", "VotePredictor"),
    "calipers.certificates.smoothing.noise": ("Gaussian", "Laplace", "Noise", "RoundedGaussian", "Uniform"),
    "calipers.certificates.smoothing.smoothed": ("smooth",),
    "calipers.certificates.smoothing.stopping": ("DecideRadii", "FixedBudget"),
    "calipers.diagnostics.diagnose": ("diagnose",),
    "calipers.diagnostics.prescribe": ("prescribe",),
    "calipers.evidence.bracket": ("Bracket", "bracket"),
    "calipers.evidence.records": ("Attempt", "Certificate"),
    "calipers.gradients.bpda": ("BPDA",),
    "calipers.gradients.eot": ("EOT",),
    "calipers.gradients.estimator": ("Autograd",),
    "calipers.gradients.finite_differences": ("NES", "SPSA"),
    "calipers.gradients.reparameterization": ("Reparameterization",),
    "calipers.runs.catalog": ("load_model",),
    "calipers.runs.spec": ("RunSpec",),
    "calipers.runs.store": ("RunStore",),
    "calipers.sources.datasets": ("load_dataset",),
    "calipers.sources.inputs": ("Dataset",),
    "calipers.target.target": ("Access", "Target"),
    "calipers.threat.threat_model": ("ABSTAIN", "Norm", "Targeted", "ThreatModel", "Untargeted"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            value: object = getattr(import_module(module), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'calipers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
