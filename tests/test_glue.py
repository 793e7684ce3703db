"""Models with data-dependent Python glue: the children are captured, the glue keeps running."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.errors import CaptureError, InputError, VerificationError
from fxprune.passes.capture import capture
from fxprune.passes.frozen import frozen_places
from fxprune.passes.glue.module import GluedModule
from fxprune.passes.infer import infer
from fxprune.passes.slim import slim
from fxprune.passes.verify import verify
from tests.properties import close
from tests.test_zoo import random_plan


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return {"map": F.relu(self.second(x)), "small": F.relu(self.second(F.max_pool2d(x, 2)))}


class Head(nn.Module):
    """Takes a list, as heads of detectors do."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Conv2d(12, 10, 1)
        self.scores = nn.Conv2d(10, 2, 1)

    def forward(self, maps):
        return [self.scores(F.relu(self.hidden(m))) for m in maps]

    def loss(self, scores):
        return sum(s.square().mean() for s in scores)


class Detector(nn.Module):
    """Finds places with a high score: how many there are depends on the image."""

    def __init__(self):
        super().__init__()
        self.body = Body()
        self.head = Head()
        self.least = 0.0

    def forward(self, images):
        batch = torch.stack([F.interpolate(i[None], size=(16, 16))[0] for i in images])
        maps = self.between(self.body(batch))
        scores = self.head(maps)
        if self.training:
            return {"loss": self.head.loss(scores)}
        found = []
        for places in scores[0]:
            keep = places[0] > places[0].mean() + self.least
            found.append({"values": places[:, keep], "count": int(keep.sum())})
        return found

    def between(self, maps):
        """The glue between the children."""
        return list(maps.values())


def images(*sizes):
    torch.manual_seed(1)
    return [torch.rand(3, height, width) for height, width in sizes]


EXAMPLE = images((20, 24), (16, 12))


def build(kind=Detector):
    torch.manual_seed(0)
    return kind().eval()


def understood(model, example=EXAMPLE):
    captured = capture(model, (example,))
    return captured, infer(captured)


def names_of(analysis):
    """The dimensions in each group."""
    return [{str(member) for member in group.members} for group in analysis.groups]


def slimmed(model, example=EXAMPLE):
    captured, analysis = understood(model, example)
    plan = random_plan(analysis)
    module = slim(captured, analysis, plan)
    return module, verify(captured, analysis, plan, module)


# -- capture ---------------------------------------------------------------------------------------


def test_the_largest_children_that_can_be_traced_are_captured():
    captured, _ = understood(build())
    assert captured.capture == "children of Python glue"
    assert isinstance(captured.module, GluedModule)
    assert list(captured.module.interfaces) == ["body", "head"]


def test_the_captured_model_computes_what_the_model_computes():
    model = build()
    captured, _ = understood(model)
    other = images((9, 30), (40, 8), (16, 16))
    with torch.no_grad():
        for mine, theirs in zip(model(other), captured.module(other), strict=True):
            close(mine["values"], theirs["values"], "captured")
            assert mine["count"] == theirs["count"]


def test_the_model_is_not_touched():
    model = build()
    before = copy.deepcopy(model.state_dict())
    slimmed(model)
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_child_that_cannot_be_traced_is_taken_apart():
    class Choosing(Head):
        def forward(self, maps):
            kept = [m for m in maps if m.mean() > -1]
            return [self.scores(F.relu(self.hidden(m))) for m in kept]

    model = build()
    model.head = Choosing().eval()
    captured, analysis = understood(model)
    assert list(captured.module.interfaces) == ["body", "head.hidden", "head.scores"]
    assert {"head.hidden.weight[0]"} <= set().union(*map(set, frozen_members(analysis)))
    _, verification = slimmed(model)
    assert verification.whole_error < 1e-9


class Counting(Head):
    """Stores a number on itself, which a graph would not see change."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, maps):
        self.calls += 1
        return [self.scores(F.relu(self.hidden(m))) for m in maps]


class Keeping(Body):
    """Stores what it computed on the way, for the glue to read."""

    def forward(self, x):
        self._middle = F.relu(self.norm(self.first(x)))
        made = F.relu(self.second(self._middle))
        return {"map": made, "small": made[:, :, ::2]}


class Random(Head):
    def forward(self, maps):
        return [self.scores(F.relu(self.hidden(m))) + torch.rand(()) for m in maps]


@pytest.mark.parametrize("part", [Counting, Keeping])
def test_a_child_that_stores_something_is_taken_apart(part):
    model = build()
    name = "body" if part is Keeping else "head"
    setattr(model, name, part().eval())
    captured, _ = understood(model)
    assert name not in captured.module.interfaces
    assert any(path.startswith(f"{name}.") for path in captured.module.interfaces)
    _, verification = slimmed(model)
    assert verification.whole_error < 1e-9


def test_a_model_that_draws_random_numbers_is_refused():
    model = build()
    model.head = Random().eval()
    with pytest.raises(CaptureError, match="each time"):
        capture(model, (EXAMPLE,))


def test_a_model_without_any_child_to_capture_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            found = x @ self.weight.T
            return found[found > 0]

    with pytest.raises(CaptureError, match="depends on the values of a tensor"):
        infer(capture(Bare(), (torch.randn(2, 3),)))


def test_a_trace_whose_shapes_depend_on_values_is_no_capture():
    class Masking(nn.Module):
        """Nothing stops the tracer here, but nobody can type what it finds."""

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 1))
            self.head = nn.Conv2d(12, 1, 1)

        def forward(self, x):
            scores = self.head(self.body(x))
            return scores[scores > 0]

    model = Masking().eval()
    captured = capture(model, (torch.rand(2, 3, 8, 8),))
    assert captured.capture == "children of Python glue"
    assert any("head.weight[1]" in group for group in names_of(infer(captured)))


def frozen_members(analysis):
    return [place.members for place in frozen_places(analysis)]


# -- what crosses the glue -------------------------------------------------------------------------


def test_a_width_that_crosses_the_glue_unchanged_is_one_group():
    _, analysis = understood(build())
    crossing = next(group for group in names_of(analysis) if "body.second.weight[0]" in group)
    assert crossing == {"body.second.weight[0]", "body.second.bias[0]", "head.hidden.weight[1]"}


def reads(between):
    """A detector with other glue between its children."""
    model = build()
    model.between = between
    return model


def reason_for(analysis, member):
    found = [p.reason for p in frozen_places(analysis) if member in p.members]
    assert found, f"{member} is not frozen"
    return found[0]


@pytest.mark.parametrize(
    "between",
    [
        lambda maps: [m * 1.0 for m in maps.values()],
        lambda maps: [m.relu_() for m in maps.values()],
        lambda maps: [m[:] for m in maps.values()],
        lambda maps: [m.detach() for m in maps.values()],
        lambda maps: [m for m in maps.values() if m.shape[1] == 12],
        lambda maps: [m for m in maps.values() if m.size(1) == 12],
        lambda maps: [m for m in maps.values() if m.size(-3) == 12],
        lambda maps: [m for m in maps.values() if list(m.shape)],
        lambda maps: [m for m in maps.values() if m.shape + torch.Size((1,))],
        lambda maps: [m for m in maps.values() if m.numel()],
        lambda maps: [m for m in maps.values() if m.numpy().size],
        lambda maps: [m for m in maps.values() if m.stride(0)],
    ],
    ids=[
        "multiplied", "in place", "sliced", "detached", "shape", "size", "size from the end",
        "whole shape", "shape in C", "numel", "numpy", "stride",
    ],
)  # fmt: skip
def test_glue_that_reads_a_width_freezes_it_and_is_named(between):
    _, analysis = understood(reads(between))
    assert "test_glue.py" in reason_for(analysis, "body.second.weight[0]")
    _, verification = slimmed(reads(between))
    assert verification.max_error < 1e-9


@pytest.mark.parametrize(
    "between",
    [
        lambda maps: [m for m in maps.values() if m.shape[-2:] and m.shape[0]],
        lambda maps: [m for m in maps.values() if m.size(2) * m.size(3)],
        lambda maps: [m for m in maps.values() if m.dtype and m.device and m.dim() == 4 and len(m)],
        lambda maps: [*{"a": maps["map"]}.values(), *(maps["small"],)],
    ],
    ids=["places", "sizes of places", "type and rank", "containers"],
)
def test_glue_that_reads_no_width_freezes_none(between):
    _, analysis = understood(reads(between))
    assert any("head.hidden.weight[1]" in group for group in names_of(analysis))


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 4)
        self.register_buffer("some", torch.tensor([1, 0, 0, 1, 0, 1, 0, 0]).bool())


class Gathering(TwoLayers):
    """Any number of inputs, which no tracer takes."""

    def forward(self, *inputs):
        return self.last(sum(self.first(x) for x in inputs))


class Branching(TwoLayers):
    def forward(self, x, y):
        z = self.first(x)
        return self.last(z) if float(z.sum() + y.sum()) > 0 else self.last(-z)


class Choosing(TwoLayers):
    def forward(self, x, y):
        return F.linear(self.first(x + y)[:, self.some], self.last.weight[:, self.some])


@pytest.mark.parametrize("kind", [Gathering, Branching, Choosing])
def test_glue_that_computes_between_layers_keeps_them(kind):
    captured = capture(build(kind), (torch.randn(2, 5), torch.randn(2, 5)))
    analysis = infer(captured)
    assert captured.capture == "children of Python glue"
    assert "read by Python glue" in reason_for(analysis, "first.weight[0]")
    assert not analysis.groups
    with pytest.raises(InputError, match=f"Nothing in {kind.__name__} can be slimmed"):
        fxprune.optimize(build(kind), "50% MACs", captured.call[0], progress=False)


def test_where_a_layer_does_not_run_no_width_crosses_the_glue():
    """Another image may take what the first layer makes to the layer that did not run."""

    class Either(TwoLayers):
        def __init__(self):
            super().__init__()
            self.other = nn.Linear(8, 4)

        def forward(self, x):
            made = self.first(x)
            return self.last(made) if float(x.sum()) > -1e9 else self.other(made)

    captured = capture(build(Either), (torch.randn(2, 5),))
    assert "other is not called" in reason_for(infer(captured), "first.weight[0]")


def test_what_is_read_of_a_child_must_be_one_tensor_each_time():
    """Given twice today, it may be two tensors tomorrow."""
    _, analysis = understood(reads(lambda maps: [maps["map"], maps["map"]]))
    assert "given to head twice" in reason_for(analysis, "body.second.weight[0]")


def test_what_no_child_is_seen_to_read_stays():
    _, analysis = understood(reads(lambda maps: [torch.ones(2, 12, 8, 8)]))
    assert "no captured child reads it" in reason_for(analysis, "body.second.weight[0]")
    assert any("body.first.weight[0]" in group for group in names_of(analysis))


def test_parameters_that_glue_reads_stay():
    class Reading(Detector):
        def between(self, maps):
            assert self.body.first.weight.sum() < 1e9
            return list(maps.values())

    _, analysis = understood(build(Reading))
    assert "read by Python glue" in reason_for(analysis, "body.first.weight[0]")


def test_parameters_that_glue_hands_to_a_child_stay():
    """The child reads all of it, whatever becomes of it in the child that owns it."""

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(6, 8)
            self.mix = nn.Linear(8, 7)

        def forward(self, ids):
            return self.mix(self.table(ids)).mean(1)

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.keys = nn.Linear(8, 7)

        def forward(self, found, table):
            return found @ self.keys(table).T

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.scores = Words(), Scores()

        def forward(self, ids):
            scores = self.scores(self.words(ids), self.words.table.weight)
            return scores[scores > scores.mean()]

    ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
    captured = capture(build(Tied), (ids,))
    analysis = infer(captured)
    assert captured.capture == "children of Python glue"
    assert "given to scores" in reason_for(analysis, "words.table.weight[1]")
    assert {"words.mix.weight[0]", "words.mix.bias[0]", "scores.keys.weight[0]"} <= next(
        group for group in names_of(analysis) if "words.mix.weight[0]" in group
    )
    plan = random_plan(analysis)
    module = slim(captured, analysis, plan)
    assert verify(captured, analysis, plan, module).max_error < 1e-9


def test_a_hook_of_a_child_is_glue():
    model = build()
    model.body.register_forward_hook(lambda module, args, out: {k: v + 1 for k, v in out.items()})
    _, analysis = understood(model)
    assert "test_glue.py" in reason_for(analysis, "body.second.weight[0]")
    _, verification = slimmed(model)
    assert verification.whole_error < 1e-9


# -- the slim model --------------------------------------------------------------------------------


def test_the_slim_model_equals_its_masked_original_child_by_child_and_as_a_whole():
    module, verification = slimmed(build())
    assert verification.max_error < 1e-9
    assert verification.slimmed > 5
    assert verification.whole_error < 1e-9
    assert set(module.state_dict()) == set(build().state_dict())


def test_the_slim_model_predicts_on_other_sizes_and_trains():
    module, _ = slimmed(build())
    with torch.no_grad():
        assert len(module(images((5, 6), (50, 40), (7, 7)))) == 3
    module.train()
    module(EXAMPLE)["loss"].backward()
    assert all(p.grad is not None for p in module.parameters())
    assert module.body.norm.training
    assert not module.eval().body.norm.training


def test_attributes_and_methods_of_the_model_are_there():
    module, _ = slimmed(build())
    assert module.least == 0.0
    module.least = 1e9
    with torch.no_grad():
        assert all(found["count"] == 0 for found in module(EXAMPLE))
    assert module.head.loss([torch.ones(2)]) == 1


def test_a_copy_of_the_slim_model_is_independent():
    module, _ = slimmed(build())
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        assert any(found["values"].any() for found in twin(EXAMPLE))
        assert not any(found["values"].any() for found in module(EXAMPLE))


def test_a_slim_model_can_be_slimmed_again():
    once, _ = slimmed(build())
    captured, analysis = understood(once)
    assert list(captured.module.interfaces) == ["body", "head"]
    twice, verification = slimmed(once)
    assert verification.whole_error < 1e-9
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in once.parameters())
    assert {g.name: g.size for g in analysis.groups} == {
        str(m): dict(once.named_parameters())[m.tensor].shape[m.dim]
        for m in (g.members[0] for g in analysis.groups)
    }


def test_a_child_that_met_nothing_is_looked_at_with_samples():
    class Second(nn.Module):
        """A second stage, which gets no sample at all here."""

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 9)
            self.outer = nn.Linear(9, 2)

        def forward(self, x):
            return self.outer(F.relu(self.inner(x)))

    class TwoStages(Detector):
        def __init__(self):
            super().__init__()
            self.second = Second()

        def forward(self, images):
            found = super().forward(images)
            none = torch.zeros(0, 6) + sum(f["count"] for f in found)
            return [self.second(none), *found]

    module, verification = slimmed(build(TwoStages))
    assert verification.max_error < 1e-9
    assert module.second.inner.weight.shape[0] < 9


def test_children_that_share_a_layer_are_slimmed_together():
    class Tied(Detector):
        def __init__(self):
            super().__init__()
            self.other = Head()
            self.other.hidden = self.head.hidden

        def forward(self, images):
            found = super().forward(images)
            maps = list(self.body(torch.stack([i[:, :12, :12] for i in images])).values())
            return [*found, *self.other(maps)]

    captured, analysis = understood(build(Tied))
    assert list(captured.module.interfaces) == ["body", "head", "other"]
    group = next(g for g in names_of(analysis) if "head.hidden.weight[0]" in g)
    assert {"head.scores.weight[1]", "other.scores.weight[1]"} < group
    module, verification = slimmed(build(Tied))
    assert verification.whole_error < 1e-9
    assert module.head.hidden is module.other.hidden


def test_children_that_are_called_several_times_keep_one_code():
    class Pyramid(Detector):
        def forward(self, images):
            batch = torch.stack([F.interpolate(i[None], size=(16, 16))[0] for i in images])
            found = []
            for side in (16, 8):
                (scores,) = self.head([self.body(F.interpolate(batch, size=side))["map"]])
                found.append(scores[scores > 0])
            return found

    captured, _ = understood(build(Pyramid))
    assert sum(node.op == "placeholder" for node in captured.module.graph.nodes) == 2
    module, verification = slimmed(build(Pyramid))
    assert verification.whole_error < 1e-9
    assert module.body.first.weight.shape[0] < 8


def test_glue_that_depends_on_a_width_unseen_is_found():
    """It asks the module, not the tensor."""

    class Asking(Detector):
        def forward(self, images):
            found = super().forward(images)
            return [{"values": f["values"] * self.body.first.out_channels} for f in found]

    with pytest.raises(VerificationError, match="differs from the masked original"):
        slimmed(build(Asking))


def test_another_way_of_calling_a_child_is_refused():
    module, _ = slimmed(build())
    with pytest.raises(InputError, match="head is called with other kinds of arguments"):
        module.head([torch.ones(1, module.head.hidden.in_channels, 2, 2)])


# -- the pipeline ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "side"),
    [("60% MACs", "macs"), ("50% params", "params"), ("60% memory", "weight_bytes")],
)
def test_budgets_of_arithmetic_and_size_are_kept(budget, side):
    module = optimized(budget)
    report = fxprune.report(module)
    wanted = float(budget.split("%")[0]) / 100
    assert getattr(report.slim, side) <= wanted * getattr(report.dense, side)
    with torch.no_grad():
        assert len(module(EXAMPLE)) == 2


def test_any_function_of_the_slim_model_may_be_a_budget():
    def widest(module):
        with torch.no_grad():
            module(EXAMPLE)
        return max(m.out_channels for m in module.modules() if isinstance(m, nn.Conv2d))

    assert widest(optimized(fxprune.Budget(widest, 8))) <= 8


def test_a_latency_budget_is_refused_with_what_to_do():
    with pytest.raises(InputError, match="keeps Python glue") as caught:
        optimized("60% latency", backend="eager")
    assert "fxprune.Budget(function, limit)" in str(caught.value)


def test_backends_refuse_the_whole_but_take_its_children():
    module = optimized("60% MACs")
    with pytest.raises(InputError, match="backends compile graphs"):
        fxprune.compile(module, (EXAMPLE,), "eager")
    engine = fxprune.compile(module.get_submodule("body"), (torch.ones(1, 3, 16, 16),), "eager")
    assert engine(torch.ones(1, 3, 16, 16))["map"].shape[0] == 1
    torch.export.export(module.get_submodule("body"), (torch.ones(1, 3, 16, 16),))


def test_a_plan_is_applied_again_and_a_file_loaded(tmp_path):
    module = optimized("60% MACs")
    path = tmp_path / "slim.safetensors"
    fxprune.save(module, path)
    loaded = fxprune.load(path, build(), (EXAMPLE,))
    with torch.no_grad():
        for mine, theirs in zip(module(EXAMPLE), loaded(EXAMPLE), strict=True):
            assert torch.equal(mine["values"], theirs["values"])


def test_the_finalized_model_computes_the_same():
    module = optimized("60% MACs")
    final = fxprune.finalize(module, (EXAMPLE,))
    assert not any(isinstance(node, nn.BatchNorm2d) for node in used_modules(final))
    with torch.no_grad():
        for mine, theirs in zip(module(EXAMPLE), final(EXAMPLE), strict=True):
            torch.testing.assert_close(mine["values"], theirs["values"])


def used_modules(module):
    nodes = module.graph.nodes
    return [module.get_submodule(n.target) for n in nodes if n.op == "call_module"]


def test_the_analysis_says_how_the_model_was_captured():
    analysis = fxprune.analyze(build(), (EXAMPLE,))
    assert analysis.capture == "children of Python glue"
    assert analysis.prunable > 0.9


def optimized(budget, **options):
    return fxprune.optimize(
        build(),
        budget,
        (EXAMPLE,),
        importance="magnitude",
        multiple_of=1,
        progress=False,
        **options,
    )
