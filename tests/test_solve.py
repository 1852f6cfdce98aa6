"The solver: what it finds, in how few evaluations, and that it ends."
import math

import pytest
from hypothesis import given, settings, strategies as st

from initnotes.solve import _broyden, _newton, _Point, _Search, _slopes, solve

def gaussian(act, n=2001):
    "Mean and std of an activation whose input is normal with std and mean `u`."
    z = [-5 + 10*i/(n - 1) for i in range(n)]
    w = [math.exp(-v*v/2) for v in z]; total = sum(w)
    def f(u):
        y = [act(u[0]*v + (u[1] if len(u) > 1 else 0.)) for v in z]
        mean = sum(a*b for a, b in zip(w, y))/total
        return mean, math.sqrt(sum(a*(b - mean)**2 for a, b in zip(w, y))/total)
    return f

def relu(v, leak=0., sub=0.): return (v if v > 0 else leak*v) - sub

ACTS = {'leaky': lambda v: relu(v, .1, .4), 'tanh': math.tanh, 'relu': relu,
        'softplus': lambda v: math.log1p(math.exp(min(v, 50.)))}

@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(ACTS)), scale=st.floats(.2, 3), shift=st.floats(-1, 1),
       far=st.floats(.2, 5))
def test_what_an_activation_can_give_is_found(name, scale, shift, far):
    f = gaussian(ACTS[name], 201)
    mean, std = f([scale, shift])
    def off(got): return [got[1]/std - 1, (got[0] - mean)/std]
    found = solve(f, off, [far, 0.], 1e-4, others=[[2*std, 0.], [2*std, mean], [2*std, 2*std]])
    assert math.hypot(*off(found.got)) <= 1e-4 and found.count <= 60 and found.got == f(found.u)

def test_one_unknown():
    f = gaussian(relu)
    found = solve(f, lambda got: [got[1]/2 - 1], [1.], 1e-6)
    assert abs(found.got[1] - 2) < 2e-6 and found.count <= 3   # proportional to its scale

def test_a_start_that_is_right_is_kept():
    start, hint = [1., 2.], object()
    found = solve(lambda u: u, lambda got: [got[0] - 1, got[1] - 2], start, 1e-9, hint)
    assert found.u is start and found.count == 1 and found.hint is hint

def test_a_hint_saves_evaluations_and_a_bad_one_does_no_harm():
    f = gaussian(ACTS['leaky'], 401)
    def off(got): return [got[1] - 1, got[0]]
    first = solve(f, off, [.5, .3], 1e-4)
    again = solve(f, off, [.52, .29], 1e-4, first.hint)
    assert again.count < first.count
    for bad in (dict(u=[1e6, -1e6]), dict(jac=[[0., 0.], [0., 0.]])):
        bad = first.hint._replace(**bad)
        assert math.hypot(*off(solve(f, off, [.5, .3], 1e-4, bad).got)) <= 1e-4

@pytest.mark.parametrize('f', [
    lambda u: math.tanh(u[0]), lambda u: 0., lambda u: math.nan, lambda u: math.inf,
    lambda u: math.nan if u[0] > 1 else u[0]])
def test_what_cannot_be_is_not_found_and_it_ends(f):
    found = solve(f, lambda got: [got - 2], [1.], 1e-3, others=[[5.], [50.]])
    assert not abs(found.got - 2) <= 1e-3 and found.count <= 3*45

def test_the_scale_stays_positive():
    seen = []
    def f(u): seen.append(u[0]); return math.log(u[0])
    found = solve(f, lambda got: [got + 9], [1.], 1e-6)
    assert min(seen) > 0 and abs(found.got + 9) <= 1e-6

def test_it_starts_again_elsewhere():
    "Flat where it begins: no slope says where to go."
    found = solve(lambda u: max(u[0] - 3, 0.), lambda got: [got - 1], [1.], 1e-9, others=[[5.]])
    assert found.got == pytest.approx(1, abs=1e-9)

def test_the_nearest_point_is_given_when_none_is_near():
    found = solve(lambda u: u[0]**2 + 1, lambda got: [got], [1.], 1e-3)
    assert found.got == min(found.got, 2.) and found.got >= 1

def test_a_hint_of_another_kind_is_not_used():
    def f(u): a, b = u; return a, b
    hint = solve(lambda u: u[0], lambda got: [got - 1], [2.], 1e-9).hint
    found = solve(f, lambda got: [got[0] - 1, got[1]], [3., 3.], 1e-9, hint)
    assert found.got == pytest.approx((1, 0))

def test_a_beginning_that_was_worse_is_forgotten():
    found = solve(lambda u: 2. if u[0] < 2 else 5., lambda got: [got], [1.], 1e-3, others=[[5.]])
    assert found.got == 2. and found.u == [1.]

def test_pieces():
    search = _Search(lambda u: [2*u[0], u[0]*u[1]], lambda got: [got[0] - 1, got[1]])
    p = search.at([3., 5.])
    assert p.off == [5., 15.] and p.size == pytest.approx(math.hypot(5, 15))
    assert [r for row in _slopes(search, p, (0, 1)) for r in row] == pytest.approx([2, 0, 5, 3])
    assert _Point([1.], None, [math.nan]).size == math.inf
    assert _newton([[0.]], [1.]) is None and _newton([[2., 0.], [0., 4.]], [2., 4.]) == [-1., -1.]
    old, new = _Point([0., 0.], None, [1., 1.]), _Point([1., 0.], None, [3., 2.])
    jac = _broyden([[1., 0.], [0., 1.]], old, new)
    assert [row[0] for row in jac] == [2., 1.]                     # it explains the step
