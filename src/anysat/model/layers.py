"""Attention, feed-forward layers, and the block of which both transformers are made."""

from __future__ import annotations

from typing import Literal, TypeGuard

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from anysat.model.chunks import all_are_hooked
from anysat.model.positions import NUM_BUCKETS


def masked_bias(
    bias: Float[Tensor, "#batch #head query key"] | None, valid: Bool[Tensor, "batch key"] | None
) -> Float[Tensor, "#batch #head #query key"] | None:
    """Return the additive attention term of a relative term and a key mask (True: may be seen); either may be None."""
    if valid is None:
        return bias
    hidden = ~valid[:, None, None, :]
    if bias is None:
        bias = torch.zeros((), dtype=torch.float32, device=valid.device).expand(1, 1, 1, 1)
    return bias.masked_fill(hidden, float("-inf"))


HAS_FUSED_LINEAR = (
    torch._C._has_mkldnn
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.cpu._is_avx512_supported()
    and torch.ops.mkldnn._is_mkldnn_bf16_supported()
)
"""Whether torch has oneDNN's bf16 product fused with bias and activation, and the CPU has the instructions for it."""

LOPSIDED_WIDTH, LOPSIDED_ROWS = 768, range(641, 1536)
"""Numbers of columns and rows of bf16 products for which oneDNN uses only one of two threads (torch 2.13, AMX). In
parts, they take two thirds of the time."""


def linear(
    x: Float[Tensor, "*row in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"],
    then: Literal["none", "gelu"] = "none",
) -> Float[Tensor, "*row out"]:
    """Apply a linear layer in the type of its weights, and a GELU if requested. For passes without gradients."""
    x = x.to(weight.dtype)
    if x.device.type != "cpu" or torch.compiler.is_exporting():
        found = functional.linear(x, weight, bias)
    elif HAS_FUSED_LINEAR and x.dtype == torch.bfloat16:  # a fifth faster than the general product
        return _fused_linear(x, weight, bias, then)
    else:  # on a CPU, `linear` with a bias first fills the result with it, which costs a twentieth of the product
        found = functional.linear(x, weight).add_(bias)
    return torch.ops.aten.gelu_(found) if then == "gelu" else found


def _fused_linear(x: Tensor, weight: Tensor, bias: Tensor, then: str) -> Tensor:
    """Apply a linear layer by oneDNN, in parts where it would use only one of two threads."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # part of a matrix, for which oneDNN is very slow
        weight = weight.t().contiguous().t()
    rows = x.reshape(-1, x.shape[-1])
    is_lopsided = weight.shape[0] == LOPSIDED_WIDTH and len(rows) in LOPSIDED_ROWS and torch.get_num_threads() == 2
    parts = rows.chunk(-(-len(rows) // (LOPSIDED_ROWS.start - 1))) if is_lopsided else (rows,)
    found = [torch.ops.mkldnn._linear_pointwise(part, weight, bias, then, [], "none") for part in parts]
    return (found[0] if len(found) == 1 else torch.cat(found)).view(*x.shape[:-1], weight.shape[0])


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is determined by its weights alone: its class is ours or torch's, and it was not changed.

    That is, it has no hook and no `forward` of its own, is not quantised and, unless it is linear, not parametrised
    (for example by low-rank additions). Global hooks, with which torch counts operations, are ignored: they see the
    modules that were made ready.
    """
    home = type(layer).__module__.split(".")
    is_known = home[0] in ("anysat", "torch") and home[:2] != ["torch", "ao"] and "forward" not in vars(layer)
    is_hooked = layer._forward_hooks or layer._forward_pre_hooks
    is_changed = "parametrizations" in layer._modules and not isinstance(layer, nn.Linear)
    return is_known and not is_hooked and not is_changed


def is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is linear with a bias and determined by its weights alone, so that others may use them."""
    return isinstance(layer, nn.Linear) and layer.bias is not None and is_plain(layer)


FEW_TOKENS = 8
"""Number of tokens up to which fused attention in low precision is slower than separate products."""

LEARNT_PAIRS = 2**23
"""Number of pairs of tokens, over all heads, up to which training in low precision on a CPU uses separate products."""


def attend(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch head key dim"],
    value: Float[Tensor, "batch head key dim"],
    bias: Float[Tensor, "#batch #head #query key"] | None,
) -> Float[Tensor, "batch head query dim"]:
    """Apply softmax attention with an additive term, which must leave at least one key for each query."""
    bias = None if bias is None else bias.to(query.dtype)
    learns, num_tokens = torch.is_grad_enabled() or torch.compiler.is_exporting(), key.shape[2]
    if learns and _is_learnt_written_out(query, key, bias):
        return _attend_written_out(query, key, value, bias)
    if not learns and num_tokens == 2:
        return _attend_two(query, key, value, bias)
    if learns or query.dtype == torch.float32 or num_tokens > FEW_TOKENS:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1) @ value


def _is_learnt_written_out(query: Tensor, key: Tensor, bias: Tensor | None) -> bool:
    """Whether training uses separate products: they are faster and fit in memory.

    On CPUs, the gradient of torch's attention takes ten times as long in bf16, and if the bias has a gradient, torch
    fuses nothing anyway.
    """
    if query.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    if bias is not None and bias.requires_grad:
        return True
    return query.dtype.itemsize < 4 and query.shape[:-1].numel() * key.shape[2] <= LEARNT_PAIRS


def _attend_written_out(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Apply attention by separate products. The matrix of scores is held in memory."""
    batch, heads, num_queries, _ = query.shape
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    scale, key = query.shape[-1] ** -0.5, key.transpose(1, 2)
    if bias is None:
        scores = (query * scale) @ key
    else:
        bias = bias.expand(batch, heads, num_queries, -1).flatten(0, 1)
        scores = torch.baddbmm(bias, query, key, alpha=scale)
    return (scores.softmax(-1).to(value.dtype) @ value).unflatten(0, (batch, heads))


def _attend_two(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Apply attention to two tokens, such as a pixel and its patch, whose softmax is a logistic function."""
    scale = query.shape[-1] ** -0.5
    score = (query * ((key[:, :, :1] - key[:, :, 1:]) * scale)).sum(-1, keepdim=True)
    if bias is not None:
        score = score + (bias[..., :1] - bias[..., 1:])
    return torch.lerp(value[:, :, 1:], value[:, :, :1], score.sigmoid_())


class RelativePosition(nn.Module):
    """Contextual relative-position term (iRPE, on keys): the product of a query with a vector per distance bucket.

    With `heads="first"`, all heads use the query of head 0, as the published weights learned it.
    """

    def __init__(self, head_dim: int, heads: Literal["first", "each"]) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(1, head_dim, NUM_BUCKETS))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(
        self, query: Float[Tensor, "batch head query dim"], bucket: Int[Tensor, "*tile query key"], scale: float = 1.0
    ) -> Float[Tensor, "batch #head query key"]:
        """Return the term of each query (times `scale`) and key, with one head for all if `heads` is `first`."""
        if self.heads == "first":
            query = query[:, :1]
        score = (query * scale).to(self.weight.dtype) @ self.weight
        return score.gather(-1, bucket.unsqueeze(-3).expand(*score.shape[:-1], -1))


class Attention(nn.Module):
    """Multi-head self-attention, with an optional relative-position term."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        relative_heads: Literal["first", "each"] | None = None,
        within_token: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.within_token = within_token
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.relative = RelativePosition(dim // num_heads, relative_heads) if relative_heads else None

    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        valid: Bool[Tensor, "batch token"] | None = None,
        bucket: Int[Tensor, "token token"] | None = None,
        first_alone: bool = False,
    ) -> Float[Tensor, "batch query dim"]:
        """Mix tokens. `valid` is True where a token may be attended to. `first_alone` returns only the first token."""
        if self.within_token:  # the heads of a token attend to each other; tokens do not mix
            x = x[:, :1] if first_alone else x
            layout = "batch token (three head dim) -> three batch token head dim"
            query, key, value = rearrange(self.qkv(x), layout, three=3, head=self.num_heads).unbind(0)
            mixed = attend(query, key, value, None)
            return self.out(rearrange(mixed, "batch token head dim -> batch token (head dim)"))
        query, key, value = self._projected(x, first_alone)
        bias = None
        if self.relative is not None and bucket is not None:
            asked = bucket[:1] if first_alone else bucket
            bias = self.relative(query, asked, query.shape[-1] ** -0.5)
        mixed = attend(query, key, value, masked_bias(bias, valid))
        return self.out(rearrange(mixed, "batch head token dim -> batch token (head dim)"))

    def _projected(self, x: Tensor, first_alone: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (batch head token dim); with `first_alone`, only the first token's query."""
        if not first_alone or not is_plain_linear(self.qkv):
            layout = "batch token (three head dim) -> three batch head token dim"
            query, key, value = rearrange(self.qkv(x), layout, three=3, head=self.num_heads).unbind(0)
            return query[:, :, :1] if first_alone else query, key, value
        weight, bias, dim = self.qkv.weight, self.qkv.bias, x.shape[-1]
        product = functional.linear if torch.is_grad_enabled() else linear
        query = product(x[:, 0], weight[:dim], bias[:dim])
        both = product(x, weight[dim:], bias[dim:])
        layout = "batch token (two head dim) -> two batch head token dim"
        key, value = rearrange(both, layout, two=2, head=self.num_heads).unbind(0)
        return rearrange(query, "batch (head dim) -> batch head 1 dim", head=self.num_heads), key, value


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them, whose hidden width is four times `dim`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "*token dim"]) -> Float[Tensor, "*token dim"]:
        """Apply the layers to each token separately."""
        if torch.is_grad_enabled() or not is_plain_linear(self.fc1):
            return self.fc2(functional.gelu(self.fc1(x)))
        # in place without gradients: filling new memory takes longer than computing
        return self.fc2(linear(x, self.fc1.weight, self.fc1.bias, "gelu"))


class ChannelNorm(nn.GroupNorm):
    """Group norm over the channels of rows (row dim): a layer norm of each group."""

    def forward(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Normalise each row. Without gradients this is twice as fast as the general norm, which training uses."""
        if torch.is_grad_enabled():
            return super().forward(x)
        groups = x.unflatten(1, (self.num_groups, -1))  # type: ignore[no-untyped-call]
        normal = functional.layer_norm(groups, groups.shape[2:], eps=self.eps).flatten(1)
        return normal.mul_(self.weight).add_(self.bias)


class RowLayers(nn.Sequential):
    """A sequence of layers for rows, in which a norm over channels may follow a linear layer."""


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        norm_eps: float,
        relative_heads: Literal["first", "each"] | None = None,
        within_token: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, num_heads, relative_heads, within_token)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim)

    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        valid: Bool[Tensor, "batch token"] | None = None,
        bucket: Int[Tensor, "token token"] | None = None,
        first_alone: bool = False,
    ) -> Float[Tensor, "batch query dim"]:
        """Apply attention and then the feed-forward layers. Arguments as of `Attention`."""
        mixed = self.attention(self.norm1(x), valid, bucket, first_alone)
        x = x[:, :1] if first_alone else x
        is_ours = mixed.dtype == x.dtype and is_plain(self.attention) and is_plain_linear(self.attention.out)
        x = _added(mixed, x, is_ours)
        is_ours = is_plain(self.norm2) and is_plain(self.mlp) and is_plain_linear(self.mlp.fc2)
        return _added(self.mlp(self.norm2(x)), x, is_ours)


def _added(fresh: Tensor, x: Tensor, is_ours: bool) -> Tensor:
    """Return the sum, computed in place of `fresh`, or of `x` if that is wider, when nothing else can hold the tensor.

    With gradients, or with hooks that may have kept or replaced a tensor, the sum is a new tensor.
    """
    if torch.is_grad_enabled() or not is_ours or all_are_hooked():
        return x + fresh
    return fresh.add_(x) if fresh.dtype == x.dtype else x.add_(fresh)


PUBLISHED_INIT_STD = 0.02
"""Standard deviation of initial weights, for all widths."""


def init_transformer(module: nn.Module, blocks: nn.ModuleList, std: float = PUBLISHED_INIT_STD) -> None:
    """Initialise with truncated normal weights; those of later blocks are divided by sqrt(2 * depth), as in I-JEPA."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            assert isinstance(block, Block), block
            block.attention.out.weight.div_((2.0 * depth) ** 0.5)
            block.mlp.fc2.weight.div_((2.0 * depth) ** 0.5)
