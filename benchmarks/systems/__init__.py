"""One file for each system that is measured, and in it one function for each workload that the system can do.

| function | makes |
|---|---|
| ``langevin(energy, x, step_size)`` | ``move(n)``: positions after ``n`` further steps of Langevin dynamics |
| ``mala(energy, x, step_size)`` | the same of the Metropolis-adjusted Langevin algorithm |
| ``cd(energy, x, step_size, k_steps, lr)`` | ``step()``: one step of CD-k by Langevin dynamics and Adam on the batch ``x`` |
| ``pcd(energy, x, step_size, k_steps, lr, n_chains)`` | the same with persistent chains |
| ``rbm(x, hidden, lr, batch_size)`` | ``epoch()``, one of PCD-1 by gradient descent, and the ``weights()`` W, b, c learned |
| ``LOSSES[name](energy, x, lr, **options)`` | ``step()``: one step of a loss without chains and of Adam on the batch ``x`` |

``energy`` is a torch module ``(B, *shape) -> (B,)``. A system that lacks a function or a loss, or is not installed, is left out.
"""
