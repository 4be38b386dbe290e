"""TCN: dilated causal convolutions, the baseline for sequences."""

import itertools

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_numbers
from flexseq.models.arguments import MOST_DEPTH
from flexseq.models.causal_conv import CausalConv1d
from flexseq.models.dropout import Dropout
from flexseq.models.heads import SequenceHead, check_sequences, valid_steps


class DilatedBlock(nn.Module):
    """[weight-normalised convolution, ReLU, dropout] twice, plus the input (1x1-convolved where the width changes), then ReLU."""

    def __init__(self, in_channels: int, width: int, kernel_size: int, dilation: int, dropout: float):
        super().__init__()
        self.conv1 = CausalConv1d(in_channels, width, kernel_size, dilation=dilation, weight_norm=True)
        self.conv2 = CausalConv1d(width, width, kernel_size, dilation=dilation, weight_norm=True)
        self.dropout = Dropout(dropout)
        self.shortcut = nn.Identity() if in_channels == width else nn.Conv1d(in_channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(torch.relu(self.conv1(x)))
        h = self.dropout(torch.relu(self.conv2(h)))
        return torch.relu(h + self.shortcut(x))


@records_arguments
class TCN(nn.Module):
    """Blocks of causal convolutions with dilation 1, 2, 4, ...; defaults as for sequential MNIST.

    Args:
        in_channels, num_classes: channels of the sequences, and logits.
        depth: blocks; they see 2 (kernel_size - 1) (2^depth - 1) + 1 steps.
        width: channels inside.
        kernel_size: taps of each convolution.
        dropout: probability, in [0, 1).
        head: "last" time step, "mean" over time, or "sequence" for logits at each step.

    Source:
        Bai et al. 2018, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence Modeling".

    Example:
        >>> TCN()(torch.randn(4, 1, 50)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        depth: int = 8,
        width: int = 25,
        *,
        kernel_size: int = 7,
        dropout: float = 0.05,
        head: str = "last",
    ):
        super().__init__()
        sizes = {"in_channels": in_channels, "num_classes": num_classes, "depth": depth, "width": width, "kernel_size": kernel_size}
        check_integers("TCN", **sizes)
        check_integers("TCN", most=MOST_DEPTH, depth=depth)
        check_numbers("TCN", least=0, below=1, dropout=dropout)
        self.in_channels = in_channels
        widths = [in_channels] + [width] * depth
        self.blocks = nn.Sequential(
            *(DilatedBlock(a, b, kernel_size, 2**i, dropout) for i, (a, b) in enumerate(itertools.pairwise(widths)))
        )
        for block in self.blocks:
            if isinstance(block.shortcut, nn.Conv1d):
                # The original draws all weights so, but weight normalisation then takes the others back to torch's initialisation.
                nn.init.normal_(block.shortcut.weight, std=0.01)
        self.head = SequenceHead(width, num_classes, head)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(batch, in_channels, length) -> (batch, num_classes), or (batch, num_classes, length) with head="sequence".

        Args:
            x: sequences.
            lengths: (batch,), of series that end before the batch does; see `FlexTCN`.
        """
        check_sequences(self, x, self.in_channels)
        if lengths is None:
            return self.head(self.blocks(x))
        lengths, valid = valid_steps(self, x, lengths)
        x = x.masked_fill(~valid, 0)
        for block in self.blocks:
            x = block(x).masked_fill(~valid, 0)
        return self.head(x, lengths)
