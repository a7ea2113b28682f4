"""Attention, feed-forward and the block both transformers are made of."""

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
    """Additive attention term from a relative term and a key mask (True may be seen), either of which may be absent."""
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
"""Whether torch has oneDNN's product in bf16 that adds the bias and applies a function at once, and the processor the
instructions for it."""

LOPSIDED_WIDTH, LOPSIDED_ROWS = 768, range(641, 1536)
"""Products in bf16 of so many columns and rows are left to one of two threads by oneDNN (torch 2.13, AMX); in parts
they take two thirds of the time."""


def linear(
    x: Float[Tensor, "*row in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"],
    then: Literal["none", "gelu"] = "none",
) -> Float[Tensor, "*row out"]:
    """A linear layer in the type of its weights where nothing is learned, and a GELU if asked for."""
    x = x.to(weight.dtype)
    if x.device.type != "cpu" or torch.compiler.is_exporting():
        found = functional.linear(x, weight, bias)
    elif HAS_FUSED_LINEAR and x.dtype == torch.bfloat16:  # a fifth faster than the general one, and of this processor
        return _fused_linear(x, weight, bias, then)
    else:  # on processors the general one would first fill the result with the bias: a twentieth of a product
        found = functional.linear(x, weight).add_(bias)
    return torch.ops.aten.gelu_(found) if then == "gelu" else found


def _fused_linear(x: Tensor, weight: Tensor, bias: Tensor, then: str) -> Tensor:
    """By oneDNN; many rows in parts where it would leave them all to one of two threads."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # part of a matrix, which it is very slow with
        weight = weight.t().contiguous().t()
    rows = x.reshape(-1, x.shape[-1])
    is_lopsided = weight.shape[0] == LOPSIDED_WIDTH and len(rows) in LOPSIDED_ROWS and torch.get_num_threads() == 2
    parts = rows.chunk(-(-len(rows) // (LOPSIDED_ROWS.start - 1))) if is_lopsided else (rows,)
    found = [torch.ops.mkldnn._linear_pointwise(part, weight, bias, then, [], "none") for part in parts]
    return (found[0] if len(found) == 1 else torch.cat(found)).view(*x.shape[:-1], weight.shape[0])


def is_plain(layer: nn.Module) -> bool:
    """Whether nothing but its weights tells what a layer does: its class is ours or torch's, and nobody changed it.

    That is, it has no hook, no `forward` of its own, and was neither quantised nor, unless it is linear, parametrised,
    as by low-rank additions. Hooks of all modules, with which torch counts operations, do not count: they see modules
    as they were made ready.
    """
    home = type(layer).__module__.split(".")
    is_known = home[0] in ("anysat", "torch") and home[:2] != ["torch", "ao"] and "forward" not in vars(layer)
    is_hooked = layer._forward_hooks or layer._forward_pre_hooks
    is_changed = "parametrizations" in layer._modules and not isinstance(layer, nn.Linear)
    return is_known and not is_hooked and not is_changed


def is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is a weight and a bias, which others may read, and nothing else."""
    return isinstance(layer, nn.Linear) and layer.bias is not None and is_plain(layer)


FEW_TOKENS = 8
"""Up to so many tokens the fused attention of low precision takes longer than the products written out."""

LEARNT_PAIRS = 2**23
"""Up to so many pairs of tokens, over all heads, attention in low precision is written out where it is learned on a
processor."""


def attend(
    query: Float[Tensor, "batch head query dim"],
    key: Float[Tensor, "batch head key dim"],
    value: Float[Tensor, "batch head key dim"],
    bias: Float[Tensor, "#batch #head #query key"] | None,
) -> Float[Tensor, "batch head query dim"]:
    """Softmax attention with an additive term, which leaves each query a key at least."""
    bias = None if bias is None else bias.to(query.dtype)
    learns, num_tokens = torch.is_grad_enabled() or torch.compiler.is_exporting(), key.shape[2]  # of any, if exported
    if learns and _is_learnt_written_out(query, key, bias):
        return _attend_written_out(query, key, value, bias)
    if not learns and num_tokens == 2:
        return _attend_two(query, key, value, bias)
    if learns or query.dtype == torch.float32 or num_tokens > FEW_TOKENS:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1) @ value


def _is_learnt_written_out(query: Tensor, key: Tensor, bias: Tensor | None) -> bool:
    """Whether the products one by one are quicker to learn, and take no more memory than is there.

    Torch's own gradient on processors takes ten times as long in bf16; where the bias has one, too, nothing is fused.
    """
    if query.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    if bias is not None and bias.requires_grad:
        return True
    return query.dtype.itemsize < 4 and query.shape[:-1].numel() * key.shape[2] <= LEARNT_PAIRS


def _attend_written_out(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Scores as a matrix, which memory has to hold."""
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
    """Of two tokens, such as a pixel and its patch: their softmax is the logistic function of what they differ by."""
    scale = query.shape[-1] ** -0.5
    score = (query * ((key[:, :, :1] - key[:, :, 1:]) * scale)).sum(-1, keepdim=True)
    if bias is not None:
        score = score + (bias[..., :1] - bias[..., 1:])
    return torch.lerp(value[:, :, 1:], value[:, :, :1], score.sigmoid_())


class RelativePosition(nn.Module):
    """Contextual relative-position term: each query asks a table by distance bucket (iRPE, on keys).

    With `heads="first"` the query of head 0 makes the term of all heads; the published weights
    were learned so.
    """

    def __init__(self, head_dim: int, heads: Literal["first", "each"]) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.empty(1, head_dim, NUM_BUCKETS))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(
        self, query: Float[Tensor, "batch head query dim"], bucket: Int[Tensor, "*tile query key"], scale: float = 1.0
    ) -> Float[Tensor, "batch #head query key"]:
        """The term of each query, times `scale`, and key; one head for all when the first head makes it."""
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
        """Mix tokens; `valid` is True where one may be attended to, `first_alone` answers for the first token only."""
        if self.within_token:  # heads of one token attend to each other, tokens do not mix
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
        """Queries, keys and values (batch head token dim); only the first token's query where the others do not ask."""
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
    """Two linear layers around an exact GELU, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "*token dim"]) -> Float[Tensor, "*token dim"]:
        """Each token by itself."""
        if torch.is_grad_enabled() or not is_plain_linear(self.fc1):
            return self.fc2(functional.gelu(self.fc1(x)))
        # in place where nothing is learned: to fill fresh memory takes longer than to compute
        return self.fc2(linear(x, self.fc1.weight, self.fc1.bias, "gelu"))


class ChannelNorm(nn.GroupNorm):
    """Group norm over the channels of rows without places (row dim): a layer norm of each group."""

    def forward(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
        """Normalise each row by itself; twice as fast as the general norm, which learning keeps."""
        if torch.is_grad_enabled():
            return super().forward(x)
        groups = x.unflatten(1, (self.num_groups, -1))  # type: ignore[no-untyped-call]
        normal = functional.layer_norm(groups, groups.shape[2:], eps=self.eps).flatten(1)
        return normal.mul_(self.weight).add_(self.bias)


class RowLayers(nn.Sequential):
    """Layers of rows, in which a norm over channels may follow a linear layer."""


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
        """Attention, then feed-forward; arguments as of the attention."""
        mixed = self.attention(self.norm1(x), valid, bucket, first_alone)
        x = x[:, :1] if first_alone else x
        is_ours = mixed.dtype == x.dtype and is_plain(self.attention) and is_plain_linear(self.attention.out)
        x = _added(mixed, x, is_ours)
        is_ours = is_plain(self.norm2) and is_plain(self.mlp) and is_plain_linear(self.mlp.fc2)
        return _added(self.mlp(self.norm2(x)), x, is_ours)


def _added(fresh: Tensor, x: Tensor, is_ours: bool) -> Tensor:
    """The sum, in the place of what nobody else holds where nothing is learned: of `fresh`, or of a wider `x`.

    They are not ours alone where hooks, of these layers or of all modules, may have kept them, or given them.
    """
    if torch.is_grad_enabled() or not is_ours or all_are_hooked():
        return x + fresh
    return fresh.add_(x) if fresh.dtype == x.dtype else x.add_(fresh)


PUBLISHED_INIT_STD = 0.02
"""Spread of the first weights, in all widths."""


def init_transformer(module: nn.Module, blocks: nn.ModuleList, std: float = PUBLISHED_INIT_STD) -> None:
    """Truncated normal weights, later blocks scaled down by the root of twice their depth (spec of I-JEPA)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            assert isinstance(block, Block), block
            block.attention.out.weight.div_((2.0 * depth) ** 0.5)
            block.mlp.fc2.weight.div_((2.0 * depth) ** 0.5)
