"""The step past torch's dispatcher: the op's own result for plain tensors, and the op itself for everything else."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastdiff as fd
from fastdiff.ops import native
from tests.backends import needs_extension

pytestmark = needs_extension
PLAN = fd.samplers.ddim(fd.schedules.linear(100), steps=6, eta=1.0)
ROW = torch.tensor([2, 4])


@pytest.fixture(autouse=True)
def loaded():
    assert native.missing() is None


def call(shape, **changed):
    """Arguments of a step by position, up to first_bad."""
    generator = torch.Generator().manual_seed(0)
    given = {
        "x": torch.randn(shape, generator=generator),
        "out": torch.randn(shape, generator=generator),
        "table": torch.from_numpy(PLAN.table.copy()).float(),
        "layout": PLAN.layout,
        "row": ROW,
        "uncond": torch.randn(shape, generator=generator).bfloat16(),
        "w": torch.tensor([3.0, 0.5]),
        "key": torch.tensor([[5, 6], [0, 1]]),
        "model_input": torch.full(shape, torch.nan, dtype=torch.float16),
        "first_bad": torch.tensor([99, 99]),
    }
    return list({**given, **changed}.values())


def test_is_the_extensions_own():
    """Where Python's headers were there for the build and torch has the table, the dispatcher is really left out."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    if headers and hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        assert native.ops.step_directly.__module__ == "fastdiff._C"
    else:
        assert native.ops.step_directly is native.ops.step


# 7 elements: one buffered block; 2^16: other Python threads may run meanwhile.
@pytest.mark.parametrize("shape", [(2, 7), (2, 3, 16, 16), (2, 2**16)])
def test_equals_the_op(shape):
    """Every tensor that is written has the bits that the op gives it."""
    direct, op = call(shape), call(shape)
    assert native.ops.step_directly(*direct) is None
    native.ops.step(*op)
    for ours, theirs in zip(direct, op, strict=True):
        assert ours is theirs or torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


def test_views_are_read_where_they_are():
    """Strides and offsets are those of the tensor, for what is read and for what is written."""
    x, out = torch.randn(2, 5, 6), torch.randn(6, 5, 2)
    whole = torch.zeros(3, 7, 8)
    view = whole[1:, 1:6, 1:7]
    view.copy_(x)
    native.ops.step_directly(*call(x.shape, x=view, out=out.movedim(2, 0).mT, uncond=None, w=None, model_input=None))
    plain = call(x.shape, x=x, out=out.movedim(2, 0).mT.contiguous(), uncond=None, w=None, model_input=None)
    native.ops.step(*plain)
    assert torch.equal(view, x)
    view.zero_()
    assert not whole.any()


class Wrapped(torch.Tensor):
    """A subclass that counts the torch functions it meets."""

    met = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.met += 1
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_subclass_meets_the_op():
    """Its __torch_function__ sees the call, as it would see the op's."""
    given = call((2, 7), out=torch.randn(2, 7).as_subclass(Wrapped))
    native.ops.step_directly(*given)
    assert Wrapped.met == 1
    wanted = call((2, 7), out=given[1].as_subclass(torch.Tensor))
    native.ops.step(*wanted)
    assert torch.equal(given[0], wanted[0])


def test_fake_tensors_and_lazy_zeros_meet_the_op():
    """What has no memory is not read from there."""
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in call((2, 7))]
        native.ops.step_directly(*fakes)
    lazy, zeros = call((2, 7), out=torch._efficientzerotensor(2, 7)), call((2, 7), out=torch.zeros(2, 7))
    native.ops.step_directly(*lazy)
    native.ops.step(*zeros)
    assert torch.equal(lazy[0], zeros[0])


def test_without_a_table_that_fits_the_op_is_called(monkeypatch):
    """A torch that publishes something else under the name, or nothing, has its dispatcher used."""
    path = native.find()
    for table in (5, None):
        monkeypatch.setattr(torch.Tensor, "__dlpack_c_exchange_api__", table, raising=False)
        assert native._step_past_the_dispatcher(path) is None


def test_an_unbound_module_says_so(tmp_path):
    """Imported by itself, it refuses with a line and does not crash."""
    script = "import torch, fastdiff.ops.schema, fastdiff._C as c\nc.step(1, 2, 3, 4, 5)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "fastdiff._C is not bound to torch" in done.stderr


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"out": torch.zeros(2, 8)}, "out must have the shape of the other image tensors of the call"),
        ({"out": torch.zeros(2, 7).double()}, "out must be float32, bfloat16 or float16"),
        ({"row": torch.tensor([0, 6])}, "row 6 is not in the table, which has 6 rows"),
        ({"row": ROW.int()}, "row must be int64"),
        ({"key": None}, "which need key or z"),
        ({"layout": PLAN.layout | 2**40}, "names no set of columns"),
        ({"out": 3}, "Expected a value of type 'Tensor' for argument 'out'"),
    ],
)
def test_refuses_what_the_op_refuses(changed, message):
    """The same words, in an error that Python can catch."""
    with pytest.raises(RuntimeError, match=message):
        native.ops.step_directly(*call((2, 7), **changed))


def test_a_pending_negation_is_carried_out_first():
    """DLPack cannot tell of it, so `sample` does: a network may return the imaginary part of a conjugate."""

    def network(x, t):
        return torch.complex(x, 2 * x).conj().imag

    assert network(torch.ones(1), None).is_neg()
    lazily, plainly = (fd.sample(m, PLAN, (2, 7)) for m in (network, lambda x, t: -2 * x))
    assert torch.equal(lazily, plainly)
