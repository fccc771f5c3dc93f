"""ebmcore with ``compile=True``."""

from __future__ import annotations

from functools import partial

from systems import ebmcore_eager

langevin = partial(ebmcore_eager.langevin, compile=True)
mala = partial(ebmcore_eager.mala, compile=True)
cd = partial(ebmcore_eager.cd, compile=True)
pcd = partial(ebmcore_eager.pcd, compile=True)
