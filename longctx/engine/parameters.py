"""Which checkpoint tensor goes where: the names, shapes and places of every parameter of a model.

The engine keeps q, k, v in one matrix and gate, up in one matrix, so several checkpoint tensors
land in row ranges of one target. The loader checks this table before it reads the first byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from longctx.shapes import FAMILIES, ModelShape


@dataclass(frozen=True)
class Slot:
    """One checkpoint tensor and its place.

    Args:
        name: tensor name in the checkpoint, e.g. `model.layers.0.self_attn.q_proj.weight`.
        shape: its shape there.
        target: name of the engine's parameter that holds it.
        row: first row in the target's row dimension (the last but one of a matrix, the only one
            of a vector).
        expert: index in the target's first dimension where the target stacks experts, else None.
        linear: the tensor is a matrix of a layer, the kind that quantised formats pack.
    """

    name: str
    shape: tuple[int, ...]
    target: str
    row: int = 0
    expert: int | None = None
    linear: bool = False


@dataclass(frozen=True)
class Target:
    """One parameter of the engine: its shape, and whether a packed matrix may stand in for it."""

    name: str
    shape: tuple[int, ...]
    linear: bool


def has_output_bias(shape: ModelShape) -> bool:
    """Whether o_proj has a bias: with `attention_bias`, in every family but Qwen2."""
    return shape.qkv_bias and FAMILIES[shape.architecture].name != "qwen2"


def layer_slots(shape: ModelShape, layer: int) -> list[Slot]:
    """The slots of one layer, in the order of the computation."""
    source, target = f"model.layers.{layer}.", f"layers.{layer}."
    q, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden = shape.hidden
    slots = [Slot(source + "input_layernorm.weight", (hidden,), target + "input_norm")]
    row = 0
    for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
        prefix = f"{source}self_attn.{name}."
        slots.append(Slot(prefix + "weight", (rows, hidden), target + "qkv", row, linear=True))
        if shape.qkv_bias:
            slots.append(Slot(prefix + "bias", (rows,), target + "qkv_bias", row))
        row += rows
    if shape.qk_norm:
        for name in ("q_norm", "k_norm"):
            slots.append(
                Slot(f"{source}self_attn.{name}.weight", (shape.head_dim,), target + name)
            )
    output = source + "self_attn.o_proj."
    slots.append(Slot(output + "weight", (hidden, q), target + "o", linear=True))
    if has_output_bias(shape):
        slots.append(Slot(output + "bias", (hidden,), target + "o_bias"))
    slots.append(Slot(source + "post_attention_layernorm.weight", (hidden,), target + "post_norm"))
    if not shape.is_expert_layer(layer):
        return slots + _mlp(source + "mlp.", target, hidden, shape.intermediate, None)
    slots.append(Slot(source + "mlp.gate.weight", (shape.experts, hidden), target + "router"))
    for expert in range(shape.experts):
        prefix = f"{source}mlp.experts.{expert}."
        slots += _mlp(prefix, target + "experts_", hidden, shape.expert_intermediate, expert)
    return slots


def _mlp(source: str, target: str, hidden: int, width: int, expert: int | None) -> list[Slot]:
    up = (width, hidden)
    return [
        Slot(source + "gate_proj.weight", up, target + "gate_up", 0, expert, True),
        Slot(source + "up_proj.weight", up, target + "gate_up", width, expert, True),
        Slot(source + "down_proj.weight", (hidden, width), target + "down", 0, expert, True),
    ]


def model_slots(shape: ModelShape) -> list[Slot]:
    """Every tensor that a checkpoint of this shape must hold (tied embeddings have no head)."""
    slots = [Slot("model.embed_tokens.weight", (shape.vocab, shape.hidden), "embed")]
    for layer in range(shape.layers):
        slots += layer_slots(shape, layer)
    slots.append(Slot("model.norm.weight", (shape.hidden,), "norm"))
    if not shape.tied_embeddings:
        slots.append(Slot("lm_head.weight", (shape.vocab, shape.hidden), "head"))
    return slots


def model_targets(slots: list[Slot]) -> dict[str, Target]:
    """The engine's parameters that these slots fill, with their fused shapes."""
    rows: dict[str, int] = {}
    experts: dict[str, int] = {}
    columns: dict[str, tuple[int, ...]] = {}
    linear: dict[str, bool] = {}
    for slot in slots:
        rows[slot.target] = max(rows.get(slot.target, 0), slot.row + slot.shape[0])
        columns[slot.target] = slot.shape[1:]
        linear[slot.target] = slot.linear
        if slot.expert is not None:
            experts[slot.target] = max(experts.get(slot.target, 0), slot.expert + 1)
    return {
        name: Target(
            name,
            ((experts[name],) if name in experts else ()) + (rows[name],) + columns[name],
            linear[name],
        )
        for name in rows
    }
