from typing import Any

from torch import nn

from ebmcore import chains as chains
from ebmcore import compiling as compiling
from ebmcore import conditions as conditions
from ebmcore import distributed as distributed
from ebmcore import distributions as distributions
from ebmcore import energies as energies
from ebmcore import errors as errors
from ebmcore import host as host
from ebmcore import losses as losses
from ebmcore import persistent as persistent
from ebmcore import random as random
from ebmcore import samplers as samplers
from ebmcore import tempering as tempering
from ebmcore import testing as testing
from ebmcore import training as training
from ebmcore.chains import PersistentChains as PersistentChains
from ebmcore.energies import value_and_grad as value_and_grad
from ebmcore.host import Component as Component
from ebmcore.host import Register as Register
from ebmcore.host import hookimpl as hookimpl
from ebmcore.host import list_components as list_components
from ebmcore.host import load as load
from ebmcore.host import refresh as refresh
from ebmcore.host import register as register
from ebmcore.host import temporary_plugin as temporary_plugin
from ebmcore.losses import BaseContrastiveDivergence as BaseContrastiveDivergence
from ebmcore.losses import BaseLoss as BaseLoss
from ebmcore.persistent import BasePersistentContrastiveDivergence as BasePersistentContrastiveDivergence
from ebmcore.samplers import BaseSampler as BaseSampler
from ebmcore.samplers import ChainState as ChainState
from ebmcore.samplers import Sampler as Sampler
from ebmcore.samplers import run as run
from ebmcore.samplers import sample as sample
from ebmcore.tempering import tempered as tempered
from ebmcore.training import BaseObserver, DataSource
from ebmcore.training import from_pretrained as from_pretrained
from ebmcore.training import load_run as load_run

__version__: str

def create_loss(name: str, /, energy: nn.Module, *args: Any, **kwargs: Any) -> BaseLoss: ...
def create_sampler(name: str, /, *args: Any, **kwargs: Any) -> BaseSampler: ...
def create_energy(name: str, /, *args: Any, **kwargs: Any) -> nn.Module: ...
def create_dataset(name: str, /, *args: Any, **kwargs: Any) -> DataSource: ...
def create_metric(name: str, /, *args: Any, **kwargs: Any) -> Any: ...
def create_observer(name: str, /, *args: Any, **kwargs: Any) -> BaseObserver: ...
