"""An encoder with a frozen network as three: what conr has put before the network, the network, what is behind it."""

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import TensorProto

from conr.embedding.network import prune
from conr.embedding.nodes import BEFORE, BEHIND, declare
from conr.embedding.session import Properties


def split_at_network(encoder: Path) -> tuple[bytes, bytes, bytes]:
    """The contents of three ONNX files that compute what an encoder does when one takes what the other gives.

    The last takes float32, whatever the network gives, and has the encoder's properties.

    Args:
        encoder: the file that `conr.embedding.frozen.write_frozen_encoder` wrote, or one that was made of it.
    """
    model = onnx.load(encoder)
    nodes, (images,), (embeddings,) = list(model.graph.node), model.graph.input, model.graph.output
    first = max(place for place, node in enumerate(nodes) if node.name.startswith(BEFORE)) + 1
    last = next(place for place, node in enumerate(nodes) if node.name.startswith(BEHIND))
    stored = next(entry.value for entry in model.metadata_props if entry.key == "conr")
    card = Properties.model_validate_json(stored).preprocessing
    assert card is not None
    kind = next(attribute.i for attribute in nodes[first - 1].attribute if attribute.name == "to")
    shape = ("batch", 3, card.size, card.size) if card.layout == "nchw" else ("batch", card.size, card.size, 3)
    prepared = declare(nodes[first - 1].output[0], kind, shape)
    found = declare(nodes[last].input[0], TensorProto.FLOAT, None)
    return (
        _part(model, nodes[:first], images, prepared),
        _part(model, nodes[first:last], prepared, found),
        _part(model, nodes[last:], found, embeddings),
    )


def _part(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], source: onnx.ValueInfoProto, target: onnx.ValueInfoProto
) -> bytes:
    part = onnx.ModelProto()
    part.CopyFrom(model)
    for values in (part.graph.node, part.graph.input, part.graph.output, part.graph.value_info):
        del values[:]
    part.graph.node.extend(nodes)
    part.graph.input.append(source)
    part.graph.output.append(target)
    prune(part.graph, target.name)
    content: bytes = part.SerializeToString()
    return content
