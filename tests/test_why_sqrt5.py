"Lesson 04's exports on layers the lesson does not show."
import math

import pytest, torch
from torch import nn

from initnotes.core import InputError, se_std, set_seed, stats
from initnotes.why_sqrt5 import four_conv_net, leaky_gain, torch_default_std

@pytest.mark.parametrize('a', [0, .01, .2, 1, math.sqrt(5), -3, 100])
def test_gain_is_torch(a):
    assert leaky_gain(a) == nn.init.calculate_gain('leaky_relu', a)

@pytest.mark.parametrize(
    'layer, fan_in',
    [(nn.Linear(300, 200), 300), (nn.Conv1d(8, 64, 7), 56), (nn.Conv2d(8, 64, (3, 5)), 120),
     (nn.Conv3d(3, 32, 3), 81), (nn.Conv2d(16, 64, 3, groups=4), 36)])
def test_default_std(layer, fan_in):
    layer.reset_parameters()
    std = torch_default_std(fan_in)
    assert layer.weight.detach().abs().max() <= math.sqrt(3)*std*(1 + 1e-6)
    assert abs(stats(layer.weight).std - std) < 5*se_std(std, layer.weight.numel(), 1.8)

@pytest.mark.parametrize('bad', [0, -1, 2.5, None])
def test_default_std_refuses(bad):
    with pytest.raises(InputError, match='fan_in'): torch_default_std(bad)

def test_four_conv_net():
    set_seed(0); a = four_conv_net()
    set_seed(0); b = four_conv_net()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert [tuple(m.weight.shape) for m in a
            if isinstance(m, nn.Conv2d)] == [(8, 1, 5, 5), (16, 8, 3, 3), (32, 16, 3, 3),
                                             (1, 32, 3, 3)]
    assert a(torch.randn(1, 1, 28, 28)).shape == (1,)

@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_gain_refuses(bad):
    with pytest.raises(InputError, match=f'a={bad}'): leaky_gain(bad)

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_sqrt5_is_the_old_bound(dtype):
    "In float32 a draw is the same, bit for bit; in float64 to the last digit but a few."
    for fan_in in range(1, 600):
        theirs, ours = torch.empty(1, fan_in, dtype=dtype), torch.empty(1, fan_in, dtype=dtype)
        set_seed(fan_in); nn.init.kaiming_uniform_(theirs, a=math.sqrt(5))
        set_seed(fan_in); ours.uniform_(-1/math.sqrt(fan_in), 1/math.sqrt(fan_in))
        torch.testing.assert_close(ours, theirs, rtol=0 if dtype == torch.float32 else 1e-12,
                                   atol=0 if dtype == torch.float32 else 1e-15)
