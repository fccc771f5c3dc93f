"""The kit on a device that is not the CPU, in a process of its own; see second_device.py for what such a device is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

HELPERS = Path(__file__).resolve().parents[1] / "helpers"

KIT = """
import json, sys
import torch
import second_device
from ebmcore.testing import checks, runner
torch.set_num_threads(1)
second_device.install()
found = {}
for name in sys.argv[1:]:
    (component,) = runner.find(name)
    with second_device.Everywhere(), second_device.DEVICE:
        results = [runner.run_check(component, check) for check in checks.names(component.kind) if check not in %r]
    found |= {f"{name}: {r.check}": r.detail for r in results if r.outcome == "failed"}
print(json.dumps(found))
"""

STEPS = """
import json
import torch
import second_device
from ebmcore import BaseSampler, host
from ebmcore.testing import runner

second_device.install()

class Forgetful(BaseSampler):
    def step(self, energy, state, *, generator=None):
        state.x = state.x + torch.ones(len(state), 1)
        return state, {}

found = {}
for component in [*host.list_components(), *runner.find(Forgetful)]:
    if component.kind in ("loss", "sampler"):
        with second_device.Everywhere():
            step = runner._case(component).stepper(second_device.DEVICE)
            try:
                for _ in range(2):
                    step()
            except RuntimeError as error:
                found[component.name] = str(error)
print(json.dumps(found))
"""

# What the second device does not simulate, and what would take minutes there.
LEFT_OUT = (
    "check_inputs_are_unchanged",
    "check_chains_start_at_a_copy_of_the_data",
    "check_the_model_stands_once_in_the_state",
    "check_compiled_steps_are_the_steps",
    "check_log_partition_is_the_sum_over_all_states",
    "check_the_conditionals_agree_with_the_energy",
    "check_the_conditionals_agree_with_the_energy_at_each_temperature",
    "check_it_works_in_a_spawned_process",
    "check_two_processes_give_the_gradient_of_the_whole_batch",
    "check_memory_stays_flat",
    "check_it_fits_a_gaussian",
    "check_the_bias_falls_as_the_second_eigenvalue_says",
    "check_every_chain_is_drawn_equally_often",
    "check_no_chain_is_lost_or_doubled",
)
pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no backend of Python",
)


def there(script, *arguments):
    """What a script finds, which runs with the second device."""
    path = os.pathsep.join([str(HELPERS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("names", [("cd", "langevin", "rbm"), ("pcd", "mlp", "exact-ll")])
def test_kit_runs_on_another_device(names):
    """No check makes a tensor or a generator on the CPU that it uses with those of the default device."""
    assert there(KIT % (LEFT_OUT,), *names) == {}


def test_components_step_on_the_device_of_their_inputs():
    """Every installed loss and sampler makes its tensors there; one that leaves them on the CPU fails."""
    found = there(STEPS)
    assert list(found) == ["Forgetful"]
    assert "same device" in found["Forgetful"]
