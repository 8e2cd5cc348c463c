"""The patch embedding for any set of bands: Panopticon's channel attention, folded.

Shape letters: B images, C channels, L patches (K kept), P2 = patch_size**2 pixels, D attn_dim, H heads, d = D / H,
E embed_dim.

Published form (Panopticon, arXiv 2503.10845, sec. 3): channel c of a patch with pixels p_c becomes
x_c = W p_c + b + e_c (e_c: channel embedding); one learned query q attends over the channels,
a_hc = softmax_c(scale q_h . (W_k x_c)_h), y_h = sum_c a_hc (W_v x_c)_h, out = W_o y + b_o.
Everything before the softmax is linear in p_c and q is a parameter, so the same function costs far less as

    U_h = scale W_k,h^T q_h,   A = U W,                s_hc = A_h . p_c + U_h . e_c   (+ what is equal for all c)
    V = W_v W,                 z_h = sum_c a_hc p_c,   y_h = V_h z_h + sum_c a_hc (W_v (b + e_c))_h

(docs/decisions/0004-folded-embedding.md; tests/dinov2/models/reference.py holds the published form).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov2.models.channels import ChannelEmbedding, check_channels
from dinov2.models.patch import patchify


class ChannelFusion(nn.Module):
    """Parameters of the attention over channels, under the released names."""

    def __init__(self, dim: int, embedding: ChannelEmbedding, *, qkv_bias: bool, layer_norm: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, dim))
        self.chnemb = embedding
        self.xattn = nn.ModuleDict({f"inproj_{i}": nn.Linear(dim, dim, bias=qkv_bias) for i in "kv"})
        self.layer_norm = nn.LayerNorm(dim) if layer_norm else nn.Identity()


class Fold(NamedTuple):
    """What depends on parameters only, in float32 (float64 where the parameters are)."""

    scores: Tensor  # A [H, P2]
    keys: Tensor  # U [H, D]
    values: Tensor  # V [H, P2, d]


class SpectralPatchEmbed(nn.Module):
    """Panopticon's patch embedding for any set of channels, folded (see the module docstring).

    Called with ``{"imgs": [B, C, H, W], "chn_ids": integer [B, C] or [B, C, 2], "spec_masks": bool [B, C] or absent}``
    (True = hidden) and optionally ``keep`` ``[B, K]``, the indices of the patches to embed. Returns tokens
    ``[B, L or K, E]``. Inputs are never changed. ``chn_ids`` of shape ``[B, C, 2]`` hold (centre, sigma) in nm;
    without ``full_spectra`` the centre is used. ``terrain`` adds a learned table for ids -13 and -14.
    Errors: see :func:`check_channels` and :func:`patchify`.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        patch_size: int = 14,
        attn_dim: int = 2304,
        num_heads: int = 16,
        qkv_bias: bool = False,
        layer_norm: bool = False,
        full_spectra: bool = False,
        opt_coarsity: int = 1,
        terrain: bool = False,
    ) -> None:
        super().__init__()
        if attn_dim % num_heads:
            raise ValueError(f"attn_dim {attn_dim} must be a multiple of num_heads {num_heads}")
        self.patch_size, self.heads = patch_size, num_heads
        window = (1, patch_size, patch_size)
        self.conv3d = nn.ModuleDict({"conv3d": nn.Conv3d(1, attn_dim, window, window)})  # [D, 1, 1, P, P]
        embedding = ChannelEmbedding(attn_dim, coarsity=opt_coarsity, full_spectra=full_spectra, terrain=terrain)
        self.chnfus = ChannelFusion(attn_dim, embedding, qkv_bias=qkv_bias, layer_norm=layer_norm)
        self.proj = nn.Linear(attn_dim, embed_dim)
        self.keeps_fold = True  # False where parameters change without a trace, as gathered shards do
        self._cached: tuple[tuple, Fold] | None = None

    def fold(self) -> Fold:
        """The parameters' products; kept between calls in evaluation until a parameter changes."""
        conv, query, k, v = self._linear_maps()
        # inference tensors have no version to compare
        if self.training or torch.is_grad_enabled() or query.is_inference() or not self.keeps_fold:
            self._cached = None
            return self._multiply()
        key = tuple((p.data_ptr(), p._version, p.dtype) for p in (conv.weight, query, k.weight, v.weight))
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self._multiply())
        return self._cached[1]

    def _linear_maps(self) -> tuple[nn.Conv3d, Tensor, nn.Linear, nn.Linear]:
        conv, xattn = self.conv3d["conv3d"], self.chnfus.xattn
        return conv, self.chnfus.query, xattn["inproj_k"], xattn["inproj_v"]  # type: ignore[return-value]

    def _multiply(self) -> Fold:
        conv, query, k, v = self._linear_maps()
        dtype = torch.promote_types(query.dtype, torch.float32)
        h, d = self.heads, query.shape[-1] // self.heads
        weight = conv.weight.flatten(1).to(dtype)  # W [D, P2]
        q = query.view(h, 1, d).to(dtype) / math.sqrt(d)
        keys = torch.bmm(q, k.weight.view(h, d, -1).to(dtype)).squeeze(1)  # U [H, D]
        values = (v.weight.to(dtype) @ weight).view(h, d, -1)  # V [H, d, P2]
        return Fold(keys @ weight, keys, values.transpose(1, 2))

    def channel_terms(self, ids: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Ids ``[B, C(, 2)]`` -> the channels' part of scores ``[B, C, H]`` and of values ``[B, C, D]``."""
        conv, _, k, v = self._linear_maps()
        assert conv.bias is not None
        b, c = ids.shape[:2]
        rows, where = ids.flatten(0, 1), None
        # W_v r_c once per distinct id; elsewhere `unique` would wait for the device, and no exported graph has it
        if rows.device.type == "cpu" and not torch.compiler.is_exporting():
            rows, where = rows.unique(dim=0, return_inverse=True)
        dtype = keys.dtype
        embedding = self.chnfus.chnemb(rows).to(dtype)  # [N, D]
        scores = embedding @ keys.T  # U . e; U . b and a key bias are equal for all channels: nothing after the softmax
        if k.bias is not None:
            scores = scores + 0.0 * k.bias.sum()  # ... but the bias stays in the graph, with zero gradient
        bias = None if v.bias is None else v.bias.to(dtype)
        values = F.linear(embedding + conv.bias.to(dtype), v.weight.to(dtype), bias)
        if where is not None:
            scores, values = scores[where], values[where]
        return scores.view(b, c, -1), values.view(b, c, -1)

    def forward(self, x: dict[str, Tensor], keep: Tensor | None = None) -> Tensor:
        """See the class."""
        imgs, masks = x["imgs"], x.get("spec_masks")
        ids = self.checked_ids(x["chn_ids"], masks, imgs.shape[1])
        device = imgs.device.type
        with torch.autocast(device, enabled=False):  # once per step and few numbers: precision is free here
            fold = self.fold()
            id_scores, id_values = self.channel_terms(ids, fold.keys)
        autocast = torch.is_autocast_enabled(device)
        patches = patchify(imgs, self.patch_size, keep).to(torch.get_autocast_dtype(device) if autocast else imgs.dtype)
        attention = self.attend(patches, fold.scores, id_scores, masks)  # [B, L, H, C]
        return self.proj(self.chnfus.layer_norm(self.gather_values(patches, attention, fold.values, id_values)))

    def checked_ids(self, ids: Tensor, masks: Tensor | None, channels: int) -> Tensor:
        """The ids that the channel embedding reads: pairs where it wants full spectra, else centres."""
        chnemb = self.chnfus.chnemb
        if chnemb.full_spectra and ids.ndim == 2:
            raise ValueError("this encoder reads full spectra: chn_ids must be [B, C, 2], (centre, sigma) in nm")
        if ids.device.type == "cpu" and not torch.compiler.is_exporting():  # a graph cannot raise
            check_channels(ids, masks, channels, terrain=chnemb.embed_terrain is not None)
        elif masks is not None:  # collate has checked on the CPU; this catches other callers without a device sync
            torch._assert_async((~masks).any(1).all(), "spec_masks hide every channel of an image")
        return ids if chnemb.full_spectra or ids.ndim == 2 else ids[..., 0]

    @staticmethod
    def attend(patches: Tensor, weight: Tensor, id_scores: Tensor, masks: Tensor | None) -> Tensor:
        """Attention over channels ``[B, L, H, C]`` for patches ``[B, L, C, P2]``, softmax in at least float32."""
        scores = F.linear(patches, weight.to(patches.dtype)).to(id_scores.dtype) + id_scores[:, None]  # [B, L, C, H]
        if masks is not None:
            scores = scores.masked_fill(masks[:, None, :, None], float("-inf"))
        return scores.softmax(2).to(patches.dtype).transpose(2, 3)

    @staticmethod
    def gather_values(patches: Tensor, attention: Tensor, weight: Tensor, id_values: Tensor) -> Tensor:
        """y ``[B, L, D]``: attention-weighted values of patches ``[B, L, C, P2]`` and channels ``[B, C, D]``."""
        b, length, h, c = attention.shape
        mixed = attention.reshape(-1, h, c) @ patches.flatten(0, 1)  # z [BL, H, P2]
        values = mixed.transpose(0, 1) @ weight.to(mixed.dtype)  # V_h z_h [H, BL, d]
        per_head = attention.permute(2, 0, 1, 3).reshape(h * b, length, c)  # [HB, L, C]
        channel = id_values.to(mixed.dtype).view(b, c, h, -1).permute(2, 0, 1, 3).reshape(h * b, c, -1)  # [HB, C, d]
        values = torch.baddbmm(values.view(h * b, length, -1), per_head, channel)
        return values.view(h, b, length, -1).permute(1, 2, 0, 3).reshape(b, length, -1)
