r"""Local intrinsic dimension (Ma et al. 2018): inputs whose neighbours in the network lie as if in more dimensions.

**Claim.** Around an adversarial example the images of the data lie as if in more dimensions than around an image of the
data: distances to the nearest neighbours tell them apart, layer by layer.

**Mechanism.** At each layer, with :math:`r_1 \le \dots \le r_k` the distances to the k nearest images of a reference
minibatch, :math:`\mathrm{LID} = -k / \sum_i \log (r_i / r_k)`; a logistic regression on these numbers rejects.

**Flaw.** No gradient is hidden: the detector is as smooth a function of the input as the classifier, and an adversary
who knows it goes around both at once.

**Recipe.** ``PGD(steps=50, restarts=3, loss="margin")`` on classifier and detector together. The lecture's way, many
steps of a margin that is never clipped on the classifier alone, so that examples end deep in the wrong class, is a row
beside it.
"""

from calipers.defenses.lid.defense import DetectedClassifier, LocalIntrinsicDimension

__all__ = ["DetectedClassifier", "LocalIntrinsicDimension"]
