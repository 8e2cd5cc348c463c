"""Panopticon's patch embedding as published (arXiv 2503.10845), unfolded: the reference of the folded form.

Same parameter names, so that one state dict fits both; no cleverness: every channel of every patch is embedded in D
numbers, keys and values are computed for each, one query attends over the channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAR = [(t, r, orbit) for orbit in (None, 0, 1) for t, r in ((0, 0), (0, 1), (1, 1), (1, 0))]  # VV VH HH HV


class PublishedPatchEmbed(nn.Module):
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
        self.dim, self.heads = attn_dim, num_heads
        self.full_spectra, self.coarsity = full_spectra, opt_coarsity
        window = (1, patch_size, patch_size)
        self.conv3d = nn.ModuleDict({"conv3d": nn.Conv3d(1, attn_dim, window, window)})
        fusion, embedding, third = nn.Module(), nn.Module(), attn_dim // 3
        fusion.query = nn.Parameter(torch.randn(1, 1, attn_dim))
        embedding.embed_transmit = nn.Parameter(torch.zeros(2, third))
        embedding.embed_receive = nn.Parameter(torch.zeros(2, third))
        embedding.embed_orbit = nn.Parameter(torch.zeros(2, attn_dim - 2 * third))
        if terrain:
            embedding.embed_terrain = nn.Parameter(torch.zeros(2, attn_dim))
        fusion.chnemb = embedding
        fusion.xattn = nn.ModuleDict({f"inproj_{i}": nn.Linear(attn_dim, attn_dim, bias=qkv_bias) for i in "kv"})
        if layer_norm:
            fusion.layer_norm = nn.LayerNorm(attn_dim)
        self.chnfus = fusion
        self.proj = nn.Linear(attn_dim, embed_dim)

    def embed_id(self, key: tuple[float, ...]) -> Tensor:
        """One channel id (centre, sigma or nothing) -> [D]."""
        tables = self.chnfus.chnemb
        centre = int(key[0] // 1)
        if centre < -12:
            return tables.embed_terrain[-13 - centre]
        if centre < 0:
            t, r, orbit = SAR[-centre - 1]
            orbits = tables.embed_orbit
            last = orbits.mean(0) if orbit is None else orbits[orbit]
            return torch.cat([tables.embed_transmit[t], tables.embed_receive[r], last])
        d = torch.arange(self.dim, dtype=tables.embed_orbit.dtype)
        if self.full_spectra:
            omega = 10000 ** (-2 * d / self.dim)
            wave = torch.where(d % 2 == 0, torch.sin(omega * centre), torch.cos(omega * centre))
            return wave * torch.exp(-0.5 * (omega * key[1]) ** 2)
        angle = (centre // self.coarsity) * (1 / 10000 ** (d[: self.dim // 2] / (self.dim / 2)))
        return torch.cat([angle.sin(), angle.cos()])

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        imgs, ids, masks = x["imgs"], x["chn_ids"], x.get("spec_masks")
        b, c = imgs.shape[:2]
        tokens = self.conv3d["conv3d"](imgs.unsqueeze(1)).flatten(3).permute(0, 3, 2, 1)  # [B, L, C, D]
        length = tokens.shape[1]
        keys = [tuple(i) if isinstance(i, list) else (i,) for row in ids.tolist() for i in row]
        vectors = {key: self.embed_id(key) for key in dict.fromkeys(keys)}
        tokens = tokens + torch.stack([vectors[key] for key in keys]).view(b, 1, c, -1)
        flat = tokens.reshape(b * length, c, -1)
        k, v = (
            self.chnfus.xattn[f"inproj_{i}"](flat).view(b * length, c, self.heads, -1).transpose(1, 2) for i in "kv"
        )  # [BL, H, C, d]
        query = self.chnfus.query.view(1, self.heads, 1, -1) * k.shape[-1] ** -0.5
        scores = query @ k.transpose(2, 3)  # [BL, H, 1, C]
        if masks is not None:
            scores = scores.masked_fill(masks.repeat_interleave(length, 0)[:, None, None], float("-inf"))
        y = (scores.softmax(-1) @ v).reshape(b, length, -1)
        if hasattr(self.chnfus, "layer_norm"):
            y = F.layer_norm(y, y.shape[-1:], self.chnfus.layer_norm.weight, self.chnfus.layer_norm.bias)
        return self.proj(y)
