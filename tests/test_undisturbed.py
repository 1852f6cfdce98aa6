"Running a model without a trace: whatever it does, and however it ends."
import random, signal, threading

import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import initnotes.undisturbed as ours
from initnotes.report import InputError
from initnotes.undisturbed import undisturbed

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(7); random.seed(7); np.random.seed(7)

def same(a, b):
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())

def everything(model, *generators):
    "All that a run might change, as something that can be compared."
    both = [*model.named_parameters(), *model.named_buffers()]
    tensors = {n: t.detach().clone() for n, t in both}
    memory = [t.data_ptr() for t in [*model.parameters(), *model.buffers()]]
    states = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
    states += [g.get_state().tolist() for g in generators]
    return tensors, (memory, states, [m.training for m in model.modules()],
                     torch.backends.mha.get_fastpath_enabled())

def unchanged(before, after):
    assert before[0].keys() == after[0].keys() and before[1] == after[1]
    for n, t in before[0].items(): assert same(t, after[0][n]), n

class Model(nn.Module):
    "Does `what` in its forward."
    def __init__(self, what=None):
        super().__init__()
        self.a, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.own = nn.Parameter(torch.ones(4))
        self.register_buffer('seen', torch.zeros(3), persistent=False)
        self.register_buffer('later', None)
        self.what = what
    def forward(self, x):
        with torch.no_grad():
            if self.what: self.what(self)
        return self.norm(self.a(x))*self.own

def swap(m): m.own.data = m.own*2
def narrow(m): m.own.data = (m.own*2).double()
def index(m): m.own[1:3] = 7.
def replace(m): m.seen = torch.rand(5)
def register(m): m.register_buffer('new', torch.rand(2))
def allocate(m): m.later = torch.ones(9)
def forget(m): del m.seen
def draw(m): torch.rand(1); random.random(); np.random.rand(); m.train(False)

WAYS = [lambda m: m.own.lerp_(torch.zeros(4), .1), lambda m: m.own.data.clamp_(2.), swap, narrow,
        index, lambda m: m.own.view(2, 2)[0].add_(1), lambda m: torch._foreach_mul_([m.own], .5),
        lambda m: torch.mul(m.own, 3., out=m.own), lambda m: nn.init.zeros_(tensor=m.own),
        lambda m: m.own.detach().copy_(torch.zeros(4)), lambda m: m.own.__imul__(2),
        replace, register, allocate, forget, draw,
        lambda m: m.seen.add_(1), lambda m: m.seen.fill_(torch.nan)]

@pytest.mark.parametrize('what', WAYS)
@pytest.mark.parametrize('fails', [None, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('plain', [True, False])
def test_whatever_a_forward_does_is_put_back(what, fails, plain):
    model, x = Model(what), torch.randn(8, 4)
    before = everything(model)
    def run():
        with undisturbed(model, x, plain=plain):
            model(x)
            if fails: raise fails('planted')
    if fails: pytest.raises(fails, run)
    else: run()
    unchanged(before, everything(model))

@pytest.mark.parametrize('strange', [
    lambda: nn.BatchNorm1d(4, device='meta'), lambda: nn.Linear(4, 4, device='meta'),
    lambda: nn.Embedding(5, 4, sparse=True),
    lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    lambda: torch.jit.script(nn.BatchNorm1d(4))])
@pytest.mark.filterwarnings('ignore')
def test_strange_modules_elsewhere(strange):
    model, x = nn.Sequential(nn.BatchNorm1d(4)), torch.randn(8, 4)
    model.elsewhere = strange()
    if not isinstance(model.elsewhere, torch.jit.ScriptModule):
        model.elsewhere.register_buffer('pattern', torch.eye(3).to_sparse())
    with undisturbed(model): model[0](x)
    assert not model[0].running_mean.any() and model[0].num_batches_tracked == 0

def test_random_states_of_other_devices(monkeypatch):
    "Without such a device: that theirs are asked for and put back as each kind of them wants it."
    done = []
    for kind in ('cuda', 'mps'):
        def get(*a, kind=kind): done.append((kind, a)); return kind
        def put(s, *a, kind=kind): done.append((kind, s, a))
        monkeypatch.setattr(getattr(torch, kind), 'get_rng_state', get)
        monkeypatch.setattr(getattr(torch, kind), 'set_rng_state', put)
    devices = [torch.device('cuda', 1), torch.device('mps')]
    ours._set_random_states(ours._random_states(devices))
    assert done == [('cuda', (devices[0],)), ('mps', ()),
                    ('cuda', 'cuda', (devices[0],)), ('mps', 'mps', ())]

def test_generators_of_loaders_samplers_and_modules():
    g, h, k = (torch.Generator().manual_seed(i) for i in range(3))
    data = TensorDataset(torch.randn(8, 4))
    loaders = (DataLoader(data, 2, shuffle=True, generator=g),
               DataLoader(data, 2, sampler=RandomSampler(data, generator=h)))
    model = Model(lambda m: torch.rand(2, generator=m.noise) + m.rng.random() + m.py.random())
    model.noise, model.rng, model.py = k, np.random.default_rng(3), random.Random(4)
    before = everything(model, g, h, k)
    others = str(model.rng.bit_generator.state), model.py.getstate()
    with undisturbed(model, *loaders):
        for loader in loaders:
            for x, in loader: model(x)
    unchanged(before, everything(model, g, h, k))
    assert others == (str(model.rng.bit_generator.state), model.py.getstate())

def test_what_is_written_through_the_trace_stays_when_all_ends_well():
    model, was = Model(), torch.ones(4)
    with undisturbed(model) as trace:
        trace.write(model.own, 2*was); trace.write(model.own, 3*was)
        torch.rand(1)
        trace.advance()
        state = torch.get_rng_state()
        torch.rand(1)
    assert torch.equal(model.own, 3*was) and torch.equal(torch.get_rng_state(), state)
    with undisturbed(model) as trace:
        trace.write(model.own, was)
        torch.rand(1)
        trace.advance()
        trace.discard()
    assert torch.equal(model.own, 3*was) and torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError), undisturbed(model) as trace:
        trace.write(model.own, was); torch.rand(1); trace.advance(); 1/0
    assert torch.equal(model.own, 3*was) and torch.equal(torch.get_rng_state(), state)

def test_one_parameter_written_by_both():
    "What the forward writes before is not what is kept, and not what is put back."
    model = Model(lambda m: m.own.mul_(5))
    with undisturbed(model) as trace:
        model(torch.randn(8, 4)); trace.write(model.own, torch.full((4,), 9.))
    assert torch.equal(model.own, torch.full((4,), 9.))
    with undisturbed(model) as trace: model(torch.randn(8, 4))
    assert torch.equal(model.own, torch.full((4,), 9.))

def test_tied_memory_is_put_back_once_for_all():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.data)
    was = model[0].weight.detach().clone()
    with undisturbed(model), torch.no_grad(): model[1].weight.data.zero_()
    assert torch.equal(model[0].weight, was)
    assert model[0].weight.data_ptr() == model[1].weight.data_ptr()

def test_inference_parameters():
    with torch.inference_mode(): model = Model()
    with undisturbed(model) as trace: trace.write(model.own, torch.zeros(4))
    assert not model.own.any()

DROPS = [nn.Dropout(.5), nn.AlphaDropout(.5), nn.Dropout1d(.5)]

@pytest.mark.parametrize('f', [
    lambda x: F.dropout(x, .5), lambda x: F.dropout(input=x, p=.5),
    lambda x: torch.dropout(x, .5, True),
    lambda x: F.alpha_dropout(x, .5, True), lambda x: F.dropout1d(x[None], .5)[0],
    lambda x: torch.feature_alpha_dropout(x, .5, True),
    lambda x: F.scaled_dot_product_attention(x, x, x, None, .5),
    lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=.5), *DROPS])
def test_dropout_is_off_when_asked(f):
    class Calls(nn.Module):
        def __init__(self): super().__init__(); self.f = f
        def forward(self, x): return self.f(x)
    model, x = Calls().train(), torch.rand(64, 9)
    with undisturbed(model, dropout=False): a, b = model(x), model(x)
    assert torch.equal(a, b) and model.training and all(m.training for m in model.modules())
    with undisturbed(model): assert not torch.equal(model(x), model(x))

def test_training_a_compiled_model_is_put_back():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), torch.randn(32, 4)
    compiled, before = torch.compile(model, backend='eager'), everything(model)
    with undisturbed(model, x, plain=False):
        opt = torch.optim.Adam(model.parameters(), lr=.1)
        for _ in range(3):
            opt.zero_grad()
            compiled(x).square().mean().backward()
            opt.step()
        assert not torch.equal(before[0]['0.weight'], model[0].weight)
    unchanged(before, everything(model))

def test_optimisers_are_seen_by_the_plain_way_too():
    def fused(p, lr): return torch.optim.AdamW(p, lr, fused=True)
    for make in (torch.optim.SGD, torch.optim.Adam, fused):
        model, x = Model(), torch.randn(8, 4)
        before = everything(model)
        with undisturbed(model):
            opt = make(model.parameters(), lr=.1)
            model(x).sum().backward()
            opt.step()
            assert not torch.equal(before[0]['own'], model.own)
        unchanged(before, everything(model))

def test_switches_of_the_process_with_runs_that_overlap():
    fast = torch.backends.mha.get_fastpath_enabled
    inside, out = threading.Event(), threading.Event()
    def first():
        with undisturbed(nn.Linear(2, 2)): inside.set(); out.wait(10)
    assert fast()
    thread = threading.Thread(target=first); thread.start(); inside.wait(10)
    with undisturbed(nn.Linear(2, 2)):
        out.set(); thread.join()
        assert not fast()                  # the first has ended; the second has not
    assert fast()

def test_nested_runs():
    model, before = Model(lambda m: m.own.mul_(2)), None
    before = everything(model)
    with undisturbed(model):
        model(torch.randn(8, 4))
        with undisturbed(model) as trace:
            trace.write(model.own, torch.full((4,), 3.))
        assert model.own[0] == 3
    unchanged(before, everything(model))

def test_only_what_is_written_is_copied():
    model = Model(lambda m: m.own.mul_(2))
    with undisturbed(model) as trace:
        model(torch.randn(8, 4))
        assert [id(p) for p, *_ in trace.written.values()] == [id(model.own)]

@pytest.mark.parametrize('args, kw, words', [
    ((None,), {}, 'undisturbed got NoneType'), ((torch.ones(3),), {}, 'undisturbed got Tensor'),
    ((nn.Linear(2, 2),), dict(dropout=False, plain=False), 'expected plain=True')])
def test_wrong_input(args, kw, words):
    with pytest.raises(InputError, match=words), undisturbed(*args, **kw): pass

@pytest.mark.parametrize('fails', [False, True])
def test_an_interruption_while_all_is_put_back_waits(monkeypatch, fails):
    model, x, real = Model(lambda m: m.own.mul_(2)), torch.randn(8, 4), ours._set_random_states
    before = everything(model)
    def interrupted(states): signal.raise_signal(signal.SIGINT); real(states)
    monkeypatch.setattr(ours, '_set_random_states', interrupted)
    with pytest.raises(KeyboardInterrupt), undisturbed(model):
        model(x)
        if fails: 1/0
    unchanged(before, everything(model))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

def test_another_thread():
    model = Model(lambda m: m.own.mul_(2))
    before = everything(model)
    def run():
        with undisturbed(model): model(torch.ones(8, 4))
    thread = threading.Thread(target=run); thread.start(); thread.join()
    unchanged(before, everything(model))
