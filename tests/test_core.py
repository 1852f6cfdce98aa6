"stats, standard errors, seeds and the ledger beyond what lesson 01 shows."
import importlib, inspect, json, math, random

import pytest, torch
from hypothesis import given, settings, strategies as st

from initnotes.core import (InputError, Ledger, LedgerError, P_FIVE, rms_interval, se_mean, se_std,
                            set_seed, stats)

@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), scale=st.floats(1e-3, 1e3),
       seed=st.integers(0, 1000))
def test_stats_equal_torch_in_float64(shape, scale, seed):
    x = torch.randn([2, *shape], generator=torch.Generator().manual_seed(seed),
                    dtype=torch.float64)*scale
    s = stats(x)
    assert s.mean == pytest.approx(x.mean().item(), abs=1e-12*scale)
    assert s.std == pytest.approx(x.std().item())
    assert s.rms == pytest.approx(x.square().mean().sqrt().item())
    assert s.var == pytest.approx(s.std**2) and s.ms == pytest.approx(s.rms**2)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    x = torch.full((100_000,), 3.).to(dtype)    # a float16 sum would overflow
    assert stats(x) == (3, 0, 3)

def test_stats_leaves_the_graph_alone():
    w = torch.randn(10, requires_grad=True)
    stats(w)
    assert w.grad is None and w.requires_grad
    assert stats(torch.tensor([True, False])).mean == .5 and stats([1., 3.]).mean == 2

@pytest.mark.parametrize('bad',
                         [torch.tensor(1.), torch.empty(0), torch.zeros(3, dtype=torch.complex64)])
def test_stats_refuses(bad):
    with pytest.raises(InputError): stats(bad)

def test_standard_error_of_the_std_for_a_heavy_tail():
    "Laplace numbers: κ = 6."
    g = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (20_000, 400), generator=g)*2 - 1
    x = -torch.log(torch.rand(20_000, 400, generator=g))*signs
    assert stats(x.std(1)).std == pytest.approx(se_std(2**.5, 400, 6), rel=.05)

@pytest.mark.parametrize('n', [1, 2, 10, 1000, 100_000])
def test_rms_interval_holds_what_it_says(n):
    lo, hi = rms_interval(n, std=2., p=1e-3)
    below = torch.special.gammainc(torch.tensor(n/2).double(),
                                   torch.tensor((lo/2)**2*n/2).double()).item()
    above = torch.special.gammaincc(torch.tensor(n/2).double(),
                                    torch.tensor((hi/2)**2*n/2).double()).item()
    assert below == pytest.approx(5e-4, rel=1e-3) and above == pytest.approx(5e-4, rel=1e-3)
    assert P_FIVE == pytest.approx(1/1_744_278, rel=1e-6)

def test_seeds(monkeypatch):
    monkeypatch.delenv('INITNOTES_SEED', raising=False)
    assert set_seed(3) == 3
    a, r = torch.randn(2), random.random()
    monkeypatch.setenv('INITNOTES_SEED', '2')
    assert set_seed(3) == 2_000_003 and not torch.equal(torch.randn(2), a) and random.random() != r
    # the last but one would overflow torch's seed
    for bad in ('x', '-1', '1.5', ' 1', '²', '9'*13, '9'*20):
        monkeypatch.setenv('INITNOTES_SEED', bad)
        state = torch.get_rng_state()
        with pytest.raises(InputError, match='INITNOTES_SEED is .*type INITNOTES_SEED=1 '):
            set_seed(3)
        assert torch.equal(torch.get_rng_state(), state)

def test_ledger_rows():
    led = Ledger('x')
    led.check('a', torch.tensor(1.), torch.tensor(1.1, requires_grad=True), se=torch.tensor(.03))
    led.check('b', 2, 2.5, within=(1, 3), source='S9 2.9')
    led.check('c', 0, 0, tol=0, source='S9 1e-3', why='a slip')
    led.place('d', torch.linspace(0, 1, 1000), 'S9 .5')
    rows = json.loads(led.to_json())['rows']
    assert [r['what'] for r in rows] == list('abcd')
    assert [r['reproduced'] for r in rows] == [None, True, False, True]
    assert 'a slip' in led.to_markdown() and '4 rows' in repr(led) and '2 of 3 source' in repr(led)
    led.check('a', 1, 1, tol=1)           # a cell that is run again
    assert len(led) == 4

@pytest.mark.parametrize(
    'kw, measured', [(dict(se=.01), 1.06), (dict(tol=.05), 1.06), (dict(within=(.9, 1.05)), 1.06),
                     (dict(tol=9), math.nan), (dict(tol=1, source='S9 3'), 1.),
                     (dict(tol=1, source='S9 1', why='needless'), 1.)])
def test_ledger_raises_and_adds_nothing(kw, measured):
    led = Ledger('x')
    with pytest.raises(LedgerError, match="Ledger 'x', row 'bad'"):
        led.check('bad', 1., measured, **kw)
    assert len(led) == 0

@pytest.mark.parametrize(
    'kw', [{}, dict(se=1, tol=1), dict(tol=1, source='.5'), dict(tol=1, source='S9 five'),
           dict(tol=1, source=.5), dict(tol=1, why='no source'), dict(tol=math.nan), dict(tol=-1),
           dict(se=math.inf), dict(se=math.nan), dict(within=(2, 3)), dict(within=(2, 0))])
def test_ledger_refuses_unclear_rows(kw):
    with pytest.raises(InputError): Ledger('x').check('bad', 1, 1, **kw)

@pytest.mark.parametrize('scale', [1e-30, 1e-25, 1e-19, 1., 1e19, 1e30])
def test_any_size_is_measured(scale):
    x = torch.randn(10_000)*scale
    s = stats(x)
    assert s.std/scale == pytest.approx(1, abs=.05) and s.rms/scale == pytest.approx(1, abs=.05)

def test_the_printed_digits_count():
    "A source's .58 may stand for .5751; its .580 may not."
    led = Ledger('x')
    led.check('two digits', .5751, .5751, tol=1e-6, source='S9 .58')
    with pytest.raises(LedgerError):
        led.check('three digits', .5751, .5751, tol=1e-6, source='S9 .580')

def test_a_draw_outside_the_usual_needs_a_reason():
    led, draws = Ledger('x'), torch.randn(2000, generator=torch.Generator().manual_seed(0))
    with pytest.raises(LedgerError): led.place('far', draws, 'S9 6.0')
    led.place('far', draws, 'S9 6.0', why='counted twice')
    with pytest.raises(InputError): led.place('few', draws[:399], 'S9 .5')
    led.place('middle', draws, 'S9 0.0')
    assert led.rows['middle']['share'] == pytest.approx(.5, abs=.06)
    assert 'of draws' in led.to_markdown()

@pytest.mark.parametrize(
    'call', [lambda: se_mean(1, 0), lambda: se_std(1, math.nan), lambda: rms_interval(0),
             lambda: rms_interval(-1), lambda: rms_interval(5, p=2.), lambda: stats('abc'),
             lambda: stats(None), lambda: set_seed('a'), lambda: set_seed(None)])
def test_bad_input_is_named(call):
    with pytest.raises(InputError): call()

def test_stats_of_numbers_whose_squares_overflow():
    s = stats(torch.tensor([1e20, -1e20]))
    assert s.rms == pytest.approx(1e20) and s.std == pytest.approx(2**.5*1e20)

def public_functions(module):
    "The functions, methods and constructors that a module exports."
    for x in (getattr(module, name) for name in module.__all__):
        if inspect.isfunction(x): yield x
        if isinstance(x, type):
            yield from (f for name, f in vars(x).items() if inspect.isfunction(f)
                        and f.__module__ == module.__name__
                        and (name in ('__init__', '__call__') or not name.startswith('_')))

@pytest.mark.parametrize('name', ['core', 'data', 'foundations', 'why_sqrt5', 'kaiming'])
def test_what_is_public_has_types(name):
    functions = list(public_functions(importlib.import_module(f'initnotes.{name}')))
    assert functions
    for f in functions:
        signature = inspect.signature(f)
        untyped = [p.name for p in signature.parameters.values() if p.name != 'self'
                   and p.annotation is p.empty]
        assert not untyped, (f.__qualname__, untyped)
        assert f.__name__ == '__init__' or signature.return_annotation is not signature.empty, (
            f.__qualname__)

# ---- guesses ---------------------------------------------------------------------------------

@pytest.mark.parametrize('guess, near, close', [
    (2., 1, 1), (4., 1, 0), (1., 1, 0), (4.1, 0, 0), (.99, 0, 0), (2.5, 1, 1), (2.51, 1, 0),
    (-2., 0, 0)])
def test_how_near_a_guess_is(guess, near, close):
    "Within a factor of 2, and within five standard errors, are what they say."
    led = Ledger('guesses')
    led.guess('two', guess, 2., se=.1)
    assert led.summary() == [f'Guesses made: 1 of 1; within a factor of 2: {near} of 1; '
                             f'within five standard errors: {close} of 1.']
