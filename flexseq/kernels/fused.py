"""Kernel networks in one kernel of a GPU each way, in Triton: in place of some forty operators that are short and many.

Used on CUDA where triton imports, for float32; `stacked_basis` of the networks, in torch's operators, is the reference, and what computes
gradients of gradients. A program has a block of taps of one network, and all of its functions. Its backward pass computes the forward pass
again, and leaves the sums over its own taps, which are then added up in a fixed order, so that results repeat.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # not on every platform, and only GPUs need it
    triton = None

TAPS = 32
"""Of a program: few, since each keeps several tiles of functions x taps in registers."""
DEEPEST = 8
"""Layers: loops over them are unrolled."""
WIDTHS = (16, 32, 64)
"""Functions for which there are tiles."""


def applies(hidden: int, layers: int, positions: Tensor) -> bool:
    """Whether networks of so many functions and layers are to be evaluated by these kernels."""
    if triton is None or positions.device.type != "cuda" or positions.dtype != torch.float32:
        return False
    forward_mode: int = torch.autograd.forward_ad._current_level
    plain = not positions.requires_grad and forward_mode < 0 and torch._C._functorch.peek_interpreter_stack() is None
    return plain and hidden in WIDTHS and layers <= DEEPEST


def gabor_basis(parts: Sequence[Tensor], positions: Tensor, reference: Callable[..., Tensor]) -> Tensor:
    """Of multiplicative networks of Gabor functions without angles: (networks, hidden, taps).

    Args:
        parts: filters' weight (networks, filters, hidden, ndim), bias (networks, filters, hidden), mu and gamma as weight (gamma's last
            axis may be 1), linear maps' weights (networks, filters - 1, hidden, hidden) and biases (networks, filters - 1, hidden).
        positions: (networks, ndim, taps).
        reference: the same in torch's operators, from all of these.
    """
    weight, bias, mu, gamma, linear, linear_bias = parts
    return _Fused.apply(_gabor, reference, positions, weight, bias, mu, gamma.expand_as(mu), linear, linear_bias)


def siren_basis(parts: Sequence[Tensor], positions: Tensor, omega_0: float, bias_scale: float, reference: Callable[..., Tensor]) -> Tensor:
    """Of SIRENs: (networks, hidden, taps).

    Args:
        parts: the first map's weight (networks, hidden, ndim) and bias (networks, hidden), the others' (networks, maps, hidden, hidden) and
            (networks, maps, hidden).
        positions, reference: as for `gabor_basis`.
        omega_0, bias_scale: what weights and biases are multiplied with.
    """
    return _Fused.apply(_Siren(omega_0, bias_scale), reference, positions, *parts)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernels: Any, reference: Callable[..., Tensor], positions: Tensor, *parts: Tensor) -> Tensor:
        ctx.kernels, ctx.reference = kernels, reference
        ctx.save_for_backward(positions, *parts)
        with torch.cuda.device_of(positions):
            return kernels.forward(positions.contiguous(), _plain(parts))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        positions, *parts = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants gradients of gradients
            with torch.enable_grad():
                basis = ctx.reference(parts, positions)
                inputs = [part for part in parts if part.requires_grad]
                found = iter(torch.autograd.grad(basis, inputs, grad, create_graph=True, allow_unused=True))
                return None, None, None, *[next(found) if part.requires_grad else None for part in parts]
        with torch.cuda.device_of(positions):
            gradients = ctx.kernels.backward(positions.contiguous(), _plain(parts), grad.contiguous())
        return None, None, None, *[gradient.to(part.dtype) for gradient, part in zip(gradients, parts, strict=True)]


def _plain(parts: Sequence[Tensor]) -> list[Tensor]:
    return [part.contiguous().float() for part in parts]


def _sums(flat: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """The programs' sums, (networks, programs, numbers), added up and cut into the parts' gradients."""
    pieces = flat.sum(1).split([part[0].numel() for part in parts], 1)
    return [piece.reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]


class _Gabor:
    def forward(self, positions: Tensor, parts: Sequence[Tensor]) -> Tensor:
        (networks, filters, hidden, ndim), taps = parts[0].shape, positions.shape[-1]
        out = positions.new_empty(networks, hidden, taps)
        _gabor_forward[triton.cdiv(taps, TAPS), networks](positions, *parts, out, taps, hidden, ndim, filters, TAPS)
        return out

    def backward(self, positions: Tensor, parts: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
        (networks, filters, hidden, ndim), taps = parts[0].shape, positions.shape[-1]
        programs = triton.cdiv(taps, TAPS)
        sums = positions.new_empty(networks, programs, sum(part[0].numel() for part in parts))
        _gabor_backward[programs, networks](positions, *parts, grad, sums, sums.shape[-1], taps, hidden, ndim, filters, TAPS)
        return _sums(sums, parts)


class _Siren:
    def __init__(self, omega_0: float, bias_scale: float):
        self.omega_0, self.bias_scale = float(omega_0), float(bias_scale)

    def forward(self, positions: Tensor, parts: Sequence[Tensor]) -> Tensor:
        (networks, hidden, ndim), maps, taps = parts[0].shape, parts[2].shape[1], positions.shape[-1]
        out = positions.new_empty(networks, hidden, taps)
        grid = triton.cdiv(taps, TAPS), networks
        _siren_forward[grid](positions, *parts, out, taps, self.omega_0, self.bias_scale, hidden, ndim, maps, TAPS)
        return out

    def backward(self, positions: Tensor, parts: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
        (networks, hidden, ndim), maps, taps = parts[0].shape, parts[2].shape[1], positions.shape[-1]
        programs = triton.cdiv(taps, TAPS)
        sums = positions.new_empty(networks, programs, sum(part[0].numel() for part in parts))
        _siren_backward[programs, networks](
            positions, *parts, grad, sums, sums.shape[-1], taps, self.omega_0, self.bias_scale, hidden, ndim, maps, TAPS
        )
        return _sums(sums, parts)


_gabor = _Gabor()

if triton is not None:

    @triton.jit
    def _gabor_filter(
        positions, weight, bias, mu, gamma, network, f, t, inside, taps, H: tl.constexpr, D: tl.constexpr, F: tl.constexpr, T: tl.constexpr
    ):
        """Envelope and phase of one filter: (H, T) each."""
        c = tl.arange(0, H)
        row = (network * F + f) * H + c
        phase = tl.zeros([H, T], tl.float32) + tl.load(bias + row)[:, None]
        power = tl.zeros([H, T], tl.float32)
        for d in tl.static_range(D):
            x = tl.load(positions + (network * D + d) * taps + t, mask=inside, other=0.0)[None, :]
            scaled = tl.load(gamma + row * D + d)[:, None] * (x - tl.load(mu + row * D + d)[:, None])
            phase += tl.load(weight + row * D + d)[:, None] * x
            power += scaled * scaled
        return tl.exp(-0.5 * power), phase

    @triton.jit
    def _gabor_chain(
        positions,
        weight,
        bias,
        mu,
        gamma,
        linear,
        linear_bias,
        network,
        t,
        inside,
        taps,
        last: tl.constexpr,
        H: tl.constexpr,
        D: tl.constexpr,
        F: tl.constexpr,
        T: tl.constexpr,
    ):
        """h after the filters 0 to `last`."""
        c = tl.arange(0, H)
        envelope, phase = _gabor_filter(positions, weight, bias, mu, gamma, network, 0, t, inside, taps, H, D, F, T)
        h = envelope * tl.sin(phase)
        for f in tl.static_range(1, last + 1):
            row = (network * (F - 1) + f - 1) * H + c
            w = tl.load(linear + row[:, None] * H + c[None, :])
            z = tl.dot(w, h, input_precision="ieee") + tl.load(linear_bias + row)[:, None]
            envelope, phase = _gabor_filter(positions, weight, bias, mu, gamma, network, f, t, inside, taps, H, D, F, T)
            h = envelope * tl.sin(phase) * z
        return h

    @triton.jit
    def _gabor_forward(
        positions,
        weight,
        bias,
        mu,
        gamma,
        linear,
        linear_bias,
        out,
        taps,
        H: tl.constexpr,
        D: tl.constexpr,
        F: tl.constexpr,
        T: tl.constexpr,
    ):
        network = tl.program_id(1)
        t = tl.program_id(0) * T + tl.arange(0, T)
        c = tl.arange(0, H)
        inside = t < taps
        h = _gabor_chain(positions, weight, bias, mu, gamma, linear, linear_bias, network, t, inside, taps, F - 1, H, D, F, T)
        tl.store(out + (network * H + c[:, None]) * taps + t[None, :], h, mask=inside[None, :])

    @triton.jit
    def _gabor_backward(
        positions,
        weight,
        bias,
        mu,
        gamma,
        linear,
        linear_bias,
        grad,
        sums,
        numbers,
        taps,
        H: tl.constexpr,
        D: tl.constexpr,
        F: tl.constexpr,
        T: tl.constexpr,
    ):
        network = tl.program_id(1)
        t = tl.program_id(0) * T + tl.arange(0, T)
        c = tl.arange(0, H)
        inside = t < taps
        own = sums + (network * tl.num_programs(0) + tl.program_id(0)) * numbers
        to_bias = F * H * D  # where each part's sums begin: weight, bias, mu, gamma, linear, linear_bias
        to_mu = to_bias + F * H
        to_gamma = to_mu + F * H * D
        to_linear = to_gamma + F * H * D
        to_linear_bias = to_linear + (F - 1) * H * H
        dh = tl.load(grad + (network * H + c[:, None]) * taps + t[None, :], mask=inside[None, :], other=0.0)
        for back in tl.static_range(F):
            f: tl.constexpr = F - 1 - back
            envelope, phase = _gabor_filter(positions, weight, bias, mu, gamma, network, f, t, inside, taps, H, D, F, T)
            g = envelope * tl.sin(phase)
            dg = dh
            if f > 0:
                before = _gabor_chain(positions, weight, bias, mu, gamma, linear, linear_bias, network, t, inside, taps, f - 1, H, D, F, T)
                row = (network * (F - 1) + f - 1) * H + c
                w = tl.load(linear + row[:, None] * H + c[None, :])
                z = tl.dot(w, before, input_precision="ieee") + tl.load(linear_bias + row)[:, None]
                dg = dh * z
                dz = dh * g
                own_row = (f - 1) * H + c
                d_linear = tl.dot(dz, tl.trans(before), input_precision="ieee")
                tl.store(own + to_linear + own_row[:, None] * H + c[None, :], d_linear)
                tl.store(own + to_linear_bias + own_row, tl.sum(dz, 1))
                dh = tl.dot(tl.trans(w), dz, input_precision="ieee")
            d_phase = dg * envelope * tl.cos(phase)
            d_power = dg * g
            row = (network * F + f) * H + c
            tl.store(own + to_bias + f * H + c, tl.sum(d_phase, 1))
            for d in tl.static_range(D):
                x = tl.load(positions + (network * D + d) * taps + t, mask=inside, other=0.0)[None, :]
                width = tl.load(gamma + row * D + d)[:, None]
                offset = x - tl.load(mu + row * D + d)[:, None]
                slope = -d_power * width * offset  # with respect to width * offset
                place = (f * H + c) * D + d
                tl.store(own + place, tl.sum(d_phase * x, 1))
                tl.store(own + to_mu + place, tl.sum(-slope * width, 1))
                tl.store(own + to_gamma + place, tl.sum(slope * offset, 1))

    @triton.jit
    def _siren_phase(
        positions,
        first,
        first_bias,
        others,
        other_biases,
        network,
        t,
        inside,
        taps,
        omega_0,
        bias_scale,
        last: tl.constexpr,
        H: tl.constexpr,
        D: tl.constexpr,
        M: tl.constexpr,
        T: tl.constexpr,
    ):
        """The sine's argument after the map `last`, the first of which is 0."""
        c = tl.arange(0, H)
        row = network * H + c
        phase = tl.zeros([H, T], tl.float32) + bias_scale * tl.load(first_bias + row)[:, None]
        for d in tl.static_range(D):
            x = tl.load(positions + (network * D + d) * taps + t, mask=inside, other=0.0)[None, :]
            phase += omega_0 * tl.load(first + row * D + d)[:, None] * x
        for m in tl.static_range(last):
            row = (network * M + m) * H + c
            w = tl.load(others + row[:, None] * H + c[None, :])
            z = tl.dot(w, tl.sin(phase), input_precision="ieee")
            phase = omega_0 * z + bias_scale * tl.load(other_biases + row)[:, None]
        return phase

    @triton.jit
    def _siren_forward(
        positions,
        first,
        first_bias,
        others,
        other_biases,
        out,
        taps,
        omega_0,
        bias_scale,
        H: tl.constexpr,
        D: tl.constexpr,
        M: tl.constexpr,
        T: tl.constexpr,
    ):
        network = tl.program_id(1)
        t = tl.program_id(0) * T + tl.arange(0, T)
        c = tl.arange(0, H)
        inside = t < taps
        phase = _siren_phase(
            positions, first, first_bias, others, other_biases, network, t, inside, taps, omega_0, bias_scale, M, H, D, M, T
        )
        tl.store(out + (network * H + c[:, None]) * taps + t[None, :], tl.sin(phase), mask=inside[None, :])

    @triton.jit
    def _siren_backward(
        positions,
        first,
        first_bias,
        others,
        other_biases,
        grad,
        sums,
        numbers,
        taps,
        omega_0,
        bias_scale,
        H: tl.constexpr,
        D: tl.constexpr,
        M: tl.constexpr,
        T: tl.constexpr,
    ):
        network = tl.program_id(1)
        t = tl.program_id(0) * T + tl.arange(0, T)
        c = tl.arange(0, H)
        inside = t < taps
        own = sums + (network * tl.num_programs(0) + tl.program_id(0)) * numbers
        to_first_bias = H * D  # where each part's sums begin: first, first_bias, others, other_biases
        to_others = to_first_bias + H
        to_other_biases = to_others + M * H * H
        dh = tl.load(grad + (network * H + c[:, None]) * taps + t[None, :], mask=inside[None, :], other=0.0)
        for back in tl.static_range(M):
            m: tl.constexpr = M - 1 - back
            before = _siren_phase(
                positions, first, first_bias, others, other_biases, network, t, inside, taps, omega_0, bias_scale, m, H, D, M, T
            )
            h = tl.sin(before)
            row = (network * M + m) * H + c
            w = tl.load(others + row[:, None] * H + c[None, :])
            z = tl.dot(w, h, input_precision="ieee")
            d_phase = dh * tl.cos(omega_0 * z + bias_scale * tl.load(other_biases + row)[:, None])
            own_row = m * H + c
            d_others = omega_0 * tl.dot(d_phase, tl.trans(h), input_precision="ieee")
            tl.store(own + to_others + own_row[:, None] * H + c[None, :], d_others)
            tl.store(own + to_other_biases + own_row, bias_scale * tl.sum(d_phase, 1))
            dh = omega_0 * tl.dot(tl.trans(w), d_phase, input_precision="ieee")
        phase = _siren_phase(
            positions, first, first_bias, others, other_biases, network, t, inside, taps, omega_0, bias_scale, 0, H, D, M, T
        )
        d_phase = dh * tl.cos(phase)
        tl.store(own + to_first_bias + c, bias_scale * tl.sum(d_phase, 1))
        for d in tl.static_range(D):
            x = tl.load(positions + (network * D + d) * taps + t, mask=inside, other=0.0)[None, :]
            tl.store(own + c * D + d, omega_0 * tl.sum(d_phase * x, 1))
