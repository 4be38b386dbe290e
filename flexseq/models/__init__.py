"""Networks, and the baselines that they are compared with."""

from flexseq.models.cfnet import CFNet
from flexseq.models.cifar_resnet import CIFARResNet
from flexseq.models.flexnet import FlexNet
from flexseq.models.flextcn import CKCNN, CKTCN, FlexTCN
from flexseq.models.tcn import TCN

__all__ = ["CKCNN", "CKTCN", "TCN", "CFNet", "CIFARResNet", "FlexNet", "FlexTCN"]
