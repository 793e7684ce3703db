"""Three models that are slimmed correctly, and every way in which `tests.faults` damages them.

    python -m tests.mutants

puts every fault into every place and prints how many of each kind the verifier noticed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune.errors import VerificationError
from fxprune.passes.capture import capture
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify
from tests.blocks import images, plain, sequences
from tests.faults import analysis as _analysis  # noqa: F401  (imported for the kinds it adds)
from tests.faults import graph as _graph  # noqa: F401
from tests.faults import tensors as _tensors  # noqa: F401
from tests.faults.base import KINDS, Subject
from tests.generate import enliven
from tests.properties import plan_of


@dataclass(frozen=True)
class Mutant:
    """A fault: its kind, where it is, and what has to be verified."""

    kind: str
    place: str
    subject: Subject


def mutants(subject: Subject, name: str) -> Iterator[Mutant]:
    """Every mutant of one kind."""
    for place, damaged in KINDS[name](subject):
        yield Mutant(name, place, damaged)


def noticed(mutant: Mutant) -> bool:
    """Whether the verifier refuses the mutant."""
    subject = mutant.subject
    try:
        verify(subject.captured, subject.analysis, subject.plan, subject.slim)
    except VerificationError:
        return True
    return False


class Convolutional(nn.Module):
    """Residual, concatenated, grouped, depthwise, shuffled, gated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.right = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 16)
        self.shuffle = images.Shuffle(4, 16, "numbers")
        self.gate = images.SqueezeExcite(16, 6, "linear")
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.last = nn.Conv2d(16, 8, 1)
        self.split = images.Halves(nn.Conv2d(4, 4, 3, padding=1), "chunk", 4, 8)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.left(x)
        y = torch.cat([x, self.right(x)], dim=1)
        y = self.gate(self.shuffle(self.norm(self.grouped(y))))
        y = self.last(torch.relu(self.depthwise(y)))
        z = torch.cat([self.split(y), x], dim=1)
        return self.head(z.mean((2, 3)))


class Transforming(nn.Module):
    """Patches, class token, two ways of attention, a gated MLP, a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.tokens = images.Tokens(8, 9, class_token=True, position=True)
        self.first = plain.Residual(
            nn.Sequential(nn.LayerNorm(8), sequences.Attention(8, 3, 4, "fused chunk", "sdpa", 10))
        )
        self.second = plain.Residual(
            nn.Sequential(nn.RMSNorm(8), sequences.Attention(8, 2, 4, "separate", "biased", 10))
        )
        self.third = plain.Residual(
            nn.Sequential(nn.LayerNorm(8), sequences.Attention(8, 2, 4, "fused", "shape", 10))
        )
        self.mlp = plain.Residual(nn.Sequential(nn.LayerNorm(8), sequences.SwiGlu(8, 12, True)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.patches(x))
        return self.head(self.mlp(self.third(self.second(self.first(x))))[:, 0])


class Assorted(nn.Module):
    """Gated halves, an order of channels, strides, tied and shared layers, an outer product."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.register_buffer("order", torch.tensor([5, 2, 9, 0, 11, 7, 1, 10, 3, 8, 6, 4]))
        self.second = images.Functional(12, 16, 3, 2, bias=True)
        self.up = nn.PixelShuffle(2)
        self.third = nn.Conv2d(4, 12, 3, padding=1)
        self.tied = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.tied[1].weight = self.tied[0].weight
        self.shared = nn.Linear(6, 6)
        self.along = nn.Linear(6, 8)
        self.after = nn.Linear(8, 6)
        self.outer = plain.Outer(6, 3, 4, "einsum")
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.first(x).chunk(2, dim=1)
        value = value[:, self.order]
        x = self.up(self.second(value * torch.sigmoid(gate)))
        x = self.third(x)
        v = (x[:, ::2] * x[:, 1::2].tanh()).mean((2, 3))
        v = self.shared(torch.relu(self.tied[0](v)))
        v = v + self.shared(torch.tanh(self.tied[1](v)))
        v = v + self.after(torch.softmax(self.along(v), dim=1))
        return self.head(self.outer(v))


class Chaotic(nn.Module):
    """Every layer magnifies what differs in its input some ten times, round-off too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 12) for _ in range(14)])
        self.norms = nn.ModuleList([(nn.BatchNorm1d, nn.LayerNorm)[i % 2](12) for i in range(14)])
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(3).flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x))
            x[:, :].mul_(20)
            x = torch.sin(x)
        return self.head(x)


def subjects() -> list[Subject]:
    """The three models, each with its groups cut to about two thirds."""
    return [subject_of(Convolutional, 8), subject_of(Transforming, 6), subject_of(Assorted, 6)]


def subject_of(build: Callable[[], nn.Module], size: int) -> Subject:
    """A model for images of some height and width, with its groups cut to about two thirds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().double().eval()
        enliven(model)
        captured = capture(model, (torch.randn(8, 3, size, size, dtype=torch.float64),))
    analysis = infer(captured)
    some = {g.name: _some(g.size, i) for i, g in enumerate(analysis.groups)}
    plan = plan_of(analysis, some)
    return Subject(captured, analysis, plan, slim(captured, analysis, plan))


def _some(size: int, group: int) -> tuple[int, ...]:
    """About two thirds of the positions, other ones for every group."""
    return tuple(p for p in range(size) if size == 2 or (p + group) % 3 != 1)


def main() -> int:
    """All mutants; the exit status is the number of those that nobody noticed, at most 100."""
    torch.set_num_threads(1)
    models = subjects()
    missed = total = 0
    print(f"{'kind of fault':<40}{'noticed':>8}{'of':>8}")
    for name in KINDS:
        results = [noticed(mutant) for model in models for mutant in mutants(model, name)]
        print(f"{name:<40}{sum(results):>8}{len(results):>8}", flush=True)
        total += len(results)
        missed += len(results) - sum(results)
    print(f"{'all ' + str(len(KINDS)) + ' kinds':<40}{total - missed:>8}{total:>8}")
    return min(100, missed)


if __name__ == "__main__":
    sys.exit(main())
