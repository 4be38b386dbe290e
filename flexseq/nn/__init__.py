"""Layers. Every class listed here takes (batch, channels, *grid) and gives an output as large as its input."""

from flexseq.nn.ckconv import CKConv1d, CKConv2d, CKConv3d
from flexseq.nn.flexconv import FlexConv1d, FlexConv2d, FlexConv3d
from flexseq.nn.njet import NJetConv1d, NJetConv2d

__all__ = ["CKConv1d", "CKConv2d", "CKConv3d", "FlexConv1d", "FlexConv2d", "FlexConv3d", "NJetConv1d", "NJetConv2d"]
