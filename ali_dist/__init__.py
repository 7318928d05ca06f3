"""Adversarially Learned Inference (Dumoulin et al., ICLR 2017) as a distributed training system."""

__version__ = "0.1.0"
