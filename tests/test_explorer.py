"""The explorer's engine, in a browser, against the numbers that Python wrote into nbs/10c_explorer.

Every number that the page shows is one of these: averages, maps, fixed points, starts, theory and
bands by layer, a net with given weights; and random nets, by their statistics. Then mistakes are
planted in the page, and each of them must be found."""
import bisect, contextlib, io, itertools, json, math, re, statistics

import pytest, torch
from playwright.sync_api import sync_playwright

from conftest import CHROMIUM, ROOT
from instep import read
from notebooks import outputs, text

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')]
PAGE = ROOT/'nbs'/'explorer.html'
MIME = 'application/vnd.initnotes.explorer'

def grids():
    nb = read(ROOT/'nbs'/'10c_explorer.ipynb')
    said, = [text(o['data'][MIME]) for _, o in outputs(nb) if MIME in o.get('data', {})]
    return {k: v for line in said.splitlines() for k, v in json.loads(line).items()}

GRIDS = grids()

@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()

def opened(browser, path):
    page = browser.new_page()
    page.goto(path.as_uri())
    return page

@pytest.fixture(scope='module')
def page(browser): return opened(browser, PAGE)

# ---- the same numbers, from JavaScript -------------------------------------------------------

# Of a table: the page's answer to a row's question. Below, which of its figures are compared
# absolutely, to 1e-6: correlations, logs, and a mean that may be 0; all others as a share.
ASKS = {
    'averages': '(f, q) => { const m = Explorer.moments(f, q); return [m.m1, m.m2, m.d2] }',
    'correlations': '(f, sw, sb, q, cs) => cs.map(c => Explorer.correlation(f, sw, sb, q, c))',
    'fixed': """(f, sw, sb) => { const x = Explorer.fixed(f, sw, sb);
                                return [x.q, x.c, x.chi, x.xi] }""",
    'marks': """f => { const m = Object.fromEntries(Explorer.marks(f).map(m => [m.key, m]));
                       return [m.gain.sw, m.edge.sw, m.edge.sb] }""",
    'edge': '(f, sb) => Explorer.edgeAt(f, sb)',
    'theory': '(...net) => Explorer.theory(state(net)).map(l => [l.q, l.c, l.diff, l.grad])',
    'bands': """(...net) => Explorer.theory(state(net)).map(l => l.band
                  && [l.band.mean, l.band.variance])""",
    'net': """(f, residual) => { const [w, b, x] = WEIGHTS;
              const r = Explorer.run(w.map(w => w.flat()), b, x, f, residual);
              return r.h.map((h, l) => [[...h], [...r.grad[l]]]) }"""}
ABSOLUTE = dict(averages={0}, correlations={*range(5)}, fixed={1}, theory={1}, bands={0})

ASK = """([rows, WEIGHTS]) => { ENGINE
  const state = ([act, sw, sb, depth, width, residual]) =>
    ({act, sw, sb, depth, width, residual});
  return JSON.stringify(rows.map(([asked]) => (ANSWER)(...asked)),
                        (_, v) => v === Infinity ? 'inf' : v) }"""

def figures(answer, at=()):
    "Every figure of an answer, with its place in it."
    if not isinstance(answer, list): yield at, answer
    else:
        for k, a in enumerate(answer): yield from figures(a, (*at, k))

def differences(page, name, engine=''):
    "Where the page's answers, or those of another engine, are not Python's, to 1e-6."
    rows = GRIDS[name]
    asked = ASK.replace('ENGINE', engine).replace('ANSWER', ASKS[name])
    said = json.loads(page.evaluate(asked, [rows, GRIDS['weights']]))
    assert len(said) == len(rows)
    for (asked, known), answer in zip(rows, said):
        a, b = dict(figures(known)), dict(figures(answer))
        if a.keys() != b.keys(): yield f'{name} {asked}: has another shape'
        for at in a.keys() & b.keys():
            if not near(a[at], b[at], name, at, known):
                yield f'{name} {asked}, {at}: Python {a[at]}, page {b[at]}'

def near(x, y, name, at, known):
    if not isinstance(x, float | int) or not isinstance(y, float | int): return x == y
    size = max(abs(x), abs(y))
    if name == 'net': size = max(map(abs, known[at[0]][at[1]]))      # of a layer's largest figure
    elif (at or (0,))[-1] in ABSOLUTE.get(name, ()): size = 1
    return abs(x - y) <= 1e-6*size

@pytest.mark.parametrize('name', ASKS)
def test_page_computes_what_python_computes(page, name):
    assert list(differences(page, name)) == []

def test_tables_hold_what_the_page_knows(page):
    "All activations, and every kind of end."
    acts = page.evaluate('Object.keys(Explorer.ACTIVATIONS)')
    for name in ('averages', 'correlations', 'fixed', 'marks', 'theory', 'bands', 'net'):
        assert {row[0][0] for row in GRIDS[name]} == set(acts)
    assert set(GRIDS) == {*ASKS, 'weights'}

def test_the_band_is_two_standard_deviations_wide(page):
    state = dict(act='tanh', sw=1.2, sb=.1, depth=9, width=32, residual=0)
    for band in page.evaluate('s => Explorer.theory(s).map(l => l.band)', state):
        ends = (band['mean'] + k*math.sqrt(band['variance']) for k in (-2, 2))
        assert [band['lo'], band['hi']] == pytest.approx([math.exp(x) for x in ends], rel=1e-12)

@pytest.mark.parametrize('act', ['relu', 'leaky_relu', 'tanh', 'gelu', 'silu', 'mish', 'selu'])
def test_edge_curve(page, act):
    "Its points are those that `edgeAt` finds, one by one."
    curve = page.evaluate('act => Explorer.edgeCurve(act)', act)
    if 'relu' in act:
        gain = page.evaluate('act => Explorer.edgeAt(act, 0)', act)
        assert [sw for sw, _ in curve] == pytest.approx([gain]*2, rel=1e-9)
        return
    for sw, sb in curve[2::len(curve)//5]:
        assert page.evaluate('([a, sb]) => Explorer.edgeAt(a, sb)', [act, sb]) == pytest.approx(sw, rel=1e-5)
    assert curve[-1][1] > 1.25           # as far as the page draws it

# ---- nets drawn at random --------------------------------------------------------------------

STATES = [dict(act='tanh', sw=1.6, sb=.3, depth=8, width=32, residual=0),
          dict(act='gelu', sw=1.5, sb=.2, depth=6, width=64, residual=0),
          dict(act='relu', sw=1., sb=.2, depth=8, width=32, residual=1)]

def nets(page, state, n=200, engine=''):
    "The theory's layers, and of n nets each quantity by net and layer."
    return page.evaluate(f'([s, n]) => {{ {engine}'
                         'return [Explorer.theory(s), Explorer.simulate(s, n)] }',
                         [state | dict(seed=5), n])

def astray(page, engine=''):
    """Where 200 nets are not where theory has them: within five standard errors.

    ln q against the band; of differences and gradients the mean, which is the theory's up to parts
    in the width; the last layer's gradient is 1."""
    for state in STATES:
        theory, found = nets(page, state, engine=engine)
        for l in (0, 1, state['depth'] - 1):
            band, logs = theory[l]['band'], [math.log(x['q'][l]) for x in found]
            m, var = statistics.fmean(logs), statistics.variance(logs)
            if abs(m - band['mean']) > 5*math.sqrt(var/200): yield state['act'], l, 'mean', m
            if abs(var/band['variance'] - 1) > 5*math.sqrt(2/200): yield state['act'], l, 'var', var
            for what in ('diff', 'grad'):
                xs, known = [x[what][l] for x in found], theory[l][what]
                far = 5*statistics.stdev(xs)/math.sqrt(200) + .02*known
                if not abs(statistics.fmean(xs) - known) <= far: yield state['act'], l, what

def test_two_hundred_nets_are_where_theory_has_them(page):
    assert list(astray(page)) == []

def test_random_numbers(page):
    "Moments; nothing left of a number in a later one, or in another stream."
    n, draw = 50_000, """([seed, net, n]) => {
        const z = Explorer.random(seed, net); return Array.from({length: n}, z) }"""
    streams = torch.tensor([page.evaluate(draw, [*at, n]) for at in ((0, 0), (0, 1), (1, 0))])
    for power, known, var in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert ((streams**power).mean(1) - known).abs().max() < 5*math.sqrt(var/n)
    for lag in (1, 2, 64):
        assert (streams[:, lag:]*streams[:, :-lag]).mean(1).abs().max() < 5/math.sqrt(n - lag)
    for a, b in itertools.combinations(streams, 2):
        assert abs((a*b).mean()) < 5/math.sqrt(n)
    again = page.evaluate(draw, [0, 1, 9])
    assert torch.equal(torch.tensor(again), streams[1][:9])

def test_nets_compute_in_single_precision(page):
    "A sum of 1 and 63 times 3e-8 is 1, number by number, and so is what comes back."
    n, small = 64, 3e-8
    w = [[1.] + [small]*(n - 1) if j == 0 else [0.]*n for j in range(n)]
    flat = [x for row in w for x in row]
    asked = [[flat], [[0.]*n], [1.]*n, 'relu']
    assert page.evaluate('a => Explorer.run(...a).h[1][0]', asked) == 1
    turned = [x for column in zip(*w) for x in column]
    assert page.evaluate('a => Explorer.run(...a).grad[0][0]', [[turned], *asked[1:]]) == 1

def test_overflow_and_underflow(page):
    "They happen within four layers of where the theory's rms leaves single precision."
    up = dict(act='selu', sw=4., sb=.1, depth=100, width=32, residual=0)
    theory, (net,) = nets(page, up, 1)
    lost = next(l for l, q in enumerate(net['q']) if not math.isfinite(q or math.nan))
    assert abs(lost - next(l for l, x in enumerate(theory) if x['q']**.5 > 3.4e38)) <= 4
    down = dict(act='relu', sw=.02, sb=0., depth=60, width=32, residual=0)
    theory, (net,) = nets(page, down, 1)
    assert abs(net['q'].index(0) - next(l for l, x in enumerate(theory) if x['q']**.5 < 1e-45)) <= 4
    assert net['grad'][0] == 0 and net['diff'][-1] == 0

# ---- words and programs ----------------------------------------------------------------------

NUMBER = r'([\d.]+)(?:·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?'

def value(m):
    raised = str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789')
    return float(m[0])*10.**int((m[1] or '0').translate(raised))

@pytest.mark.parametrize('net, known', GRIDS['theory'], ids=lambda x: str(x[0]))
def test_the_sentence_says_what_python_computes(page, net, known):
    said = page.evaluate("""([act, sw, sb, depth, width, residual]) => {
        const s = {act, sw, sb, depth, width, residual};
        return Explorer.verdict(s, Explorer.theory(s)) }""", net)
    (q, c, _, g), (p, d, _, _) = known[0], known[-1]
    grows, back = map(value, re.findall(rf'mean square × {NUMBER}', said))
    assert grows == pytest.approx(p/q, rel=.06) and back == pytest.approx(g, rel=.06)
    end = re.search(r'correlation (\S+) → (.*?)\)', said)
    assert float(end[1]) == c
    assert d > .9995 if end[2] == 'nearly 1' else abs(float(end[2]) - d) < .0006
    size = ['vanishes', 'shrinks', 'keeps its size', 'grows', 'explodes']
    where = [bisect.bisect([1e-3, .1, 10, 1e3], x) for x in (p/q, g)]
    assert f'The signal {size[where[0]]} ' in said and f'the gradient {size[where[1]]} ' in said
    apart = ['become alike', 'grow more alike', 'stay as different as they were',
             'are driven apart']
    assert f'two inputs {apart[bisect.bisect([.1, .8, 1.25], (1 - d)/(1 - c))]} ' in said

PROGRAMS = [('tanh', 'torch', 0), ('tanh', 'lecun', 0), ('gelu', 'kaiming', 1), ('tanh', 'gain', 0),
            ('tanh', 'edge', 0), ('selu', None, 1)]

@pytest.mark.parametrize('act, key, residual', PROGRAMS)
def test_the_program_makes_such_nets(page, act, key, residual):
    "Of sixteen runs of the program, the mean ln q of the last layer is in the middle of the band."
    state, program, layers = page.evaluate("""([act, key, residual]) => {
        const {sw, sb} = Explorer.marks(act, 32).find(m => m.key === key) ?? {sw: .7, sb: .3};
        const s = {act, sw, sb, depth: 6, width: 32, residual};
        return [s, Explorer.python(s), Explorer.theory(s)] }""", [act, key, residual])
    logs, code = [], compile(program, 'explorer.html', 'exec')
    for k in range(16):
        torch.manual_seed(k)
        with contextlib.redirect_stdout(io.StringIO()) as out: exec(code, {})
        logs.append(math.log(float(out.getvalue())))
    band = layers[-1]['band']
    assert abs(statistics.fmean(logs) - band['mean']) < 5*math.sqrt(band['variance']/16)
    assert key not in ('gain', 'edge') or f"start='{key}'" in program

# ---- mistakes are found ----------------------------------------------------------------------

GELU_BY_TANH = '.5 * x * (1 + Math.tanh(sqrt(2 / PI) * (x + .044715 * x ** 3)))'
FAULTS = [   # what is written, in place of what, and the table that has to notice
    ('variance for std', 'sw * sw * square(act, q)', 'sw * square(act, q)', 'theory'),
    ('variance for std, in χ', 'sw * sw * slopes(', 'sw * slopes(', 'fixed'),
    ('variance for std, biases', 'square(act, q) + sb * sb', 'square(act, q) + sb', 'correlations'),
    ('a dropped bias', 'square(act, q) + sb * sb', 'square(act, q)', 'correlations'),
    ('a dropped bias, in a net', 'sum = fround(sum + fround(biases[l][j]));', '', 'net'),
    ('GELU by tanh', 'f: x => x * normal(x)', f'f: x => {GELU_BY_TANH}', 'averages'),
    ('GELU by tanh, in a net', 'f: x => x * normal(x)', f'f: x => {GELU_BY_TANH}', 'net'),
    ("half of GELU's slope", 'normal(x) + x * density(x)', 'normal(x)', 'averages'),
    ("the leaky ReLU's slope", 'x : .01 * x', 'x : .1 * x', 'averages'),
    ("the leaky ReLU's slope, back", '1 : .01', '1 : 0', 'net'),
    ("a digit of SELU's scale", '1.05070098', '1.05070198', 'averages'),
    ('Mish of e²ˣ', 'm = e * (e + 2)', 'm = e * e', 'averages'),
    ('f for its slope', 'const {df} = ACTIVATIONS[act], gs', 'const {f: df} = ACTIVATIONS[act], gs',
     'net'),
    ('a transposed matrix', 'w[j * n + i] * a[i]', 'w[i * n + j] * a[i]', 'net'),
    ('a matrix not transposed', 'w[j * n + i] * after[j]', 'w[i * n + j] * after[j]', 'net'),
    ('a stream without its past', 'residual ? fround(hs[l][j] + sum) : sum', 'sum', 'net'),
    ('a gradient without the stream', 'residual ? fround(after[i] + through) : through', 'through',
     'net'),
    ('mean square for rms', 'meanSquareOf(ACTIVATIONS[act].f, sqrt(q))',
     'meanSquareOf(ACTIVATIONS[act].f, q)', 'correlations'),
    ('too few points', 'legendre(10)', 'legendre(4)', 'averages'),
    ('too few points for two', 'legendre(10)', 'legendre(6)', 'correlations'),
    ('a corner inside a panel', 'corner = Math.atan2(A, B)', 'corner = .9 * Math.atan2(A, B)',
     'correlations'),
    ('panels that end too early', 'left < 10;', 'left < 4;', 'averages'),
    ('no finer panels', 'min(1.5, max(1.5 / scale, left), 10 - left)', 'min(1.5, 10 - left)',
     'averages'),
    ('the length at the edge', '-1 / log(slope)', '1 / abs(1 - slope)', 'fixed'),
    ('where the length only balances', '< 1 + 1e-6 ? 1 : null', '< 9 ? 1 : null', 'fixed'),
    ('half a crossing', 'low = 0;', 'low = .5;', 'fixed'),
    ('the gradient of the layer behind', 'next(1, layers[l].chi)',
     'next(1, layers[l + 1].chi)', 'theory'),
    ('a factor too many', 'if (l < depth - 1) grad', 'grad', 'theory'),
    ('half the difference', 'diff = 2 * q0 * (1 - c0)', 'diff = q0 * (1 - c0)', 'theory'),
    ('a stream that forgets differences', 'next(diff, difference(', 'next(0, difference(', 'theory'),
    ('a band without 1/n', 'part * part * u + 2 / n', 'part * part * u', 'bands'),
    ('a band that is too wide for its curve', 'variance <= 1 || straight', 'true', 'bands'),
    ('a stream without memory', 'r ** j * (', '0 * (', 'bands'),
    ('a gain of 1/E f²', 'sw: 1 / sqrt(square(act, 1))', 'sw: 1 / square(act, 1)', 'marks'),
    ('an edge where lengths halve late', 'p.slope <= .5', 'p.slope <= .4', 'marks'),
    ('an edge of other biases', 'b = sb * sb, first', 'b = sb, first', 'edge')]

# In what is drawn: only statistics can tell.
WEAK = [('variance for std', 'sw / sqrt(n)', 'sw * sw / sqrt(n)'),
        ('n for √n', 'sw / sqrt(n)', 'sw / n'),
        ('no biases', 'draws(n, sb, normal)', 'draws(n, 0, normal)'),
        ('uniform in place of normal', 'const r = sqrt(-2 * log(uniform()))', 'const r = 1.414'),
        ('a twin that is too near', 'c0 * x[i]', 'x[i]'),
        ('the same weights in every net', 'b = net | 0', 'b = 0'),
        ('the same weights in every layer', 'weights.push(draws(n * n, sw / sqrt(n), normal))',
         'weights.push(weights[0] ?? draws(n * n, sw / sqrt(n), normal))')]

def planted(old, new):
    "The page's engine with a mistake in it, for use inside a function."
    text = PAGE.read_text(encoding='utf-8')
    engine = re.search(r'<script id="engine">(.*?)</script>', text, re.S)[1]
    assert old in engine
    return ';' + engine.replace(old, new)      # strict mode cannot begin within such a function

@pytest.mark.parametrize('old, new, table', [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_mistake_is_found(page, old, new, table):
    assert any(differences(page, table, planted(old, new)))

@pytest.mark.parametrize('old, new', [f[1:] for f in WEAK], ids=[f[0] for f in WEAK])
def test_a_planted_mistake_in_what_is_drawn_is_found(page, old, new):
    assert any(astray(page, planted(old, new)))
