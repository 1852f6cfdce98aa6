"The numbers from which every check has its threshold: against draws, and against known cases."
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats

from initnotes.core import P_FIVE
from initnotes.report import InputError
from initnotes.thresholds import (
    MATERIAL, allowed, errors, first_loss, freezing, scale_se, silent)

def generator(seed): return torch.Generator().manual_seed(seed)

def test_the_one_empirical_constant():
    "Six correlation lengths: a small difference, squared, has shrunk by e⁶."
    assert MATERIAL == 6

@pytest.mark.parametrize('tests', [1, 2, 10, 1000, 10**6])
def test_errors_share_one_chance_among_all_tests(tests):
    assert 2*scipy_stats.norm.sf(errors(tests))*tests == pytest.approx(P_FIVE, rel=1e-6)

def test_one_test_is_allowed_five_errors_and_more_tests_are_allowed_more():
    assert errors() == errors(1) == pytest.approx(5, abs=1e-9)
    many = [errors(n) for n in (1, 10, 100, 1000)]
    assert many == sorted(many) and 5.4 < errors(10) < 5.5 and errors(1000) < 6.3

@pytest.mark.parametrize('se, tests, expected', [
    (0., 1, 6.), (1., 1, 6.), (1.2, 1, 6.), (1.3, 1, 6.5), (2., 1, 10.), (1.2, 100, None)])
def test_a_drift_is_material_and_significant(se, tests, expected):
    "The larger of the two, and not their sum."
    expected = errors(tests)*se if expected is None else expected
    assert allowed(se, tests) == pytest.approx(expected)
    assert se == 0 or max(6, 4.99*se) < allowed(se, tests) + 1e-9 < 6 + 5*se

@pytest.mark.parametrize('name, draw, kurtosis', [
    ('normal', lambda g, *s: torch.randn(*s, generator=g, dtype=torch.float64), 3.),
    ('uniform', lambda g, *s: torch.rand(*s, generator=g, dtype=torch.float64) - .5, 1.8),
    ('sign', lambda g, *s: torch.randint(2, s, generator=g).double() - .5, 1.)])
def test_scale_se_is_the_std_of_the_log_of_a_measured_std(name, draw, kurtosis):
    logs = draw(generator(0), 4000, 400).square().mean(1).sqrt().log()
    expected = scale_se(kurtosis, 400)
    assert logs.std().item() == pytest.approx(expected, rel=5/math.sqrt(2*4000) + .01, abs=1e-12)

def draws_of_a_layer(cosine, batch, units, g):
    "What enters the ReLUs of a layer on inputs of one cosine, drawn through weights."
    gram = (1 - cosine)*torch.eye(batch) + cosine*torch.ones(batch, batch)
    x = torch.linalg.cholesky(gram.double())         # rows: unit inputs of that cosine
    return x @ torch.randn(batch, units, generator=g, dtype=torch.float64)

@pytest.mark.parametrize('cosine, batch', [
    (.0, 3), (.3, 1), (.3, 8), (.6, 2), (.9, 16), (.9, 64), (.99, 256), (.9999, 64)])
def test_silent_counts_the_silent_units_of_a_drawn_layer(cosine, batch):
    n = 60_000
    entering = draws_of_a_layer(cosine, batch, n, generator(batch))
    share = (entering <= 0).all(0).double().mean().item()
    p = silent(cosine, batch)
    assert abs(share - p) <= 5*math.sqrt(p*(1 - p)/n)

@pytest.mark.parametrize('cosine', [-.5, 0., 1e-12, .1, .5, .9, .99, 1 - 1e-10, 1.])
def test_silent_in_the_cases_that_are_known(cosine):
    assert silent(cosine, 1) == pytest.approx(.5, abs=1e-6)              # one input: half
    two = .25 + math.asin(max(cosine, 0))/(2*math.pi)                    # Sheppard 1899
    assert silent(cosine, 2) == pytest.approx(two, abs=2e-5)
    three = .125 + 3*math.asin(max(cosine, 0))/(4*math.pi)
    assert silent(cosine, 3) == pytest.approx(three, abs=3e-5)

def test_silent_where_half_of_the_variance_is_shared():
    "Then the shared part is one more of B + 1 equal draws, and it must be the lowest: 1/(B + 1)."
    for batch in (1, 2, 9, 99, 4095): assert silent(.5, batch) == pytest.approx(1/(batch + 1))

@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 300))
def test_silent_rises_with_the_cosine_and_falls_with_the_batch(a, b, batch):
    low, high = sorted((a, b))
    assert -1e-9 <= silent(low, batch) <= silent(high, batch) + 1e-6 <= .5 + 2e-6
    assert silent(a, batch + 1) <= silent(a, batch) + 1e-6

@pytest.mark.parametrize('classes, std', [(10, 0.), (10, .5), (1000, 1.), (50257, 1.5)])
def test_first_loss_is_that_of_normal_logits(classes, std):
    g, each = generator(classes), []
    for _ in range(20):
        z = std*torch.randn(100, classes, generator=g, dtype=torch.float64)
        targets = torch.randint(classes, (100,), generator=g)
        each.append(F.cross_entropy(z, targets, reduction='none'))
    each = torch.cat(each)
    bias = (math.exp(std**2) - 1)/2/classes      # of the log of a sum of so many
    expected = first_loss(classes, std)
    se = each.std().item()/math.sqrt(2000)
    assert abs(each.mean().item() - expected) <= 5*se + 1.5*bias + 1e-12
    assert first_loss(classes, 0) == math.log(classes)

@pytest.mark.parametrize('n', [1000, 50257])
def test_freezing_is_where_the_choice_is_made(n):
    """Below it the entropy of a softmax of normal logits is ln n − s²/2; above it a few are left:
    at twice that std an entropy of ψ(1) − ψ(½) = 2 ln 2 for n → ∞ (Derrida's energies)."""
    s = freezing(n)
    assert first_loss(n, s) == pytest.approx(2*math.log(n))
    z = torch.randn(40, n, generator=generator(n), dtype=torch.float64)
    def entropy(std):
        p = (std*z).softmax(1)
        return -(p*(p + 1e-300).log()).sum(1).mean().item()
    assert entropy(s/2) == pytest.approx(.75*math.log(n), rel=.03)
    assert entropy(2*s) < 2*math.log(2)

def test_freezing_of_nothing_to_choose(): assert freezing(1) == 0

@pytest.mark.parametrize('call, said', [
    (lambda: errors(0), 'tests is 0'), (lambda: errors(math.nan), 'tests is nan'),
    (lambda: allowed(-1.), 'se is -1.0'), (lambda: allowed(math.nan), 'se is nan'),
    (lambda: silent(1.5, 4), 'cosine is 1.5'), (lambda: silent(math.nan, 4), 'cosine is nan'),
    (lambda: silent(.5, 0), 'batch is 0'), (lambda: freezing(0), 'n is 0'),
    (lambda: first_loss(0, 1.), 'classes is 0'), (lambda: scale_se(3., 0), 'n is 0')])
def test_bad_input(call, said):
    with pytest.raises(InputError, match=said): call()
