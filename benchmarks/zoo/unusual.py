"""Networks of unusual shape, written by hand as their papers and users write them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo import Build, Built

MODELS: dict[str, Build] = {}


def network(build: Callable[[], Built]) -> Callable[[], Built]:
    """Decorator: a row of the table."""
    MODELS[build.__name__] = build
    return build


def conv(inputs: int, outputs: int, size: int = 3, **settings: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **settings)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Skips are padded to fit, as the decoder of odd sizes needs (Ronneberger et al. 2015)."""

    def __init__(self, conv: Callable[[int, int], nn.Module], dims: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 8), conv(8, 16), conv(16, 32)])
        up = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
        self.pool = nn.MaxPool2d(2) if dims == 2 else nn.MaxPool3d(2)
        self.up = nn.ModuleList([up(32, 16, 2, stride=2), up(16, 8, 2, stride=2)])
        self.mix = nn.ModuleList([conv(32, 16), conv(16, 8)])
        self.head = (nn.Conv2d if dims == 2 else nn.Conv3d)(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, mix in zip(self.up, self.mix, strict=True):
            x, skip = up(x), skips.pop()
            missing = [(b - a) for a, b in zip(x.shape[2:], skip.shape[2:], strict=True)]
            amounts = [n for m in reversed(missing) for n in (m // 2, m - m // 2)]
            x = mix(torch.cat([skip, F.pad(x, amounts)], 1))
        return self.head(x)


@network
def unet() -> Built:
    return UNet(conv, 2), (torch.randn(2, 3, 38, 42),)


@network
def unet_3d() -> Built:
    def block(inputs: int, outputs: int) -> nn.Module:
        layer = nn.Conv3d(inputs, outputs, 3, padding=1)
        return nn.Sequential(layer, nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(0.1))

    return UNet(block, 3), (torch.randn(1, 3, 12, 16, 16),)


@network
def generator() -> Built:
    """DCGAN's generator, with a class given by an embedding (Radford et al. 2016)."""

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classes = nn.Embedding(10, 16)
            self.start = nn.Linear(32, 64 * 4 * 4)
            layers: list[nn.Module] = []
            for a, b in ((64, 32), (32, 16)):
                layers += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
            self.body = nn.Sequential(*layers, nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())

        def forward(self, noise: Tensor, kind: Tensor) -> Tensor:
            x = self.start(torch.cat([noise, self.classes(kind)], 1))
            return self.body(x.view(-1, 64, 4, 4))

    return Generator(), (torch.randn(2, 16), torch.tensor([3, 7]))


@network
def style_generator() -> Built:
    """Weights modulated by a style for every sample, run as one grouped convolution (StyleGAN2)."""

    class Modulated(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
            self.style = nn.Linear(16, inputs)

        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            batch, channels, height, width = x.shape
            style = self.style(w) + 1
            weight = self.weight[None] * style[:, None, :, None, None]
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
            x = x.reshape(1, batch * channels, height, width)
            weight = weight.reshape(-1, channels, 3, 3)
            x = F.conv2d(x, weight, padding=1, groups=batch)
            return F.leaky_relu(x.reshape(batch, -1, height, width), 0.2)

    class Style(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mapping = nn.Sequential(nn.Linear(16, 24), nn.LeakyReLU(0.2), nn.Linear(24, 16))
            self.constant = nn.Parameter(torch.randn(1, 32, 4, 4))
            self.first, self.second = Modulated(32, 24), Modulated(24, 16)
            self.rgb = nn.Conv2d(16, 3, 1)

        def forward(self, z: Tensor) -> Tensor:
            w = self.mapping(z)
            x = self.first(self.constant.expand(z.shape[0], -1, -1, -1), w)
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            return self.rgb(self.second(x, w))

    return Style(), (torch.randn(2, 16),)


@network
def hardnet() -> Built:
    """Harmonic dense connections: layer k reads layers k - 2**n (Chao et al. 2019)."""

    class Block(nn.Module):
        def __init__(self, inputs: int, growth: int, layers: int) -> None:
            super().__init__()
            widths, self.links, parts = [inputs], [], []
            for k in range(1, layers + 1):
                links = [k - 2**n for n in range(10) if k % 2**n == 0 and k >= 2**n]
                width = int(growth * 1.7 ** (len(links) - 1)) // 2 * 2
                parts.append(conv(sum(widths[i] for i in links), width))
                self.links.append(links)
                widths.append(width)
            self.layers = nn.ModuleList(parts)
            self.out = sum(w for i, w in enumerate(widths) if i == layers or i % 2 == 1)

        def forward(self, x: Tensor) -> Tensor:
            found = [x]
            for layer, links in zip(self.layers, self.links, strict=True):
                found.append(layer(torch.cat([found[i] for i in links], 1)))
            last = len(found) - 1
            return torch.cat([f for i, f in enumerate(found) if i == last or i % 2 == 1], 1)

    first, second = Block(16, 8, 4), Block(24, 10, 8)
    model = nn.Sequential(
        conv(3, 16), first, conv(first.out, 24, 1), nn.AvgPool2d(2), second,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second.out, 5),
    )  # fmt: skip
    return model, (torch.randn(2, 3, 32, 32),)


@network
def mixer() -> Built:
    """MLP-Mixer over patches cut out by views alone, as einops writes them."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3 * 8 * 8, 32)
            self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
            self.tokens = nn.ModuleList(
                nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)) for _ in range(2)
            )
            self.channels = nn.ModuleList(
                nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)
            )
            self.head = nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            b, c, h, w = x.shape
            x = x.reshape(b, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 3, 5, 1)
            x = self.embed(x.reshape(b, (h // 8) * (w // 8), 8 * 8 * c))
            for i in range(2):
                x = x + self.tokens[i](self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
                x = x + self.channels[i](self.norms[2 * i + 1](x))
            return self.head(x.mean(1))

    return Mixer(), (torch.randn(2, 3, 32, 32),)


@network
def wavenet() -> Built:
    """Gated dilated causal convolutions with residual and skip paths (van den Oord et al. 2016)."""

    class WaveNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(1, 16, 1)
            self.filters = nn.ModuleList(nn.Conv1d(16, 48, 2, dilation=2**i) for i in range(4))
            self.residuals = nn.ModuleList(nn.Conv1d(24, 16, 1) for _ in range(4))
            self.skips = nn.ModuleList(nn.Conv1d(24, 20, 1) for _ in range(4))
            self.last = nn.Sequential(
                nn.ReLU(), nn.Conv1d(20, 12, 1), nn.ReLU(), nn.Conv1d(12, 8, 1)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            total: Tensor | int = 0
            for i in range(4):
                both = self.filters[i](F.pad(x, (2**i, 0)))
                value, gate = both.chunk(2, 1)
                gated = torch.tanh(value) * torch.sigmoid(gate)
                x = x + self.residuals[i](gated)
                total = total + self.skips[i](gated)[:, :, -40:]
            return self.last(total)

    return WaveNet(), (torch.randn(2, 1, 64),)


@network
def pointnet() -> Built:
    """Shared layers over points, a learned rotation, a maximum over points (Qi et al. 2017)."""

    class PointNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()

            def point(a: int, b: int) -> nn.Module:
                return nn.Sequential(nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU())

            self.turn = nn.Sequential(point(3, 16), point(16, 32))
            self.turn_head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 9))
            self.local = nn.Sequential(point(3, 16), point(16, 16))
            self.whole = nn.Sequential(point(16, 24), point(24, 64))
            self.segment = nn.Sequential(point(80, 32), nn.Conv1d(32, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            turn = self.turn_head(torch.max(self.turn(x), 2)[0]).view(-1, 3, 3)
            turn = turn + torch.eye(3, dtype=x.dtype, device=x.device)
            x = torch.bmm(x.transpose(2, 1), turn).transpose(2, 1)
            local = self.local(x)
            whole = torch.max(self.whole(local), 2, keepdim=True)[0]
            return self.segment(torch.cat([local, whole.repeat(1, 1, x.shape[2])], 1))

    return PointNet(), (torch.randn(2, 3, 50),)


@network
def message_passing() -> Built:
    """A graph network: messages along edges are added up at nodes, then pooled by graph."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(5, 16)
            self.message = nn.ModuleList(
                nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(2)
            )
            self.update = nn.ModuleList(nn.GRUCell(16, 16) for _ in range(2))
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
            x = self.embed(x)
            for message, update in zip(self.message, self.update, strict=True):
                sent = message(torch.cat([x[source], x[target]], -1))
                received = torch.zeros_like(x).index_add(0, target, sent)
                x = update(received, x)
            return self.head(x)

    edges = torch.randint(0, 9, (2, 20))
    return Graph(), (torch.randn(9, 5), edges[0], edges[1])


@network
def graph_attention() -> Built:
    """Graph convolution by scatter_add, normalised by the degree of each node."""

    class Scatter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(5, 16), nn.Linear(16, 16)])
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
            degree = torch.zeros(x.shape[0], dtype=x.dtype).scatter_add(
                0, target, torch.ones_like(target, dtype=x.dtype)
            )
            for layer in self.layers:
                h = layer(x)
                index = target.unsqueeze(-1).expand(-1, h.shape[-1])
                summed = torch.zeros_like(h).scatter_add(0, index, h.index_select(0, source))
                x = torch.relu(h + summed / degree.clamp(min=1).unsqueeze(-1))
            return self.head(x)

    edges = torch.randint(0, 9, (2, 20))
    return Scatter(), (torch.randn(9, 5), edges[0], edges[1])


@network
def neural_ode() -> Built:
    """Fixed steps of Runge and Kutta over one shared field (Chen et al. 2018)."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (
                nn.Conv2d(17, 24, 3, padding=1),
                nn.Conv2d(25, 16, 3, padding=1),
            )
            self.norm = nn.GroupNorm(4, 16)

        def forward(self, t: float, x: Tensor) -> Tensor:
            at = torch.ones_like(x[:, :1]) * t
            h = torch.relu(self.first(torch.cat([at, self.norm(x)], 1)))
            return self.second(torch.cat([at, h], 1))

    class Ode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.field = nn.Conv2d(3, 16, 3, 2, 1), Field()
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x, h = self.stem(x), 0.25
            for step in range(4):
                t = step * h
                a = self.field(t, x)
                b = self.field(t + h / 2, x + h / 2 * a)
                c = self.field(t + h / 2, x + h / 2 * b)
                d = self.field(t + h, x + h * c)
                x = x + h / 6 * (a + 2 * b + 2 * c + d)
            return self.head(x.mean((2, 3)))

    return Ode(), (torch.randn(2, 3, 16, 16),)


@network
def capsules() -> Built:
    """Routing by agreement between capsules, by einsum (Sabour et al. 2017)."""

    class Capsules(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(1, 24, 5)
            self.primary = nn.Conv2d(24, 8 * 4, 5, stride=2)
            self.weight = nn.Parameter(torch.randn(5, 8 * 16, 6, 4) * 0.1)
            self.decoder = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 10))

        @staticmethod
        def squash(x: Tensor) -> Tensor:
            square = (x * x).sum(-1, keepdim=True)
            return square / (1 + square) * x / torch.sqrt(square + 1e-8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.primary(torch.relu(self.features(x)))
            x = x.view(x.shape[0], 8, 4, -1).permute(0, 1, 3, 2).reshape(x.shape[0], -1, 4)
            votes = torch.einsum("jiod,bid->bjio", self.weight, self.squash(x))
            logits = torch.zeros_like(votes[..., 0])
            for _ in range(2):
                share = torch.softmax(logits, 1)
                out = self.squash(torch.einsum("bji,bjio->bjo", share, votes))
                logits = logits + torch.einsum("bjio,bjo->bji", votes, out)
            return self.decoder(out.flatten(1))

    return Capsules(), (torch.randn(2, 1, 16, 16),)


@network
def experts() -> Built:
    """A mixture of experts, all of them run, weighted by a gate (dense gating)."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.gate = nn.Linear(12, 16), nn.Linear(16, 4)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(4)
            )
            self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            gates = torch.softmax(self.gate(x), -1)
            stacked = torch.stack([expert(x) for expert in self.experts], -1)
            return self.head(self.norm(x + (stacked * gates.unsqueeze(-2)).sum(-1)))

    return Experts(), (torch.randn(3, 12),)


@network
def stacked_experts() -> Built:
    """A mixture of experts whose weights are one tensor, the best two of which count."""

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.gate = nn.Linear(12, 16), nn.Linear(16, 4)
            self.up = nn.Parameter(torch.randn(4, 16, 32) / 4)
            self.down = nn.Parameter(torch.randn(4, 32, 16) / 6)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            scores, chosen = self.gate(x).topk(2, -1)
            share = torch.zeros(x.shape[0], 4, dtype=x.dtype).scatter(1, chosen, scores.softmax(-1))
            h = F.gelu(torch.einsum("ni,eih->neh", x, self.up))
            return self.head(x + torch.einsum("neh,eho,ne->no", h, self.down, share))

    return Stacked(), (torch.randn(3, 12),)


@network
def text_reader() -> Built:
    """Convolutions, then recurrent layers over the columns of an image (CRNN, Shi et al. 2016)."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d((2, 1)), conv(32, 32)
            )
            self.rnn = nn.LSTM(32 * 4, 24, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(48, 11)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            b, c, h, w = x.shape
            x, _ = self.rnn(x.permute(0, 3, 1, 2).reshape(b, w, c * h))
            return self.head(x).log_softmax(-1)

    return Reader(), (torch.randn(2, 1, 16, 40),)


@network
def seq2seq() -> Built:
    """A GRU reads, another writes step by step and attends to what was read."""

    class Seq2Seq(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(30, 16)
            self.reader = nn.GRU(16, 20, batch_first=True)
            self.writer = nn.GRUCell(16 + 20, 20)
            self.score = nn.Linear(20, 20, bias=False)
            self.head = nn.Linear(40, 30)

        def forward(self, given: Tensor, wanted: Tensor) -> Tensor:
            read, last = self.reader(self.words(given))
            state, out = last[0], []
            context = torch.zeros_like(state)
            for t in range(wanted.shape[1]):
                state = self.writer(torch.cat([self.words(wanted[:, t]), context], -1), state)
                weights = torch.softmax(torch.bmm(read, self.score(state).unsqueeze(2)), 1)
                context = (read * weights).sum(1)
                out.append(self.head(torch.cat([state, context], -1)))
            return torch.stack(out, 1)

    return Seq2Seq(), (torch.randint(0, 30, (2, 6)), torch.randint(0, 30, (2, 5)))


@network
def conv_lstm() -> Built:
    """A convolutional LSTM over frames (Shi et al. 2015)."""

    class ConvLstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates, self.head = nn.Conv2d(3 + 16, 64, 3, padding=1), nn.Conv2d(16, 3, 1)

        def forward(self, frames: Tensor) -> Tensor:
            b, t, _, h, w = frames.shape
            state = torch.zeros(b, 16, h, w, dtype=frames.dtype)
            cell = torch.zeros_like(state)
            for i in range(t):
                gates = self.gates(torch.cat([frames[:, i], state], 1))
                enter, forget, leave, new = torch.split(gates, 16, 1)
                cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
                state = torch.sigmoid(leave) * torch.tanh(cell)
            return self.head(state)

    return ConvLstm(), (torch.randn(2, 4, 3, 12, 12),)


@network
def diffusion_unet() -> Built:
    """Residual blocks with a time embedding that scales and shifts, attention in the middle."""

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.GroupNorm(4, inputs), nn.GroupNorm(4, outputs)
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
            self.time = nn.Linear(32, 2 * outputs)
            self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h = self.conv1(F.silu(self.norm1(x)))
            scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, 1)
            h = self.norm2(h) * (1 + scale) + shift
            return self.skip(x) + self.conv2(F.silu(h))

    class Diffusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.down, self.middle = Block(16, 32), Block(32, 32)
            self.shrink = nn.Conv2d(32, 32, 3, stride=2, padding=1)
            self.norm, self.qkv, self.out = (
                nn.GroupNorm(4, 32),
                nn.Conv2d(32, 96, 1),
                nn.Conv2d(32, 32, 1),
            )
            self.up = Block(64, 16)
            self.head = nn.Conv2d(16, 3, 3, padding=1)

        def attend(self, x: Tensor) -> Tensor:
            b, c, h, w = x.shape
            q, k, v = self.qkv(self.norm(x)).reshape(b * 4, 3 * (c // 4), h * w).split(c // 4, 1)
            scale = 1 / math.sqrt(math.sqrt(c // 4))
            weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale), -1)
            a = torch.einsum("bts,bcs->bct", weight, v)
            return x + self.out(a.reshape(b, -1, h, w))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            rates = torch.exp(-math.log(10000) * torch.arange(8, dtype=x.dtype) / 8)
            angles = t[:, None].to(x.dtype) * rates[None]
            t = self.time(torch.cat([angles.cos(), angles.sin()], -1))
            first = self.down(self.stem(x), t)
            x = self.attend(self.middle(self.shrink(first), t))
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            return self.head(self.up(torch.cat([x, first], 1), t))

    return Diffusion(), (torch.randn(2, 3, 16, 16), torch.tensor([3, 500]))


@network
def coordinates() -> Built:
    """Fourier features, sines as activations, a skip in the middle (NeRF, SIREN)."""

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rates", 2.0 ** torch.arange(4))
            self.first = nn.ModuleList([nn.Linear(24, 32), nn.Linear(32, 32)])
            self.second = nn.ModuleList([nn.Linear(56, 32), nn.Linear(32, 32)])
            self.density, self.colour = nn.Linear(32, 1), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            angles = (x[..., None] * self.rates).flatten(-2)
            given = torch.cat([torch.sin(angles), torch.cos(angles)], -1)
            h = given
            for layer in self.first:
                h = torch.sin(30 * layer(h))
            h = torch.cat([h, given], -1)
            for layer in self.second:
                h = torch.relu(layer(h))
            return torch.cat([torch.sigmoid(self.colour(h)), F.softplus(self.density(h))], -1)

    return Field(), (torch.randn(2, 7, 3),)


@network
def fourier_operator() -> Built:
    """Spectral convolutions: the lowest frequencies are mixed by complex weights (FNO)."""

    class Spectral(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(width, width, 6, dtype=torch.cfloat) / width)

        def forward(self, x: Tensor) -> Tensor:
            spectrum = torch.fft.rfft(x)
            mixed = torch.einsum("bix,iox->box", spectrum[:, :, :6], self.weight)
            full = F.pad(mixed, (0, spectrum.shape[-1] - 6))
            return torch.fft.irfft(full, n=x.shape[-1])

    class Operator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Conv1d(2, 16, 1), nn.Conv1d(16, 1, 1)
            self.spectral = nn.ModuleList(Spectral(16) for _ in range(2))
            self.local = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.lift(x)
            for spectral, local in zip(self.spectral, self.local, strict=True):
                x = F.gelu(spectral(x) + local(x))
            return self.head(x)

    return Operator(), (torch.randn(2, 2, 32),)


@network
def deformable() -> Built:
    """Features sampled where a small network says (spatial transformer, Jaderberg et al. 2015)."""

    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = conv(3, 16), conv(16, 24)
            self.locate = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 6))
            self.head = nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            theta = self.locate(x).view(-1, 2, 3)
            grid = F.affine_grid(theta, list(x.shape), align_corners=False)
            x = self.body(F.grid_sample(x, grid, align_corners=False))
            return self.head(F.adaptive_max_pool2d(x, 1).flatten(1))

    return Sampler(), (torch.randn(2, 3, 16, 16),)


@network
def vector_quantised() -> Built:
    """An autoencoder whose code is the nearest of a table of vectors (VQ-VAE)."""

    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(conv(3, 16), nn.Conv2d(16, 8, 4, 2, 1))
            self.codes = nn.Embedding(20, 8)
            self.decoder = nn.Sequential(conv(8, 16), nn.ConvTranspose2d(16, 3, 4, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            z = self.encoder(x).permute(0, 2, 3, 1).contiguous()
            flat = z.view(-1, 8)
            table = self.codes.weight
            distance = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ table.t() + table.pow(2).sum(1)
            found = self.codes(distance.argmin(1)).view(z.shape)
            z = z + (found - z).detach()
            return self.decoder(z.permute(0, 3, 1, 2))

    return Quantised(), (torch.randn(2, 3, 16, 16),)


@network
def relation() -> Built:
    """All pairs of places go through one small network (Santoro et al. 2017)."""

    class Relation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(conv(3, 16, stride=2), conv(16, 16, stride=2))
            self.pair = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
            self.head = nn.Linear(24, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x).flatten(2).transpose(1, 2)
            b, n, c = x.shape
            left = x.unsqueeze(1).expand(b, n, n, c)
            right = x.unsqueeze(2).expand(b, n, n, c)
            return self.head(self.pair(torch.cat([left, right], -1)).sum((1, 2)))

    return Relation(), (torch.randn(2, 3, 16, 16),)


@network
def linear_attention() -> Built:
    """Attention without a softmax over tokens, by einsum over heads (Katharopoulos et al. 2020)."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Linear(6, 32), nn.RMSNorm(32)
            self.qkv, self.out = nn.Linear(32, 96, bias=False), nn.Linear(32, 32)
            self.head = nn.Linear(32, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            b, n, c = x.shape
            q, k, v = self.qkv(self.norm(x)).view(b, n, 3, 4, 8).unbind(2)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            kv = torch.einsum("bnhd,bnhe->bhde", k, v)
            z = 1 / (torch.einsum("bnhd,bhd->bnh", q, k.sum(1)) + 1e-6)
            a = torch.einsum("bnhd,bhde,bnh->bnhe", q, kv, z).reshape(b, n, c)
            return self.head((x + self.out(a)).mean(1))

    return Linear(), (torch.randn(2, 9, 6),)
