"""Refusals: layers that are known to have no Lipschitz constant, or none of use, each with its reason."""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

__all__ = ["FUNCTIONS", "METHODS", "MODULES", "UNKNOWN"]

UNKNOWN: Final = (
    "no Lipschitz bound is known for it: use a layer of the list in docs/theory/lipschitz, "
    "or certify by smoothing"
)
"""The reason given for everything that is in no table."""


_ATTENTION: Final = (
    "dot-product attention multiplies features with features: its slope grows with the input and no "
    "Lipschitz constant exists; certify by smoothing"
)
_RECURRENT: Final = (
    "a recurrent network multiplies gates with states: its constant grows with the states; "
    "certify by smoothing"
)
_TABLE: Final = "looks up a table with whole numbers: it jumps, and perturbations of its input mean nothing"
_GATE: Final = (
    "multiplies features with gates that depend on the input: no Lipschitz constant exists on all inputs"
)
_JUMP: Final = "jumps: no Lipschitz constant exists"
_PRODUCT: Final = "multiplies features with features: its slope grows with the input"
_STEEP: Final = "has a slope that grows without bound"
_COARSE: Final = "casts to a coarser format: a bound is of the real arithmetic of float32 or float64"
_RANDOM: Final = "is random: a bound is of one fixed function"
_ASSIGN: Final = "assigns to a part of a tensor: build it with torch.cat instead"

MODULES: Final[dict[type[nn.Module], str]] = {
    **dict.fromkeys(
        (
            nn.MultiheadAttention,
            nn.Transformer,
            nn.TransformerEncoder,
            nn.TransformerDecoder,
            nn.TransformerEncoderLayer,
            nn.TransformerDecoderLayer,
        ),
        _ATTENTION,
    ),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell), _RECURRENT),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), _TABLE),
    **dict.fromkeys((nn.Bilinear, nn.CosineSimilarity, nn.PairwiseDistance), _PRODUCT),
    nn.GLU: _GATE,
    nn.Hardshrink: _JUMP,
    nn.LocalResponseNorm: "divides by the statistics of each input itself",
}
FUNCTIONS: Final[dict[Any, str]] = {
    **dict.fromkeys(
        (functional.scaled_dot_product_attention, functional.multi_head_attention_forward), _ATTENTION
    ),
    **dict.fromkeys((functional.embedding, functional.embedding_bag), _TABLE),
    **dict.fromkeys((functional.bilinear, torch.einsum, torch.baddbmm, torch.cdist, torch.outer), _PRODUCT),
    functional.glu: _GATE,
    **dict.fromkeys(
        (
            functional.hardshrink,
            torch.sign,
            torch.sgn,
            torch.round,
            torch.floor,
            torch.ceil,
            torch.trunc,
            torch.argmax,
            torch.argmin,
            torch.argsort,
            torch.heaviside,
            torch.remainder,
            torch.fmod,
            torch.bucketize,
            torch.masked_select,
            operator.floordiv,
            operator.mod,
            operator.gt,
            operator.lt,
            operator.ge,
            operator.le,
            operator.eq,
            operator.ne,
            torch.gt,
            torch.lt,
            torch.ge,
            torch.le,
            torch.eq,
            torch.ne,
        ),
        _JUMP,
    ),
    **dict.fromkeys(
        (
            torch.exp,
            torch.log,
            torch.sqrt,
            torch.rsqrt,
            torch.reciprocal,
            torch.pow,
            torch.square,
            operator.pow,
        ),
        _STEEP,
    ),
    **dict.fromkeys((torch.rand_like, torch.randn_like, torch.bernoulli, functional.gumbel_softmax), _RANDOM),
    operator.setitem: _ASSIGN,
}
METHODS: Final[dict[str, str]] = {
    **dict.fromkeys(("half", "bfloat16"), _COARSE),
    **dict.fromkeys(
        (
            "int",
            "long",
            "short",
            "byte",
            "char",
            "bool",
            "sign",
            "round",
            "floor",
            "ceil",
            "trunc",
            "argmax",
            "argmin",
        ),
        _JUMP,
    ),
    **dict.fromkeys(
        ("argsort", "gt", "lt", "ge", "le", "eq", "ne", "__gt__", "__lt__", "__ge__", "__le__"), _JUMP
    ),
    **dict.fromkeys(("exp", "log", "sqrt", "rsqrt", "reciprocal", "pow", "square", "__pow__"), _STEEP),
    **dict.fromkeys(
        ("copy_", "fill_", "masked_fill_", "index_put_", "scatter_", "zero_", "__setitem__"), _ASSIGN
    ),
}
