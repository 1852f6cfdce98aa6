"The command `initnotes`: what it is given, what it prints where, and with which exit code."
import json, os, subprocess, sys

import pytest, torch

import initnotes as ini
from initnotes.audit import main

SEED = 0

FILE = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, start=None):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)
        for p in self.a.parameters() if start else (): nn.init.constant_(p, start)
    def forward(self, x, y=None): return self.b(self.a(x).relu())

def loss(out): return nn.functional.cross_entropy(out, torch.arange(len(out)) % 4)
def make():
    print('making a net')
    return Net()
def alike(): return Net(.1)            # symmetric: no two units differ
def pair(): return Net(), torch.randn(32, 16)
def triple(): return Net(), dict(x=torch.randn(32, 16)), loss
def words(): return nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50))
def deep(): return nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)])
def two(): return nn.Bilinear(16, 16, 4)
def fails():
    raise RuntimeError('no such\\nfile')
def leaves(): raise SystemExit(5)
def fives(): return 1, 2, 3, 4, 5
class Holder:
    ready = Net()
ready = Net()
number = 3
'''

@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    "A folder to stand in, with a file and a package; imports leave no trace."
    (tmp_path/'net.py').write_text(FILE)
    (tmp_path/'pack'/'deep').mkdir(parents=True)
    for at in ('pack', 'pack/deep'): (tmp_path/at/'__init__.py').write_text('')
    (tmp_path/'pack'/'deep'/'net.py').write_text(FILE)
    (tmp_path/'pack'/'near.py').write_text('import helper\nfrom helper import make\n')
    (tmp_path/'pack'/'helper.py').write_text('from net import make\n')
    (tmp_path/'broken.py').write_text('import torch\n\nx = 1/0\n')
    (tmp_path/'worse.py').write_text('def make(:\n')
    (tmp_path/'quits.py').write_text('import sys\nsys.exit(0)\n')
    (tmp_path/'needs.py').write_text('import no_such_module_here\n')
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(sys, 'dont_write_bytecode', True)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split('.')[0] in ('net', 'pack', 'helper', 'broken', 'worse', 'quits', 'needs'):
            del sys.modules[name]

@pytest.fixture
def run(capsys):
    "Runs the command here: exit code, standard output, standard error."
    def run(*words):
        try: code = main(['audit', *map(str, words)])
        except SystemExit as err: code = err.code
        out = capsys.readouterr()
        return code, out.out, out.err
    return run

INPUT = '--input', '32,16'

@pytest.mark.parametrize('where', [
    'net:make', 'net.py:make', './net.py:make', 'pack.deep.net:make', 'pack/deep/net.py:make',
    'pack/near.py:make', 'net:Net', 'net:ready', 'net:Holder.ready'])
def test_what_is_found(run, where):
    code, out, err = run(where, *INPUT)
    assert (code, out.startswith('Net: ')) == (0, True), err
    assert ('making a net' in err) == where.endswith('make') and 'making' not in out

def test_exit_codes_and_gates(run):
    code, out, err = run('net:alike', *INPUT)
    assert code == 1 and 'symmetry' in out and not err
    assert run('net:alike', *INPUT, '--fail-on', 'error')[0] == 1
    code, out, _ = run('net:alike', *INPUT, '--allow', 'symmetry', '--fail-on', 'error')
    assert code == 0 and "allowed by 'symmetry'" in out
    assert run('net:alike', *INPUT, '--allow', 'seed', 'symmetry:a*', '--allow', 'rank', 'mean',
               'scale', '--fail-on', 'error')[0] == 0

@pytest.mark.parametrize('severity, codes', [('info', (0, 0)), ('warning', (1, 0)),
                                             ('error', (1, 1))])
def test_the_gate_is_the_one_asked_for(monkeypatch, run, severity, codes):
    audit = sys.modules['initnotes.audit']
    found = audit.Finding('tied', severity, 'a', 1., 2., None, 'so', '')
    monkeypatch.setattr(audit, 'audit', lambda *args, **kw: audit.AuditReport([found]))
    assert tuple(run('net:Net', *INPUT, *more)[0] for more in ((), ('--fail-on', 'error'))) == codes

def test_json(run):
    code, out, err = run('net:alike', *INPUT, '--json')
    found = json.loads(out)
    assert code == 1 and 'symmetry' in {f['check'] for f in found['findings']}
    assert found['measured']['model'] == 'Net' and found['skipped']

def test_batches(run):
    def measured(*words):
        code, out, err = run(*words, '--json')
        assert code in (0, 1), err
        return json.loads(out)
    def reasons(found): return {s['check']: s['reason'] for s in found['skipped']}
    assert measured('net:pair')['measured']['inputs'] == 32
    assert 'no loss' in reasons(measured('net:pair'))['initial-loss']
    assert 'no loss' not in reasons(measured('net:triple')).get('initial-loss', '')
    assert measured('net:pair', '--input', '8,16')['measured']['inputs'] == 8
    assert measured('net:words', '--tokens', '8,5,50')['measured']['inputs'] == 8
    two = measured('net:two', '--input', '8,16', '--input', '8,16')
    assert two['measured']['layers'] >= 1

def test_arguments_come_in_their_order(monkeypatch, run):
    given = []
    import initnotes.audit
    module = sys.modules['initnotes.audit']
    monkeypatch.setattr(module, 'audit', lambda model, *args, **kw: given.extend(args) or
                        module.AuditReport())
    assert run('net:two', '--tokens', '8,5,7', '--input', '3,2', '--tokens', '90,2')[0] == 0
    assert [tuple(t.shape) for t in given] == [(8, 5), (3, 2), (90,)]
    assert [t.is_floating_point() for t in given] == [False, True, False]
    assert given[0].max() == 6 and set(given[2].tolist()) == {0, 1}
    assert abs(given[1].mean()) < 5/6**.5

@pytest.mark.parametrize('shape', ['32,16', '8,16'])
def test_the_model_is_the_one_that_python_makes_at_this_seed(monkeypatch, run, shape):
    made, audit = [], sys.modules['initnotes.audit']
    monkeypatch.setattr(audit, 'audit', lambda model, *args, **kw: made.append(model()) or
                        audit.AuditReport())
    assert run('net:Net', '--input', shape, '--seed', 7)[0] == 0
    torch.manual_seed(7)
    assert torch.equal(made[0].a.weight, sys.modules['net'].Net().a.weight)

def test_seed(run):
    first, again, other = (run('net:deep', *INPUT, '--seed', s, '--json')[1] for s in (1, 1, 2))
    assert json.loads(first)['measured']['chain'] and first == again != other

@pytest.mark.parametrize('words, said', [
    (['nets:make', *INPUT], "cannot import nets: ModuleNotFoundError: No module named 'nets'"),
    (['nets.py:make', *INPUT], 'cannot import nets.py: FileNotFoundError'),
    (['needs:make', *INPUT], "No module named 'no_such_module_here' ({}/needs.py, line 1)"),
    (['broken:make', *INPUT], 'ZeroDivisionError: division by zero ({}/broken.py, line 3)'),
    (['broken.py:make', *INPUT], 'ZeroDivisionError: division by zero ({}/broken.py, line 3)'),
    (['worse:make', *INPUT], 'SyntaxError: invalid syntax (worse.py, line 1)'),
    (['quits:make', *INPUT], 'cannot import quits: SystemExit'),
    (['net:mke', *INPUT], 'net has no mke, expected Net, loss, make, alike'),
    (['net:number', *INPUT], 'model is int'),
    (['net', *INPUT], "got 'net', expected package.module:make"),
    ([':make', *INPUT], "got ':make', expected package.module:make"),
    (['net:fails', *INPUT], "RuntimeError: no such file ({}/net.py, line 2"),
    (['net:leaves', *INPUT], 'SystemExit(5)'),
    (['net:fives', *INPUT], 'tuple'),
    (['net:make'], 'a batch is missing'),
    (['net:make', '--input', '32,3'], 'Net does not run on this batch'),
    (['net:make', '--tokens', '32,16,50'], 'Net does not run on this batch'),
    (['net:make', *INPUT, *INPUT, *INPUT], 'Net does not run on this batch'),
    (['net:make', '--input', '32,x'], "'32,x', expected sizes such as 32,3,64,64"),
    (['net:make', '--input', '32,0'], "'32,0', expected sizes"),
    (['net:make', '--input', '32,-1'], "'32,-1', expected sizes"),
    (['net:make', '--tokens', '32'], "'32', expected sizes and a vocabulary"),
    (['net:make', *INPUT, '--allow', 'nothing'], "allow has 'nothing'"),
    (['net:make', *INPUT, '--fail-on', 'info'], 'info'),
    (['net:make', *INPUT, '--seed', 'x'], 'seed'),
    (['net:make', *INPUT, '--no-such'], 'no-such'),
    ([], 'factory')])
def test_what_cannot_run_is_said_in_one_line(run, folder, words, said):
    code, out, err = run(*words)
    lines = [l for l in err.splitlines() if l != 'making a net']
    assert code == 2 and out == '' and len(lines) == 1, err
    assert lines[0].startswith('initnotes') and said.format(folder) in lines[0]
    assert 'Traceback' not in err

# ---- as a process ----------------------------------------------------------------------------

def process(*words, **env):
    done = subprocess.run([sys.executable, '-m', 'initnotes', *words], capture_output=True,
                          env={**os.environ, **env})
    return done.returncode, done.stdout.decode(), done.stderr.decode()

@pytest.mark.slow
def test_as_a_process():
    code, out, err = process('audit', 'net:alike', *INPUT, '--json')
    assert code == 1 and json.loads(out)['findings'] and err == ''
    code, out, err = process('audit', 'net.py:make', *INPUT, PYTHONIOENCODING='ascii')
    assert code == 0 and out.startswith('Net: ') and set(err.split('\n')) == {'making a net', ''}
    code, out, err = process('audit', 'net:fails', *INPUT)
    assert code == 2 and out == '' and err.count('\n') == 1

def test_a_fault_of_our_own_is_not_a_verdict(monkeypatch, run):
    def audit(*args, **kwargs): raise KeyError('ours')
    monkeypatch.setattr(sys.modules['initnotes.audit'], 'audit', audit)
    code, out, err = run('net:Net', *INPUT)
    assert code == 2 and "KeyError('ours')" in err and err.count('\n') == 1 and not out

def test_help_and_version(capsys):
    def said(*words):
        with pytest.raises(SystemExit) as left: main(words)
        return left.value.code, *capsys.readouterr()
    assert said('--version') == (0, f'initnotes {ini.__version__}\n', '')
    code, out, err = said('--help')
    assert code == 0 and 'audit' in out and err == ''
    code, out, err = said('audit', '--help')
    assert code == 0 and '--tokens' in out and 'Exit code' in out and err == ''
    code, out, err = said()
    assert code == 2 and out == '' and err.count('\n') == 1
