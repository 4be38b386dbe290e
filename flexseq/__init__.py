"""flexseq: convolutions whose kernels are functions."""

from flexseq import analysis, backbones, compat, functional, kernels, models, nn
from flexseq.antialias import alias_penalty, limit_frequencies, max_frequency
from flexseq.errors import InputError
from flexseq.functional.band_limits import nyquist_frequency
from flexseq.models import CKCNN, CKTCN, TCN, CFNet, CIFARResNet, FlexNet, FlexTCN
from flexseq.nn import (
    CFConv1d,
    CFConv2d,
    CKConv1d,
    CKConv2d,
    CKConv3d,
    FlexConv1d,
    FlexConv2d,
    FlexConv3d,
    NIFFConv1d,
    NIFFConv2d,
    NJetConv1d,
    NJetConv2d,
)
from flexseq.resolution import set_resolution
from flexseq.saving import load, save
from flexseq.surgery import to_cfconv, to_flexconv, to_niff
from flexseq.training.parameters import param_groups

__version__ = "0.1.0"

__all__ = [
    "CKCNN",
    "CKTCN",
    "TCN",
    "CFConv1d",
    "CFConv2d",
    "CFNet",
    "CIFARResNet",
    "CKConv1d",
    "CKConv2d",
    "CKConv3d",
    "FlexConv1d",
    "FlexConv2d",
    "FlexConv3d",
    "FlexNet",
    "FlexTCN",
    "InputError",
    "NIFFConv1d",
    "NIFFConv2d",
    "NJetConv1d",
    "NJetConv2d",
    "alias_penalty",
    "analysis",
    "backbones",
    "compat",
    "functional",
    "kernels",
    "limit_frequencies",
    "load",
    "max_frequency",
    "models",
    "nn",
    "nyquist_frequency",
    "param_groups",
    "save",
    "set_resolution",
    "to_cfconv",
    "to_flexconv",
    "to_niff",
]
