"""Eight threads meet at the first use of the host: ``python threads_meeting.py MEETING REPETITIONS``.

Each repetition is a process of its own, in which nothing has used the host. It fails if a thread raises, if the process crashes
or hangs, or if anything is lost afterwards.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
import threading
import time
import traceback

THREADS = 8
SECONDS = 60  # until a repetition counts as one that hangs


def create(i):
    """First use of all kinds: a list, a name, an instance of a component."""
    import ebmcore

    uses = (
        ebmcore.list_components,
        lambda: ebmcore.host.find("loss", "pcd"),
        lambda: ebmcore.create_energy("rbm", shape=(1, 2, 2), hidden=3),
        lambda: ebmcore.create_sampler("langevin", step_size=0.1),
    )
    return uses[i % 4]()


def create_while_torch_is_imported(i):
    if i == 0:
        return importlib.import_module("torch")
    while "torch" not in sys.modules:
        time.sleep(0)
    time.sleep(0.05 * i)  # the host comes at another moment of the import each time
    return create(i)


def load(i):
    """One component, whose module is imported once."""
    import ebmcore

    assert ebmcore.host.load("energy", "rbm") is ebmcore.host.load("energy", "rbm")


def change(i):
    """Components come and go while others look for them."""
    import ebmcore

    class Still:
        init = step = refresh = lambda self: None

    class Plugin:
        @ebmcore.hookimpl
        def ebmcore_register(self, register):
            register.sampler(f"passing-{i}", Still)

    for k in range(10):
        if i % 4 == 0:
            ebmcore.register("sampler", f"mine-{i}-{k}", Still)
            assert all(ebmcore.host.load("sampler", f"mine-{i}-{j}") is Still for j in range(k + 1))
        elif i % 4 == 1:
            assert ebmcore.host.find("loss", "pcd") in ebmcore.list_components()
            ebmcore.host.provenance(Still())
        elif i % 4 == 2:
            with ebmcore.temporary_plugin(Plugin(), f"test-plugin-{i}"):
                assert all(ebmcore.host.load("sampler", f"passing-{i}") is Still for _ in range(10))
        else:
            ebmcore.refresh()


MEETINGS = {f.__name__: f for f in (create, create_while_torch_is_imported, load, change)}


def meet(work):
    """What went wrong, as lines."""
    barrier, wrong, output = threading.Barrier(THREADS), [], sys.stdout
    sys.setswitchinterval(1e-5)

    def run(i):
        barrier.wait()
        try:
            work(i)
        except BaseException:
            wrong.append(traceback.format_exc())

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong + lost(work) + (["standard output stays redirected"] if sys.stdout is not output else [])


def lost(work):
    import ebmcore

    ids = [(c.kind, c.id) for c in ebmcore.list_components()]
    wrong = [f"{r.distribution}: {r.state} {r.notes}" for r in ebmcore.host.plugins() if r.state != "loaded" or r.notes]
    if len(ids) != len(set(ids)):
        wrong.append("a component is there twice")
    mine = [id for _, id in ids if id.startswith("session:mine")]
    if len(mine) != (20 if work is change else 0):
        wrong.append(f"{len(mine)} components of the session")
    return wrong


def main(meeting, repetitions):
    if meeting != "create_while_torch_is_imported":
        importlib.import_module("torch")  # once for all repetitions
    failures = 0
    for _ in range(int(repetitions)):
        child = os.fork()
        if not child:
            faulthandler.enable()
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            wrong = meet(MEETINGS[meeting])
            os.write(2, "".join(f"{line}\n" for line in wrong).encode())
            os._exit(bool(wrong))
        failures += os.waitpid(child, 0)[1] != 0
    return f"{meeting}: {failures} of {repetitions} failed" if failures else None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
