"How neural networks are initialised: measured, explained, and done. See the course in `nbs/`."
__version__ = "0.1.0"

from .core import InputError, Stats, set_seed, stats
from .data import DataError, Mnist, mnist, normalize, normalize_to, read_idx
from .why_sqrt5 import four_conv_net, leaky_gain, torch_default_std

__all__ = ['InputError', 'Stats', 'set_seed', 'stats', 'DataError', 'Mnist', 'mnist', 'normalize', 'normalize_to', 'read_idx',
           'four_conv_net', 'leaky_gain', 'torch_default_std']
