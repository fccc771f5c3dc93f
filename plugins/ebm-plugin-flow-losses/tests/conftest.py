"""One thread, so that results repeat and neighbours do not matter."""

import torch

torch.set_num_threads(1)
