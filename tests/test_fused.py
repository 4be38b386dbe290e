"""The Triton kernels of kernel networks, run by Triton's interpreter on the CPU, against torch's operators."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is for Linux")

COMPARE = """
import sys
import torch
import flexseq as fs
from flexseq.kernels import MAGNet, SIREN, Gabor, fused

torch.manual_seed(0)
kind, ndim, hidden = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
options = {"hidden": hidden, "layers": int(sys.argv[4])}
make = {"magnet": MAGNet, "gabor": Gabor, "siren": SIREN, "normalized": lambda *a, **o: SIREN(*a, weight_norm=True, **o),
        "unscaled": lambda *a, **o: SIREN(*a, omega_0_scales_bias=False, bias_bound=1.0, **o)}[kind]
networks = [make(ndim, 3, **options) for _ in range(3)]
positions = torch.rand(3, ndim, 45) * 2 - 1  # one block of taps, and a part of another
lists = [network.basis_parts() for network in networks]
parts = [torch.stack([value for one in same for value in one]).unflatten(0, (3, -1)).detach() for same in zip(*lists)]
seed = torch.randn(3, hidden, 45)
results = []
for use, dtype in ((False, torch.float64), (False, torch.float32), (True, torch.float32)):
    fused.applies = lambda hidden, layers, positions, use=use: use
    own = [part.to(dtype).requires_grad_() for part in parts]
    basis = networks[0].stacked_basis(own, positions.to(dtype))
    gradients = torch.autograd.grad((basis * seed.to(dtype)).sum(), own, create_graph=False)
    results.append([basis, *gradients])
for exact, plain, own in zip(*results):
    assert own.shape == exact.shape
    scale = exact.abs().max()
    allowed = 4 * (plain - exact).abs().max() + 1e-6 * scale  # as good as torch in the same precision
    assert (own - exact).abs().max() < allowed, (own - exact).abs().max() / scale

own = [part.requires_grad_() for part in parts]
def penalized(use):
    fused.applies = lambda hidden, layers, positions: use
    gradients = torch.autograd.grad((networks[0].stacked_basis(own, positions) * seed).sum(), own, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in gradients), own)
for a, b in zip(penalized(True), penalized(False)):
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
print("equal")
"""


@pytest.mark.parametrize(
    ("kind", "ndim", "hidden", "layers"),
    [
        ("magnet", 1, 32, 3),
        ("magnet", 2, 16, 2),
        ("gabor", 2, 32, 3),
        ("siren", 1, 32, 3),
        ("siren", 2, 16, 4),
        ("normalized", 1, 16, 3),
        ("unscaled", 1, 16, 3),
    ],
)
def test_values_and_gradients_are_those_of_torchs_operators(kind, ndim, hidden, layers):
    command = [sys.executable, "-c", COMPARE, kind, str(ndim), str(hidden), str(layers)]
    result = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert result.stdout.endswith("equal\n"), result.stderr[-2000:]


def test_they_are_for_gpus_alone():
    from flexseq.kernels import fused

    assert not fused.applies(32, 3, torch.zeros(1, 1, 10))
