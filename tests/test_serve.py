"""A batch that refills itself draws the samples that are drawn alone."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff as fd
from fastdiff import loop as loops
from fastdiff.guidance import APG, CFG, CFGZero
from fastdiff.ops import native
from tests.backends import each_backend, needs_extension

SCHEDULE = fd.schedules.linear(100)
SAMPLE = (2, 3, 3)
ROWS = 5
UNCOND = {"y": torch.tensor(9.0)}


def model(x, t, y=None, power=1.0):
    """Element by element: the bits of a sample depend on no other one and on no shape."""
    shift = 0.0 if y is None else y.to(x.dtype).view(-1, 1, 1, 1) / 8
    return (x + shift).clamp(-2, 2) * (t.to(x.dtype) / 64 - 0.5).view(-1, 1, 1, 1) * power


def plan(**options):
    return fd.samplers.ddim(SCHEDULE, **{"steps": ROWS, "eta": 1.0, **options})


def multistep():
    columns = {"cx": 0.5, "cy": 0.1, "po": 0.3, "ch0": [0.0, 0.5, 0.2], "ch1": [0.0, 0.0, 0.3], "dx": 0.5, "dz": 0.2}
    return fd.Plan.build("multistep", [20.0, 10.0, 1.0], {**columns, "slot": [0, 1, -1]}, init_scale=2.0)


def requests(count=7, waits=(), **options):
    """Requests that differ in all they can, and before some of them nothing for a row or two."""
    for number in range(count):
        yield from [None] * waits.count(number)
        yield fd.Request(seed=number // 2, index=number, cond={"y": torch.tensor(float(number))}, **options)


def alone(request, steps, **options):
    cond = {"y": request.cond["y"][None]}
    uncond = None if request.uncond is None else {"y": request.uncond["y"][None]}
    seeds = {"seed": request.seed, "index": [request.index]}
    return fd.sample(model, steps, (1, *SAMPLE), cond=cond, uncond=uncond, **seeds, **options)[0]


@each_backend
@pytest.mark.parametrize("steps", [plan(steps=2), multistep()], ids=["noise", "history, anchor"])
def test_the_samples_are_those_drawn_alone(backend, steps):
    """To the bit, with the others at other rows, and in the order of the requests."""
    served = list(fd.serve(model, steps, SAMPLE, requests(4, waits=(1, 2, 2)), slots=2, backend=backend))
    assert [request.index for request, _ in served] == list(range(4))
    for request, image in served:
        assert torch.equal(image, alone(request, steps, backend=backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "rule",
    [2.5, CFG(2.5, (0.5, 2.0)), APG(3.0, norm=0.5), APG(3.0, momentum=-0.5), CFGZero(2.0, zero_rows=2)],
    ids=["w", "interval", "APG", "momentum", "CFG-Zero*"],
)
def test_guided_samples_are_those_drawn_alone(rule, dtype):
    """Rules with running means and first rows of their own, too."""
    options = {"dtype": dtype, "backend": "eager" if dtype == torch.float64 else "auto"}
    given = requests(waits=(2, 2, 5), uncond=UNCOND)
    for request, image in fd.serve(model, plan(), SAMPLE, given, slots=3, guidance=rule, **options):
        assert torch.equal(image, alone(request, plan(), guidance=rule, **options))


def test_a_request_may_bring_its_own_scale():
    """A number or a function of the noise level, under the rule of all."""
    scales = [1.0, 4.0, lambda level: 1.0 + level, None]
    given = [
        dataclasses.replace(request, guidance=w) for request, w in zip(requests(4, uncond=UNCOND), scales, strict=True)
    ]
    rule = APG(2.0, norm=0.5)
    for request, image in fd.serve(model, plan(), SAMPLE, given, slots=2, guidance=rule):
        own = rule if request.guidance is None else dataclasses.replace(rule, w=request.guidance)
        assert torch.equal(image, alone(request, plan(), guidance=own))


def test_nothing_of_a_finished_sample_is_left():
    """History and anchor of one that ended in NaN do not reach the next in its slot."""
    bad = fd.Request(cond={"y": torch.tensor(torch.nan)})
    given = [bad, *requests(2)]
    served = list(fd.serve(model, multistep(), SAMPLE, given, slots=1, check_finite=False))
    assert served[0][1].isnan().all()
    for request, image in served[1:]:
        assert torch.equal(image, alone(request, multistep()))


def test_a_free_slot_is_filled_at_once():
    """Without waits, 7 samples of 5 rows in 3 slots take 3 rounds of rows, of whole batches."""
    seen = []

    def counting(x, t, **cond):
        seen.append(len(x))
        return model(x, t, **cond)

    served = list(fd.serve(counting, plan(), SAMPLE, requests(7), slots=3))
    assert len(served) == 7
    assert seen == [3] * 3 * ROWS
    seen.clear()
    list(fd.serve(counting, plan(), SAMPLE, requests(2, waits=(1,)), slots=3))
    assert seen == [3] * (ROWS + 1)  # the second begins one row behind the first


def test_samples_come_out_as_they_finish():
    """The first one is there before the last is asked for."""
    asked = []

    def noted():
        for request in requests(4):
            asked.append(request.index)
            yield request

    served = fd.serve(model, plan(), SAMPLE, noted(), slots=2)
    assert asked == []
    assert next(served)[0].index == 0 and asked == [0, 1]
    assert [request.index for request, _ in served] == [1, 2, 3]


def test_no_requests():
    """None at all, or none right now and then none."""
    assert list(fd.serve(model, plan(), SAMPLE, [])) == []
    assert list(fd.serve(model, plan(), SAMPLE, [None, None])) == []


class Reads(TorchDispatchMode):
    """Notes ops that give a value to the host."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.data_dependent_output in func.tags:
            self.noted.append(str(func))
        return func(*args, **(kwargs or {}))


@needs_extension
def test_nothing_waits_between_rows(monkeypatch):
    """The only values read are what the steps noted of a finished sample, and only where that is checked."""
    assert native.missing() is None
    monkeypatch.setattr(native.ops, "step_directly", native.ops.step)
    checked = []
    monkeypatch.setattr(sys.modules["fastdiff.serve"], "raise_if_bad", lambda *arguments: checked.append(arguments))
    for check, finished in ((True, 4), (False, 0)):
        given = list(requests(4, waits=(2,), uncond=UNCOND))
        with Reads() as reads:
            list(fd.serve(model, plan(), SAMPLE, given, slots=2, guidance=APG(3.0), check_finite=check))
        assert reads.noted == []
        assert len(checked) == finished
        checked.clear()
    with Reads() as reads:  # the check can fail
        list(fd.serve(lambda x, t, y: x * t[0].item(), plan(), SAMPLE, requests(1)))
    assert len(reads.noted) == ROWS


def test_leaves_the_gradient_mode_alone():
    """Between two samples the caller's code runs as if nothing were served."""
    for request, image in fd.serve(model, plan(), SAMPLE, requests(2)):
        assert torch.is_grad_enabled()
        assert not image.requires_grad and request.index in (0, 1)


def test_a_bad_request_is_its_own_result():
    """One that does not fit at once, one that ends in NaN at its end; the others are drawn."""
    good = list(requests(4))
    nan = fd.Request(seed=5, index=6, cond={"y": torch.tensor(torch.nan)})
    unfit: list = [fd.Request(seed=-1, cond=Y), fd.Request(cond=Y, guidance=APG(3.0)), fd.Request(), 3]
    given = [good[0], nan, good[1], *unfit, *good[2:]]
    served = list(fd.serve(model, plan(), SAMPLE, given, slots=3))
    results = {id(request): result for request, result in served}
    assert len(served) == len(given)
    for request in good:
        assert torch.equal(results[id(request)], alone(request, plan()))
    for request, message in zip(
        unfit, ("seed must be", "guidance must be", "conditions of the same names", "got int"), strict=True
    ):
        assert isinstance(results[id(request)], fd.InputError) and message in str(results[id(request)])
    assert isinstance(results[id(nan)], fd.NonFiniteError)
    assert "model output at row 0 of 5" in str(results[id(nan)])
    assert "the request of seed 5 and index 6" in str(results[id(nan)])


def test_a_first_request_that_is_bad_shapes_nothing():
    """The batch is made for the first one that can be drawn."""
    (first, error), (second, image) = fd.serve(model, plan(), SAMPLE, [fd.Request(seed=-1), *requests(1)])
    assert isinstance(error, fd.InputError) and first.seed == -1
    assert torch.equal(image, alone(second, plan()))


def test_a_network_that_fails_ends_all():
    """Its error, and not one of a request."""
    with pytest.raises(fd.InputError, match="the model returned shape"):
        list(fd.serve(lambda x, t, y: x[:1], plan(), SAMPLE, requests(3), slots=2))


def test_a_request_costs_no_new_loop(monkeypatch):
    """The first one makes the batch and the sample in which all start."""
    made, serve = [], sys.modules["fastdiff.serve"]
    monkeypatch.setattr(serve, "Loop", lambda *arguments: made.append(loops.Loop(*arguments)) or made[-1])
    assert len(list(fd.serve(model, plan(), SAMPLE, requests(5), slots=2))) == 5
    assert [loop.setup.shape[0] for loop in made] == [1, 2]
    condition = {"y": torch.tensor(1.0)}
    list(fd.serve(model, plan(), SAMPLE, [fd.Request(cond=condition), *requests(3)], slots=1))
    assert condition["y"] == 1.0  # what the caller gave is not what is refilled


@pytest.mark.parametrize("rule", [1.0, APG(3.0, momentum=-0.5)], ids=str)
def test_a_request_without_guidance(rule):
    """w = 1 is what serve has none of, and needs no running mean."""
    given = list(requests(3, uncond=UNCOND, guidance=1.0))
    for request, image in fd.serve(model, plan(), SAMPLE, given, slots=2, guidance=rule):
        assert torch.equal(image, alone(request, plan()))


Y = {"y": torch.tensor(1.0)}


def first_error(**arguments):
    """Raise the first result that is an error."""
    for _, result in fd.serve(**arguments):
        if isinstance(result, fd.FastdiffError):
            raise result


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([], {"slots": 0}, "slots must be a whole number, at least 1"),
        ([], {"slots": 2.0}, "slots must be a whole number"),
        ([], {"guidance": np.ones(2)}, "guidance must be"),
        ([], {"sample_shape": ()}, "the shape of a sample"),
        ([], {"guidance_rescale": 0.5}, "give a guidance other than 1"),
        ([fd.Request(cond=Y, guidance=2.0)], {}, "give serve a guidance other than 1"),
        ([fd.Request(cond=Y)], {"guidance": 2.0}, "guidance needs `uncond`"),
        ([fd.Request(cond=Y), fd.Request()], {}, "conditions of the same names, shapes and dtypes"),
        ([fd.Request(cond=Y), fd.Request(cond={"y": torch.ones(2)})], {}, "conditions of the same names, shapes"),
        ([fd.Request(cond=Y), fd.Request(cond={"y": torch.tensor(1)})], {}, "conditions of the same names, shapes"),
        ([fd.Request(cond={"power": 1.0}), fd.Request(cond={"power": 2.0})], {}, "equal values otherwise"),
        (
            [fd.Request(cond={"power": np.ones(3)}) for _ in range(2)],
            {"model": lambda x, t, power: x},
            "equal values otherwise",
        ),
        (
            [fd.Request(cond=Y, uncond=UNCOND, guidance=torch.ones(3))],
            {"guidance": 2.0},
            "with B = 1 and rows = 5, got shape",
        ),
        (
            [fd.Request(cond=Y, uncond=UNCOND)],
            {"guidance": APG(2.0, (0.5, 2.0), momentum=0.5)},
            "without momentum here",
        ),
    ],
)
def test_refusals(given, options, message):
    """Each costs one line: an error that is raised, or the result of the last request."""
    arguments = {"model": model, "plan": plan(), "sample_shape": SAMPLE, "slots": 2, **options}
    with pytest.raises(fd.InputError, match=message) as raised:
        first_error(requests=given, **arguments)
    assert "\n" not in str(raised.value)
