"The audit as a whole: its report, what it is given, what it leaves alone."
import copy, functools, html, importlib, json, math, pickle, subprocess, sys, time

import pytest, torch
from torch import nn
import torch.nn.functional as F

import initnotes as ini
from initnotes.audit import AuditReport, Finding
from initnotes.evidence import Skipped
from conftest import hooks_on

SEED = 0
module = importlib.import_module('initnotes.audit')   # the name in the package is the function's

def finding(check='forward', severity='error', layer='0', **more):
    said = dict(measured=3.1e5, predicted=1., se=.2, message='It explodes.', fix='ini.init_(model)',
                lesson='05_kaiming') | more
    return Finding(check=check, severity=severity, layer=layer, **said)

def net(*sizes, act=nn.ReLU):
    return nn.Sequential(*[m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), act())])

def healthy():
    model = net(16, 16, 16, 4)
    ini.init_(model)
    return model

def x(): return torch.randn(32, 16)

@pytest.fixture
def checks(monkeypatch):
    "The checks, to be set by the test: a dict of functions by id."
    planted = {}
    monkeypatch.setattr(module, 'CHECKS', planted)
    return planted

# ---- names -----------------------------------------------------------------------------------

ORDERS = [
    'import initnotes', 'import initnotes.audit', 'from initnotes.audit import Finding',
    'from initnotes.all import *', 'import initnotes.all', 'from initnotes import audit',
    'import initnotes.audit as a', 'import importlib; importlib.import_module("initnotes.audit")',
    'import initnotes.__main__', 'import initnotes.evidence, initnotes.chain']

@pytest.mark.slow
def test_the_name_is_the_functions_whatever_is_imported_first():
    "In a fresh process, which forgets the package before each order."
    code = f"""
import sys
for first in {ORDERS}:
    for name in [m for m in sys.modules if m.split('.')[0] == 'initnotes']: del sys.modules[name]
    own = {{}}
    exec(first, own)
    assert callable(own.get('audit', print)), first
    import initnotes, initnotes.audit
    from initnotes.audit import Finding, audit, AuditReport, assert_healthy
    from initnotes.evidence import Finding as same
    import initnotes.all, initnotes.__main__
    from initnotes import audit as third
    assert initnotes.audit is audit is third is initnotes.all.audit and callable(audit), first
    assert Finding is same is initnotes.Finding and initnotes.AuditReport is AuditReport, first
    assert initnotes.assert_healthy is assert_healthy is initnotes.all.assert_healthy, first
    assert sys.modules['initnotes.audit'].audit is audit, first
"""
    subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)

# ---- the report ------------------------------------------------------------------------------

def test_rows_are_sorted_and_hold_all_of_a_finding():
    found = [finding('scale', 'info'), finding('tied', 'warning', 'head.weight'), finding()]
    report = AuditReport(found, kinds={'0': 'Linear', 'head': 'Embedding'})
    assert [r['severity'] for r in report] == ['error', 'warning', 'info']
    assert [f.severity for f in report.findings] == ['error', 'warning', 'info']
    assert report[1] == dict(name='head.weight', kind='Embedding', why=None, note=None,
                             **vars(found[1]))

def test_gates():
    warned = AuditReport([finding(severity='warning'), finding(severity='info')])
    assert not warned.ok() and not warned.ok('warning') and warned.ok('error')
    assert AuditReport([finding(severity='info')]).ok() and AuditReport().ok('error')
    assert not AuditReport([finding()]).ok('error')
    for gate in ('info', 'never', None):
        with pytest.raises(ini.InputError, match='fail_on'): warned.ok(gate)

STRANGE = 'a < b | c\nand `d` & <script>alert(1)</script> ' + 'word '*60

def strange():
    name = 'encoder.'*20 + 'weight'
    return AuditReport(
        [finding(layer=name, message=STRANGE, fix='x = 1\nini.init_(model)'),
         finding('x', 'info', measured='uniform '*9, predicted=None, se=None, fix='', lesson='')],
        [Skipped('tied', '(model)', 'no <loss>'), Skipped('scale', name, 'word '*50)])

def test_terminal_is_100_columns_wide_and_holds_all():
    text = str(strange())
    assert max(map(len, text.splitlines())) <= 100
    table = text.splitlines()[1:4]
    assert '…' in table[1] and '…' in table[2]
    flat = ''.join(text.split())
    assert ''.join(STRANGE.split()) in flat and 'encoder.'*20 in flat
    assert '        x = 1\n        ini.init_(model)\n' in text
    assert 'tied: no <loss>' in text and repr(strange()) == text

def test_markdown_escapes_cells_and_fences_code():
    text = strange().to_markdown()
    assert '```python\nx = 1\nini.init_(model)\n```' in text and 'no <loss>' in text
    assert len({row.count('|') - row.count('\\|') for row in text.splitlines()
                if row.startswith('|')}) == 1

def test_html_escapes_everything():
    text = strange().to_html()
    assert '<script>' not in text and html.escape(STRANGE) in text and 'no &lt;loss&gt;' in text
    assert '<pre><code>x = 1\nini.init_(model)</code></pre>' in text

def test_json_is_json():
    report = AuditReport([finding(measured=math.inf, se=math.nan)], [Skipped('a', 'b', 'c')],
                         dict(model='M', chain=[dict(layer='0', signal=math.nan)]))
    def fail(word): raise AssertionError(word)
    found = json.loads(report.to_json(), parse_constant=fail)
    assert found['findings'][0]['measured'] == 'inf' and found['findings'][0]['se'] is None
    assert found['skipped'] == [dict(check='a', layer='b', reason='c')]
    assert found['measured']['model'] == 'M' and found['measured']['chain'][0]['signal'] is None

def test_many_alike_get_three_paragraphs():
    report = AuditReport([finding('scale', 'info', f'{i}.weight', fix=f'fix({i})')
                          for i in range(9)] + [finding()])
    text = str(report)
    assert text.count('scale · ') == 3 and text.count('fix(') == 3 and 'fix(2)' in text
    assert "6 more of 'scale': 5–10 in the table" in ' '.join(text.split())
    assert [r for r in text.splitlines() if r.startswith('10 ')]

def test_a_healthy_report_says_what_was_looked_at_and_what_not():
    report = AuditReport([], [Skipped('tied', '(model)', 'no loss was given'),
                              Skipped('initial-loss', '(model)', 'no loss was given')],
                         dict(model='Net', parameters=1, layers=3, inputs=8, checks=['forward']))
    for text in (str(report), report.to_markdown(), report.to_html()):
        assert 'Net: nothing found' in text and 'tied, initial-loss: no loss was given' in text
        assert '1 parameter, 3 layers, 8 inputs; 1 check: forward' in text

def test_infos_alone_are_no_fault():
    assert str(AuditReport([finding(severity='info')])).startswith(
        'The model: no errors, no warnings, 1 info\n')

def test_an_empty_report_is_honest():
    assert 'nothing that could be measured; 0 checks: none' in str(AuditReport())

def test_a_report_outlives_its_model():
    report = ini.audit(healthy, x())
    for other in (pickle.loads(pickle.dumps(report)), copy.deepcopy(report)):
        assert type(other) is AuditReport and str(other) == str(report)
        assert other.findings == report.findings and other.skipped == report.skipped

# ---- the checks are asked --------------------------------------------------------------------

def test_what_breaks_is_skipped_and_the_rest_goes_on(checks):
    def broken(e):
        yield finding(layer='0')
        raise KeyError('where')
    def fine(e): yield finding('fine', layer='2')
    checks |= dict(broken=[broken], fine=[fine])
    report = ini.audit(healthy(), x())
    assert {f.layer for f in report.findings} == {'0', '2'}
    skip, = report.skipped
    assert skip.check == 'broken' and "KeyError: 'where' (test_audit.py, line" in skip.reason
    assert report.looked['checks'] == ['fine']

def test_two_functions_of_one_id(checks):
    def one(e): yield Skipped('both', '(model)', 'nothing to see')
    def other(e): yield finding('both')
    checks['both'] = [one, other]
    report = ini.audit(healthy(), x())
    assert len(report) == len(report.skipped) == 1 and report.looked['checks'] == ['both']

def test_every_check_of_the_modules_is_asked():
    from initnotes import outputs, signals, weights
    for part in (weights, signals, outputs):
        for check, look in part.CHECKS.items(): assert look in module.CHECKS[check], check

def test_allow(checks):
    def some(e):
        for layer in ('0.weight', '2.weight', '(model)'): yield finding('scale', 'warning', layer)
    checks |= {'scale': [some], 'mean': [lambda e: [finding('mean', 'info')]]}
    def layers(allow): return [f.layer for f in ini.audit(healthy(), x(), allow=allow).findings
                               if f.check == 'scale']
    assert layers(()) == ['0.weight', '2.weight', '(model)']
    assert layers('scale') == layers(['scale']) == layers(['s*']) == []
    assert layers(['scale:0.*', 'mean']) == ['2.weight', '(model)']
    assert layers(['mean:0.*', 'scale:(model)']) == ['0.weight', '2.weight']
    report = ini.audit(healthy(), x(), allow=['scale:0.*'])
    assert report.skipped == [Skipped('scale', '0.weight', "found, and allowed by 'scale:0.*'")]
    assert 'scale' in report.looked['checks']
    for wrong in ('scael', ['scale', 'scael:0'], [3], ':0', ''):
        with pytest.raises(ini.InputError, match='allow has .*scale, mean'):
            ini.audit(healthy(), x(), allow=wrong)

def test_where_and_exclude(checks):
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 4))
    names = [n or '(model)' for n, _ in model.named_modules()] + \
        [n for n, _ in model.named_parameters()]
    checks['all'] = [lambda e: [finding('all', layer=n) for n in names]]
    def found(**how): return {f.layer for f in ini.audit(model, x(), **how).findings} - {'(model)'}
    assert found() == set(names) - {'(model)'}
    assert found(where='1') == {'1', '1.weight', '1.bias'}
    assert found(where='0') == {n for n in names if n.startswith('0')}
    assert found(where=nn.Linear) == {'0.0', '0.0.weight', '0.0.bias', '1', '1.weight', '1.bias'}
    assert found(exclude='0') == {'1', '1.weight', '1.bias'}
    assert found(where=nn.Linear, exclude='0.*') == {'1', '1.weight', '1.bias'}
    for how in (dict(where='2'), dict(exclude='2'), dict(where='1', exclude='1')):
        with pytest.raises(ini.InputError, match='expected some of'): ini.audit(model, x(), **how)

# ---- what it is given ------------------------------------------------------------------------

class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, 4)
        ini.init_(self)
    def forward(self, x, *, scale=1): return self.b(self.a(x).relu())*scale

def loss(out): return F.cross_entropy(out, torch.zeros(len(out), dtype=torch.long))

@pytest.mark.parametrize('make', [
    Net, lambda: Net(), functools.partial(Net, width=16), Net(), functools.partial(Net(), scale=2),
    nn.DataParallel(Net()), torch.compile(Net(), backend='eager'), Net().eval()],
    ids='class function partial model model-partial parallel compiled evaluating'.split())
def test_models_and_factories(make):
    report = ini.audit(make, x(), loss=loss)
    assert report.looked['model'] == 'Net' and report.looked['parameters'] == 4
    assert report.looked['layers'] >= 2 and report.looked['inputs'] == 32 and report.ok(), report

@pytest.mark.parametrize('batch', [x(), (x(),), [x()], dict(x=x(), scale=2)])
@pytest.mark.parametrize('more', [(), (loss,)])
def test_a_factory_may_bring_its_batch(batch, more, checks):
    given = []
    checks['look'] = [lambda e: given.append(e) or ()]
    ini.audit(lambda: (Net(), batch, *more))
    e, = given
    assert e.flow.items == 32 and (e.loss is loss) == bool(more)
    assert e.kwargs.get('scale') == (2 if isinstance(batch, dict) else None)
    ini.audit(lambda: (Net(), batch, *more), torch.randn(8, 16), loss=abs if not more else loss) \
        if more else ini.audit(lambda: (Net(), batch), torch.randn(8, 16))
    assert given[1].flow.items == 8 and 'scale' not in given[1].kwargs

@pytest.mark.parametrize('ask, words', [
    (lambda: ini.audit(Net(), torch.randn(8, 3)), r'Net does not run .*\(8, 3\).*8x3 and 16x16'),
    (lambda: ini.audit(Net(), torch.ones(8, 16).long()), 'Net does not run .*int64'),
    (lambda: ini.audit(Net(), x(), loss=lambda out: out), r'loss gave .*\(32, 4\).*a scalar'),
    (lambda: ini.audit(Net(), x(), loss=lambda out: 'low'), 'loss gave str.*a scalar'),
    (lambda: ini.audit(Net(), x(), loss=3.), 'loss is float.*a function'),
    (lambda: ini.audit(lambda: 1/0, x()), 'ZeroDivisionError'),
    (lambda: ini.audit(lambda: None, x()), 'NoneType'),
    (lambda: ini.audit(lambda: (Net(), x(), loss, 4)), 'a tuple of 4'),
    (lambda: ini.audit(3, x()), 'model is int'),
    (lambda: ini.audit(nn.ReLU(), x()), 'ReLU has no parameters'),
    (lambda: ini.audit(Net()), 'batch is missing'),
    (lambda: ini.audit(Net), 'batch is missing'),
    (lambda: ini.audit(Net(), torch.empty(0, 16)), 'empty tensor'),
    (lambda: ini.audit(nn.LazyLinear(3), x()), 'no shape yet'),
    (lambda: ini.audit(Net().to('meta'), x()), 'meta device')])
def test_bad_input_is_said_in_a_sentence(ask, words):
    with pytest.raises(ini.InputError, match=f'(?s){words}'): ask()

def everything(model):
    return [{k: v.clone() for k, v in model.state_dict().items()},
            [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()],
            [p.grad is None for p in model.parameters()], hooks_on(model),
            torch.get_rng_state(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled()]

def same(a, b):
    if isinstance(a, dict): return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

@pytest.mark.parametrize('fails', [False, True])
def test_nothing_changes(fails):
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(.5),
                          nn.Linear(16, 4))
    model[0].bias.requires_grad_(False)
    model[4].eval()
    before = everything(model)
    if fails:
        with pytest.raises(ini.InputError): ini.audit(model, x()[:, :3], loss=loss)
        torch.set_rng_state(before[5])                     # x was drawn
    else:
        given = x()
        torch.set_rng_state(before[5])
        ini.audit(model, given, loss=loss)
    assert all(map(same, before, everything(model)))

def test_nothing_changes_whatever_a_check_does(checks):
    def rude(e):
        e.model.eval()
        with torch.no_grad():
            e.model[0].weight.mul_(2)
            e.model[1].running_mean.add_(torch.rand(16))
        return ()
    checks['rude'] = [rude]
    model, given = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)), x()
    before = everything(model)
    assert not ini.audit(model, given).skipped
    assert all(map(same, before, everything(model)))

def test_a_factory_leaves_the_random_state():
    given, state = x(), torch.get_rng_state()
    ini.audit(Net, given)
    assert torch.equal(state, torch.get_rng_state())

def test_no_check_fails_on_ordinary_models():
    tower = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Linear(8*36, 4))
    gru = nn.GRU(16, 16, batch_first=True)
    embed = nn.Sequential(nn.Embedding(20, 16), nn.Flatten(), nn.Linear(80, 4))
    for model, given in [(net(16, 8, 4), x()), (conv, torch.randn(8, 3, 8, 8)),
                         (tower, torch.randn(4, 5, 16)), (gru, torch.randn(4, 5, 16)),
                         (embed, torch.randint(20, (8, 5))), (net(16, 8, 4), x()[:1])]:
        for asked in (None, lambda out: (out if torch.is_tensor(out) else out[0]).square().mean()):
            report = ini.audit(model, given, loss=asked)
            assert not [s for s in report.skipped if 'the check failed' in s.reason], report

# ---- in tests --------------------------------------------------------------------------------

def test_assert_healthy(checks):
    severity = ['warning']
    checks['sick'] = [lambda e: [finding('sick', severity[0])]]
    with pytest.raises(AssertionError, match=r'(?s)sick.*ini\.init_'): ini.assert_healthy(Net, x())
    assert type(ini.assert_healthy(Net, x(), fail_on='error')) is AuditReport
    assert ini.assert_healthy(Net, x(), allow='sick').findings == []
    severity[:] = ['info']
    assert len(ini.assert_healthy(Net, x())) == 1
    severity[:] = ['error']
    with pytest.raises(AssertionError): ini.assert_healthy(Net, x(), fail_on='error')
    with pytest.raises(ini.InputError, match='An info never'):
        ini.assert_healthy(Net, x(), fail_on='info')

# ---- the picture and the bar -----------------------------------------------------------------

def test_plot():
    import matplotlib
    matplotlib.use('Agg')
    rows = [dict(layer=f'{i}', signal=i*math.log(10), signal_low=-6., signal_high=6.,
                 gradient=None if i else 1., apart=-1.) for i in range(4)]
    report = AuditReport([finding(layer='3.weight'), finding('mean', 'info', '3'),
                          finding('similarity', 'warning', '1'), finding(layer='elsewhere')],
                         [], dict(chain=rows))
    axes = report.plot()
    assert len(axes) == 3
    line, mark = axes[0].lines
    assert list(line.get_ydata()) == pytest.approx([0, 1, 2, 3])        # powers of ten
    assert list(mark.get_xdata()) == [3, 3] and mark.get_color() == 'C3'
    assert [t.get_text() for t in axes[0].texts] == ['forward, mean']
    top = axes[0].collections[0].get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(6/math.log(10))
    assert math.isnan(axes[1].lines[0].get_ydata()[1]) and len(axes[1].lines) == 1
    assert axes[2].lines[1].get_color() == 'C1' and axes[2].texts[0].get_text() == 'similarity'
    with pytest.raises(ini.InputError, match='nothing was measured'): AuditReport().plot()
    matplotlib.pyplot.close('all')

class Terminal:
    "A standard error that says it is one."
    def __init__(self): self.text = ''
    def write(self, text): self.text += text
    def flush(self): pass
    def isatty(self): return True

@pytest.mark.parametrize('seconds, shown', [(0, False), (1.1, True)])
def test_progress_is_shown_in_a_terminal_after_a_second(checks, monkeypatch, seconds, shown):
    checks['slow'] = [lambda e: time.sleep(seconds) or ()]
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    ini.audit(healthy(), x())
    assert ('audit:' in terminal.text) == shown

def test_progress_is_not_shown_elsewhere(checks, capfd):
    checks['slow'] = [lambda e: time.sleep(1.1) or ()]
    ini.audit(healthy(), x())
    assert capfd.readouterr() == ('', '')

def test_a_scripted_model_is_refused_by_name():
    with pytest.raises(ini.InputError, match='the model is scripted'):
        ini.audit(torch.jit.script(nn.Sequential(nn.Linear(4, 4))), torch.randn(8, 4))

def test_spectral_norm_keeps_its_vectors():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)), nn.ReLU(),
                          nn.Linear(16, 4))
    before = {n: b.clone() for n, b in model.named_buffers()}
    assert len(before) == 2
    ini.audit(model, x())
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())

SHARDED = '''
import torch, torch.distributed as dist, torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import initnotes as ini

dist.init_process_group('gloo', rank=0, world_size=1, store=dist.HashStore())
class Block(nn.Module):
    def __init__(self, *f): super().__init__(); self.f = nn.Sequential(*f)
    def forward(self, x): return x + self.f(x)
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), Block(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU()),
                         Block(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 4))
def sharded():
    model, mesh = net(), init_device_mesh('cpu', (1,))
    for block in model[1:3]: fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)
def loss(out): return F.cross_entropy(out, y)
def trained(model):
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    for _ in range(3): loss(model(x)).backward(); opt.step(); opt.zero_grad()
    return [p.full_tensor() for p in model.parameters()]

torch.manual_seed(1); x, y = torch.randn(32, 6), torch.randint(4, (32,))
model, alone = sharded(), sharded()
one, two = (ini.audit(m, x, loss=loss) for m in (net(), model))
assert one.findings == two.findings and one.skipped == two.skipped and one.looked['chain']
assert one.looked | dict(model='') == two.looked | dict(model='')
assert all(map(torch.equal, trained(model), trained(alone)))     # left as it was
dist.destroy_process_group()
'''

@pytest.mark.slow
def test_a_sharded_model_is_audited_like_a_whole_one():
    done = subprocess.run([sys.executable, '-c', SHARDED], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
