"The lesson's own layers, and what moved from it to a workshop."
import copy, itertools

import pytest, torch
import torch.nn.functional as F
from torch import nn

import initnotes.lsuv as lesson
from initnotes.lsuv import ConvLayer, GeneralReLU
from initnotes.report import InputError

def test_general_relu():
    x = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    for leak, sub, maxv in itertools.product((None, .1), (None, .4), (None, 1.)):
        y = GeneralReLU(leak, sub, maxv).double()(x)
        want = F.leaky_relu(x, leak or 0.) - (sub or 0.)
        torch.testing.assert_close(y, want if maxv is None else want.clamp(max=maxv))
        assert torch.autograd.gradcheck(GeneralReLU(leak, sub, maxv).double(),
                                        x[:9].detach().requires_grad_())
    assert repr(GeneralReLU(.1, .4, 6.)) == 'GeneralReLU(leak=0.1, sub=0.4, maxv=6.0)'

def test_conv_layer():
    block, x = ConvLayer(3, 8, 5, leak=.1, sub=.4, maxv=6.), torch.randn(4, 3, 11, 11)
    assert block(x).shape == (4, 8, 6, 6) and ConvLayer(3, 8, stride=1)(x).shape == (4, 8, 11, 11)
    y = F.leaky_relu(block.conv(x), .1) - .4
    torch.testing.assert_close(block(x), y.clamp(max=6.))
    block.bias -= torch.tensor(.3)
    torch.testing.assert_close(block(x), (y - .3).clamp(max=6.))
    other = ConvLayer(3, 8, 5, leak=.1, maxv=6.)
    other.load_state_dict(block.state_dict())  # what calibration found is saved
    torch.testing.assert_close(other(x), block(x))
    assert dict(block.named_parameters()).keys() == {'conv.weight', 'conv.bias'}
    assert copy.deepcopy(block).half().bias.dtype == torch.float16

def test_conv_layer_without_a_shift():
    layer = ConvLayer(1, 2, sub=None)
    assert layer.bias is None
    with pytest.raises(InputError, match='sub=None'): layer.bias = 1.
    assert 'sub=?' in repr(ConvLayer(1, 2).to('meta'))

def test_what_moved_is_found_where_it_was():
    import initnotes.calibrate as workshop
    from initnotes.lsuv import LsuvError, LsuvReport, lsuv_, lsuv_kinds
    assert lsuv_ is workshop.lsuv_ and LsuvReport is workshop.LsuvReport
    assert LsuvError is workshop.LsuvError and lsuv_kinds is workshop.lsuv_kinds
    with pytest.raises(AttributeError, match="no attribute 'lsuv'"): lesson.lsuv
