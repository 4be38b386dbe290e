"""Everything that makes a run what it is: from what the user gave, the task's recipe and the network's own defaults."""

import dataclasses
import json
from typing import Any

from torch import nn

from flexseq.antialias import alias_penalty, limit_frequencies
from flexseq.backbones import OWN, is_available
from flexseq.bench.networks import ROWS, build_network, network_arguments
from flexseq.bench.task import Task
from flexseq.bench.tasks import TASKS
from flexseq.data.dataset import Dataset
from flexseq.data.irregular import drop_steps
from flexseq.errors import InputError, unknown_name
from flexseq.kernels import KERNELS
from flexseq.nn.continuous import ContinuousConv
from flexseq.nn.forward_pass import read_crops
from flexseq.processes import say
from flexseq.training.recipe import Recipe

UNLIMITED_CONVS, UNLIMITED_KERNELS = ("conv", "njet"), ("siren", "mlp")
"""Convolutions and kernel networks that do not pay for their frequencies by default."""

WITHOUT_KERNELS = ("tcn", "cifar_resnet", "backbone", "cfnet")
"""Networks that have no sampled kernels to pay for."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run.

    Args:
        task: which.
        data: options of its loader.
        model: name of the network.
        network: all its arguments but channels and classes.
        recipe: how it trains; each run of several has its own seed.
        test_rate: series are tested a second time, sampled so many times as densely as in training; None for no second time.
    """

    task: Task
    data: dict[str, Any]
    model: str
    network: dict[str, Any]
    recipe: Recipe
    test_rate: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As it is kept in recipe.json and result.json."""
        recipe = dataclasses.asdict(self.recipe)
        parts: dict[str, Any] = {
            "task": self.task.name,
            "data": self.data,
            "model": self.model,
            "network": self.network,
            "training": recipe,
        }
        if self.test_rate is not None:
            parts["test_rate"] = self.test_rate
        transfer = self.task.transfer
        return parts if transfer is None else {**parts, "transfer": {"source": transfer.source, "target": transfer.target}}

    def as_text(self) -> str:
        """As recipe.json holds it."""
        return json.dumps(self.as_json(), indent=1) + "\n"

    def with_seed(self, seed: int) -> "Plan":
        """The same with another seed."""
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, seed=seed))


def load(plan: Plan) -> Dataset:
    """The data of a plan.

    Raises:
        InputError: the loader's own complaints.
    """
    options = dict(plan.data)
    drop = options.pop("drop", None)
    dataset = plan.task.load(**options)
    if plan.test_rate is not None and (dataset.test.lengths is not None or dataset.options.get("missing")):
        raise InputError(f"--test-rate is for whole series of equal lengths, and those of {dataset.name} are not")
    return dataset if drop is None else drop_steps(dataset, drop)


def build(plan: Plan, dataset: Dataset) -> nn.Module:
    """The network of a plan for a dataset, as it starts training.

    Raises:
        InputError: arguments that it does not take; kernels that cannot start below Nyquist, or pay for what they have above it.
    """
    model = build_network(plan.model, plan.network, dataset)
    if plan.recipe.alias_penalty != "none" or plan.recipe.start_below_nyquist:
        read_crops(list(model.modules()), dataset.shape[1:])  # layers that take their kernel's size from the first input
    if plan.recipe.alias_penalty != "none":
        if not any(isinstance(module, ContinuousConv) for module in model.modules()):
            raise InputError(f"--penalty {plan.recipe.alias_penalty} expected a network of continuous kernels, got {plan.model}")
        alias_penalty(model, include_mask=plan.recipe.alias_penalty == "flexconv")
    if plan.recipe.start_below_nyquist:
        limit_frequencies(model)
    return model


def make_plan(
    task: str,
    *,
    model: str | None = None,
    network: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    sizes: dict[str, Any] | None = None,
    test_rate: float | None = None,
    quick: bool = False,
) -> Plan:
    """What was given, then the task's recipe (its small version where `quick`), then the network's own defaults.

    Args:
        task: its name.
        model: the network's name, or a row's of the papers' tables of sequences; by default the task's.
        network, training, data: arguments of the network, of `Recipe` and of the task's loader.
        sizes: source and target, for tasks that train at two resolutions.
        test_rate: see `Plan`.
        quick: fewer samples and epochs.

    Raises:
        InputError: unknown names; options that the task or the network does not have; values out of range.
    """
    network, training, data = dict(network or {}), dict(training or {}), dict(data or {})
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)
    if model in ROWS:
        model, row = ROWS[model]
        network = {**row, **network}
    chosen = TASKS[task]
    for name in data:
        if name not in chosen.options:
            raise InputError(f"{task} has no option --{name.replace('_', '-')}; for its data it takes {', '.join(chosen.options)}")
    if data.get("limit", 1) < 1:
        raise InputError(f"--limit expected at least 1, got {data['limit']}")
    if test_rate is not None and "test_rate" not in chosen.options:
        raise InputError(f"--test-rate is for series over time with one class each, which {task} does not have")
    if test_rate is not None and not 0.01 <= test_rate <= 100:
        raise InputError(f"--test-rate expected 0.01 to 100, got {test_rate}")
    if training.get("kernel_penalty") and ((model or chosen.model) in WITHOUT_KERNELS or network.get("conv") == "conv"):
        raise InputError(f"--kernel-penalty expected a network of continuous kernels, got {model or chosen.model}")
    kernel = network.get("kernel")
    if isinstance(kernel, str) and kernel not in KERNELS:
        raise unknown_name("kernel", kernel, KERNELS)
    if chosen.transfer is None and (sizes or "fine_tune_epochs" in training):
        raise InputError(f"{task} has no options --source, --target and --fine-tune-epochs; transfer tasks have them")
    if chosen.transfer is not None:
        chosen = dataclasses.replace(chosen, transfer=dataclasses.replace(chosen.transfer, **(sizes or {})))
    defaults = chosen.defaults
    small = defaults.quick if quick else None
    if small is not None and small.limit is not None:
        data.setdefault("limit", small.limit)
    recipe = dict(defaults.recipe)
    if "words" in data:
        recipe |= defaults.own_data
    recipe |= defaults.kernels.get(kernel if isinstance(kernel, str) else "", {})
    recipe |= {} if small is None else small.recipe
    unlimited = model not in (None, "flexnet") or network.get("conv") in UNLIMITED_CONVS or kernel in UNLIMITED_KERNELS
    if unlimited:
        recipe |= {"alias_penalty": "none", "start_below_nyquist": False}  # nothing with a known bound
    if training.get("alias_penalty") == "none":
        recipe["start_below_nyquist"] = False
    built = Recipe(**{**recipe, **training})
    if chosen.transfer is not None and built.fine_tune_epochs < 1:
        raise InputError(f"--fine-tune-epochs expected at least 1, got {built.fine_tune_epochs}")
    name = model or chosen.model
    own = {**defaults.networks.get(name, {}), **({} if small is None else small.networks.get(name, {}))}
    if "backbone" in own and "backbone" not in network and not is_available(own["backbone"]):
        say(f"note: {own['backbone']} needs timm, torchvision or transformers, none of which has it here; {OWN} is trained in its place")
        own["backbone"] = OWN
    return Plan(chosen, data, name, network_arguments(name, network, own), built, test_rate)
