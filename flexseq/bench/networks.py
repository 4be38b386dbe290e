"""Networks by name, with the options that each takes."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from flexseq.backbones import Backbone
from flexseq.data.dataset import Dataset
from flexseq.errors import InputError, unknown_name
from flexseq.models import CKCNN, CKTCN, TCN, CFNet, CIFARResNet, FlexNet, FlexTCN

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "flextcn": FlexTCN,
    "cktcn": CKTCN,
    "ckcnn": CKCNN,
    "tcn": TCN,
    "flexnet": FlexNet,
    "cifar_resnet": CIFARResNet,
    "backbone": Backbone,
    "cfnet": CFNet,
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "CKCNN-2": ("ckcnn", {"depth": 2}),
    **{f"CKTCN-{kernel}-2": ("cktcn", {"depth": 2, "kernel": kernel}) for kernel in ("fourier", "gabor", "magnet", "siren")},
    **{
        f"FlexTCN-{kernel}-{depth}": ("flextcn", {"depth": depth, "kernel": kernel})
        for kernel in ("magnet", "siren", "fourier", "gabor")
        for depth in (2, 4, 6)
    },
    "TCN-8": ("tcn", {"depth": 8}),
}
"""Rows of FlexConv's tables of sequences: a network and its options. The paper has those that have a published figure."""
FOR_SERIES = ("flextcn", "cktcn", "ckcnn", "tcn")
"""The others are for images."""
FROM_DATA = ("in_channels", "num_classes", "image_size")
"""Arguments that the dataset gives."""


_ANSWERS = {True: "a class at each step: --head sequence", False: "one answer a sequence: --head last or mean"}


def network_arguments(name: str, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a network but its channels and classes: the user's, then the task's for this network, then its own.

    Raises:
        InputError: an unknown network, or an option that it does not have.
    """
    if name not in NETWORKS:
        raise unknown_name("model", name, [*NETWORKS, *ROWS])
    signature = inspect.signature(NETWORKS[name]).parameters
    own = {argument: p.default for argument, p in signature.items() if argument not in FROM_DATA}
    for argument in given:
        if argument not in own:
            raise InputError(f"--model {name} has no option --{argument.replace('_', '-')}; it takes {', '.join(own)}")
    if given.get("head", defaults.get("head")) != defaults.get("head") and "sequence" in (given["head"], defaults.get("head")):
        raise InputError(f"--head {given['head']} does not suit the task, which asks for {_ANSWERS[defaults.get('head') == 'sequence']}")
    conv = {**own, **defaults, **given}.get("conv", "flex")
    needs = {"mask_sigma": ("flex", "njet"), "kernel": ("flex", "ck"), "kernel_size": ("flex", "ck", "njet", "conv")}
    needs |= dict.fromkeys(("parameterisation", "positions", "update", "rate", "gradient", "half", "refresh_every"), ("cf",))
    for argument, needed in needs.items():
        if argument in given and conv not in needed:
            raise InputError(f"--conv {conv} has no --{argument.replace('_', '-')}")
    gradient = given.get("gradient", "sparse")
    if gradient != "sparse" and "positions" in given:
        raise InputError(f"--gradient {gradient} evaluates all positions in every step; --positions is for sparse")
    taken = {argument: value for argument, value in defaults.items() if conv is None or conv in needs.get(argument, (conv,))}
    return {**own, **taken, **given}


def build_network(name: str, arguments: dict[str, Any], dataset: Dataset) -> nn.Module:
    """The network for a dataset's channels and classes.

    Raises:
        InputError: a network for series and a dataset of images, or the other way round; arguments that the network does not take.
    """
    if (name in FOR_SERIES) != (len(dataset.shape) == 2):
        own, other = ("series", "images") if name in FOR_SERIES else ("images", "series")
        others = ", ".join(one for one in NETWORKS if (one in FOR_SERIES) != (name in FOR_SERIES))
        raise InputError(f"--model {name} is a network for {own}, and {dataset.name} has {other}; {others} take them")
    if "image_size" in inspect.signature(NETWORKS[name]).parameters:
        arguments = {**arguments, "image_size": dataset.shape[-1]}
    return NETWORKS[name](dataset.shape[0], dataset.outputs, **arguments)


def is_papers(name: str, arguments: dict[str, Any], defaults: dict[str, Any]) -> bool:
    """Whether a network is the papers' but for its depth and kernel: all else at the task's and its own defaults."""
    own = network_arguments(name, {}, defaults)
    named = {
        "depth",
        "kernel",
        "conv",
        "backbone",
        "conversion",
        "library",
        "parameterisation",
        "positions",
        "update",
        "half",
        "gradient",
        "refresh_every",
    } | ({"kernel_size"} if arguments.get("conv") == "conv" else set())  # what the row's name says
    return all(own[argument] == value for argument, value in arguments.items() if argument not in named)


def row_name(name: str, arguments: dict[str, Any]) -> str:
    """The row of the papers' tables: "FlexTCN-magnet-6", "CKCNN-2", "TCN-8", "FlexNet-conv3-7", "resnet18-niff"."""
    if name == "backbone":
        return f"{arguments['backbone']}-{arguments['conversion']}"
    if name == "cfnet":
        how = f"{arguments['parameterisation']}-{arguments['positions'] if arguments['gradient'] == 'sparse' else 'all'}"
        how += "-average" if arguments["update"] == "average" else ""
        how += "" if arguments["half"] else "-whole"
        how += "" if arguments["gradient"] == "sparse" else f"-{arguments['gradient']}"
        how += f"-refresh{arguments['refresh_every']}" if arguments["refresh_every"] else ""
        kind = f"conv{arguments['kernel_size']}" if arguments["conv"] == "conv" else how
        return f"CFNet-{kind}-{arguments['depth']}"
    label = NETWORKS[name].__name__
    kernel = f"-{arguments['kernel']}" if isinstance(arguments.get("kernel"), str) else ""
    if arguments.get("conv", "flex") != "flex":
        plain = f"{label}-conv{arguments['kernel_size'] if label == 'FlexNet' else ''}"
        without_mask = {"FlexNet": "CKNet"}.get(label, "CKTCN")
        label, kernel = {"ck": (without_mask, kernel), "njet": (f"{label}-njet", ""), "conv": (plain, "")}[arguments["conv"]]
    return f"{label}{kernel}-{arguments['depth']}"
