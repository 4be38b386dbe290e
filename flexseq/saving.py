"""A model as one file: weights, and the constructor's arguments as JSON. Nothing in the file is run when it is read."""

import json
import os

import torch
from torch import nn

from flexseq.arguments import arguments_of, build, conversions_of, from_json
from flexseq.errors import InputError, unknown_name
from flexseq.files import replacing
from flexseq.surgery import CONVERSIONS

FORMAT = "1"


def save(model: nn.Module, path: str | os.PathLike) -> None:
    """Write a model or layer of flexseq to one safetensors file.

    Args:
        model: an object of any class that flexseq makes public; also one that `to_niff` or its like converted.
        path: where to; an existing file is replaced, whole or not at all.

    Raises:
        InputError: a class that is not flexseq's, or an argument of its constructor or conversion that JSON cannot hold (a lambda as
            `kernel`, say).

    Example:
        >>> import flexseq as fs, tempfile
        >>> model = fs.FlexTCN(depth=1)
        >>> fs.save(model, tempfile.gettempdir() + "/model.safetensors")
        >>> type(fs.load(tempfile.gettempdir() + "/model.safetensors")).__name__
        'FlexTCN'
    """
    from safetensors.torch import save_file

    metadata = {"flexseq": FORMAT, "class": type(model).__name__, "arguments": json.dumps(arguments_of(model))}
    if conversions := conversions_of(model):
        metadata["conversions"] = json.dumps(conversions)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with replacing(path) as part:
        save_file(tensors, part, metadata)


def load(path: str | os.PathLike, *, device: torch.device | str = "cpu") -> nn.Module:
    """Build the model that `save` wrote, in its dtype, in eval mode.

    Args:
        path: a file of `save`'s.
        device: where to put the model.

    Raises:
        FileNotFoundError: no such file.
        InputError: a file that `save` did not write.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - a file has keys but is no mapping
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file: {error}") from error
    if metadata.get("flexseq") != FORMAT:
        raise InputError(f"{path} was not written by flexseq.save (format {FORMAT}): its metadata are {metadata}")
    try:
        model = build(metadata["class"], from_json(json.loads(metadata["arguments"])))
        for caller, options in json.loads(metadata.get("conversions", "[]")):
            if caller not in CONVERSIONS:
                raise unknown_name("conversion", caller, CONVERSIONS)
            model, _ = CONVERSIONS[caller](model, **from_json(options))
        model.load_state_dict(state, assign=True)  # in the file's dtypes
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} does not hold a {metadata.get('class')} of this version of flexseq: {reason}") from error
    return model.to(device).eval()
