"""What is checked of data before the first step, on every road."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_runs import quiet
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset

import ebmcore
from ebmcore.errors import UsageError
from ebmcore.testing import Identity
from ebmcore.training import check_compatible
from ebmcore.training.data import as_floating, check_values

TOKENS = torch.randint(21, (50, 10), generator=torch.Generator().manual_seed(0))
BITS = torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) < 0.5


class Space(torch.nn.Module):
    """An energy of a state space for examples of any shape."""

    def __init__(self, space, dtype=torch.float32):
        super().__init__()
        self.state_space = space
        self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x):
        return (self.weight * x).flatten(1).square().sum(1)


def trained(space, x, *, form=None, energy=None, **options):
    loss = ebmcore.create_loss("cd", energy or Space(space), Identity())
    return quiet(loss, x if form is None else form(x), steps=1, **({"batch_size": 50} | options))


FORMS = {
    "tensor": None,
    "numpy": lambda x: x.numpy(),
    "dataset": TensorDataset,
    "items": lambda x: SimpleItems(x),
    "loader": lambda x: DataLoader(SimpleItems(x), batch_size=50),
    "component": lambda x: SimpleNamespace(train=x, test=x, shape=tuple(x.shape[1:]), state_space=None),
}


class SimpleItems(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


WRONG = {
    "bytes": ("binary", (BITS * 255).float(), r"\[0, 1\], but go from 0 to 255: scale them"),
    "spins": ("binary", BITS.float() * 2 - 1, r"\(x \+ 1\) / 2 turns spins into units"),
    "ratings": ("binary", torch.arange(50.0).remainder(5)[:, None] + 1, "go from 1 to 5"),
    "negative": ("binary", torch.full((50, 3), -0.1), "go from -0.1 to -0.1"),
    "no rows of one": ("categorical", torch.ones(50, 10, 21), "sum to 1, but they sum to 21 to 21"),
    "negative share": ("categorical", torch.tensor([[1.5, -0.5]]).repeat(50, 1), "at least 0"),
    "tokens": ("categorical", TOKENS, "not one-hot"),
    "tokens as floats": ("categorical", TOKENS.float(), "sum to 1"),
    "bytes of pictures": ("continuous", (BITS * 255).byte(), r"x\.float\(\) / 127\.5 - 1 for \[-1, 1\]"),
    "bytes without a space": (None, (BITS * 255).byte(), r"x\.float\(\) / 255"),
    "large counts": ("continuous", torch.full((50, 2), 2**30), "cannot hold exactly"),
    "complex": ("continuous", torch.zeros(50, 2, dtype=torch.complex64), r"torch\.view_as_real"),
    "nan": ("continuous", torch.full((50, 2), torch.nan), "100 NaN and 0 infinite values, in 50 of 50 examples"),
    "infinity": ("continuous", torch.full((50, 2), -torch.inf), "0 NaN and 100 infinite values, in 50 of 50 examples"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:the data are")
def test_wrong_values_are_refused(name, form):
    """Every form of the data is checked, before the first step, with the same words."""
    space, x, told = WRONG[name]
    with pytest.raises(UsageError, match=f"^the data .*{told}"):
        trained(space, x, form=FORMS[form])


RIGHT = {
    "bits": ("binary", BITS),
    "bits as bytes": ("binary", BITS.byte()),
    "bits as integers": ("binary", BITS.long()),
    "probabilities": ("binary", torch.rand(50, 3)),
    "one-hot": ("categorical", one_hot(TOKENS, 21)),
    "probabilities of categories": ("categorical", torch.rand(50, 4, 3).softmax(-1)),
    "table of float64": ("continuous", torch.randn(50, 3).double()),
    "table of float16": ("continuous", torch.randn(50, 3).half()),
    "probabilities of float16": ("categorical", torch.rand(50, 4, 21).softmax(-1).half()),
    "counts": ("continuous", torch.randint(1000, (50, 3))),
    "bits in a continuous space": ("continuous", BITS.float()),
    "no space": (None, torch.randn(50, 3) * 300),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.filterwarnings("ignore:the data are")
def test_right_values_train(name, form):
    space, x = RIGHT[name]
    assert trained(space, x, form=FORMS[form]).step == 1


def test_conversion_is_said_once():
    with pytest.warns(UserWarning, match="^the data are torch.float64, and are converted to torch.float32$") as said:
        trained("continuous", SimpleItems(torch.randn(50, 3).double()), batch_size=5)
    assert len(said) == 1


SMALL = [torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", SMALL)
def test_integers_train_under_their_own_name(dtype):
    with pytest.warns(UserWarning, match=f"^the data are {dtype}, and are converted to torch.float32$"):
        trained("continuous", torch.arange(100).reshape(50, 2).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "numpy"])
def test_float8_trains(dtype, form):
    """Each of its values is one of float32, so that nothing is said."""
    assert trained("continuous", torch.randn(50, 3).to(dtype), form=FORMS[form]).step == 1


@pytest.mark.parametrize("form", ["tensor", "dataset", "component"])
@pytest.mark.parametrize(
    ("x", "told"),
    [
        (torch.eye(50, 2).to_sparse(), r"pass x\.to_dense\(\)"),
        (torch.zeros(50, 2, device="meta"), "on the device 'meta'"),
    ],
)
def test_tensors_of_other_layouts_are_refused(form, x, told):
    with pytest.raises(UsageError, match=f"^the data .*{told}"):
        trained("continuous", x, form=FORMS[form])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused():
    with pytest.raises(UsageError, match="^the data are nested"):
        trained("continuous", torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]))


def test_sparse_array_of_scipy_is_refused():
    class Sparse:
        def toarray(self):
            return np.zeros((5, 2))

    with pytest.raises(UsageError, match=r"got Sparse: pass data.toarray\(\)"):
        trained("continuous", Sparse())


def test_sparse_labels_are_refused():
    with pytest.raises(UsageError, match=r"^labels are of the layout torch.sparse_coo: pass x\.to_dense\(\)"):
        trained("continuous", TensorDataset(torch.zeros(50, 2), torch.eye(50, 2).to_sparse()))


@pytest.mark.parametrize("form", FORMS)
def test_overflow_of_a_conversion_is_named(form):
    """The values are finite; it is the type of the energy that cannot hold them."""
    x = torch.ones(50, 2, dtype=torch.float64)
    x[3, 1] = -1e200
    with pytest.raises(UsageError, match="^the data hold 1e[+]200, which is too large for torch.float32: scale them"):
        trained("continuous", x, form=FORMS[form])


def test_large_uint64_is_no_negative_number():
    x = torch.from_numpy(np.array([[2**64 - 1, 0]], dtype=np.uint64))
    with pytest.raises(UsageError, match="hold 18446744073709551615, which torch.float32 cannot hold exactly"):
        trained("continuous", x)


def test_infinite_column_is_no_constant_one():
    with pytest.raises(UsageError, match="column 0 holds no finite number$"):
        check_values(torch.full((5, 2), torch.inf), None, "they")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bool, torch.int64, torch.uint8])
def test_lossless_conversion(dtype):
    """Ones and zeros of any type become the same numbers."""
    assert torch.equal(as_floating(BITS.to(dtype), torch.float32, None, "they", warn=False), BITS.float())


def test_energy_in_float64_takes_its_data():
    """Data are converted to the energy's own type, and not to the default one."""
    energy = Space("continuous", torch.float64)
    x = torch.randn(50, 3, dtype=torch.float64)
    assert trained("continuous", x, energy=energy).step == 1
    assert trained("continuous", x, precision="64-true").step == 1


def test_nan_says_where_it_is():
    x = torch.randn(100, 5)
    x[3, 2] = x[3, 4] = torch.nan
    x[60, 0] = torch.inf
    told = r"hold 2 NaN and 1 infinite values, in 2 of 100 examples \(the first is number 3\): remove or replace them$"
    with pytest.raises(UsageError, match=told):
        check_values(x, None, "they")


def test_test_data_are_checked_too():
    """What a metric measures at the end is looked at before the first step."""
    x, broken = torch.randn(20, 3), torch.randn(10, 3)
    broken[4, 1] = torch.nan
    source = SimpleNamespace(train=x, test=broken, shape=(3,), state_space="continuous")
    with pytest.raises(UsageError, match="^the test data hold 1 NaN"):
        trained("continuous", source)


def test_constant_column_is_named():
    """A column that a scaling divided by 0 is named as such."""
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[:, 1] = 7
    with np.errstate(invalid="ignore"):
        x = (x - x.mean(0)) / x.std(0)
    with pytest.raises(
        UsageError, match="column 1 holds no finite number: it is empty, or a scaling divided a constant column by 0$"
    ):
        trained("continuous", torch.from_numpy(x).float())


SPACES = ["continuous", "binary", "categorical"]


@pytest.mark.parametrize("kinds", list(itertools.combinations(("energy", "sampler", "data", "loss"), 2)))
def test_parts_of_two_spaces_are_refused(kinds):
    """Any two parts that declare two spaces are refused, each by its name; of one space, they are not."""
    for one in SPACES:
        for other in SPACES:
            spaces = dict(zip(kinds, (one, other), strict=True))
            parts = [SimpleNamespace(state_space=spaces.get(kind)) for kind in ("energy", "sampler", "data", "loss")]
            if one == other:
                assert check_compatible(*parts) == one
                continue
            with pytest.raises(UsageError) as caught:
                check_compatible(*parts)
            assert one in str(caught.value)
            assert other in str(caught.value)
    assert check_compatible(*[SimpleNamespace()] * 4) is None


def test_more_classes_than_the_energy_are_refused():
    """Before the first step: an accelerator would end at a label that does not exist."""
    energy = SimpleNamespace(n_classes=2)
    assert check_compatible(energy, None, SimpleNamespace(n_classes=2)) is None
    with pytest.raises(
        UsageError, match="has 3 classes, but the energy SimpleNamespace has n_classes=2: give it n_classes=3"
    ):
        check_compatible(energy, None, SimpleNamespace(n_classes=3))


X = torch.rand(20, 3)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy()])
@pytest.mark.parametrize(
    ("test", "told"),
    [
        (torch.full((20, 3), torch.nan), "the test data hold 60 NaN"),
        (torch.full((20, 3), 255, dtype=torch.uint8), "the test data are bytes"),
        (X[:, :2], r"the test data have examples of shape \(2,\), but the training examples have \(3,\)"),
        (X * 3, "the test data are for binary units"),
    ],
)
def test_test_data_are_checked(test, told, form):
    """Before the first step, tensors and arrays alike."""
    source = SimpleNamespace(train=form(X), test=form(test), shape=(3,), state_space="binary")
    with pytest.raises(UsageError, match=f"^{told}"):
        trained("binary", source)


def test_test_data_beyond_bounds_are_counted():
    """A scaling that the training examples say leaves some, so that they are no error."""
    test = torch.tensor([[0.0, 1.5], [0.0, 1.0], [-1.1, 0.0]])
    source = SimpleNamespace(train=X[:, :2], test=test, shape=(2,), state_space="continuous")
    langevin = ebmcore.create_sampler("langevin", step_size=0.01, bounds=(-1, 1))
    with pytest.warns(UserWarning, match=r"^2 of 3 test examples are beyond the bounds \(-1.0, 1.0\)"):
        quiet(ebmcore.create_loss("cd", Space("continuous"), langevin), source, steps=1)
