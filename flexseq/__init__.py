"""flexseq: convolutions whose kernels are functions."""

from flexseq import compat, functional, kernels, models, nn
from flexseq.errors import InputError
from flexseq.models import CKCNN, CKTCN, TCN, FlexNet, FlexTCN
from flexseq.nn import CKConv1d, CKConv2d, CKConv3d, FlexConv1d, FlexConv2d, FlexConv3d
from flexseq.saving import load, save
from flexseq.training.parameters import param_groups

__version__ = "0.1.0"

__all__ = [
    "CKCNN",
    "CKTCN",
    "TCN",
    "CKConv1d",
    "CKConv2d",
    "CKConv3d",
    "FlexConv1d",
    "FlexConv2d",
    "FlexConv3d",
    "FlexNet",
    "FlexTCN",
    "InputError",
    "compat",
    "functional",
    "kernels",
    "load",
    "models",
    "nn",
    "param_groups",
    "save",
]
