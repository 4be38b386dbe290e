"""FlexTCN: a residual network of continuous convolutions, for sequences."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flexseq.arguments import records_arguments
from flexseq.checks import check_integers, check_numbers, is_integer
from flexseq.errors import InputError, unknown_name
from flexseq.kernels import SIREN, KernelFactory
from flexseq.models.arguments import MASK_SIGMA, MOST_DEPTH, check_used
from flexseq.models.causal_conv import CausalConv1d
from flexseq.models.dropout import Dropout
from flexseq.models.heads import SequenceHead, check_sequences, valid_steps
from flexseq.models.norms import StepNorm, normalise
from flexseq.nn import CKConv1d, FlexConv1d, NJetConv1d
from flexseq.nn.forward_pass import follow, hand_over, plan
from flexseq.nn.layer import ConvLayer
from flexseq.positions import Keep

CONVS = ("flex", "ck", "njet", "conv")
NORMS = ("batch", "layer", "group")


class ResidualBlock(nn.Module):
    """[conv, norm, ReLU, dropout] twice, plus the input (through a 1x1 convolution where the width changes), then ReLU.

    Args:
        in_channels, width: channels before and after.
        make_conv: (in_channels, out_channels) -> a convolution.
        make_norm: channels -> a normalisation.
        dropout: probability, in [0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        make_conv: Callable[[int, int], nn.Module],
        make_norm: Callable[[int], nn.Module],
        dropout: float,
    ):
        super().__init__()
        self.conv1 = make_conv(in_channels, width)
        self.norm1 = make_norm(width)
        self.conv2 = make_conv(width, width)
        self.norm2 = make_norm(width)
        self.dropout = Dropout(dropout)
        self.shortcut = nn.Identity() if in_channels == width else nn.Conv1d(in_channels, width, 1)

    def forward(self, x: Tensor, *, last1: int | None = None, last2: int | None = None, valid: Tensor | None = None) -> Tensor:
        """(batch, in_channels, length) -> (batch, width, length).

        Args:
            last1, last2: how many of its last steps each convolution is to give, for continuous ones; all by default.
            valid: (batch, 1, length), which steps are no padding; there the output is 0. All where None; not together with `last1`.
        """
        h = self.conv1(x) if last1 is None else self.conv1(x, last=last1)
        h = self.dropout(torch.relu_(normalise(self.norm1, h, valid)))
        h = self.conv2(h) if last2 is None else self.conv2(h, last=last2)
        h = self.dropout(torch.relu_(normalise(self.norm2, h, valid)))
        y = torch.relu_(h + self.shortcut(x[..., -h.shape[-1] :]))
        return y if valid is None else y.masked_fill(~valid, 0)


def _sees_one_step(norm: nn.Module) -> bool:
    """Whether a normalisation treats each time step by itself."""
    fixed = isinstance(norm, nn.modules.batchnorm._BatchNorm) and not norm.training and norm.track_running_stats
    return fixed or isinstance(norm, StepNorm)


def _taps(keep: Keep) -> int:
    """Taps that are kept of a kernel over one axis."""
    ((start, stop),) = keep
    return stop - start


@records_arguments
class FlexTCN(nn.Module):
    """Residual blocks of convolutions, causal ones by default, and a linear classifier.

    Args:
        in_channels: channels of the sequences.
        num_classes: logits.
        depth: blocks of two convolutions each.
        width: channels inside.
        conv: "flex" (FlexConv1d), "ck" (CKConv1d), "njet" (NJetConv1d, which takes no `kernel`), or "conv" (plain, with `kernel_size`).
        kernel: the kernel network: "magnet" | "gabor" | "fourier" | "siren" | "mlp", or a factory such as partial(MAGNet, hidden=16).
        kernel_size: taps of each kernel before cropping; by default the length of the first training batch (of its longest series, where
            `lengths` are given), and kept then.
        mask_sigma: where the masks of "flex" (or the widths of "njet") start: 2.0 is the whole kernel; short series want 0.2 to 0.3;
            0.075 by default. The other convolutions have none.
        causal: whether each step sees the present and the past alone; else kernels are centred, and see the future too, as for labels of
            whole recordings.
        dropout: probability, in [0, 1).
        norm: "batch"; "layer" over the channels of each step; "group" over channels and time together, which looks at the whole
            series, so that the network is not causal then.
        head: "last" time step, "mean" over time, or "sequence" for logits at each step.
        variance_preserving: start with kernels that keep a white input's variance; see FlexConv1d.
        method: how to convolve; see `flexseq.functional.long_conv`.

    Raises:
        InputError: arguments out of range.

    Source:
        FlexConv, Sec. 4.2. FlexTCN-2, -4, -6 at 1 -> 10 have 105,548, 239,436 and 373,324 parameters.

    Example:
        >>> model = FlexTCN(in_channels=1, num_classes=10, depth=2)
        >>> model(torch.randn(4, 1, 100)).shape
        torch.Size([4, 10])
        >>> sum(p.numel() for p in model.parameters())
        105548
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        depth: int = 6,
        width: int = 30,
        *,
        conv: str = "flex",
        kernel: str | KernelFactory = "magnet",
        kernel_size: int | None = None,
        mask_sigma: float | None = None,
        causal: bool = True,
        dropout: float = 0.1,
        norm: str = "batch",
        head: str = "last",
        variance_preserving: bool = False,
        method: str = "auto",
    ):
        super().__init__()
        name = type(self).__name__
        check_integers(name, in_channels=in_channels, num_classes=num_classes, width=width)
        check_integers(name, most=MOST_DEPTH, depth=depth)
        check_numbers(name, least=0, below=1, dropout=dropout)
        check_used(name, conv, kernel=kernel, mask_sigma=mask_sigma, variance_preserving=variance_preserving, method=method)
        mask_sigma = MASK_SIGMA if mask_sigma is None else mask_sigma
        continuous: dict[str, Any] = {
            "kernel_size": kernel_size,
            "causal": causal,
            "variance_preserving": variance_preserving,
            "method": method,
        }
        make_conv: Callable[[int, int], nn.Module]
        if conv == "flex":
            make_conv = functools.partial(FlexConv1d, kernel=kernel, mask_sigma=mask_sigma, **continuous)
        elif conv == "ck":
            make_conv = functools.partial(CKConv1d, kernel=kernel, **continuous)
        elif conv == "njet":
            make_conv = functools.partial(NJetConv1d, sigma=mask_sigma, **continuous)
        elif conv == "conv":
            if not is_integer(kernel_size) or kernel_size is None or kernel_size < 1:
                raise InputError(f"{name} expected a kernel_size of at least 1 with conv='conv', got {kernel_size!r}")
            plain: dict[str, Any] = {"kernel_size": kernel_size} if causal else {"kernel_size": kernel_size, "padding": "same"}
            make_conv = functools.partial(CausalConv1d if causal else nn.Conv1d, **plain)
        else:
            raise unknown_name("conv", conv, CONVS)
        norms: dict[str, Callable[[int], nn.Module]] = {
            "batch": nn.BatchNorm1d,
            "layer": StepNorm,
            "group": functools.partial(nn.GroupNorm, 1, eps=1e-12),
        }
        if norm not in norms:
            raise unknown_name("norm", norm, NORMS)
        self.in_channels, self.causal = in_channels, causal
        widths = [in_channels] + [width] * depth
        self.blocks = nn.ModuleList(ResidualBlock(a, b, make_conv, norms[norm], dropout) for a, b in itertools.pairwise(widths))
        self.head = SequenceHead(width, num_classes, head)
        follow(self)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Logits of sequences.

        Args:
            x: (batch, in_channels, length); a longer input than the first is more signal at the same sampling rate.
            lengths: (batch,) integers from 1 to length, for series that end before the batch does: what comes after a series' own last
                step is padding, whatever it holds (NaN too). It changes no logits (through FFTs: by no more than their rounding): it counts
                in no statistics of batch normalisation, the "last" step is each series' own, and "mean" is over its own steps. All are
                whole where None.

        Returns:
            (batch, num_classes), or (batch, num_classes, length) with head="sequence", as cross_entropy takes it; what it gives for padded
            steps means nothing.

        Raises:
            InputError: another number of axes, channels or lengths.
        """
        check_sequences(self, x, self.in_channels)
        if lengths is not None:
            return self._forward_padded(x, lengths)
        convs = self._convolutions()
        keeps = plan(convs, x.shape[2:])
        hand_over(convs, keeps)
        steps = self._steps_to_give(keeps)
        for block, last1, last2 in zip(self.blocks, steps[::2], steps[1::2], strict=True):
            x = block(x, last1=last1, last2=last2)
        return self.head(x)

    def _forward_padded(self, x: Tensor, lengths: Tensor) -> Tensor:
        lengths, valid = valid_steps(self, x, lengths)
        x = x.masked_fill(~valid, 0)
        convs = self._convolutions()
        unsized = any(isinstance(conv, ConvLayer) and conv.needs_size() for conv in convs)
        keeps = plan(convs, (int(lengths.max()),) if unsized else None)  # kernels as long as the longest series, not as the padding
        hand_over(convs, keeps)
        for block in self.blocks:
            x = block(x, valid=valid)
        return self.head(x, lengths)

    def _convolutions(self) -> list[Any]:
        return [conv for block in self.blocks for conv in (block.conv1, block.conv2)]

    def _steps_to_give(self, keeps: list[Keep | None]) -> list[int | None]:
        """How many of its last steps each layer has to give, None for all: in eval mode the last step's logits depend on no others."""
        steps: list[int | None] = [None] * len(keeps)
        norms: list[Any] = [norm for block in self.blocks for norm in (block.norm1, block.norm2)]
        if not self.causal or self.training or self.head.mode != "last" or not all(map(_sees_one_step, norms)):
            return steps
        wanted = 1
        for i in reversed(range(len(keeps))):
            keep = keeps[i]
            if keep is None:
                break
            steps[i] = wanted
            wanted += _taps(keep) - 1
        return steps


@records_arguments
class CKTCN(FlexTCN):
    """FlexTCN's network with kernels as long as the signal and no mask: the ablation "CKTCN" of the FlexConv paper.

    Args:
        in_channels, num_classes, depth, width, kernel, kernel_size, dropout, norm, head, variance_preserving, method: as in FlexTCN.

    Source:
        FlexConv, Table 1: CKTCN-2 with Fourier, Gabor and MAGNet kernels.

    Example:
        >>> CKTCN(kernel="gabor")(torch.randn(4, 1, 50)).shape
        torch.Size([4, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        depth: int = 2,
        width: int = 30,
        *,
        kernel: str | KernelFactory = "magnet",
        kernel_size: int | None = None,
        dropout: float = 0.1,
        norm: str = "batch",
        head: str = "last",
        variance_preserving: bool = False,
        method: str = "auto",
    ):
        super().__init__(
            in_channels,
            num_classes,
            depth,
            width,
            conv="ck",
            kernel=kernel,
            kernel_size=kernel_size,
            dropout=dropout,
            norm=norm,
            head=head,
            variance_preserving=variance_preserving,
            method=method,
        )


@records_arguments
class CKCNN(FlexTCN):
    """The network of the CKConv paper: SIREN kernels with weight normalisation as long as the signal, layer normalisation.

    Args:
        in_channels, num_classes, depth, width, kernel_size, dropout, head, method: as in FlexTCN.
        omega_0: of the SIREN, in radians per unit of position. Published: sMNIST 31.09, pMNIST 43.46, sCIFAR10 25.70,
            CharacterTrajectories 21.45, Speech Commands 30.90, raw 39.45.
        norm: as in FlexTCN. "group" is what the original does under the name of layer normalisation: statistics over channels and time
            together, and so not causal; "layer" is its causal relative, with as many parameters.

    Source:
        CKConv, Sec. 5. CKCNN-2 at 1 -> 10 has 98,286 parameters.

    Example:
        >>> sum(p.numel() for p in CKCNN().parameters())
        98286
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        depth: int = 2,
        width: int = 30,
        *,
        omega_0: float = 31.09,
        kernel_size: int | None = None,
        dropout: float = 0.1,
        norm: str = "group",
        head: str = "last",
        method: str = "auto",
    ):
        super().__init__(
            in_channels,
            num_classes,
            depth,
            width,
            conv="ck",
            kernel=functools.partial(SIREN, omega_0=omega_0, bias_bound=1.0, weight_norm=True),
            kernel_size=kernel_size,
            dropout=dropout,
            norm=norm,
            head=head,
            method=method,
        )
