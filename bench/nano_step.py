"""One nano training step in plain PyTorch, the yardstick of `make bench`: the same network, batch and optimizer, eager mode.

Prints one JSON line with the seconds of every timed step. The network follows the published FLUX layout (double- and
single-stream blocks, adapters on the attention projections) at the sizes of the preset `nano`.
"""

import argparse
import json
import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

HIDDEN, HEADS, DEPTH, DEPTH_SINGLE, MLP = 192, 6, 2, 6, 768
IN, CONTEXT, VEC, AXES = 48, 64, 64, (8, 12, 12)


class LoraLinear(nn.Module):
    """A frozen linear layer beside an optional adapter on its first `rows` outputs."""

    def __init__(self, inputs, outputs, rank, rows=None):
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.rows = rows or outputs
        self.rank = rank
        if rank:
            self.down = nn.Linear(inputs, rank, bias=False)
            self.up = nn.Linear(rank, self.rows, bias=False)
            nn.init.normal_(self.down.weight, std=1 / rank)
            nn.init.zeros_(self.up.weight)

    def forward(self, x):
        y = self.base(x)
        if not self.rank:
            return y
        delta = self.up(self.down(x))
        if self.rows == y.shape[-1]:
            return y + delta
        return torch.cat([y[..., : self.rows] + delta, y[..., self.rows :]], -1)


class RmsNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


def rope_table(ids):
    """ids [tokens, 3] -> cos, sin [tokens, head_dim / 2]."""
    angles = []
    for axis, width in enumerate(AXES):
        omega = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(ids[:, axis : axis + 1].double() * omega)
    angles = torch.cat(angles, -1)
    return angles.cos().float(), angles.sin().float()


def rotate(x, rope):
    cos, sin = rope
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def attend(qkv, norms, rope):
    """A list of ([batch, tokens, 3 * HIDDEN], (q norm, k norm)) streams -> [batch, all tokens, HIDDEN]."""
    q, k, v = [], [], []
    for stream, (q_norm, k_norm) in zip(qkv, norms):
        batch, tokens, _ = stream.shape
        s = stream.view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)  # 3 batch heads tokens head_dim
        q.append(q_norm(s[0]))
        k.append(k_norm(s[1]))
        v.append(s[2])
    q, k, v = rotate(torch.cat(q, 2), rope), rotate(torch.cat(k, 2), rope), torch.cat(v, 2)
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def modulate(x, shift, scale):
    return (1 + scale) * F.layer_norm(x, (HIDDEN,), eps=1e-6) + shift


class Stream(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.mod = nn.Linear(HIDDEN, 6 * HIDDEN)
        self.qkv = LoraLinear(HIDDEN, 3 * HIDDEN, rank)
        self.proj = LoraLinear(HIDDEN, HIDDEN, rank)
        self.norms = nn.ModuleList([RmsNorm(HIDDEN // HEADS), RmsNorm(HIDDEN // HEADS)])
        self.mlp = nn.Sequential(nn.Linear(HIDDEN, MLP), nn.GELU("tanh"), nn.Linear(MLP, HIDDEN))


class Double(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.txt, self.img = Stream(rank), Stream(rank)

    def forward(self, txt, img, vec, rope):
        streams, xs = (self.txt, self.img), (txt, img)
        mods = [s.mod(F.silu(vec))[:, None].chunk(6, -1) for s in streams]
        qkv = [s.qkv(modulate(x, m[0], m[1])) for s, x, m in zip(streams, xs, mods)]
        out = attend(qkv, [tuple(s.norms) for s in streams], rope)
        outs = out.split([txt.shape[1], img.shape[1]], 1)
        done = []
        for s, x, m, o in zip(streams, xs, mods, outs):
            x = x + m[2] * s.proj(o)
            done.append(x + m[5] * s.mlp(modulate(x, m[3], m[4])))
        return done


class Single(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.mod = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.linear1 = LoraLinear(HIDDEN, 3 * HIDDEN + MLP, rank, 3 * HIDDEN)
        self.linear2 = LoraLinear(HIDDEN + MLP, HIDDEN, rank)
        self.norms = nn.ModuleList([RmsNorm(HIDDEN // HEADS), RmsNorm(HIDDEN // HEADS)])

    def forward(self, x, vec, rope):
        shift, scale, gate = self.mod(F.silu(vec))[:, None].chunk(3, -1)
        qkv, mlp = self.linear1(modulate(x, shift, scale)).split([3 * HIDDEN, MLP], -1)
        out = attend([qkv], [tuple(self.norms)], rope)
        return x + gate * self.linear2(torch.cat([out, F.gelu(mlp, approximate="tanh")], -1))


class Nano(nn.Module):
    def __init__(self, rank):
        super().__init__()
        mlp = lambda width: nn.Sequential(nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN))
        self.img_in, self.txt_in = nn.Linear(IN, HIDDEN), nn.Linear(CONTEXT, HIDDEN)
        self.time_in, self.vector_in = mlp(256), mlp(VEC)
        self.double_blocks = nn.ModuleList(Double(rank) for _ in range(DEPTH))
        self.single_blocks = nn.ModuleList(Single(rank) for _ in range(DEPTH_SINGLE))
        self.final_mod, self.final = nn.Linear(HIDDEN, 2 * HIDDEN), nn.Linear(HIDDEN, IN)

    def forward(self, img, refs, txt, vec, t, rope):
        """img [batch, n, IN], refs a list of the same kind, txt [batch, l, CONTEXT], vec [batch, VEC], t [batch]."""
        freqs = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        args = 1000 * t[:, None] * freqs
        vec = self.time_in(torch.cat([args.cos(), args.sin()], -1)) + self.vector_in(vec)
        n = img.shape[1]
        img, txt = self.img_in(torch.cat([img, *refs], 1)), self.txt_in(txt)
        for block in self.double_blocks:
            txt, img = block(txt, img, vec, rope)
        x = torch.cat([txt, img], 1)
        for block in self.single_blocks:
            x = block(x, vec, rope)
        x = x[:, txt.shape[1] : txt.shape[1] + n]
        shift, scale = self.final_mod(F.silu(vec))[:, None].chunk(2, -1)
        return self.final(modulate(x, shift, scale))


def grid_ids(rows, cols, row0, col0):
    ids = torch.zeros(rows, cols, 3)
    ids[..., 1] += torch.arange(row0, row0 + rows)[:, None]
    ids[..., 2] += torch.arange(col0, col0 + cols)[None]
    return ids.view(-1, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=64, help="adapter rank; 0 trains every parameter")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--side", type=int, default=8, help="tokens along each side of a panel")
    parser.add_argument("--text", type=int, default=24, help="text tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    net = Nano(args.rank)
    for name, p in net.named_parameters():
        p.requires_grad_(args.rank == 0 or ".down." in name or ".up." in name)
    params = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    tokens = args.side * args.side
    ids = [torch.zeros(args.text, 3)] + [
        grid_ids(args.side, args.side, i * args.side, i * args.side) for i in range(args.references + 1)
    ]
    rope = rope_table(torch.cat(ids))

    seconds = []
    for step in range(args.warmup + args.steps):
        target, noise = torch.randn(2, args.batch, tokens, IN).unbind()
        refs = [torch.randn(args.batch, tokens, IN) for _ in range(args.references)]
        txt, vec, t = torch.randn(args.batch, args.text, CONTEXT), torch.randn(args.batch, VEC), torch.rand(args.batch)
        started = time.perf_counter()
        w = t[:, None, None]
        pred = net((1 - w) * target + w * noise, refs, txt, vec, t, rope)
        loss = (pred - (noise - target)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step >= args.warmup:
            seconds.append(time.perf_counter() - started)
    print(json.dumps({"implementation": "pytorch-eager", "batch": args.batch, "rank": args.rank,
                      "references": args.references, "threads": args.threads, "seconds": seconds}))


if __name__ == "__main__":
    main()
