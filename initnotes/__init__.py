"How neural networks are initialized: measured, explained, and done. See the course in `nbs/`."
__version__ = "0.1.0"

from .report import InputError, Report, set_seed
from .core import Stats, stats
from .data import DataError, Mnist, mnist, normalize, normalize_to, read_idx
from .layers import Kind, find_modules, kinds, parameters_of
from .why_sqrt5 import four_conv_net, leaky_gain, torch_default_std
from .gains import calculate_gain, moments
from .pairs import edge_variances
from .kaiming import (
    Fans, fans, gain, kaiming_normal_, kaiming_uniform_, orthogonal_, trunc_normal_)
from .init import InitReport, init_
from .families import (
    lecun_normal_, lecun_uniform_, variance_scaling_, xavier_normal_, xavier_uniform_)
from .training import TensorLoader, accuracy
from .learner import (
    AvgStats, BatchTransform, Callback, CancelBatch, CancelEpoch, CancelFit, DeviceCallback,
    DivergedError, Learner, LRFinder, MixedPrecision, Progress, Recorder)
from .hooks import Hook, Hooks
from .watch import ActivationStats, Record
from .lsuv import ConvLayer, GeneralReLU
from .calibrate import LsuvError, LsuvReport, lsuv_, lsuv_kinds
from .depth import (
    chi, correlation_length, correlation_map, edge_of_chaos, fixed_point, length_map)
from .shape import shape_activation
from .chain import predict
from .stream import branches
from .isometry import delta_orthogonal_, jacobian_spectrum, lognorm_band
from .evidence import Finding
from .audit import AuditReport, assert_healthy, audit     # the function: the module has its name

__all__ = [
    'InputError', 'Report', 'set_seed', 'Stats', 'stats', 'DataError', 'Mnist', 'mnist',
    'normalize', 'normalize_to', 'read_idx', 'Kind', 'find_modules', 'kinds', 'parameters_of',
    'four_conv_net', 'leaky_gain', 'torch_default_std', 'Fans', 'calculate_gain', 'fans', 'gain',
    'kaiming_normal_', 'kaiming_uniform_', 'lecun_normal_', 'lecun_uniform_', 'moments',
    'orthogonal_', 'trunc_normal_', 'variance_scaling_', 'xavier_normal_', 'xavier_uniform_',
    'InitReport', 'init_', 'AvgStats', 'BatchTransform', 'Callback', 'CancelBatch', 'CancelEpoch',
    'CancelFit', 'DeviceCallback', 'DivergedError', 'Learner', 'LRFinder', 'MixedPrecision',
    'Progress', 'Recorder', 'TensorLoader', 'accuracy', 'Hook', 'Hooks', 'ActivationStats',
    'Record', 'ConvLayer', 'GeneralReLU', 'LsuvError', 'LsuvReport', 'lsuv_', 'lsuv_kinds',
    'edge_variances', 'chi', 'correlation_length', 'correlation_map', 'edge_of_chaos',
    'fixed_point', 'length_map', 'shape_activation', 'predict', 'branches', 'delta_orthogonal_',
    'jacobian_spectrum', 'lognorm_band', 'AuditReport', 'Finding', 'assert_healthy', 'audit']
