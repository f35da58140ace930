"""Multi-head attention and the encoder layer of a transformer, with PyTorch's parameters and names."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..core import record
from ..core.dims import format_shape
from ..core.errors import ArgumentError, ShapeError
from ..core.tensor import Parameter, Tensor, as_tensor
from ..ops.attention import attention, probabilities
from ..ops.create import zeros
from ..ops.elementwise import logical_and, logical_not, where
from ..ops.linalg import matmul
from ..ops.reduce import mean
from ..ops.shape import permute, reshape, split, unsqueeze
from . import functional as F
from . import init
from .arguments import a_count, a_float_dtype, a_probability
from .layers import Dropout, Linear
from .module import Module
from .normalization import LayerNorm


class MultiheadAttention(Module):
    """Attention of several heads, each on its share of the projected features.

    Parameters
    ----------
    embed_dim, num_heads : int
        The features of queries and results; the heads they are split over.
    dropout : float
        Of the probabilities, in training.
    bias : bool
    add_bias_kv, add_zero_attn : bool
        PyTorch's; only False is there.
    kdim, vdim : int, optional
        The features of keys and values; embed_dim by default.
    batch_first : bool
        Whether tensors are (batch, tokens, features) and not (tokens, batch, features).
    dtype : dtype, optional
        float32 by default.

    Attributes
    ----------
    in_proj_weight : Parameter, (3 embed_dim, embed_dim)
        Of queries, keys and values; None when kdim or vdim differ, and then there are ``q_proj_weight``,
        ``k_proj_weight`` and ``v_proj_weight``. Xavier uniform.
    in_proj_bias : Parameter, (3 embed_dim,), or None
    out_proj : Linear

    Raises
    ------
    ArgumentError
        If ``num_heads`` does not divide ``embed_dim``.
    ShapeError
        When called on tensors that do not fit.

    Examples
    --------
    >>> import graphc as gc
    >>> layer = gc.nn.MultiheadAttention(8, 2, batch_first=True)
    >>> x = gc.ones(4, 5, 8)
    >>> out, weights = layer(x, x, x)
    >>> out.shape, weights.shape
    ((4, 5, 8), (4, 5, 5))
    >>> layer(x, x, x, need_weights=False, is_causal=True)[0].shape        # no 5 x 5 matrix in memory
    (4, 5, 8)
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True,
                 add_bias_kv: bool = False, add_zero_attn: bool = False, kdim: int | None = None,
                 vdim: int | None = None, batch_first: bool = False, dtype: Any = None) -> None:
        super().__init__()
        name = type(self).__name__
        self.embed_dim = a_count(name, "embed_dim", embed_dim)
        self.num_heads = a_count(name, "num_heads", num_heads)
        if self.embed_dim % self.num_heads:
            raise record.located(ArgumentError(f"{name}: num_heads = {num_heads} does not divide embed_dim = "
                                               f"{embed_dim}"))
        if add_bias_kv or add_zero_attn:
            raise record.located(ArgumentError(f"{name}: add_bias_kv and add_zero_attn are not there; append "
                                               "a row to keys and values yourself"))
        self.kdim = a_count(name, "kdim", embed_dim if kdim is None else kdim)
        self.vdim = a_count(name, "vdim", embed_dim if vdim is None else vdim)
        self.dropout, self.batch_first = a_probability(name, "dropout", dropout), bool(batch_first)
        d, e = a_float_dtype(name, dtype), self.embed_dim
        one = self.kdim == self.vdim == e

        def weight(rows: int, columns: int) -> Parameter:
            out = Parameter(zeros(rows, columns, dtype=d))
            init.xavier_uniform_(out)
            return out
        self.in_proj_weight = weight(3 * e, e) if one else None
        self.q_proj_weight, self.k_proj_weight, self.v_proj_weight = (
            None if one else weight(e, n) for n in (e, self.kdim, self.vdim))
        self.in_proj_bias = Parameter(zeros(3 * e, dtype=d)) if bias else None
        self.out_proj = Linear(e, e, bias, dtype)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Any = None,
                need_weights: bool = True, attn_mask: Any = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """(attention, weights or None).

        Parameters
        ----------
        query, key, value : Tensor, (L, batch, embed_dim), (S, batch, kdim), (S, batch, vdim)
            Batch and tokens the other way round with ``batch_first``; or without a batch.
        key_padding_mask : Tensor, (batch, S)
            bool: True where a key is left out (as in PyTorch: the contrary of
            `scaled_dot_product_attention`). Floating: added to the scores.
        need_weights : bool
            Whether the probabilities are given too; they take a matrix in memory.
        attn_mask : Tensor, (L, S) or (batch * num_heads, L, S)
            As ``key_padding_mask``, per query.
        average_attn_weights : bool
            Weights as the mean over the heads, (batch, L, S), or (batch, num_heads, L, S).
        is_causal : bool
            Query i sees keys 0 to i; ``attn_mask`` is taken to say the same, and may be left out.
        """
        alone = query.ndim == 2
        if alone:
            batch_axis = 0 if self.batch_first else 1
            query, key, value = (unsqueeze(t, batch_axis) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else unsqueeze(key_padding_mask, 0)
        q, k, v = self._project(query, key, value)
        mask = self._mask(None if is_causal else attn_mask, key_padding_mask, q)
        p, scale = self.dropout if self.training else 0.0, 1 / math.sqrt(self.embed_dim // self.num_heads)
        weights = None
        if need_weights:
            weights = probabilities(q, k, mask, is_causal, scale)
            weights = F.dropout(weights, p, self.training)
            heads = matmul(weights, v)
            weights = mean(weights, 1) if average_attn_weights else weights
        else:
            heads = attention(q, k, v, mask, p, is_causal, scale)
        # (batch, heads, L, features of one) to (batch, L, all features), or (L, batch, all features)
        joined = permute(heads, (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3))
        out = self.out_proj(reshape(joined, (*joined.shape[:2], self.embed_dim)))
        if not alone:
            return out, weights
        return out.squeeze(batch_axis), None if weights is None else weights.squeeze(0)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values as (batch, heads, tokens, features of one head)."""
        for t, n in ((query, self.embed_dim), (key, self.kdim), (value, self.vdim)):
            if t.ndim != 3 or t.shape[-1] != n:
                order = "batch, tokens" if self.batch_first else "tokens, batch"
                raise record.located(ShapeError(
                    f"MultiheadAttention: query {format_shape(query.shape)}, key {format_shape(key.shape)}, "
                    f"value {format_shape(value.shape)}; expected ({order}, features) with {self.embed_dim}, "
                    f"{self.kdim} and {self.vdim} features"))
        if self.in_proj_weight is None:
            weights: Any = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        else:                        # three products: slicing one result's gradient costs more than they do
            weights = split(self.in_proj_weight, self.embed_dim)
        parts = (F.linear(t, w) for t, w in zip((query, key, value), weights))
        heads: tuple[Any, ...] = tuple(self._heads(t) for t in parts)
        if self.in_proj_bias is None:
            return heads
        biases = reshape(self.in_proj_bias, (3, self.num_heads, 1, self.embed_dim // self.num_heads))
        return tuple(t + biases[i] for i, t in enumerate(heads))

    def _heads(self, t: Tensor) -> Tensor:
        split_up = reshape(t, (*t.shape[:2], self.num_heads, self.embed_dim // self.num_heads))
        return permute(split_up, (0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3))

    def _mask(self, attn_mask: Any, padding: Any, q: Tensor) -> Any:
        """One mask for `scaled_dot_product_attention`: bool, True takes part; or floating, added."""
        masks = []
        if attn_mask is not None:
            attn_mask = as_tensor(attn_mask)
            if attn_mask.ndim == 3:
                attn_mask = reshape(attn_mask, (q.shape[0], self.num_heads, *attn_mask.shape[1:]))
            masks.append(attn_mask)
        if padding is not None:
            padding = as_tensor(padding)
            masks.append(unsqueeze(unsqueeze(padding, 1), 1))
        if not masks:
            return None
        if all(m.dtype.kind == "b" for m in masks):
            allowed = [logical_not(m) for m in masks]
            return allowed[0] if len(allowed) == 1 else logical_and(*allowed)
        added = [where(m, -math.inf, 0.0) if m.dtype.kind == "b" else m for m in masks]
        return added[0] if len(added) == 1 else added[0] + added[1]

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"


class TransformerEncoderLayer(Module):
    """Self-attention and a two-layer network, each with a residual connection, dropout and a layer norm.

    Parameters
    ----------
    d_model, nhead, dim_feedforward : int
        Features, heads, features of the network's hidden layer.
    dropout : float
    activation : "relu", "gelu" or a function
    layer_norm_eps : float
    batch_first : bool
        Whether tensors are (batch, tokens, features) and not (tokens, batch, features).
    norm_first : bool
        Whether the norms come before attention and network (pre-norm) or after the sums.
    bias : bool
    dtype : dtype, optional
        float32 by default.

    Raises
    ------
    ArgumentError
        If an argument is out of range; the message names it.

    Examples
    --------
    >>> import graphc as gc
    >>> layer = gc.nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True)
    >>> layer(gc.ones(4, 5, 8), is_causal=True).shape
    (4, 5, 8)
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int = 2048, dropout: float = 0.1,
                 activation: str | Callable[[Tensor], Tensor] = "relu", layer_norm_eps: float = 1e-5,
                 batch_first: bool = False, norm_first: bool = False, bias: bool = True,
                 dtype: Any = None) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first,
                                            dtype=dtype)
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        self.norm_first = bool(norm_first)
        functions: dict[Any, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
        if not callable(activation) and activation not in functions:
            raise record.located(ArgumentError(f"TransformerEncoderLayer: activation is 'relu', 'gelu' or a "
                                               f"function, not {activation!r}"))
        self.activation = activation if callable(activation) else functions[activation]

    def forward(self, src: Tensor, src_mask: Any = None, src_key_padding_mask: Any = None,
                is_causal: bool = False) -> Tensor:
        """Masks and ``is_causal`` as in `MultiheadAttention`."""
        def attend(x: Tensor) -> Any:
            out, _ = self.self_attn(x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal)
            return self.dropout1(out)

        def network(x: Tensor) -> Any:
            hidden = self.dropout(self.activation(self.linear1(x)))
            return self.dropout2(self.linear2(hidden))
        x: Any = src
        if self.norm_first:
            x = x + attend(self.norm1(x))
            out: Tensor = x + network(self.norm2(x))
            return out
        x = self.norm1(x + attend(x))
        return self.norm2(x + network(x))
