"""Whether a conditional model's samples have what they were asked for.

The judge is a classifier that was trained on real images (`classifier.py`), so its own errors count against the model:
`ceiling` says what real images get. Source for classes: the Inception accuracy of Odena et al., ICML 2017 (AC-GAN,
arXiv 1610.09585), section 4.2, with a judge of the data set's own; for attributes the same, one attribute at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ali_dist.evaluation.classifiers import AttributeJudge, Classifier


def condition_kept(
    judge: Classifier | AttributeJudge, x_tilde: Tensor, c: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """How often the judge sees in images what their conditions say.

    Args:
        judge: of classes or of attributes, which says what `c` holds.
        x_tilde: images [N, C, H, W] in [0, 1], as G(z, c).
        c: conditions float32 [N, A]: one-hot classes, or attributes that are 0 or 1.
        names: of the A classes or attributes; empty: their numbers, from 0.

    Returns:
        condition_kept: mean share, 0 to 1; over samples for classes, over samples and attributes for attributes.
        condition_kept_<name>: for a class, over the samples that were asked for it (no key if none was); for an
            attribute, over all samples, with or without it.
        For attributes also condition_balanced and condition_balanced_<name>: the mean of the shares among samples
            with and among samples without the attribute (of the one that occurs, if only one does), where ignoring
            the condition gets 0.5 however rare the attribute is.
    """
    names = names or [str(number) for number in range(c.shape[1])]
    assert c.shape == (len(x_tilde), len(names)), f"conditions {tuple(c.shape)} for {len(names)} names"
    if isinstance(judge, Classifier):
        return _classes_kept(judge.classify(judge.features(x_tilde)), c.argmax(dim=1), names)
    return _attributes_kept(judge.has(x_tilde), c > 0.5, names)


def real_image_reference(
    judge: Classifier | AttributeJudge, x: Tensor, c: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """What `condition_kept` gives real holdout images `x` with their true conditions; keys end in `_reference`."""
    return {f"{key}_reference": value for key, value in condition_kept(judge, x, c, names).items()}


def _classes_kept(seen: Tensor, asked: Tensor, names: Sequence[str]) -> dict[str, float]:
    right = (seen == asked).double()
    shares = {"condition_kept": float(right.mean())}
    for number, name in enumerate(names):
        if bool((asked == number).any()):
            shares[f"condition_kept_{name}"] = float(right[asked == number].mean())
    return shares


def _attributes_kept(seen: Tensor, asked: Tensor, names: Sequence[str]) -> dict[str, float]:
    right = (seen == asked).double()
    kept = right.mean(dim=0)
    balanced = torch.stack([_balanced_share(right[:, a], asked[:, a]) for a in range(len(names))])
    shares = {"condition_kept": float(kept.mean()), "condition_balanced": float(balanced.mean())}
    shares |= {f"condition_kept_{name}": float(kept[a]) for a, name in enumerate(names)}
    shares |= {f"condition_balanced_{name}": float(balanced[a]) for a, name in enumerate(names)}
    return shares


def _balanced_share(right: Tensor, asked: Tensor) -> Tensor:
    """Mean over the values of `asked` [N] that occur of the share of `right` [N] among samples asked for that value."""
    return torch.stack([right[asked == value].mean() for value in asked.unique()]).mean()
