"""Layers. Every class listed here takes (batch, channels, *grid) and gives an output as large as its input."""

from flexseq.nn import frequency as frequency
from flexseq.nn.cfconv import CFConv1d, CFConv2d
from flexseq.nn.ckconv import CKConv1d, CKConv2d, CKConv3d
from flexseq.nn.flexconv import FlexConv1d, FlexConv2d, FlexConv3d
from flexseq.nn.niff import NIFFConv1d, NIFFConv2d
from flexseq.nn.njet import NJetConv1d, NJetConv2d

__all__ = [
    "CFConv1d",
    "CFConv2d",
    "CKConv1d",
    "CKConv2d",
    "CKConv3d",
    "FlexConv1d",
    "FlexConv2d",
    "FlexConv3d",
    "NIFFConv1d",
    "NIFFConv2d",
    "NJetConv1d",
    "NJetConv2d",
]
