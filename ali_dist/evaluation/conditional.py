"""How often a conditional model's samples have what their conditions say.

A classifier that was trained on real images (`classifiers.py`) decides, so its own errors count against the model:
`real_image_reference` says what real images get. Source for classes: the Inception accuracy of Odena et al., ICML 2017
(AC-GAN, arXiv 1610.09585), section 4.2, with a classifier of the data set's own; for attributes the same, one
attribute at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ali_dist.evaluation.classifiers import AttributeClassifier, Classifier
from ali_dist.names import printable_name


def condition_kept(
    classifier: Classifier | AttributeClassifier, x_tilde: Tensor, c: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Measure how often the classifier sees in images what their conditions say.

    Args:
        classifier: Its kind says what `c` holds: classes or attributes.
        x_tilde: Images [N, C, H, W] in [0, 1], as G(z, c).
        c: Conditions float32 [N, A]: one-hot classes, or attributes that are 0 or 1.
        names: Names of the A classes or attributes; empty: they are numbered from 0.

    Returns:
        condition_kept: Mean share, 0 to 1; over samples for classes, over samples and attributes for attributes.
        condition_kept_<name>: For a class, the share among the samples with that condition (no key if there is none);
            for an attribute, the share among all samples, with or without it.
        For attributes also condition_balanced and condition_balanced_<name>: the mean of the shares among samples
            with and among samples without the attribute (of the one that occurs, if only one does), where ignoring
            the condition gets 0.5 however rare the attribute is.

    Names stand in keys as any program can write them on one line: a line break is a backslash and `n`.

    Raises:
        ValueError: `c` does not fit the images or the names.
    """
    names = [printable_name(name) for name in names] or [str(number) for number in range(c.shape[1])]
    if c.shape != (len(x_tilde), len(names)):
        raise ValueError(f"Conditions must be [{len(x_tilde)}, {len(names)}], not {tuple(c.shape)}.")
    if isinstance(classifier, Classifier):
        return _class_shares(classifier.classify(classifier.features(x_tilde)), c.argmax(dim=1), names)
    return _attribute_shares(classifier.detect_attributes(x_tilde), c > 0.5, names)


def real_image_reference(
    classifier: Classifier | AttributeClassifier, x: Tensor, c: Tensor, names: Sequence[str]
) -> dict[str, float]:
    """Give real holdout images `x` with their true conditions to `condition_kept`; keys end in `_reference`."""
    return {f"{key}_reference": value for key, value in condition_kept(classifier, x, c, names).items()}


def _class_shares(predicted: Tensor, requested: Tensor, names: Sequence[str]) -> dict[str, float]:
    is_right = (predicted == requested).double()
    shares = {"condition_kept": float(is_right.mean())}
    for number, name in enumerate(names):
        if bool((requested == number).any()):
            shares[f"condition_kept_{name}"] = float(is_right[requested == number].mean())
    return shares


def _attribute_shares(predicted: Tensor, requested: Tensor, names: Sequence[str]) -> dict[str, float]:
    is_right = (predicted == requested).double()
    kept = is_right.mean(dim=0)
    balanced = torch.stack([_balanced_share(is_right[:, a], requested[:, a]) for a in range(len(names))])
    shares = {"condition_kept": float(kept.mean()), "condition_balanced": float(balanced.mean())}
    shares |= {f"condition_kept_{name}": float(kept[a]) for a, name in enumerate(names)}
    shares |= {f"condition_balanced_{name}": float(balanced[a]) for a, name in enumerate(names)}
    return shares


def _balanced_share(is_right: Tensor, requested: Tensor) -> Tensor:
    """Mean of the shares of `is_right` [N] among samples with each value of `requested` [N] that occurs."""
    return torch.stack([is_right[requested == value].mean() for value in requested.unique()]).mean()
