"""Fine-tuning: a plain loop that repeats, restores what it borrowed, and refuses bad data early."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fxprune.errors import FxpruneError, InputError
from fxprune.passes.recover import evaluate, finetune, soft_targets


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def two_classes(batches: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Points left and right of a line: separable."""
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(16, 2, generator=generator) for _ in range(batches)]
    return [(x, (x[:, 0] > 0).long()) for x in points]


def parameters_of(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_training_learns_what_can_be_learnt():
    module, data = small_net(), two_classes()
    before = evaluate(module, data)
    assert finetune(module, data, epochs=10, lr=0.1, progress=False) is module
    assert before < 0.8
    assert evaluate(module, data) > 0.95


def test_the_same_seed_gives_the_same_weights_bitwise():
    def shuffled(seed: int) -> list[torch.Tensor]:
        module, (inputs, labels) = small_net(), two_classes(1)[0]
        pairs = torch.utils.data.TensorDataset(inputs, labels)
        loader = torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True)
        return parameters_of(finetune(module, loader, epochs=2, seed=seed, progress=False))

    first, again, other = shuffled(1), shuffled(1), shuffled(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    finetune(small_net_without_seeding(), two_classes(2), epochs=1, progress=False)
    assert torch.equal(torch.rand(1), expected)


def small_net_without_seeding() -> nn.Module:
    with torch.random.fork_rng():
        return small_net()


def test_every_submodule_comes_back_in_its_own_mode():
    module, teacher = small_net().eval(), small_net()
    module[0].train()
    finetune(module, two_classes(2), teacher=teacher, epochs=1, progress=False)
    assert [m.training for m in module] == [True, False, False, False]
    assert not module.training
    assert all(m.training for m in teacher.modules())


def test_the_teacher_is_not_changed():
    teacher = small_net()
    before = copy.deepcopy(teacher.state_dict())
    finetune(small_net(), two_classes(2), teacher=teacher, epochs=1, lr=0.1, progress=False)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_a_student_learns_from_its_teacher_when_the_labels_say_nothing():
    data = two_classes()
    teacher = finetune(small_net(), data, epochs=10, lr=0.1, progress=False)
    student = small_net()
    finetune(
        student,
        [(x, torch.zeros_like(y)) for x, y in data],
        teacher=teacher,
        loss=lambda output, targets: 0 * output.sum(),
        epochs=10,
        lr=0.1,
        progress=False,
    )
    assert evaluate(student, data) > 0.95


def test_soft_targets_vanish_only_for_the_teachers_own_answer():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert soft_targets(logits, logits).item() == pytest.approx(0, abs=1e-7)
    assert soft_targets(logits + 5, logits).item() == pytest.approx(0, abs=1e-6)
    # T = 2, softened odds of e^1 against even odds: 4 KL((e, 1) / (1 + e) || (1, 1) / 2).
    p = math.e / (1 + math.e)
    divergence = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    even, skewed = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    assert soft_targets(even, skewed).item() == pytest.approx(4 * divergence, rel=1e-5)


def test_modules_with_several_inputs_take_a_tuple():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.linear(a + b)

    data = [((x, x), y) for x, y in two_classes(2)]
    finetune(module := Sum(), data, epochs=5, lr=0.5, progress=False)
    assert evaluate(module, data) > 0.9


def test_another_loss_and_optimizer_are_used():
    module = nn.Linear(2, 1)
    data = [(x, x.sum(dim=1, keepdim=True)) for x, _ in two_classes()]
    finetune(
        module,
        data,
        loss=F.mse_loss,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1),
        epochs=20,
        progress=False,
    )
    assert torch.allclose(module.weight, torch.ones(1, 2), atol=0.01)


def test_frozen_parameters_stay():
    module = small_net()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    finetune(module, two_classes(2), epochs=1, lr=0.1, progress=False)
    assert torch.equal(module[0].weight, before)


def test_data_of_the_wrong_shape_changes_nothing():
    module = small_net()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(InputError, match=r"Inputs float32\[4, 3\], targets int64\[4\]"):
        finetune(module, [(torch.rand(4, 3), torch.zeros(4).long())], progress=False)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert all(m.training for m in module.modules())


def test_a_loss_that_is_no_scalar_is_refused():
    with pytest.raises(InputError, match=r"scalar tensor, not float32\[16\]"):
        finetune(
            small_net(),
            two_classes(),
            loss=lambda output, y: F.cross_entropy(output, y, reduction="none"),
            progress=False,
        )


def test_divergence_is_reported_and_brings_the_weights_back():
    module, data = small_net(), two_classes(3)
    before = copy.deepcopy(module.state_dict())
    data[2] = (torch.full((16, 2), math.nan), data[2][1])
    with pytest.raises(FxpruneError, match="loss became nan after 67 %"):
        finetune(module, data, epochs=1, lr=0.1, progress=False)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no batches"),
        (5, "not an iterable"),
        ([torch.rand(4, 2)], r"should be \(inputs, targets\), not Tensor"),
        ([(torch.rand(4, 2),) * 3], r"should be \(inputs, targets\), not 3 parts"),
        (iter([]), "only once, but epochs is 2"),
    ],
)
def test_data_that_is_no_data_is_refused(data, message):
    with pytest.raises(InputError, match=message):
        finetune(small_net(), data, epochs=2, progress=False)


def test_a_stream_may_be_used_for_one_epoch():
    module = small_net()
    before = parameters_of(module)
    finetune(module, iter(two_classes(2)), epochs=1, lr=0.1, progress=False)
    assert not torch.equal(before[0], module[0].weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs should be"),
        ({"epochs": 1.5}, "epochs should be"),
        ({"lr": 0.0}, "lr should be"),
        ({"lr": math.nan}, "lr should be"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        finetune(small_net(), two_classes(), progress=False, **settings)


def test_a_module_cannot_be_its_own_teacher():
    module = small_net()
    with pytest.raises(InputError, match="shares parameters"):
        finetune(module, two_classes(), teacher=module, progress=False)


def test_a_module_with_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="requires a gradient"):
        finetune(small_net().requires_grad_(False), two_classes(), progress=False)


def test_accuracy_counts_right_answers():
    data = [
        (torch.eye(3), torch.tensor([0, 1, 0])),
        (torch.eye(3)[:1], torch.tensor([0])),
    ]
    assert evaluate(nn.Identity(), data) == 0.75


def test_labels_that_do_not_pair_with_logits_are_refused():
    with pytest.raises(InputError, match=r"shape \[3\], but the labels have shape \[2\]"):
        evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([0, 1]))])
