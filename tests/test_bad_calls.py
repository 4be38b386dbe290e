"""About five hundred bad calls: each gets one sentence of flexseq's own, which names the argument; none hangs or is taken."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

import flexseq as fs
from flexseq.data.archive import load_archive
from flexseq.data.synthetic import load_adding, load_copy_memory
from flexseq.errors import InputError
from flexseq.estimators import FlexTCNClassifier, FlexTCNRegressor
from flexseq.fitting import fit_kernel
from flexseq.functional import basis_long_conv, long_conv
from flexseq.functional.circular_conv import circular_conv, resample
from flexseq.training.recipe import Recipe

NAN, INF = float("nan"), float("inf")
COUNTS = [0, -1, 2.5, 3.0, "a", None, True, 10**12, NAN, [3]]
"""No whole numbers of at least 1 that fit into memory."""
SIZES = [value for value in COUNTS if value is not None and value != [3]]
WIDTHS = [0.0, -1.0, NAN, INF, "a", [0.1], True]
PROBABILITIES = [-0.1, 1.0, 1.5, NAN, "a", True]
NAMES = ["", "magnett", 3, None, 2.5]

LAYERS = {
    "FlexConv1d": fs.FlexConv1d,
    "FlexConv2d": fs.FlexConv2d,
    "CKConv1d": fs.CKConv1d,
    "NJetConv1d": fs.NJetConv1d,
    "NIFFConv1d": fs.NIFFConv1d,
    "NIFFConv2d": fs.NIFFConv2d,
    "CFConv1d": fs.CFConv1d,
    "CFConv2d": fs.CFConv2d,
}
REQUIRED = {"in_channels": 2, "out_channels": 4}
CALLS: list[tuple[str, object, str]] = []


def _short(value):
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    return type(value).__name__ if isinstance(value, nn.Module | type) else repr(value)[:40]


def add(name, function, argument, values, said=None, **others):
    calls = [(f"{name}({argument}={_short(value)})", functools.partial(function, **{**others, argument: value})) for value in values]
    CALLS.extend((label, call, said or argument) for label, call in calls)


for name, layer in LAYERS.items():
    for argument in ("in_channels", "out_channels", "groups"):
        add(name, layer, argument, COUNTS, **{key: value for key, value in REQUIRED.items() if key != argument})
    add(name, layer, "kernel_size", [*SIZES, (3, 3, 3, 3), ("a",)], **REQUIRED)
for name in ("FlexConv1d", "FlexConv2d"):
    add(name, LAYERS[name], "mask_sigma", [*WIDTHS, None], **REQUIRED)
    add(name, LAYERS[name], "mask_threshold", PROBABILITIES, **REQUIRED)
for name in ("FlexConv1d", "CKConv1d"):
    add(name, LAYERS[name], "kernel", [*NAMES, nn.Linear, fs.kernels.MAGNet(1, 8)], **REQUIRED)
for name in ("FlexConv1d", "CKConv1d", "NJetConv1d"):
    add(name, LAYERS[name], "method", NAMES, **REQUIRED)
add("NJetConv1d", fs.NJetConv1d, "order", [0, -1, 2.5, "a", None, True, 10**6], **REQUIRED)
add("NJetConv1d", fs.NJetConv1d, "sigma", WIDTHS, **REQUIRED)
add("NJetConv1d", fs.NJetConv1d, "extent", WIDTHS, **REQUIRED)
add("NIFFConv1d", fs.NIFFConv1d, "kernel", ["", "smal", 3, 2.5, (), (0,), ("a",)], "kernel|widths", **REQUIRED)
add("NIFFConv1d", fs.NIFFConv1d, "padding", ["", "zeros!", 3], **REQUIRED)
add("CFConv1d", fs.CFConv1d, "positions", [0, -1, 1.5, NAN, "a", None, True], **REQUIRED)
add("CFConv1d", fs.CFConv1d, "rate", [0.0, 1.5, NAN, "a", True], update="average", **REQUIRED)
add("CFConv1d", fs.CFConv1d, "rate", [0.1, 0.5], update="replace", **REQUIRED)
add("CFConv1d", fs.CFConv1d, "update", NAMES, **REQUIRED)
add("CFConv1d", fs.CFConv1d, "gradient", NAMES, **REQUIRED)
add("CFConv1d", fs.CFConv1d, "parameterisation", NAMES, **REQUIRED)
add("CFConv1d", fs.CFConv1d, "widths", [(), (3,), ("a", 1), 5, (0, 1)], **REQUIRED)
add("CFConv1d", fs.CFConv1d, "seed", [-1, 2.5, "a", 2**53, True], **REQUIRED)
add("CFConv1d", fs.CFConv1d, "refresh_every", [0, -1, 2.5, "a", True], **REQUIRED)

for name, network in {"FlexTCN": fs.FlexTCN, "CKTCN": fs.CKTCN, "CKCNN": fs.CKCNN, "TCN": fs.TCN}.items():
    for argument in ("in_channels", "num_classes", "depth", "width"):
        add(name, network, argument, COUNTS)
    add(name, network, "dropout", PROBABILITIES)
    add(name, network, "head", NAMES)
    add(name, network, "kernel_size", SIZES)
add("FlexTCN", fs.FlexTCN, "conv", NAMES)
add("FlexTCN", fs.FlexTCN, "norm", NAMES)
add("FlexTCN", fs.FlexTCN, "kernel", NAMES)
add("FlexTCN", fs.FlexTCN, "mask_sigma", WIDTHS)
for conv, argument, value in (
    ("ck", "mask_sigma", 9),
    ("njet", "kernel", "siren"),
    ("conv", "mask_sigma", 0.3),
    ("conv", "kernel", "siren"),
    ("conv", "variance_preserving", True),
    ("conv", "method", "fft"),
):
    add("FlexTCN", fs.FlexTCN, argument, [value], conv=conv, kernel_size=5)
    if argument != "variance_preserving":
        add("FlexNet", fs.FlexNet, argument, [value], conv=conv, kernel_size=5)
add("CKCNN", fs.CKCNN, "omega_0", WIDTHS)
for argument in ("in_channels", "num_classes", "depth", "width", "image_size"):
    add("FlexNet", fs.FlexNet, argument, COUNTS)
add("FlexNet", fs.FlexNet, "kernel_size", SIZES)
add("FlexNet", fs.FlexNet, "width_factors", [(1.0,), (1.0, -1.0), (1.0, NAN), (1.0, "a"), 3], depth=2)
for argument in ("in_channels", "num_classes", "depth", "width", "kernel_size"):
    add("CFNet", fs.CFNet, argument, COUNTS, image_size=8)
add("CIFARResNet", fs.CIFARResNet, "depth", [0, 9, 8.0, "a", None, 6 * 10**7 + 2])
for argument in ("in_channels", "num_classes"):
    add("CIFARResNet", fs.CIFARResNet, argument, COUNTS)

for name, network in {"MAGNet": fs.kernels.MAGNet, "SIREN": fs.kernels.SIREN, "MLP": fs.kernels.MLP, "Fourier": fs.kernels.Fourier}.items():
    for argument, value in (("ndim", 1), ("out_channels", 4)):
        others = {"ndim": 1, "out_channels": 4}
        others.pop(argument)
        add(name, network, argument, [v for v in COUNTS if v != value], **others)
    add(name, network, "hidden", COUNTS, ndim=1, out_channels=4)
    add(name, network, "layers", COUNTS, ndim=1, out_channels=4)
add("MAGNet", fs.kernels.MAGNet, "input_scale", WIDTHS, ndim=1, out_channels=4)
add("SIREN", fs.kernels.SIREN, "omega_0", WIDTHS, ndim=1, out_channels=4)
add("MLP", fs.kernels.MLP, "activation", NAMES, ndim=1, out_channels=4)

for argument in ("epochs", "batch_size"):
    add(
        "Recipe",
        Recipe,
        argument,
        [0, -1, 1.5, "a", None, NAN, True],
        **({"batch_size": 8} if argument == "epochs" else {"epochs": 1}),
        lr=0.1,
    )
add("Recipe", Recipe, "lr", [0.0, -1.0, NAN, INF, "a", None, True], epochs=1, batch_size=8)
for argument in ("mask_lr_scale", "min_lr", "alias_weight", "warmup_epochs", "kernel_penalty", "gradient_clip"):
    add("Recipe", Recipe, argument, [-1.0, NAN, INF, "a", None], epochs=1, batch_size=8, lr=0.1)
for argument in ("momentum", "weight_decay", "label_smoothing"):
    add("Recipe", Recipe, argument, PROBABILITIES, epochs=1, batch_size=8, lr=0.1)
for argument, said in (("optimizer", "optimizer"), ("alias_penalty", "penalty"), ("precision", "precision")):
    add("Recipe", Recipe, argument, ["", "a", 3, None], said, epochs=1, batch_size=8, lr=0.1)
add("nyquist_frequency", fs.nyquist_frequency, "kernel_size", [0, -1, 2.5, "a", None, True])
add("set_resolution", fs.set_resolution, "ratio", [0, -1, NAN, INF, "2", None, True], model=fs.FlexConv1d(1, 1, 9))

SIGNAL, WEIGHT = torch.randn(1, 2, 9), torch.randn(3, 2, 4)
add("long_conv", long_conv, "x", [np.zeros((1, 2, 9)), [1.0], None, SIGNAL.long(), SIGNAL + 0j, SIGNAL[0], SIGNAL[:, :1]], weight=WEIGHT)
add("long_conv", long_conv, "weight", [np.zeros((3, 2, 4)), None, WEIGHT.int(), WEIGHT + 0j, WEIGHT[0]], x=SIGNAL)
add("long_conv", long_conv, "bias", [np.zeros(3), torch.zeros(3).long(), torch.zeros(4)], x=SIGNAL, weight=WEIGHT)
add("long_conv", long_conv, "method", NAMES, x=SIGNAL, weight=WEIGHT)
add("long_conv", long_conv, "groups", [0, -1, 2.5, "a", None], x=SIGNAL, weight=WEIGHT)
add(
    "basis_long_conv",
    basis_long_conv,
    "last",
    [0, -1, 2.5, "a"],
    x=SIGNAL,
    basis=torch.randn(5, 4),
    weight=torch.randn(3, 2, 5),
    causal=True,
)
add("circular_conv", circular_conv, "spectrum", [None, torch.zeros(3, 2, 5), torch.zeros(3, 2, 4) + 0j, np.zeros((3, 2, 5))], x=SIGNAL)
add("resample", resample, "size", [0, (0,), (-1,), (2.5,), "a", None, (3, 3, 3, 3)], x=SIGNAL)

INPUTS = [
    np.zeros((1, 1, 9)),
    None,
    [[1.0]],
    torch.zeros(1, 9),
    torch.zeros(1, 3, 9),
    torch.zeros(1, 1, 0),
    "a",
    torch.zeros(1, 1, 9).long(),
]
for name, made in {
    "FlexConv1d": lambda: fs.FlexConv1d(1, 1, 9),
    "NIFFConv1d": lambda: fs.NIFFConv1d(1, 1, 9),
    "CFConv1d": lambda: fs.CFConv1d(1, 1, 9, positions=1.0),
    "FlexTCN": lambda: fs.FlexTCN(1, 2, depth=1, width=4, kernel_size=9, mask_sigma=0.5),
    "TCN": lambda: fs.TCN(1, 2, depth=1, width=4),
}.items():
    module = made()
    for i, value in enumerate(INPUTS):
        if not (name == "TCN" and i == len(INPUTS) - 1):
            CALLS.append((f"{name}()(input {i})", functools.partial(module, value), "input|sequences|sample"))
NETWORK = fs.FlexTCN(1, 2, depth=1, width=4, kernel_size=9, mask_sigma=0.5, head="mean")
BAD_LENGTHS = [torch.tensor(values) for values in ([0, 3], [-1, 3], [10, 3], [3], [2.0, 3.0], [True, True], [[1, 2]])]
CALLS.extend(
    (f"FlexTCN(lengths {i})", functools.partial(NETWORK, torch.randn(2, 1, 9), lengths), "lengths")
    for i, lengths in enumerate([*BAD_LENGTHS, [3, 4]])
)

CNN = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
for convert in (fs.to_niff, fs.to_flexconv, fs.to_cfconv):
    add(convert.__name__, convert, "model", [None, 3, "a", nn.Linear(2, 2)], "torch.nn.Module|nothing to convert")
    add(convert.__name__, convert, "only", ["(", 3, [1], "nothing like it"], "only|nothing to convert", model=CNN)
add("to_niff", fs.to_niff, "size", ["", "smal", 3, (0,)], "size|kernel|widths", model=CNN)
add("to_niff", fs.to_niff, "init", NAMES, model=CNN)
add("to_flexconv", fs.to_flexconv, "init", NAMES, model=CNN)
add("to_flexconv", fs.to_flexconv, "mask_sigma", WIDTHS, model=CNN)
add("fit_kernel", fit_kernel, "kernel", [torch.zeros(1, 2, 3), torch.zeros(1, 1, 2)], layer=fs.FlexConv1d(1, 1, 9))

X, Y = np.random.default_rng(0).normal(size=(6, 1, 8)), np.array([0, 1] * 3)


def fitted(kind, **options):
    return kind(**{"epochs": 1, "width": 4, "depth": 1, **options}).fit(X, Y)


for kind in (FlexTCNClassifier, FlexTCNRegressor):
    for argument in ("depth", "width", "epochs", "batch_size", "patience", "kernel_size"):
        optional = argument in ("epochs", "batch_size", "kernel_size")
        add(kind.__name__, functools.partial(fitted, kind), argument, [0, -1, 2.5, "a"] + ([] if optional else [None]))
    add(kind.__name__, functools.partial(fitted, kind), "lr", [0.0, -1.0, NAN, "a"])
    add(kind.__name__, functools.partial(fitted, kind), "dropout", PROBABILITIES)
    add(kind.__name__, functools.partial(fitted, kind), "mask_sigma", WIDTHS)
    add(kind.__name__, functools.partial(fitted, kind), "validation_fraction", [0.0, 1.0, -0.1, "a", None, NAN])
    add(kind.__name__, functools.partial(fitted, kind), "head", ["sequence", "", 3, None])
    add(kind.__name__, functools.partial(fitted, kind), "gaps", ["", "a", 3, None])
    add(kind.__name__, functools.partial(fitted, kind), "device", ["", "tpu", 3, None])
    add(kind.__name__, functools.partial(fitted, kind), "random_state", ["a", 2.5])
add("load_adding", load_adding, "length", [0, -1, 2.5, "a", 10**12])
add("load_copy_memory", load_copy_memory, "length", [0, -1, 2.5, "a", 10**12])
add("load_archive", load_archive, "problem", ["", "GunPiont", "../x"], "problem")


@pytest.mark.parametrize(("call", "said"), [(call, said) for _, call, said in CALLS], ids=[name for name, *_ in CALLS])
@pytest.mark.filterwarnings("ignore")
def test_a_bad_call_gets_one_sentence(call, said):
    with pytest.raises(InputError) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    assert any(word.lower() in message.lower() for word in said.replace("_", " ").split("|") + said.split("|")), message


def test_how_many_there_are():
    assert len(CALLS) >= 500
