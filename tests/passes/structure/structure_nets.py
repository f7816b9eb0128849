"""Small nets, each with one way in which channels hang together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def image(batch=2, side=8, channels=3):
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, channels, side, side, generator=generator, dtype=torch.float64)


class Net(nn.Module):
    """A stem of 8 channels, a head of 5 classes, and `body` between them."""

    def __init__(self, width=8, **layers):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x):
        x = self.body(torch.relu(self.bn(self.stem(x))))
        return self.head(torch.sigmoid(x)).mean((2, 3))


class Residual(Net):
    def __init__(self):
        super().__init__(a=nn.Conv2d(8, 6, 3, padding=1), b=nn.Conv2d(6, 8, 1))

    def body(self, x):
        return F.relu(x + self.b(F.gelu(self.a(x))))


class Concat(Net):
    def __init__(self):
        super().__init__(width=20, a=nn.Conv2d(8, 7, 1), b=nn.Conv2d(7, 5, 1))

    def body(self, x):
        y = self.a(x)
        return torch.cat([x, y, self.b(y)], 1)


class Chunk(Net):
    def __init__(self):
        super().__init__(width=4, a=nn.Conv2d(4, 4, 1))

    def body(self, x):
        left, right = x.chunk(2, dim=1)
        return self.a(left) * torch.sigmoid(right)


class SplitBySize(Net):
    """The size of the parts follows the width."""

    def __init__(self):
        super().__init__(width=8, a=nn.Conv2d(4, 8, 1))

    def body(self, x):
        left, right = torch.split(x, x.size(1) // 2, dim=1)
        return self.a(left) + self.a(right)


class Halves(Net):
    """Parts whose bounds follow the width."""

    def __init__(self):
        super().__init__(width=4)

    def body(self, x):
        half = x.shape[1] // 2
        return x.narrow(1, 0, half) + x.narrow(1, half, half)


class Depthwise(Net):
    def __init__(self):
        a = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        super().__init__(width=6, a=a, norm=nn.BatchNorm2d(16), b=nn.Conv2d(16, 6, 1))

    def body(self, x):
        return self.b(F.hardswish(self.norm(self.a(x))))


class Shuffle(Net):
    """Grouped convolutions with a channel shuffle between them."""

    def __init__(self):
        a, b = nn.Conv2d(8, 12, 1, groups=2), nn.Conv2d(12, 8, 1, groups=2)
        super().__init__(a=a, b=b)

    def body(self, x):
        x = self.a(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.b(x)


class SqueezeExcite(Net):
    def __init__(self):
        super().__init__(a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(4, 8, 1), pool=nn.AdaptiveAvgPool2d(1))

    def body(self, x):
        return x * torch.sigmoid(self.b(F.relu(self.a(self.pool(x)))))


class Transposed(Net):
    def __init__(self):
        up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        spread = nn.ConvTranspose2d(6, 6, 2, groups=6)
        grouped = nn.ConvTranspose2d(6, 8, 2, groups=2)
        super().__init__(up=up, spread=spread, grouped=grouped)

    def body(self, x):
        return self.grouped(self.spread(self.up(x)))


class Pad(Net):
    """A shortcut without weights: 4 new channels of zeros on either side."""

    def __init__(self):
        super().__init__(width=16, a=nn.Conv2d(8, 16, 3, padding=1))

    def body(self, x):
        return F.relu(self.a(x) + F.pad(x, (0, 0, 0, 0, 4, 4)))


class Flat(nn.Module):
    """Channels and positions become features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm1d(96)
        self.hidden = nn.Linear(96, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        x = self.norm(torch.flatten(F.max_pool2d(self.conv(x), 1), 1))
        return self.head(F.relu(self.hidden(x)))


class Tied(Net):
    """One convolution at two places, and one parameter in two layers."""

    def __init__(self):
        super().__init__(a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 8, 1), c=nn.Conv2d(8, 8, 1))
        self.c.weight = self.b.weight

    def body(self, x):
        y = self.a(F.relu(self.a(x)))
        return self.c(F.relu(self.b(y)))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 3, 3, 3) / 5)
        self.bias = nn.Parameter(torch.randn(6))
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.second = nn.Parameter(torch.randn(7, 6) / 3)
        self.third = nn.Parameter(torch.randn(7, 5))
        for name in ("mean", "var", "gain", "shift"):
            self.register_buffer(name, torch.rand(6) + 0.5)

    def forward(self, x):
        x = F.conv2d(x, self.first, self.bias) * self.scale
        x = F.batch_norm(x, self.mean, self.var, self.gain, self.shift)
        x = F.linear(F.relu(x.mean((2, 3))), weight=self.second)
        return torch.tanh(x) @ self.third


class Scaled(Net):
    """A weight that is computed from one parameter, element by element."""

    def __init__(self):
        super().__init__(width=6)
        self.weight = nn.Parameter(torch.randn(6, 8, 1, 1))

    def body(self, x):
        return F.conv2d(x, torch.tanh(self.weight) * 2)


class Constant(Net):
    """A tensor that the forward makes for every channel."""

    def body(self, x):
        return x + torch.linspace(0, 1, 8, dtype=torch.float64).reshape(8, 1, 1)


class FrozenNorm(Net):
    """A norm written by hand, with parameters that are reshaped before they meet channels."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(8) + 0.5)
        self.running_var = nn.Parameter(torch.rand(8) + 0.5)

    def body(self, x):
        scale = self.gain.reshape(1, -1, 1, 1) * (self.running_var.view(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale


class Grouped(Net):
    """Whole groups of a group norm go; an instance norm binds nothing."""

    def __init__(self):
        a, b = nn.GroupNorm(4, 8), nn.InstanceNorm2d(6, affine=True)
        super().__init__(width=6, a=a, conv=nn.Conv2d(8, 6, 1), b=b)

    def body(self, x):
        return self.b(self.conv(self.a(x)))


class PixelShuffle(Net):
    def __init__(self):
        super().__init__(width=3, a=nn.Conv2d(8, 12, 1), up=nn.PixelShuffle(2), slope=nn.PReLU(3))

    def body(self, x):
        return self.slope(self.up(self.a(x)))


class Attention(nn.Module):
    """Attention from linear layers; its heads are counted from the width."""

    def __init__(self, fused=True, by_hand=False):
        super().__init__()
        self.fused, self.by_hand = fused, by_hand
        self.embed = nn.Linear(3, 12)
        self.qkv = nn.Linear(12, 3 * 12)
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.out = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def heads(self, x):
        n, t, _ = x.shape
        if self.fused:
            return self.qkv(x).reshape(n, t, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
        parts = (layer(x).view(n, t, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return tuple(parts)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2))
        q, k, v = self.heads(x)
        if self.by_hand:
            y = torch.softmax(q @ k.transpose(-2, -1) * 0.5, dim=-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v)
        y = self.out(y.transpose(1, 2).flatten(2))
        return self.head(x + y).mean(1)


class Multihead(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=batch_first)
        self.embed = nn.Linear(3, 12)
        self.up, self.down = nn.Linear(12, 10), nn.Linear(10, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2))
        y, _ = self.attention(x, x, x, need_weights=False)
        y = y + self.down(F.gelu(self.up(y)))
        return self.head(y.mean(1))


class Mixer(nn.Module):
    """A linear layer over positions, which leaves channels alone."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.position = nn.Parameter(torch.randn(1, 64, 8))
        self.mix = nn.Linear(64, 16)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2)) + self.position
        return self.head(self.mix(x.transpose(1, 2)).transpose(1, 2)).mean(1)


class Words(nn.Module):
    """An embedding whose table is the classifier too."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.table.weight

    def forward(self, words):
        x = self.table(words)
        return self.head(x + self.down(torch.tanh(self.up(x))))


class Upsampled(Net):
    def __init__(self):
        super().__init__(a=nn.Conv2d(8, 8, 3, stride=2, padding=1))

    def body(self, x):
        y = F.interpolate(self.a(x), size=x.shape[-2:], mode="nearest")
        return torch.where(x > 0, x, F.pad(y, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1])


class Gated(Net):
    """`glu`, and `stack` of two branches."""

    def __init__(self):
        super().__init__(width=4, a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 8, 1))

    def body(self, x):
        return F.glu(torch.stack([self.a(x), self.b(x)]).amax(0), dim=1)
