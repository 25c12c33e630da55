"""One training step in plain PyTorch, the yardstick of `make bench`: the network, batch and optimizer of `crescendo bench step`, eager mode.

Prints one JSON line with the seconds of every timed step and the peak of the device's memory. The network follows the
published FLUX layout: double- and single-stream blocks, adapters on the attention projections.

  python bench/step.py                                       nano on the CPU, f32
  python bench/step.py --preset flux-dev --device cuda       full size with random weights made on the device, bf16 base
"""

import argparse
import json
import math
import time
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class Sizes:
    hidden: int
    heads: int
    depth: int
    depth_single: int
    inputs: int
    context: int
    vec: int
    axes: tuple
    guidance: bool

    @property
    def mlp(self):
        return 4 * self.hidden


NANO = Sizes(192, 6, 2, 6, 48, 64, 64, (8, 12, 12), False)
PRESETS = {
    "nano": NANO,
    "flux-dev": Sizes(3072, 24, 19, 38, 64, 4096, 768, (16, 56, 56), True),
    "flux-schnell": Sizes(3072, 24, 19, 38, 64, 4096, 768, (16, 56, 56), False),
}


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
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * self.scale


def rope_table(ids, axes):
    """ids [tokens, 3] -> cos, sin [tokens, head_dim / 2]."""
    angles = []
    for axis, width in enumerate(axes):
        omega = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=ids.device) / width)
        angles.append(ids[:, axis : axis + 1].double() * omega)
    angles = torch.cat(angles, -1)
    return angles.cos().float(), angles.sin().float()


def rotate(x, rope):
    cos, sin = rope
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def attend(qkv, norms, rope, heads):
    """A list of ([batch, tokens, 3 * hidden], (q norm, k norm)) streams -> [batch, all tokens, hidden]."""
    q, k, v = [], [], []
    for stream, (q_norm, k_norm) in zip(qkv, norms):
        batch, tokens, _ = stream.shape
        s = stream.view(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)  # 3 batch heads tokens head_dim
        q.append(q_norm(s[0]))
        k.append(k_norm(s[1]))
        v.append(s[2])
    q, k, v = rotate(torch.cat(q, 2), rope), rotate(torch.cat(k, 2), rope), torch.cat(v, 2)
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def modulate(x, shift, scale):
    return (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift


class Stream(nn.Module):
    def __init__(self, sizes, rank):
        super().__init__()
        hidden = sizes.hidden
        self.mod = nn.Linear(hidden, 6 * hidden)
        self.qkv = LoraLinear(hidden, 3 * hidden, rank)
        self.proj = LoraLinear(hidden, hidden, rank)
        self.norms = nn.ModuleList([RmsNorm(hidden // sizes.heads), RmsNorm(hidden // sizes.heads)])
        self.mlp = nn.Sequential(nn.Linear(hidden, sizes.mlp), nn.GELU("tanh"), nn.Linear(sizes.mlp, hidden))


class Double(nn.Module):
    def __init__(self, sizes, rank):
        super().__init__()
        self.heads = sizes.heads
        self.txt, self.img = Stream(sizes, rank), Stream(sizes, rank)

    def forward(self, txt, img, vec, rope):
        streams, xs = (self.txt, self.img), (txt, img)
        mods = [s.mod(F.silu(vec))[:, None].chunk(6, -1) for s in streams]
        qkv = [s.qkv(modulate(x, m[0], m[1])) for s, x, m in zip(streams, xs, mods)]
        out = attend(qkv, [tuple(s.norms) for s in streams], rope, self.heads)
        outs = out.split([txt.shape[1], img.shape[1]], 1)
        done = []
        for s, x, m, o in zip(streams, xs, mods, outs):
            x = x + m[2] * s.proj(o)
            done.append(x + m[5] * s.mlp(modulate(x, m[3], m[4])))
        return done


class Single(nn.Module):
    def __init__(self, sizes, rank):
        super().__init__()
        hidden, self.heads = sizes.hidden, sizes.heads
        self.split = [3 * hidden, sizes.mlp]
        self.mod = nn.Linear(hidden, 3 * hidden)
        self.linear1 = LoraLinear(hidden, sum(self.split), rank, 3 * hidden)
        self.linear2 = LoraLinear(hidden + sizes.mlp, hidden, rank)
        self.norms = nn.ModuleList([RmsNorm(hidden // sizes.heads), RmsNorm(hidden // sizes.heads)])

    def forward(self, x, vec, rope):
        shift, scale, gate = self.mod(F.silu(vec))[:, None].chunk(3, -1)
        qkv, mlp = self.linear1(modulate(x, shift, scale)).split(self.split, -1)
        out = attend([qkv], [tuple(self.norms)], rope, self.heads)
        return x + gate * self.linear2(torch.cat([out, F.gelu(mlp, approximate="tanh")], -1))


class Flux(nn.Module):
    def __init__(self, sizes, rank, recompute):
        super().__init__()
        hidden = sizes.hidden
        mlp = lambda width: nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.img_in, self.txt_in = nn.Linear(sizes.inputs, hidden), nn.Linear(sizes.context, hidden)
        self.time_in, self.vector_in = mlp(256), mlp(sizes.vec)
        self.guidance_in = mlp(256) if sizes.guidance else None
        self.double_blocks = nn.ModuleList(Double(sizes, rank) for _ in range(sizes.depth))
        self.single_blocks = nn.ModuleList(Single(sizes, rank) for _ in range(sizes.depth_single))
        self.final_mod, self.final = nn.Linear(hidden, 2 * hidden), nn.Linear(hidden, sizes.inputs)
        self.run = (lambda block, *xs: checkpoint(block, *xs, use_reentrant=False)) if recompute else (lambda block, *xs: block(*xs))

    def sinusoid(self, t):
        freqs = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32, device=t.device) / 128)
        args = 1000 * t[:, None] * freqs
        return torch.cat([args.cos(), args.sin()], -1).to(self.final.weight.dtype)

    def forward(self, img, refs, txt, vec, t, rope):
        """img [batch, n, inputs], refs a list of the same kind, txt [batch, l, context], vec [batch, vec], t [batch]."""
        vec = self.time_in(self.sinusoid(t)) + self.vector_in(vec)
        if self.guidance_in is not None:
            vec = vec + self.guidance_in(self.sinusoid(torch.ones_like(t)))
        n = img.shape[1]
        img, txt = self.img_in(torch.cat([img, *refs], 1)), self.txt_in(txt)
        for block in self.double_blocks:
            txt, img = self.run(block, txt, img, vec, rope)
        x = torch.cat([txt, img], 1)
        for block in self.single_blocks:
            x = self.run(block, x, vec, rope)
        x = x[:, txt.shape[1] : txt.shape[1] + n]
        shift, scale = self.final_mod(F.silu(vec))[:, None].chunk(2, -1)
        return self.final(modulate(x, shift, scale))


def grid_ids(rows, cols, row0, col0):
    ids = torch.zeros(rows, cols, 3)
    ids[..., 1] += torch.arange(row0, row0 + rows)[:, None]
    ids[..., 2] += torch.arange(col0, col0 + cols)[None]
    return ids.view(-1, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rank", type=int, help="adapter rank; 0 trains every parameter [default: 64 for nano, else 512]")
    parser.add_argument("--batch", type=int, help="[default: 16 for nano, else 1]")
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--side", type=int, help="tokens along each side of a panel [default: 8 for nano, else 32 (512 pixels)]")
    parser.add_argument("--text", type=int, help="text tokens [default: 24 for nano, else 512]")
    parser.add_argument("--recompute", action="store_true", help="every block again in the backward pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    nano = args.preset == "nano"
    rank = args.rank if args.rank is not None else (64 if nano else 512)
    batch, side, text = args.batch or (16 if nano else 1), args.side or (8 if nano else 32), args.text or (24 if nano else 512)
    sizes, device = PRESETS[args.preset], torch.device(args.device)
    cuda = device.type == "cuda"
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    # On a GPU as the published code: the frozen base in bf16, the adapter in f32 under autocast.
    dtype = torch.bfloat16 if cuda else torch.float32
    torch.set_default_dtype(dtype)
    with device:
        net = Flux(sizes, rank, args.recompute)
    torch.set_default_dtype(torch.float32)
    for name, p in net.named_parameters():
        p.requires_grad_(rank == 0 or ".down." in name or ".up." in name)
        if p.requires_grad:
            p.data = p.data.float()
    params = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    tokens = side * side
    ids = [torch.zeros(text, 3)] + [grid_ids(side, side, i * side, i * side) for i in range(args.references + 1)]
    rope = rope_table(torch.cat(ids).to(device), sizes.axes)
    random = lambda *shape: torch.randn(*shape, device=device)

    seconds = []
    for step in range(args.warmup + args.steps):
        target, noise = random(2, batch, tokens, sizes.inputs).unbind()
        refs = [random(batch, tokens, sizes.inputs).to(dtype) for _ in range(args.references)]
        txt, vec = random(batch, text, sizes.context).to(dtype), random(batch, sizes.vec).to(dtype)
        t = torch.rand(batch, device=device)
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        w = t[:, None, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            pred = net(((1 - w) * target + w * noise).to(dtype), refs, txt, vec, t, rope)
        loss = (pred.float() - (noise - target)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        if step >= args.warmup:
            seconds.append(time.perf_counter() - started)
    print(json.dumps({
        "implementation": "pytorch-eager", "preset": args.preset, "device": args.device, "batch": batch, "rank": rank,
        "references": args.references, "recompute": args.recompute, "threads": args.threads, "seconds": seconds,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }))


if __name__ == "__main__":
    main()
