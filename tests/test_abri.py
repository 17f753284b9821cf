"""ABRi against a second implementation: the formula of arXiv 2302.03533, without a batch-norm kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18, resnet50

from avpt.models.abri import AbriBatchNorm2d, fold, fold_state_dict

Per = Literal["channel", "layer"]

VECTORS = ("weight", "bias", "new_weight", "new_bias", "alpha")
NEW_KEYS = ("new_weight", "new_bias", "new_running_mean", "new_running_var", "alpha")
NORM_LAYERS = {"resnet18": 20, "resnet50": 53}  # stem, blocks and downsample branches
NETWORKS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50}


class TwoBranch(nn.Module):
    """Normalise twice, each time by hand, and blend after; the names are those of AbriBatchNorm2d."""

    running_mean: Tensor
    running_var: Tensor
    new_running_mean: Tensor
    new_running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, momentum: float | None = 0.1, per: Per = "channel") -> None:
        super().__init__()
        self.eps, self.momentum = 1e-5, momentum
        self.weight, self.new_weight = (nn.Parameter(torch.ones(num_features)) for _ in range(2))
        self.bias, self.new_bias = (nn.Parameter(torch.zeros(num_features)) for _ in range(2))
        self.alpha = nn.Parameter(torch.full((num_features if per == "channel" else 1,), 0.5))
        for prefix in ("", "new_"):
            self.register_buffer(f"{prefix}running_mean", torch.zeros(num_features))
            self.register_buffer(f"{prefix}running_var", torch.ones(num_features))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            mean = input.mean((0, 2, 3))
            var = (input - column(mean)).square().mean((0, 2, 3))
            count = input.numel() / len(mean)
            self.num_batches_tracked += 1
            step = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            with torch.no_grad():
                for buffer in (self.running_mean, self.new_running_mean):
                    buffer.copy_((1 - step) * buffer + step * mean)
                for buffer in (self.running_var, self.new_running_var):
                    buffer.copy_((1 - step) * buffer + step * var * count / (count - 1))
            first = second = (mean, var)
        else:
            first = (self.running_mean, self.running_var)
            second = (self.new_running_mean, self.new_running_var)
        pretrained = self.normalise(input, *first) * column(self.weight) + column(self.bias)
        new = self.normalise(input, *second) * column(self.new_weight) + column(self.new_bias)
        return column(self.alpha) * pretrained + (1 - column(self.alpha)) * new

    def normalise(self, input: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (input - column(mean)) / torch.sqrt(column(var) + self.eps)


def column(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)


def scramble(module: nn.Module, seed: int, exponents: tuple[float, ...] = (0.0, -3.0, -40.0)) -> None:
    """Give every ABRi layer gammas of the given powers of ten, any betas, alphas in -1..2, any statistics."""
    random = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if not isinstance(layer, AbriBatchNorm2d):
            continue
        for name, values in {**dict(layer.named_parameters()), **dict(layer.named_buffers())}.items():
            noise = torch.randn(values.shape, generator=random, dtype=torch.float64)
            if name.endswith("weight"):
                picked = torch.randint(len(exponents), values.shape, generator=random)
                drawn = noise.sign() * (1 + noise.abs()) * 10 ** torch.tensor(exponents).double()[picked]
            elif name == "alpha":
                drawn = torch.rand(values.shape, generator=random, dtype=torch.float64) * 3 - 1
            elif name.endswith("var"):
                drawn = noise.exp()
            elif name.endswith("mean"):
                drawn = noise
            elif name.endswith("bias"):
                drawn = noise * 0.1
            else:
                continue
            values.data.copy_(drawn)


def backward(loss: Tensor) -> None:
    torch.autograd.backward(loss)


def grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def assert_close(actual: Tensor, expected: Tensor, scale: Tensor, rtol: float) -> None:
    """Compare to `rtol` of `scale`, the size of the terms that were summed, plus 256 denormal steps."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    info = torch.finfo(expected.dtype)
    smallest = info.tiny * info.eps
    excess = (actual - expected).abs().double() - rtol * scale.double() - 256 * smallest
    assert bool((excess <= 0).all()), f"off by {float(excess.max())} more than allowed"


def assert_layers_agree(
    layer: AbriBatchNorm2d, reference: TwoBranch, input: Tensor, cotangent: Tensor, rtol: float
) -> None:
    """Compare output and all gradients of one pass, each relative to the terms that it is summed from."""
    ours, theirs = input.clone().requires_grad_(), input.clone().requires_grad_()
    layer.zero_grad()
    reference.zero_grad()
    output, expected = layer(ours), reference(theirs)
    backward((output * cotangent).sum())
    backward((expected * cotangent).sum())

    with torch.no_grad():
        statistics = [
            (layer.running_mean, layer.running_var),
            (layer.new_running_mean, layer.new_running_var),
        ]
        if layer.training:
            statistics = [(input.mean((0, 2, 3)), input.var((0, 2, 3), correction=0))] * 2
        alpha, dy = column(layer.alpha).abs(), cotangent.abs()
        size = [(input.abs() + column(m).abs()) / column(v + layer.eps).sqrt() for m, v in statistics]
        slope = [
            column(g.abs() / (v + layer.eps).sqrt())
            for g, (_, v) in zip((layer.weight, layer.new_weight), statistics, strict=True)
        ]
        branch = [
            z * column(g).abs() + column(b).abs()
            for z, g, b in zip(size, (layer.weight, layer.new_weight), (layer.bias, layer.new_bias), strict=True)
        ]
        share = (alpha, 1 + alpha)
        scales = {
            "weight": (share[0] * dy * size[0]).sum((0, 2, 3)),
            "bias": (share[0] * dy).sum((0, 2, 3)).expand_as(layer.bias),
            "new_weight": (share[1] * dy * size[1]).sum((0, 2, 3)),
            "new_bias": (share[1] * dy).sum((0, 2, 3)).expand_as(layer.bias),
            "alpha": (dy * (branch[0] + branch[1])).sum((0, 2, 3)).sum_to_size(layer.alpha.shape),
        }
        output_scale = share[0] * branch[0] + share[1] * branch[1]
        input_scale = (share[0] * slope[0] + share[1] * slope[1]) * dy.amax() * (2 + size[0].amax())

    assert_close(output.detach(), expected.detach(), output_scale, rtol)
    assert_close(grad(ours), grad(theirs), input_scale, rtol)
    for name in VECTORS:
        assert_close(grad(getattr(layer, name)), grad(getattr(reference, name)), scales[name], rtol)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from([torch.float32, torch.float64]),
    per=st.sampled_from(["channel", "layer"]),
    momentum=st.sampled_from([0.1, 0.7, 1.0, None]),
    exponents=st.lists(st.sampled_from([0.0, -2.0, -10.0, -20.0, -40.0]), min_size=1, max_size=3).map(tuple),
    shape=st.tuples(st.integers(3, 5), st.integers(1, 9), st.integers(2, 6), st.integers(2, 6)),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_layer_equals_two_branches(
    dtype: torch.dtype,
    per: Per,
    momentum: float | None,
    exponents: tuple[float, ...],
    shape: tuple[int, int, int, int],
    channels_last: bool,
    seed: int,
) -> None:
    layer = AbriBatchNorm2d(shape[1], momentum=momentum, per=per, dtype=dtype)
    scramble(layer, seed, exponents)
    reference = TwoBranch(shape[1], momentum, per).to(dtype)
    reference.load_state_dict(layer.state_dict())
    rtol = 2e-5 if dtype == torch.float32 else 1e-13
    random = torch.Generator().manual_seed(seed)
    for training in (False, True, True, True, False):
        input = torch.randn(shape, generator=random, dtype=dtype) * 2 + 1
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        cotangent = torch.randn(shape, generator=random, dtype=dtype)
        assert_layers_agree(layer.train(training), reference.train(training), input, cotangent, rtol)
        for name in ("running_mean", "running_var", "new_running_mean", "new_running_var"):
            ours, theirs = getattr(layer, name), getattr(reference, name)
            assert_close(ours, theirs, theirs.abs() + input.abs().amax(), rtol)
        assert torch.equal(layer.num_batches_tracked, reference.num_batches_tracked)
    assert int(layer.num_batches_tracked) == 3


def test_both_branches_tiny_keep_their_digits() -> None:
    layer = AbriBatchNorm2d(4, dtype=torch.float64)
    nn.init.constant_(layer.weight, 1e-40)
    nn.init.constant_(layer.new_weight, 3e-40)
    input = torch.randn(4, 4, 5, 5, dtype=torch.float64)
    plain = F.batch_norm(input, None, None, training=True)
    torch.testing.assert_close(layer(input), plain * 2e-40, rtol=1e-12, atol=0.0)
    cotangent = torch.randn(input.shape, dtype=torch.float64)
    backward((layer(input) * cotangent).sum())
    torch.testing.assert_close(grad(layer.alpha), (plain * cotangent).sum((0, 2, 3)) * -2e-40, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("per", ["channel", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_blend_is_that_of_lerp_to_the_last_bit(per: Per, dtype: torch.dtype) -> None:
    """And the statistics are those of one lerp for each, so that a run goes on as it began."""
    layer = AbriBatchNorm2d(37, momentum=0.3, per=per, dtype=dtype)
    scramble(layer, 4, exponents=(0.0, -3.0))
    before = copy.deepcopy(layer)
    input, cotangent = torch.randn(2, 3, 37, 5, 5).to(dtype)
    ours, theirs = input.clone().requires_grad_(), input.clone().requires_grad_()
    output = layer(ours)
    backward((output * cotangent).sum())

    weight = torch.lerp(before.new_weight, before.weight, before.alpha)
    bias = torch.lerp(before.new_bias, before.bias, before.alpha)
    mean, var = torch.zeros_like(before.running_mean), torch.zeros_like(before.running_var)
    expected = F.batch_norm(theirs, mean, var, weight, bias, training=True, momentum=1.0, eps=before.eps)
    backward((expected * cotangent).sum())
    assert torch.equal(output, expected)
    assert torch.equal(grad(ours), grad(theirs))
    for name in VECTORS:
        assert torch.equal(grad(getattr(layer, name)), grad(getattr(before, name))), name
    for prefix in ("", "new_"):
        for name, value in (("running_mean", mean), ("running_var", var)):
            old = getattr(before, prefix + name)
            assert torch.equal(getattr(layer, prefix + name), torch.lerp(old, value, 0.3)), prefix + name


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_gradients_are_those_of_finite_differences(per: Per) -> None:
    layer = AbriBatchNorm2d(3, per=per, dtype=torch.float64)
    scramble(layer, 6, exponents=(0.0,))

    def output(input: Tensor, *vectors: Tensor) -> Tensor:
        result = torch.func.functional_call(layer, dict(zip(VECTORS, vectors, strict=True)), (input,))
        assert isinstance(result, Tensor)
        return result

    inputs = (torch.randn(3, 3, 2, 2, dtype=torch.float64, requires_grad=True), *layer.parameters())
    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


def test_a_layer_runs_twice_in_one_step_and_again_when_checkpointed() -> None:
    layer = AbriBatchNorm2d(4, dtype=torch.float64)
    scramble(layer, 8, exponents=(0.0,))
    reference = TwoBranch(4).double()
    reference.load_state_dict(layer.state_dict())
    input = torch.randn(3, 4, 3, 3, dtype=torch.float64)
    for use_reentrant in (False, True):
        gradients = []
        for module in (layer, reference):
            module.zero_grad()
            start = input.clone().requires_grad_()
            once = checkpoint(module, start, use_reentrant=use_reentrant)
            backward(module(once).square().sum())
            gradients.append([grad(start), *(grad(getattr(module, name)) for name in VECTORS)])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("per", ["channel", "layer"])
def test_a_compiled_layer_breaks_no_graph(per: Per) -> None:
    layer = AbriBatchNorm2d(4, per=per)
    scramble(layer, 9, exponents=(0.0,))
    compiled, plain = copy.deepcopy(layer), layer
    input = torch.randn(3, 4, 3, 3)
    output = torch.compile(compiled, backend="aot_eager", fullgraph=True)(input)
    expected = plain(input)
    torch.testing.assert_close(output, expected)
    backward(output.square().sum())
    backward(expected.square().sum())
    for name in VECTORS:
        torch.testing.assert_close(grad(getattr(compiled, name)), grad(getattr(plain, name)))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_alpha_picks_one_branch_exactly(alpha: float) -> None:
    layer = AbriBatchNorm2d(6, alpha=alpha)
    scramble(layer, 1)
    nn.init.constant_(layer.alpha, alpha)
    plain = nn.BatchNorm2d(6)
    prefix = "" if alpha == 1.0 else "new_"
    names = ("weight", "bias", "running_mean", "running_var")
    plain.load_state_dict(
        {name: layer.state_dict()[prefix + name] for name in names} | {"num_batches_tracked": torch.tensor(0)}
    )
    input = torch.randn(4, 6, 5, 5)
    torch.testing.assert_close(layer.eval()(input), plain.eval()(input), rtol=1e-5, atol=1e-6)
    assert torch.equal(layer.train()(input), plain.train()(input))
    torch.testing.assert_close(getattr(layer, f"{prefix}running_var"), plain.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_autocast_behaves_like_batch_norm(training: bool) -> None:
    input = torch.randn(4, 6, 5, 5).bfloat16()
    layer, plain = AbriBatchNorm2d(6).train(training), nn.BatchNorm2d(6).train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = layer(input), plain(input)
    torch.testing.assert_close(output, expected)
    assert layer.new_running_mean.dtype == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_cuda_equals_cpu(channels_last: bool, autocast: bool) -> None:
    layer = AbriBatchNorm2d(8)
    scramble(layer, 3)
    remote = copy.deepcopy(layer).cuda()
    input = torch.randn(4, 8, 6, 6)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    far = input.cuda().contiguous(memory_format=memory_format)
    rtol, atol = (0.02, 0.05) if autocast else (1e-4, 1e-5)
    for training in (True, False):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
            output = remote.train(training)(far.bfloat16() if autocast else far)
        expected = layer.train(training)(input)
        torch.testing.assert_close(output.float().cpu(), expected, rtol=rtol, atol=atol)
        torch.testing.assert_close(remote.running_var.cpu(), layer.running_var, rtol=rtol, atol=atol)
        torch.testing.assert_close(remote.new_running_mean.cpu(), layer.new_running_mean, rtol=rtol, atol=atol)


def test_a_new_layer_starts_as_the_paper_says() -> None:
    layer = AbriBatchNorm2d(3, alpha=0.7)
    assert [name for name, _ in layer.named_parameters()] == list(VECTORS)
    assert layer.alpha.tolist() == pytest.approx([0.7] * 3)
    assert AbriBatchNorm2d(3, per="layer").alpha.shape == (1,)
    fresh = copy.deepcopy(layer.state_dict())
    assert fresh["new_weight"].tolist() == [1.0] * 3
    assert fresh["new_running_var"].tolist() == [1.0] * 3
    assert not any(fresh[name].any() for name in ("new_bias", "new_running_mean", "num_batches_tracked"))
    scramble(layer, 0)
    layer(torch.randn(2, 3, 4, 4))
    layer.reset_parameters()
    assert all(torch.equal(value, fresh[name]) for name, value in layer.state_dict().items())


def test_a_refused_input_leaves_the_statistics_alone() -> None:
    layer = AbriBatchNorm2d(3)
    for shape in ((2, 3, 4), (1, 3, 1, 1)):
        with pytest.raises(ValueError, match="xpected"):
            layer(torch.randn(shape))
    assert int(layer.num_batches_tracked) == 0
    assert not layer.new_running_mean.any()


def network(arch: str, norm_layer: Callable[..., nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[arch](num_classes=10, norm_layer=norm_layer).to(dtype)


def batches(count: int, dtype: torch.dtype, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(size, 3, 64, 64, generator=random, dtype=torch.float64).to(dtype),
            torch.randint(10, (size,), generator=random),
        )
        for _ in range(count)
    ]


def train(model: nn.Module, data: list[tuple[Tensor, Tensor]], lr: float = 1e-3) -> list[float]:
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for images, labels in data:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    logits = model.eval()(images)
    assert isinstance(logits, Tensor)
    return logits


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference relative to the norm of what was expected."""
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-300))


@torch.no_grad()
def calm(model: nn.Module) -> None:
    """Make each block's residual branch small, lest 53 random layers multiply rounding errors by a million."""
    last = "bn3" if hasattr(model.get_submodule("layer1.0"), "bn3") else "bn2"
    for name, layer in model.named_modules():
        if isinstance(layer, AbriBatchNorm2d) and name.endswith(last):
            layer.weight.mul_(0.1)
            layer.new_weight.mul_(0.1)


def layers(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in model.modules())


@pytest.mark.parametrize(
    ("arch", "per", "dtype", "tolerance"),
    [
        ("resnet18", "channel", torch.float64, 1e-11),
        ("resnet18", "layer", torch.float64, 1e-11),
        pytest.param("resnet50", "channel", torch.float64, 1e-11, marks=pytest.mark.slow),
        ("resnet18", "channel", torch.float32, 1e-2),
        pytest.param("resnet50", "layer", torch.float32, 1e-2, marks=pytest.mark.slow),
    ],
)
def test_a_whole_network_trains_like_two_branches(arch: str, per: Per, dtype: torch.dtype, tolerance: float) -> None:
    model = network(arch, partial(AbriBatchNorm2d, per=per), dtype)
    assert layers(model, AbriBatchNorm2d) == NORM_LAYERS[arch]
    assert layers(model, nn.BatchNorm2d) == 0
    assert layers(network(arch, nn.BatchNorm2d, dtype), nn.BatchNorm2d) == NORM_LAYERS[arch]
    scramble(model, 5)
    calm(model)
    reference = network(arch, partial(TwoBranch, per=per), dtype)
    reference.load_state_dict(model.state_dict())
    start = copy.deepcopy(model.state_dict())

    images = batches(1, dtype)[0][0]
    assert difference(predict(model, images), predict(reference, images)) < tolerance
    data = batches(3, dtype)
    assert train(model, data) == pytest.approx(train(reference, data), rel=tolerance)
    for name, expected in reference.state_dict().items():
        actual = model.state_dict()[name]
        assert dtype == torch.float32 or not torch.equal(actual, start[name]), f"{name} did not move"
        assert difference(actual.double(), expected.double()) < tolerance, name
    assert difference(predict(model, images), predict(reference, images)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize("per", ["channel", "layer"])
def test_folding_keeps_evaluation(per: Per, dtype: torch.dtype, tolerance: float) -> None:
    model = network("resnet18", partial(AbriBatchNorm2d, per=per), dtype)
    scramble(model, 5)
    train(model, batches(3, dtype))
    state = model.state_dict()
    folded = fold_state_dict(state)
    plain = network("resnet18", nn.BatchNorm2d, dtype)
    plain.load_state_dict(folded, strict=True)

    images = batches(1, dtype)[0][0]
    assert difference(predict(plain, images), predict(model, images)) < tolerance
    untouched = [key for key in folded if not key.endswith((".weight", ".bias")) or "conv" in key or "fc" in key]
    assert len(untouched) == 20 * 3 + 17 + 2
    assert all(folded[key] is state[key] for key in untouched)
    assert all(folded[key].dtype == state[key].dtype for key in folded)


def test_folding_one_layer() -> None:
    layer = AbriBatchNorm2d(6, eps=1e-3, momentum=None, dtype=torch.float64).eval()
    scramble(layer, 2)
    plain = fold(layer)
    assert type(plain) is nn.BatchNorm2d
    assert (plain.eps, plain.momentum, plain.training) == (1e-3, None, False)
    assert plain.running_var is not layer.running_var
    input = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(plain(input), layer(input), rtol=1e-10, atol=1e-12)
    assert fold_state_dict(plain.state_dict()).keys() == plain.state_dict().keys()


def test_further_training_is_the_same_folded() -> None:
    """Once both branches have seen the same data; norm parameters held, since their own step does differ."""
    dtype = torch.float64
    model = network("resnet18", AbriBatchNorm2d, dtype)
    scramble(model, 5, exponents=(0.0, -1.0))
    abri = [module for module in model.modules() if isinstance(module, AbriBatchNorm2d)]
    for layer in abri:
        layer.reset_running_stats()
        layer.momentum = None
    model.train()
    for images, _ in batches(4, dtype):
        model(images)
    for layer in abri:
        layer.momentum = 0.1
        assert torch.equal(layer.running_mean, layer.new_running_mean)
        assert torch.equal(layer.running_var, layer.new_running_var)

    plain = network("resnet18", nn.BatchNorm2d, dtype)
    plain.load_state_dict(fold_state_dict(model.state_dict()), strict=True)
    for module in (*model.modules(), *plain.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    data = batches(3, dtype)
    assert train(plain, data) == pytest.approx(train(model, data), rel=1e-9)
    images = data[0][0]
    assert difference(predict(plain, images), predict(model, images)) < 1e-9
    folded = fold_state_dict(model.state_dict())
    for name, value in plain.state_dict().items():
        assert difference(value.double(), folded[name].double()) < 1e-9, name


def test_old_checkpoints_lack_only_the_new_keys() -> None:
    old = network("resnet18", nn.BatchNorm2d, torch.float32)
    train(old, batches(1, torch.float32))
    model = network("resnet18", AbriBatchNorm2d, torch.float32)
    norms = [name for name, module in model.named_modules() if isinstance(module, AbriBatchNorm2d)]
    assert len(norms) == 20
    result = model.load_state_dict(old.state_dict(), strict=False)
    assert sorted(result.missing_keys) == sorted(f"{norm}.{key}" for norm in norms for key in NEW_KEYS)
    assert result.unexpected_keys == []
    assert all(torch.equal(model.state_dict()[name], value) for name, value in old.state_dict().items())
