"""Rules that losses and samplers share: no trace on the energy, repeatable results, any shape and dtype, and no needless cost."""

from __future__ import annotations

import contextlib
import gc
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from ebmcore.testing.applies import ANY_SHAPE, RANDOM, SAMPLES
from ebmcore.testing.awkward import EnergyError, Raising, Watched
from ebmcore.testing.cases import SteppingCase, generator
from ebmcore.testing.cases.base import Confined
from ebmcore.testing.instruments import Storages, Synchronisations, Trace, global_random_state, largest
from ebmcore.testing.processes import spawned
from ebmcore.testing.rules import check, expect

STEPS = 200
WATCHED = 32  # steps in which reading a value is looked for: some read every tenth


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


def difference(a: list[Tensor], b: list[Tensor]) -> str:
    """Describe how far two lists of tensors are apart."""
    if [t.shape for t in a] != [t.shape for t in b]:
        return f"shapes {[tuple(t.shape) for t in a]} and {[tuple(t.shape) for t in b]}"
    return f"a largest difference of {largest(*(s.double() - t.double() for s, t in zip(a, b, strict=True))):.3g}"


@check(since="0.1")
def check_it_works_in_a_spawned_process(case: SteppingCase) -> None:
    """A pickled component continues in a newly spawned process as it does here."""
    instance = case.make()
    case.use(instance)
    there = spawned(_use_pickled, case, pickle.dumps(instance))
    here = case.use(instance, seed=3)
    expect(equal(here, there), f"the spawned process gives another result: {difference(here, there)}")


def _use_pickled(case: SteppingCase, pickled: bytes) -> list[Tensor]:
    return [t.clone() for t in case.use(pickle.loads(pickled), seed=3)]  # noqa: S301 - what the parent process wrote


def _front_door(case: SteppingCase, instance: Any, energy: nn.Module) -> None:
    """A sampler's own ``sample()``, which is not the driver if it overrides it."""
    if case.kind == "sampler" and hasattr(instance, "sample"):
        instance.sample(energy, case.start(8), 2, generator=generator())


@check(since="0.1")
def check_the_global_random_state_is_untouched(case: SteppingCase) -> None:
    """With a generator given, no global generator (torch, random, numpy) is drawn from."""
    instance = case.make(**{"restart_prob": 0.5} if case.kind == "loss" and case.accepts("restart_prob") else {})
    before = global_random_state()
    for _ in range(2):  # a persistent loss starts its chains in the first call
        case.use(instance)
    _front_door(case, instance, case.energy(*case.shape))
    touched = [name for name, state in global_random_state().items() if before.get(name, state) != state]
    expect(not touched, f"it drew from the global generator of {', '.join(touched)}: hand on the generator that it is given")


@check(since="0.1")
def check_the_same_generator_gives_the_same_result(case: SteppingCase) -> None:
    """Two runs from generators in the same state are equal bit for bit."""
    a, b = case.use(seed=5), case.use(seed=5)
    expect(equal(a, b), f"two runs from the same generator state differ: {difference(a, b)}")


@check(RANDOM, since="0.1")
def check_another_generator_gives_another_result(case: SteppingCase) -> None:
    """Generators with different seeds give different results."""
    expect(not equal(case.use(seed=5), case.use(seed=6)), "generators seeded with 5 and 6 give the same result")


@check(since="0.1")
def check_it_works_under_no_grad(case: SteppingCase) -> None:
    """Under torch.no_grad() the result is the same as without."""
    outside = case.use()
    with torch.no_grad():
        inside = case.use()
    n = min(len(inside), len(outside))  # a loss has no gradients there
    expect(
        n > 0 and equal(inside[:n], outside[:n]), f"under no_grad the result differs: {difference(inside[:n], outside[:n])}"
    )


@check(SAMPLES, since="0.1")
def check_inference_mode_is_refused(case: SteppingCase) -> None:
    """Under torch.inference_mode() sampling is a RuntimeError that says to use no_grad."""
    instance, energy, x = case.make(), case.energy(*case.shape), case.start(8)
    with torch.inference_mode():
        try:
            # A sampler through its own entry function, which is not run() if it overrides it.
            instance.sample(energy, x, 2) if hasattr(instance, "sample") else case.use(instance, energy=energy, x=x)
        except RuntimeError as error:
            expect("no_grad" in str(error), f"the error does not say to use torch.no_grad(): {error}")
        else:
            expect(False, "it runs under inference_mode, where no gradient of the energy can be taken")


@check(since="0.1")
def check_no_trace_is_left_on_the_energy(case: SteppingCase) -> None:
    """Afterwards each module's training flag, each requires_grad, each buffer and each .grad of the energy is as before."""
    energy = case.moody()
    _mix_modes(energy)
    for parameter in energy.parameters():
        parameter.grad = torch.ones_like(parameter)
    instance = case.instance(energy)
    before = Trace.of(energy)
    if case.kind == "loss":
        case.call(instance, case.start(8))
        changes = before.changes(energy, ignore=_SCORING)
    else:
        case.use(instance, energy=energy)
        _front_door(case, instance, energy)
        changes = before.changes(energy)
    expect(not changes, "; ".join(changes[:4]))


_SCORING = ("calls changed", "watch.calls changed")  # of the loss itself, with gradients


def _mix_modes(energy: nn.Module) -> None:
    energy.eval()
    for module in energy.modules():
        if isinstance(module, nn.Dropout):
            module.train()


@check(since="0.1")
def check_an_energy_that_raises_is_not_swallowed(case: SteppingCase) -> None:
    """An error raised by the energy reaches the caller, and flags, buffers and .grad are as before."""
    fuse = Raising(after=1)
    energy = Watched(case.energy(*case.shape), fuse)
    energy.train()
    next(energy.parameters()).requires_grad_(False)
    instance = case.instance(energy)
    before = Trace.of(energy)
    with contextlib.suppress(EnergyError):
        for _ in range(5):
            case.call(instance, case.start(8)) if case.kind == "loss" else case.use(instance, energy=energy)
        expect(fuse.left >= 0, "the energy raised, but no error reached the caller")
    changes = before.changes(energy)
    expect(not changes, f"after the energy raised: {'; '.join(changes[:4])}")


@check(since="0.1")
def check_inputs_are_unchanged(case: SteppingCase) -> None:
    """The tensors that it is given are as before, bit for bit."""
    x = case.start(8)
    before = x.clone()
    results = case.use(x=x)
    expect(torch.equal(x, before), f"the batch was changed in place: {difference([x], [before])}")
    expect(not x.requires_grad and x.grad is None, "it asked for gradients of the batch that it was given")
    shared = [t for t in results if t.data_ptr() == x.data_ptr() and t.numel()]
    moved = case.draws() and bool(shared)
    expect(not moved, "what it returns shares memory with the batch that it was given")


@check(ANY_SHAPE, since="0.1")
def check_images_equal_flattened(case: SteppingCase) -> None:
    """Examples of shape (1, 2, 2) give what the same examples of shape (4,) give; categorical ones, of shape (2, 2)."""
    x = case.start(8)
    image = [
        t.reshape(*t.shape[:-3], *case.shape) if t.shape[-3:] == (1, 2, 2) else t for t in case.use(x=x.view(8, 1, 2, 2))
    ]
    flat = case.use(x=x)
    alike = [t.shape for t in image] == [t.shape for t in flat] and all(
        torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5) for a, b in zip(image, flat, strict=True)
    )
    expect(alike, f"images and flattened examples give {difference(image, flat)}: sum over all axes but the first")


@check(since="0.1")
def check_float64_stays_float64(case: SteppingCase) -> None:
    """A model in float64 gives results in float64, with no digit lost on the way."""
    torch.manual_seed(0)
    x = case.start(8).double()
    results = case.use(x=x)
    # Of a sampler's state what has the shape of the positions; a counter may be in any dtype.
    floating = [t.dtype for t in results if t.is_floating_point() and (case.kind == "loss" or t.shape == x.shape)]
    expect(set(floating) == {torch.float64}, f"float64 in, {sorted({str(d) for d in floating})} out")
    moved = [t for t in results if t.is_floating_point() and t.shape == x.shape]
    rounded = [t for t in moved if case.draws() and torch.equal(t, t.float().double()) and not _discrete(t)]
    expect(not rounded, "every number of the result is a float32 number: something on the way is not in float64")


def _discrete(t: Tensor) -> bool:
    return bool((t == t.round()).all())


@check(since="0.1")
def check_bfloat16_autocast(case: SteppingCase) -> None:
    """Under torch.autocast with bfloat16 results are finite and keep the dtype of the model."""
    energy = case.energy(*case.shape)
    energy = (
        energy.layers if isinstance(energy, Confined) else energy
    )  # a bare network: under autocast its energies are in bfloat16
    of_interest = slice(1) if case.kind == "sampler" else slice(None)  # its positions; caches have the dtype of the energy
    plain = case.use(energy=energy)[of_interest]
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        results = case.use(energy=energy)[of_interest]
    dtypes = [str(t.dtype) for t in results]
    expect(dtypes == [str(t.dtype) for t in plain], f"autocast changes dtypes to {dtypes}")
    finite = all(bool(t.isfinite().all()) for t in results)
    expect(finite, "autocast makes results that are not finite")


@check(since="0.1")
def check_nothing_waits_for_the_device(case: SteppingCase) -> None:
    """A step reads no value of a tensor: no .item(), bool(), tolist(), nor indexing with a mask."""
    step = case.stepper()
    step()
    watching = Synchronisations()
    with watching:
        for _ in range(WATCHED):
            step()
    waits = ", ".join(dict.fromkeys(watching.found))
    expect(not watching.found, f"{WATCHED} steps wait for the device {len(watching.found)} times: {waits}")
    if torch.cuda.is_available():
        _expect_no_wait_on_cuda(case)


def _expect_no_wait_on_cuda(case: SteppingCase) -> None:
    """CUDA itself raises where the host waits; what a step makes without naming a device is on the CPU, as in training."""
    with torch.device("cpu"):
        step = case.stepper(torch.device("cuda"))
        step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@check(since="0.1")
def check_memory_stays_flat(case: SteppingCase) -> None:
    """After 200 steps no more memory is held than after 20."""
    step = case.stepper()
    with Storages() as storages:
        for i in range(STEPS):
            step()
            if i == 19:
                gc.collect()
                early = storages.living()
        gc.collect()
        late = storages.living()
    slack = 256  # bytes; one number kept in each step is more
    expect(late - early <= slack, f"{(late - early) / (STEPS - 20):.0f} bytes more are held after each step")
