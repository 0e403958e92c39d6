"""Captured loops on a device: the bits of the loop, no second capture, steady memory, threads, and models that fail."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastdiff as fd
from fastdiff.ops import dispatch

pytestmark = pytest.mark.gpu

SCHEDULE = fd.schedules.linear(100)
SHAPE = (3, 4, 16, 16)


class Recorder(fd.graph.CudaRecorder):
    """Counts captures."""

    captures = 0

    def record(self, *arguments: Any) -> fd.graph.Recording:
        self.captures += 1
        return super().record(*arguments)


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(fd.graph, "recorder", recorder)
    fd.graph.clear()
    yield recorder
    fd.graph.clear()


@pytest.fixture(params=["triton", "cuda", "eager"])
def backend(request):
    """Each backend that this machine has."""
    reason = dispatch.missing()[request.param]
    if reason is not None:
        pytest.skip(reason)
    return request.param


class Network(nn.Module):
    """Depends on all that it is given, element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        shift = 0.0 if y is None else y.to(x.dtype).view(-1, 1, 1, 1) / 10
        return torch.tanh(self.weight.to(x.dtype) * x + shift) * torch.cos(t.to(x.dtype) / 50).view(-1, 1, 1, 1)


class Products(nn.Module):
    """One matrix product, whose library may want memory to work in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * 16 * 16, 4 * 16 * 16)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).float().view_as(x)


def plan(**options: Any) -> fd.Plan:
    return fd.samplers.ddim(SCHEDULE, **{"steps": 6, "eta": 1.0, **options})


def anchored() -> fd.Plan:
    columns = {"cx": 0.5, "cy": 0.1, "po": 0.3, "ch0": [0.0, 0.5, 0.2], "ch1": 0.3, "dx": 0.5, "dz": 0.2}
    return fd.Plan.build("anchored", [2.0, 1.0, 0.0], {**columns, "slot": [0, 1, 0]}, init_scale=2.0)


def labels(*values: int) -> dict[str, Tensor]:
    return {"y": torch.tensor(values, device="cuda")}


def both(model: Any, steps: fd.Plan, **options: Any) -> None:
    """A replay has the bits of the loop."""
    replayed, looped = (fd.sample(model, steps, SHAPE, graph=graph, **options) for graph in (True, False))
    assert torch.equal(replayed, looped)


def alike(model: Any, steps: fd.Plan, **options: Any) -> None:
    """A replay ends where the loop does."""
    # The kernels are the same if the libraries choose alike; where they do not, TF32 keeps 10 bits, bf16 8.
    replayed, looped = (fd.sample(model, steps, SHAPE, graph=graph, **options) for graph in (True, False))
    torch.testing.assert_close(replayed, looped, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [plan(eta=0.0), plan(), anchored()], ids=["eta 0", "noise", "anchored"])
def test_replays_are_the_loop(recorder, backend, steps, dtype):
    """Other seeds, indices, conditions, guidance and start states, without another capture."""
    network = Network().cuda()
    guided = {"cond": labels(1, 2, 3), "uncond": labels(0, 0, 0), "guidance": 2.0}
    usual = {"device": "cuda", "backend": backend, "dtype": dtype, **guided}
    for change in (
        {},
        {"seed": [3, 2**64 - 1, 5]},
        {"index": [2**56 - 1, 0, 7]},
        {"cond": labels(7, 8, 9), "uncond": labels(1, 1, 1)},
        {"guidance": torch.tensor([0.0, 1.0, -3.0])},
        {},
    ):
        both(network, steps, **{**usual, **change})
    assert recorder.captures == 1
    for start in (torch.ones(SHAPE, device="cuda"), torch.randn(SHAPE)):
        both(network, steps, x_init=start, **usual)
    assert recorder.captures == 2


def test_corrections(recorder, backend):
    """Their numbers per sample are made inside the graph."""
    network = Network().cuda()
    usual = {"cond": labels(1, 2, 3), "uncond": labels(0, 0, 0), "guidance_rescale": 0.7, "dynamic_threshold": 0.9}
    for w in (2.0, 7.5):
        both(network, plan(), backend=backend, guidance=w, **usual)
    assert recorder.captures == 1


RULES = [
    fd.guidance.CFG(2.0, interval=(0.1, 1.0)),
    fd.guidance.APG(2.0, norm=1.0, momentum=-0.5),
    fd.guidance.CFGZero(2.0),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rules_of_guidance(recorder, backend, rule, dtype):
    """Rows of one branch, sums over a sample and the running mean are inside the graph."""
    network = Network().cuda()
    for seed in (1, 2):
        guided = {"cond": labels(1, 2, 3), "uncond": labels(0, 0, 0), "guidance": rule}
        both(network, plan(), seed=seed, backend=backend, dtype=dtype, **guided)
    assert recorder.captures == 1


def test_data(recorder, backend):
    """Data to start from and data to keep are read at each replay."""
    network, mask = Network().cuda(), torch.tensor([0.0, 1.0] * 8)
    for value in (0.5, -0.5):
        data = torch.full(SHAPE, value)
        both(network, plan(), backend=backend, device="cuda", x0_init=data, known=-data, mask=mask)
    assert recorder.captures == 1


def log_probability(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return -(t / 100 * (x - y.view(-1, 1, 1, 1) / 10).square().sum(dim=(1, 2, 3)))


def mirrored(network: nn.Module) -> nn.Module:
    views = fd.guidance.views
    return fd.guidance.Views(network, [views.identity, views.flip(-1), views.permutation(range(255, -1, -1))])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: fd.guidance.Autoguidance(network, Network().cuda()),
        lambda network: fd.guidance.ClassifierGuidance(network, log_probability, SCHEDULE),
        mirrored,
    ],
    ids=["autoguidance", "classifier", "views"],
)
def test_models_around_models(recorder, wrap):
    """A second network, a gradient, and permutations are captured as they are launched."""
    model = wrap(Network().cuda())
    cond, uncond = ({"y": torch.tensor(values, device="cuda")} for values in ((1, 2, 3), (0, 0, 0)))
    if isinstance(model, fd.guidance.Views):
        cond, uncond = ({"y": value["y"][:, None].expand(3, 3)} for value in (cond, uncond))
    for seed in (1, 2):
        both(model, plan(), seed=seed, cond=cond, uncond=uncond, guidance=2.0)
    assert recorder.captures == 1


def test_serving(backend):
    """A batch that refills itself draws the samples that are drawn alone."""
    network = Network().cuda()
    given = [fd.Request(seed=seed, cond={"y": torch.tensor(seed, device="cuda")}) for seed in range(5)]
    arriving = [given[0], None, *given[1:]]
    for request, image in fd.serve(network, plan(), SHAPE[1:], arriving, slots=2, backend=backend):
        cond = {"y": request.cond["y"][None]}
        alone = fd.sample(network, plan(), (1, *SHAPE[1:]), seed=request.seed, cond=cond, backend=backend)
        assert torch.equal(image, alone[0])


def test_fast_normals(recorder, backend):
    """The same fast noise from the graph and from the loop; plain torch has none."""
    network = Network().cuda()
    if backend == "eager":
        with pytest.raises(fd.BackendError, match="backend 'eager' has no fast normals, triton and cuda have"):
            fd.sample(network, plan(), SHAPE, backend=backend, normals="fast")
        return
    both(network, plan(), backend=backend, normals="fast")
    fast, exact = (fd.sample(network, plan(), SHAPE, backend=backend, normals=kind) for kind in ("fast", "exact"))
    assert not torch.equal(fast, exact)


def test_a_network(recorder):
    """A U-Net with classes: convolutions, attention and matrix products are captured as they are launched."""
    torch.manual_seed(0)
    config = fd.models.UNetConfig(channels=4, width=32, classes=5, head_width=32)
    network = fd.models.UNet(config).cuda().eval()
    nn.init.normal_(network.conv_out.weight, std=0.02)
    for seed in (0, 1):
        alike(network, plan(), seed=seed, cond=labels(0, 1, 2), guidance=3.0)
    assert recorder.captures == 1


def test_workspaces_are_the_graphs_own(recorder):
    """torch may free those of its libraries, and give the memory to others, between two replays."""
    torch.manual_seed(0)
    network = Products().cuda()
    first = fd.sample(network, plan(), SHAPE, graph=True)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    others = [torch.full((32, 2**18), 7.0, device="cuda") for _ in range(32)]  # 32 MiB each, as a workspace may have
    assert torch.equal(fd.sample(network, plan(), SHAPE, graph=True), first)
    assert all(bool((other == 7.0).all()) for other in others)
    alike(network, plan())
    assert recorder.captures == 1


def test_weights_change_in_place(recorder):
    """Also under autocast, whose copies of the weights are not kept."""
    torch.manual_seed(0)
    network = Products().cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        for factor in (1.0, -0.5):
            with torch.no_grad():
                network.linear.weight.mul_(factor)
            torch.clear_autocast_cache()
            alike(network, plan())
    assert recorder.captures == 1


def test_memory_is_steady(recorder):
    """A hundred replays take no more memory than one."""
    network = Network().cuda()

    def draw(seed: int) -> tuple[int, int]:
        fd.sample(network, plan(), SHAPE, seed=seed, graph=True)
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    draw(0)
    gc.collect()  # or the garbage of other tests may be freed on the way
    after_one = draw(1)
    assert {draw(seed) for seed in range(100)} == {after_one}
    assert recorder.captures == 1


def test_memory_is_given_back(recorder):
    """What is dropped, or dies with its model, takes no memory."""
    before = torch.cuda.memory_allocated()
    network = Network().cuda()
    fd.sample(network, plan(), (64, 4, 64, 64), graph=True)
    assert torch.cuda.memory_allocated() > before + 2**20
    del network
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_threads_on_their_own_streams(recorder):
    """One graph, two threads, two streams: a thread waits until the other's replay has been copied out."""
    network = Network().cuda()
    wanted = [fd.sample(network, plan(), SHAPE, seed=seed) for seed in range(40)]
    torch.cuda.synchronize()
    right: list[int] = []

    def draw(seeds: range) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for seed in seeds:
                got = fd.sample(network, plan(), SHAPE, seed=seed, graph=True, check_finite=False)
                if torch.equal(got, wanted[seed]):
                    right.append(seed)

    threads = [threading.Thread(target=draw, args=(range(k, 40, 2),)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(right) == list(range(40))  # a thread that raised has none of the rest
    assert recorder.captures == 1


def item(x: Tensor, t: Tensor) -> Tensor:
    return x * t[0].item()


def to_the_host(x: Tensor, t: Tensor) -> Tensor:
    return x * float(x.cpu()[0, 0, 0, 0] > 0)


def wait(x: Tensor, t: Tensor) -> Tensor:
    torch.cuda.synchronize()  # no op of torch's: seen in the capture alone
    return x / 2


@pytest.mark.parametrize("model", [item, to_the_host, wait])
def test_a_model_that_waits(recorder, model):
    """One line; then memory, random numbers, streams and captures are as before."""
    stream = torch.cuda.current_stream()
    with pytest.raises(fd.InputError, match=r"cannot be captured as a CUDA graph: .*use graph=False") as raised:
        fd.sample(model, plan(), SHAPE, device="cuda", graph=True)
    assert "\n" not in str(raised.value)
    assert torch.cuda.current_stream() == stream
    assert torch.randn(1000, device="cuda").isfinite().all()
    both(Network().cuda(), plan())
    assert fd.sample(model, plan(), SHAPE, device="cuda").shape == SHAPE


def test_a_random_model_draws_anew(recorder):
    """Dropout in a graph has other masks at each replay, as torch promises."""
    network = nn.Dropout(0.5).cuda()

    def model(x: Tensor, t: Tensor) -> Tensor:
        return network(x)

    first, second = (fd.sample(model, plan(), SHAPE, device="cuda", graph=True) for _ in range(2))
    assert not torch.equal(first, second)
    assert recorder.captures == 1


def test_names_what_is_not_finite(recorder):
    """By row and sample, from a replay."""
    network = Network().cuda()
    clean, bad = ({"y": torch.tensor([1.0, y, 3.0], device="cuda")} for y in (2.0, torch.nan))
    both(network, plan(), cond=clean)
    with pytest.raises(fd.NonFiniteError, match=r"the model output at row 0 of 6 .* sample 1 of the batch"):
        fd.sample(network, plan(), SHAPE, cond=bad, graph=True)
    both(network, plan(), cond=clean)
    assert recorder.captures == 1


def test_a_condition_on_another_device(recorder):
    """Both sides are named."""
    with pytest.raises(fd.InputError, match="condition 'y' is on cpu, and the graph is on cuda:0"):
        fd.sample(Network().cuda(), plan(), SHAPE, cond={"y": torch.arange(3)}, graph=True)
