"Stored outputs cannot rot: what the comparison must let pass, and what it must catch."
import base64, io, json, os, re, subprocess, sys

import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt, numpy as np, pytest

import notebooks as nbs
from conftest import ROOT, edit, write_notebook

STORED = {p.name: json.loads(p.read_text(encoding='utf-8')) for p in sorted((ROOT/'nbs').glob('*.ipynb'))}

# ---- text ------------------------------------------------------------------------------------

@pytest.mark.parametrize('old, new', [
    ('std 0.6753', 'std 0.6753'), ('std 0.6753', 'std 0.6754'),      # the last printed digit may be rounded the other way
    ('0.5773502691896258', '0.5773502811908722'),                    # float32 rounding
    ('mean 3.1e-08', 'mean -4.2e-09'),                               # noise about zero
    ('1,000 draws: 1.2e-05', '1,000 draws: 1.3e-05'), ('−0.25', '−0.26'), ('no number', 'no number')])
def test_text_that_agrees(old, new): assert nbs.same_text(old, new) is None

@pytest.mark.parametrize('old, new', [
    ('std 0.6753', 'std 0.6755'), ('std 0.6753', 'std 0.7753'), ('32 filters', '33 filters'), ('1,000', '1,001'),
    ('std 0.6753', 'rms 0.6753'), ('0.25', '-0.25'), ('1e-05', '1e-04'), ('1.0', 'nan'), ('3 checks', '3 checks, 1 failed'), ('a', 'a\n')])
def test_text_that_differs(old, new): assert nbs.same_text(old, new)

def test_own_tolerance():
    assert nbs.own_tolerance(dict(source=['#| output_tol: 0.1\n', 'x'])) == .1
    assert nbs.own_tolerance(dict(source='x = 1')) is None
    assert nbs.same_text('accuracy 0.91', 'accuracy 0.95', .1) is None
    assert nbs.same_text('accuracy 0.91', 'accuracy 0.71', .1)

def test_which_cells_have_a_tolerance_of_their_own():
    "Counts them; a new one must be added here on purpose."
    count = {name: sum(bool(nbs.own_tolerance(c)) for c in nb['cells']) for name, nb in STORED.items()}
    assert {k: n for k, n in count.items() if n} == {
        '02_foundations.ipynb': 1,   # rounding noise of finite differences, which a processor decides
        '05_training.ipynb': 13,     # what training yields
        '06_hooks.ipynb': 17,        # likewise, and one rounding error
        '07_lsuv.ipynb': 5,          # what training yields
    }

# ---- pictures --------------------------------------------------------------------------------

def picture(label='3', line=True, jitter=0., width=6.4):
    fig, ax = plt.subplots(figsize=(width, 3.8), dpi=100)
    x = np.linspace(0, 1, 30)
    ax.semilogy(x, np.exp(-5*x)*(1 + jitter), 'o', ms=4)
    if line: ax.plot(x, np.exp(-4*x), 'k:', lw=.6)
    ax.text(.5, .5, label, fontsize=7)
    f = io.BytesIO(); fig.savefig(f, format='png'); plt.close(fig)
    return base64.b64encode(f.getvalue()).decode()

def test_picture_that_agrees(): assert nbs.same_picture(picture(), picture(jitter=1e-5)) is None

@pytest.mark.parametrize('change', [dict(line=False), dict(label='8'), dict(jitter=.05), dict(width=6.5)])
def test_picture_that_differs(change): assert nbs.same_picture(picture(), picture(**change))

@pytest.mark.parametrize('digits', ['23', '08', '59', '12', '39', '17'])
def test_one_changed_digit_in_a_label(digits): assert nbs.same_picture(picture(digits[0]), picture(digits[1]))

# ---- what is stored --------------------------------------------------------------------------

@pytest.mark.parametrize('name', STORED)
def test_stored_outputs_name_no_machine_and_no_time(name):
    for i, o in nbs.outputs(STORED[name]):
        assert o['output_type'] != 'error' and o.get('name') != 'stderr', (name, i)
        shown = json.dumps({k: v for k, v in o.get('data', o).items() if not k.startswith('image')}, ensure_ascii=False)
        assert not re.search(r'0x[0-9a-f]{6,}|/(home|root|tmp|usr|Users|work)/|\d+\.\d+ ?s/it|\d\d:\d\d:\d\d', shown), (name, i)

@pytest.mark.parametrize('name', STORED)
def test_every_lesson_has_a_ledger_and_small_pictures(name):
    nb = STORED[name]
    found = [(l['name'], bool(l['rows'])) for l in nbs.ledgers(nb)]
    assert found == ([(name[:-6], True)] if name[0].isdigit() else [])     # the index is no lesson
    for i, o in nbs.outputs(nb):
        if png := o.get('data', {}).get('image/png'): assert len(nbs.text(png))*3/4 < 100_000, (name, i)

def test_comparison_finds_planted_faults():
    old = STORED['00_core.ipynb']
    def planted(change):
        new = json.loads(json.dumps(old)); change(new); return nbs.differences(old, new)
    printed = next(i for i, o in nbs.outputs(old) if o['output_type'] == 'stream')
    drawn = next(i for i, o in nbs.outputs(old) if 'image/png' in o.get('data', {}))
    led = next(i for i, o in nbs.outputs(old) if nbs.LEDGER in o.get('data', {}))
    assert planted(lambda nb: None) == []
    assert planted(lambda nb: nb['cells'][printed]['outputs'][0].update(text=['predicted 0.1000, measured 0.2000\n']))
    assert planted(lambda nb: nb['cells'][printed].update(outputs=[]))
    assert planted(lambda nb: nb['cells'][drawn]['outputs'][0]['data'].update({'image/png': picture()}))
    assert planted(lambda nb: nb['cells'][led]['outputs'][0]['data'][nbs.LEDGER]['rows'][0].update(measured=.5))

# ---- the runner ------------------------------------------------------------------------------

def test_run_compare_and_a_wrong_stored_number(tmp_path):
    path = write_notebook(tmp_path/'00_x.ipynb', 'x = 2', 'print(f"x is {x/3:.4f}")')
    nb = nbs.execute(path)
    path.write_text(nbs.dumps(nb))
    assert nbs.compare_one(path) == []
    edit(path, lambda nb: nb['cells'][1]['outputs'][0].update(text=['x is 0.7667\n']))
    problem, = nbs.compare_one(path)
    assert 'cell 1' in problem and '0.7667' in problem and '0.6667' in problem

@pytest.mark.parametrize('cell, words', [
    ('assert 1 + 1 == 3', ['AssertionError', 'assert 1 + 1 == 3']), ('raise ValueError("no good")', ['ValueError', 'no good']),
    ('import warnings; warnings.warn("mind")', ['stderr', 'mind']), ('import os; os._exit(3)', ['DeadKernelError']),
    ('import urllib.request; urllib.request.urlopen("http://no.such.host.invalid")', ['must not reach for the network'])])
def test_a_failing_cell_is_named(tmp_path, capsys, cell, words):
    path = write_notebook(tmp_path/'07_bad.ipynb', 'x = 1', cell)
    failed = nbs.run([path])
    said = capsys.readouterr().out
    assert failed == [path]
    for w in ['07_bad.ipynb', 'cell 1' if 'Dead' not in words[0] else 'kernel', *words]: assert w in said, said

def test_seed_reaches_the_notebook(tmp_path):
    path = write_notebook(tmp_path/'00_seed.ipynb', 'import os; assert os.environ.get("INITNOTES_SEED") != "2"')
    assert nbs.sweep([path], 3) == [(path, 2)]

def test_no_reference_platform(monkeypatch):
    monkeypatch.setattr(nbs.platform, 'system', lambda: 'Plan9')
    assert 'Plan9' in nbs.off_reference()
    assert nbs.compare([ROOT/'nbs'/'does_not_exist.ipynb']) == []   # nothing is executed: the assertions alone decide

def test_command_line():
    done = subprocess.run([sys.executable, ROOT/'tools'/'notebooks.py', 'run', 'nbs/none.ipynb'], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and 'no such notebook' in done.stderr

# ---- no network ------------------------------------------------------------------------------

@pytest.mark.parametrize('event, args, refused', [
    ('socket.connect', '(None, ("192.0.2.1", 80))', True), ('socket.getaddrinfo', '("example.org", 443, 0, 0, 0)', True),
    ('socket.sendto', '(None, ("2001:db8::1", 53))', True), ('socket.connect', '(None, ("127.0.0.1", 80))', False),
    ('socket.connect', '(None, ("::1", 80, 0, 0))', False), ('socket.connect', '(None, "/tmp/x.sock")', False),
    ('socket.getaddrinfo', '("localhost", 80, 0, 0, 0)', False)])
def test_only_loopback_can_be_reached(event, args, refused):
    "The audit events are raised by hand: nothing is sent even if the hook should fail."
    env = {**os.environ, 'PYTHONPATH': str(ROOT/'tools'/'offline')}
    done = subprocess.run([sys.executable, '-c', f'import sys; sys.audit({event!r}, *{args})'], env=env, capture_output=True, text=True)
    assert ('must not reach for the network' in done.stderr) == refused and bool(done.returncode) == refused
