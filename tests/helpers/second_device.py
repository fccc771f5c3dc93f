"""A second device for a machine that has none. `install` is for a process of its own: it registers a backend with torch.

Its tensors keep their values on the CPU, say that they are elsewhere, and, as those of an accelerator, refuse to be mixed with
tensors of the CPU and to be drawn by a generator of the CPU. Not simulated: memory addresses, subclasses of tensors, tracing, and
operators that change a shape in place.
"""

import torch
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

import ebmcore.random

aten, CPU_GENERATOR = torch.ops.aten, torch.Generator
MIXING = (aten.copy_, aten._to_copy, aten.index)


DEVICE = torch.device("privateuseone:0")  # `install` names it
KEY = "PrivateUse1"
GENERATORS, LIBRARIES = {}, []  # the generators made for it; registered kernels hold as long as their library lives


class There(torch.Tensor):
    """A tensor of the second device; ``value`` is on the CPU."""

    def __new__(cls, value):
        layout = {"strides": value.stride(), "storage_offset": value.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=DEVICE, **layout)

    def __init__(self, value):
        self.value = value

    def tolist(self):
        return self.value.tolist()

    def __format__(self, spec):
        return format(self.item(), spec)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def value_of(tensor):
    while isinstance(tensor, There):
        tensor = tensor.value
    return tensor


def is_there(device):
    return device is not None and torch.device(device).type == DEVICE.type


def dispatch(func, args, kwargs):
    """Runs an operator on the CPU; what it gives is there if its arguments were, or if it was asked for."""
    tensors = [t for t in _pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = any(isinstance(t, There) for t in tensors)
    here = [t for t in tensors if not isinstance(t, There) and t.ndim]
    if there and here and func.overloadpacket not in MIXING:
        raise RuntimeError(f"Expected all tensors to be on the same device: {func}")
    device, generator = kwargs.get("device"), kwargs.get("generator")
    to_there = is_there(device) if device is not None else there
    if func.overloadpacket is aten.copy_:
        to_there = isinstance(args[0], There)
    if generator is not None and to_there and generator._cdata not in GENERATORS:
        raise RuntimeError(f"Expected a generator of {DEVICE}: {func}")
    known = {id(value_of(t)): t for t in tensors}
    given, named = _pytree.tree_map(value_of, (args, kwargs))
    result = func(*given, **named | ({"device": "cpu"} if is_there(device) else {}))

    def placed(t):
        return There(t) if to_there and isinstance(t, torch.Tensor) else t

    return _pytree.tree_map(lambda t: known[id(t)] if id(t) in known else placed(t), result)


class Everywhere(TorchDispatchMode):
    """Within it tensors can be made on the second device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def copy_from(source, target, non_blocking=False):
    value_of(target).copy_(value_of(source))
    return target


class AnyGenerator(type):
    def __instancecheck__(cls, instance):
        return isinstance(instance, CPU_GENERATOR)


class Generator(metaclass=AnyGenerator):
    """Makes a generator of the CPU, and remembers whether it was to be one of the second device."""

    def __new__(cls, device="cpu"):
        made = CPU_GENERATOR()
        if is_there(device):
            GENERATORS[made._cdata] = made
        return made


def install():
    """Registers the device with torch, and gives it what torch asks of a backend."""
    import torch._dynamo  # before Generator is replaced, which its annotations name

    class Module(backend_registration._DummyBackendModule):  # of global random state the device has the CPU's
        get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
        set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))
        get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])

    backend_registration._setup_privateuseone_for_python_backend("elsewhere", Module())
    torch.__future__.set_swap_module_params_on_conversion(True)  # moves a parameter with its values
    kernels, rest = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    kernels.impl("empty_strided", lambda n, stride, **o: There(torch.empty_strided(n, stride, dtype=o["dtype"])), KEY)
    kernels.impl("empty.memory_format", lambda n, **o: There(torch.empty(n, dtype=o["dtype"])), KEY)
    kernels.impl("_copy_from", copy_from, KEY)
    rest.fallback(torch.library.fallthrough_kernel, f"Autocast{KEY}")
    LIBRARIES.extend((kernels, rest))
    torch.Generator = ebmcore.random.Generator = Generator
