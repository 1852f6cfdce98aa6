"Hooks that vanish, whatever happens, and modules chosen by whatever names them."
import pytest, torch
import torch.nn.functional as F
from torch import nn

from conftest import hooks_on, images, small
from initnotes.core import InputError
from initnotes.hooks import ActivationStats, Hook, Hooks, find_modules   # two are in old places

SEED = 30

# ---- Hook and Hooks --------------------------------------------------------------------------

def test_hook_sees_inputs_outputs_and_keywords():
    class Scaled(nn.Module):
        def forward(self, x, *, by): return x*by
    m, seen = Scaled(), []
    with Hook(m, lambda h, mod, inputs, output: seen.append((mod, inputs, output))) as h:
        y = m(torch.ones(2), by=3.)
    assert seen[0][0] is m and torch.equal(seen[0][1][0], torch.ones(2))
    assert seen[0][1][1] == 3. and seen[0][2] is y and h.calls == 1

def test_what_a_hook_returns_changes_nothing():
    m, x = nn.Linear(3, 2), torch.randn(4, 3)
    with Hook(m, lambda *a: torch.zeros(4, 2)):
        assert torch.equal(m(x), F.linear(x, m.weight, m.bias))

@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('make', [lambda m: Hook(m[0], lambda *a: None),
                                  lambda m: Hook(m[0], lambda *a: None, backward=True),
                                  lambda m: Hooks(find_modules(m), lambda *a: None),
                                  ActivationStats])
def test_removed_after_any_error(make, error):
    m = small()
    with pytest.raises(error):
        with make(m): m(images()).sum().backward(); raise error
    assert hooks_on(m) == 0

def test_an_error_inside_the_hook_or_the_model_removes_it_too():
    m = small()
    def bad(*a): raise RuntimeError('mine')
    with pytest.raises(RuntimeError, match='mine'):
        with Hooks(find_modules(m), bad): m(images())
    assert hooks_on(m) == 0
    with pytest.raises(RuntimeError):
        with ActivationStats(m): m(torch.randn(3))
    assert hooks_on(m) == 0

def test_hooks_are_all_or_nothing():
    m = small()
    with pytest.raises(InputError, match='Hook got str'):
        Hooks([m[0], 'x'], lambda *a: None)
    assert hooks_on(m) == 0

def test_only_its_own_hooks_are_removed():
    m, seen = small(), []
    m[0].register_forward_hook(lambda *a: seen.append(1))
    with ActivationStats(m), Hook(m[0], lambda *a: None): pass
    m(images())
    assert seen == [1] and hooks_on(m) == 1

def test_backward_after_the_block_is_not_seen():
    m, seen = small(), []
    with Hook(m[0], lambda h, mod, g: seen.append(g), backward=True), ActivationStats(m) as s:
        out = m(images())
    out.sum().backward()
    assert not seen and s.history()['grad_rms'].isnan().all()

def test_gradient_is_autograds_in_a_residual_net():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.act = nn.Linear(6, 6), nn.Tanh()
        def forward(self, x): return x + self.act(self.f(x))
    m, got, x = nn.Sequential(Block(), Block()), [], torch.randn(5, 6)
    with Hook(m[0], lambda h, mod, g: got.append(g), backward=True):
        m(x).square().sum().backward()
    h = m[0](x).detach().requires_grad_()
    m[1](h).square().sum().backward()
    assert torch.allclose(got[0], h.grad, rtol=1e-6)

def test_hook_on_a_module_that_returns_its_parameter_or_input():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))
        def forward(self, x): return self.w
    m, got = Table(), []
    with Hook(m, lambda h, mod, g: got.append(g), backward=True):
        m(None).sum().backward()
    assert len(got) == 1
    m(None).sum().backward()
    assert len(got) == 1

# ---- choosing --------------------------------------------------------------------------------

def test_find_modules():
    m = small()
    assert list(find_modules(m)) == ['0', '1', '2', '3', '4', '5']
    assert list(find_modules(m, (nn.Conv2d, nn.Linear))) == ['0', '3', '5']
    assert list(find_modules(m, nn.Linear)) == ['3', '5']
    assert list(find_modules(m, [m[4], '0'])) == ['0', '4']
    assert list(find_modules(nn.ReLU())) == ['(model)']
    twice = nn.Sequential(m[0], m[1], m[1])
    assert list(find_modules(twice)) == ['0', '1']

@pytest.mark.parametrize('where, says', [(nn.LSTM, 'matches no module'),
                                         (['7'], "'7', which is not in the model"),
                                         ([nn.ReLU()], 'not in the model'),
                                         (3, 'expected a module type'),
                                         ({'0': 1}, 'expected a module type'),
                                         ([], 'matches no module')])
def test_find_modules_refuses(where, says):
    with pytest.raises(InputError, match=says): find_modules(small(), where)

@pytest.mark.slow
def test_hooks_and_runs_without_trace_hold_one_switch():
    "Compiled code is left alone until the last of them has gone, in whatever order they go."
    from contextlib import ExitStack
    from initnotes.undisturbed import undisturbed
    m, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(3, 4)
    c, seen = torch.compile(m, backend='eager'), []
    c(x)
    run = ExitStack()
    run.enter_context(undisturbed(m))
    with Hook(m[1], lambda *a: seen.append(1)):
        run.close()
        c(x)
        with undisturbed(m): c(x)
        c(x)
    c(x)
    assert len(seen) == 3 and not torch._dynamo.eval_frame._stance.stance == 'force_eager'
