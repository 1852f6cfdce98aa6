"Stored outputs cannot rot: what the comparison must let pass, and what it must catch."
import base64, io, json, math, os, re, subprocess, sys

import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt, numpy as np, pytest

import notebooks as nbs
from conftest import ROOT, edit, write_notebook

STORED = {p.name: nbs.read(p) for p in nbs.notebooks_in(ROOT/'nbs')}

ANY = math.inf
# What training yields, and rounding noise: by cell, how far its numbers may differ
# (ANY: its assertions decide).
TOLERANCES = {
    '00_start.ipynb': {   # what training yields
        ANY: '2db3a21f 1daa2d8e 9df2b948 9759ed55 51eadbea',
    },
    '03_foundations.ipynb': {   # rounding noise of finite differences
        0.5: '3a21e1ed',
    },
    '06_training.ipynb': {   # what training yields
        ANY: '839c11ca f8797003 8a7d62ee 06f8adb1 65db0d68',
    },
    '06a_learner.ipynb': {   # likewise
        ANY: '9439644b 0cacbd49 42d6307c 5ded1c9a 2d6307c8',
    },
    '07_hooks.ipynb': {   # rounding errors
        ANY: '09cf5a48',
    },
    '08_inside.ipynb': {   # what training yields
        0.5: 'bba4d7f8 f5f4e889',
        ANY: '2bdb8744 9274ea05 dc73a923 38d7769c',
    },
    '10_depth.ipynb': {   # what training yields, and gradients through fifty layers
        ANY: 'b6ac3436 651cad9d',
    },
    '11_isometry.ipynb': {   # what training yields, and a time
        ANY: 'c8c14dd1 d740635d a64e2279',
    },
    '12_residual.ipynb': {   # what training yields
        ANY: '947f1743',
    },
    'batchnorm.ipynb': {   # what training yields; small differences of large numbers
        ANY: 'f8f73123', .02: '1bf8be95 3dcec0d6',
    },
    'deep_net.ipynb': {   # what training yields
        ANY: '37275fd4',
    },
    'gpt.ipynb': {   # gradients of a net that is sick
        .01: '772a7aad',
    },
    'library.ipynb': {   # what training yields
        ANY: 'f86b22f3', .1: '2b9f622e 95495a1d 3f727422 a03800ee', .5: '9c12466a',
    },
    'loss_is_nan.ipynb': {   # what training yields
        ANY: '00db0c59 f598bc62 107cdda8',
    },
    'own_loop.ipynb': {   # what training yields
        ANY: '9e15b975 20f1387a 4914db19 e36da0b6 c388f230', .02: 'e03d1876',
    },
}

# ---- text ------------------------------------------------------------------------------------

@pytest.mark.parametrize('old, new', [
    ('std 0.6753', 'std 0.6753'), ('std 0.6753', 'std 0.6754'),   # a last digit rounded otherwise
    ('0.5773502691896258', '0.5773502811908722'),                 # float32 rounding
    ('mean 3.1e-08', 'mean -4.2e-09'),                            # noise about zero
    ('1,000 draws: 1.2e-05', '1,000 draws: 1.3e-05'), ('−0.25', '−0.26'),
    ('no number', 'no number')])
def test_text_that_agrees(old, new): assert nbs.same_text(old, new) is None

@pytest.mark.parametrize(
    'old, new',
    [('std 0.6753', 'std 0.6755'), ('std 0.6753', 'std 0.7753'), ('32 filters', '33 filters'),
     ('1,000', '1,001'), ('std 0.6753', 'rms 0.6753'), ('0.25', '-0.25'), ('1e-05', '1e-04'),
     ('1.0', 'nan'), ('3 checks', '3 checks, 1 failed'), ('a', 'a\n')])
def test_text_that_differs(old, new): assert nbs.same_text(old, new)

def test_own_tolerance():
    assert nbs.own_tolerance(dict(source=['#| output_tol: 0.1\n', 'x'])) == .1
    assert nbs.own_tolerance(dict(source='x = 1')) == 0
    assert nbs.own_tolerance(dict(source='#| output_tol: any\nx = 1')) == math.inf
    with pytest.raises(ValueError,
                       match="output_tol is 'lots', expected a share such as 0.1, or any"):
        nbs.own_tolerance(dict(source='#| output_tol: lots\nx = 1'))

@pytest.mark.parametrize('old, new, tol, same', [
    ('accuracy 0.91', 'accuracy 0.95', .1, True), ('accuracy 0.91', 'accuracy 0.71', .1, False),
    ('share 0.00', 'share 0.01', .5, True),   # a stored zero
    ('share 0.00', 'share 0.20', .5, False), ('0 of 12', '1 of 12', .5, True),
    ('3 dead', '109 dead', .5, False), ('loss 1.2', 'loss nan', .5, False),
    ('3 dead', '109 dead', math.inf, True), ('loss 1.2', 'loss nan', math.inf, True),
    ('3 dead', '109 alive', math.inf, False), ('a 1, b 2', 'a 1', math.inf, False)])
def test_text_with_a_tolerance(old, new, tol, same):
    assert (nbs.same_text(old, new, tol) is None) == same

def test_which_cells_have_a_tolerance_of_their_own():
    "A new one must be added here on purpose."
    found = {
        (name, c['id']): nbs.own_tolerance(c) for name, nb in STORED.items() for c in nb['cells']}
    listed = {(name, id): t for name, by in TOLERANCES.items() for t, ids in by.items()
              for id in ids.split()}
    assert {k: t for k, t in found.items() if t} == listed

# ---- pictures --------------------------------------------------------------------------------

def picture(label='3', line=True, jitter=0., width=6.4):
    fig, ax = plt.subplots(figsize=(width, 3.8), dpi=100)
    x = np.linspace(0, 1, 30)
    ax.semilogy(x, np.exp(-5*x)*(1 + jitter), 'o', ms=4)
    if line: ax.plot(x, np.exp(-4*x), 'k:', lw=.6)
    ax.text(.5, .5, label, fontsize=7)
    f = io.BytesIO(); fig.savefig(f, format='png'); plt.close(fig)
    return base64.b64encode(f.getvalue()).decode()

def test_picture_that_agrees():
    assert nbs.same_picture(picture(), picture(jitter=1e-5)) is None

@pytest.mark.parametrize('change',
                         [dict(line=False), dict(label='8'), dict(jitter=.05), dict(width=6.5)])
def test_picture_that_differs(change):
    assert nbs.same_picture(picture(), picture(**change))

SVG_CELL = """import matplotlib.pyplot as plt
from matplotlib_inline.backend_inline import set_matplotlib_formats
set_matplotlib_formats('svg')
plt.plot([1, 2, 3], [1, 4, {}], 'o-'); plt.ylim(0, 10)
plt.show()"""

def test_svg_pictures_are_stored_without_chance_and_compared(tmp_path):
    same = [nbs.execute(write_notebook(tmp_path/f'{k}.ipynb', SVG_CELL.format(9))) for k in 'ab']
    assert same[0] == same[1] and nbs.differences(*same) == []
    svg = nbs.text(same[0]['cells'][0]['outputs'][0]['data'][nbs.SVG])
    assert '<dc:date>' not in svg and 'id="cell0-' in svg
    moved = nbs.execute(write_notebook(tmp_path/'c.ipynb', SVG_CELL.format(8.5)))
    assert 'moved by' in nbs.differences(same[0], moved)[0]
    bare = SVG_CELL.replace("'o-'", "'-'").format(9)
    other = nbs.execute(write_notebook(tmp_path/'d.ipynb', bare))
    assert 'other parts' in nbs.differences(same[0], other)[0]

@pytest.mark.parametrize('digits', ['23', '08', '59', '12', '39', '17'])
def test_one_changed_digit_in_a_label(digits):
    assert nbs.same_picture(picture(digits[0]), picture(digits[1]))

# ---- what is stored --------------------------------------------------------------------------

@pytest.mark.parametrize('name', STORED)
def test_stored_outputs_name_no_machine_and_no_time(name):
    for i, o in nbs.outputs(STORED[name]):
        assert o['output_type'] != 'error' and o.get('name') != 'stderr', (name, i)
        shown = json.dumps({k: v for k, v in o.get('data', o).items() if not k.startswith('image')},
                           ensure_ascii=False)
        found = re.search(r'0x[0-9a-f]{6,}|/(home|root|tmp|usr|Users|work)/|\d+\.\d+ ?s/it'
                          r'|\d\d:\d\d:\d\d', shown)
        assert not found, (name, i)

@pytest.mark.parametrize('name', STORED)
def test_every_lesson_has_a_ledger_and_small_pictures(name):
    nb = STORED[name]
    found = [(l['name'], bool(l['rows'])) for l in nbs.ledgers(nb)]
    lesson = [(name[:-6], True)]       # the index is none, and a workshop may have one
    assert found == lesson if re.match(r'\d\d_', name) else found in (lesson, [])
    for i, o in nbs.outputs(nb):
        if png := o.get('data', {}).get('image/png'):
            assert len(nbs.text(png))*3/4 < 100_000, (name, i)
        assert len(nbs.text(o.get('data', {}).get(nbs.SVG, ''))) < 100_000, (name, i)

def test_comparison_finds_planted_faults():
    old = STORED['01_core.ipynb']
    def planted(change):
        new = json.loads(json.dumps(old))
        change(new)
        return nbs.differences(old, new)
    printed = next(i for i, o in nbs.outputs(old) if o['output_type'] == 'stream')
    drawn = next(i for i, o in nbs.outputs(old) if nbs.SVG in o.get('data', {}))
    led = next(i for i, o in nbs.outputs(old) if nbs.LEDGER in o.get('data', {}))
    assert planted(lambda nb: None) == []
    def output(nb, cell): return nb['cells'][cell]['outputs'][0]
    said = ['predicted 0.1000, measured 0.2000\n']
    assert planted(lambda nb: output(nb, printed).update(text=said))
    assert planted(lambda nb: nb['cells'][printed].update(outputs=[]))
    assert planted(lambda nb: output(nb, drawn)['data'].update({nbs.SVG: '<svg>'}))
    assert planted(lambda nb: output(nb, led)['data'][nbs.LEDGER]['rows'][0].update(measured=.5))

# ---- the runner ------------------------------------------------------------------------------

@pytest.mark.slow
def test_run_compare_and_a_wrong_stored_number(tmp_path):
    path = write_notebook(tmp_path/'00_x.ipynb', 'x = 2', 'print(f"x is {x/3:.4f}")')
    nb = nbs.execute(path)
    path.write_text(nbs.dumps(nb))
    assert nbs.compare_one(path) == []
    edit(path, lambda nb: nb['cells'][1]['outputs'][0].update(text=['x is 0.7667\n']))
    problem, = nbs.compare_one(path)
    assert 'cell 1' in problem and '0.7667' in problem and '0.6667' in problem

@pytest.mark.parametrize(
    'cell, words', [('assert 1 + 1 == 3', ['AssertionError', 'assert 1 + 1 == 3']),
                    ('raise ValueError("no good")', ['ValueError', 'no good']),
                    ('import warnings; warnings.warn("mind")', ['stderr', 'mind']),
                    ('import os; os._exit(3)', ['DeadKernelError']),
                    ('import urllib.request; urllib.request.urlopen("http://no.such.host.invalid")',
                     ['must not reach for the network'])])
@pytest.mark.slow
def test_a_failing_cell_is_named(tmp_path, capsys, cell, words):
    path = write_notebook(tmp_path/'07_bad.ipynb', 'x = 1', cell)
    failed = nbs.run([path])
    said = capsys.readouterr().out
    assert failed == [path]
    for w in ['07_bad.ipynb', 'cell 1' if 'Dead' not in words[0] else 'kernel', *words]:
        assert w in said, said

@pytest.mark.slow
def test_seed_reaches_the_notebook(tmp_path):
    path = write_notebook(tmp_path/'00_seed.ipynb',
                          'import os; assert os.environ.get("INITNOTES_SEED") != "2"')
    assert nbs.sweep([path], range(3)) == [(path, 2)]

@pytest.mark.slow
def test_elsewhere_the_assertions_alone_decide(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(nbs.platform, 'system', lambda: 'Plan9')
    assert 'Plan9' in nbs.off_reference()
    path = write_notebook(tmp_path/'00_x.ipynb', 'print(1)', 'assert True')  # nothing is stored
    assert nbs.compare([path]) == [] and 'the assertions alone decide' in capsys.readouterr().out
    assert nbs.compare([write_notebook(tmp_path/'01_x.ipynb', 'assert False')])

@pytest.mark.parametrize(
    'args, env, said',
    [(['run', 'nbs/none.ipynb'], {}, 'no such notebook'),
     (['run'], dict(OMP_NUM_THREADS='two'), 'unset OMP_NUM_THREADS'),
     (['run'], dict(OMP_NUM_THREADS='0'), "OMP_NUM_THREADS is '0'"),
     (['run'], dict(INITNOTES_SEED='-1'), 'INITNOTES_SEED=1'),
     (['sweep', '--seeds', 'many'], {}, 'a number such as 20'),
     (['processors', '--settings', 'z80-1'], {}, 'portable-1'), (['prove'], {}, 'compare')])
@pytest.mark.slow
def test_bad_input(args, env, said):
    done = subprocess.run([sys.executable, ROOT/'tools'/'notebooks.py', *args], capture_output=True,
                          text=True, cwd=ROOT, env={**os.environ, **env})
    assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr

# ---- other processors ------------------------------------------------------------------------

def test_pins_never_override_what_is_set(monkeypatch):
    for name in nbs.PINS: monkeypatch.delenv(name, raising=False)
    assert nbs.reference() == nbs.PINS
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    monkeypatch.setenv('MKL_CBWR', 'COMPATIBLE')
    monkeypatch.setenv('ATEN_CPU_CAPABILITY', '')
    env = nbs.environment(nbs.reference(), None)
    pinned = [env[k] for k in ('OMP_NUM_THREADS', 'MKL_CBWR', 'ONEDNN_MAX_CPU_ISA')]
    assert pinned == ['2', 'COMPATIBLE', 'AVX2']
    assert 'ATEN_CPU_CAPABILITY' not in env     # set but empty: as the machine is

@pytest.mark.slow
def test_settings_reach_the_kernel(tmp_path, monkeypatch):
    for name in nbs.PINS: monkeypatch.delenv(name, raising=False)
    path = write_notebook(
        tmp_path/'00_x.ipynb',
        'import torch; (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())')
    def shown(name):
        output = nbs.execute(path, settings=nbs.SETTINGS[name])['cells'][0]['outputs'][0]
        return nbs.text(output['data']['text/plain'])
    assert shown('portable-2') == "('DEFAULT', 2)"
    assert shown('avx2-1') == "('AVX2', 1)"

# Strays in the last digits, as another processor would.
STRAY = 'import torch; x = torch.tensor(.3) + 1e-6*(torch.get_num_threads() > 1)'
CHAOS = 'for _ in range(100): x = 3.9*x*(1 - x)'

@pytest.mark.slow
@pytest.mark.skipif(bool(nbs.off_reference()),
                    reason='outputs are compared on the reference platform alone')
def test_chaos_and_a_wrong_number_are_told_from_a_last_digit(tmp_path, capsys):
    path = write_notebook(
        tmp_path/'00_x.ipynb', STRAY, 'print(f"{x:.6f}")', 'x/3', CHAOS, 'print(f"{x:.4f}")',
        '#| output_tol: any\nprint(f"{x:.4f} after 100 steps")', 'print(f"{2/3:.4f}")')
    nb = nbs.execute(path, settings=nbs.SETTINGS['avx2-1'])
    assert nb['cells'][1]['outputs'][0]['text'] == ['0.300000\n']
    nb['cells'][6]['outputs'][0]['text'] = ['0.7667\n']
    path.write_text(nbs.dumps(nb))
    failed = nbs.processors([path], ['avx2-1', 'avx2-2'])
    said = [l for l in capsys.readouterr().out.splitlines() if 'cell' in l or 'DIFFERS' in l]
    assert failed == [(path, 'avx2-1'), (path, 'avx2-2')]
    assert [re.search(r'cell (\d)', l)[1] for l in said if 'cell' in l] == ['6', '4', '6'], said
    assert "stored 0.7667, now 0.6667" in said[1]

# ---- no network ------------------------------------------------------------------------------

@pytest.mark.parametrize('event, args, refused',
                         [('socket.connect', '(None, ("192.0.2.1", 80))', True),
                          ('socket.getaddrinfo', '("example.org", 443, 0, 0, 0)', True),
                          ('socket.sendto', '(None, ("2001:db8::1", 53))', True),
                          ('socket.connect', '(None, ("127.0.0.1", 80))', False),
                          ('socket.connect', '(None, ("::1", 80, 0, 0))', False),
                          ('socket.connect', '(None, "/tmp/x.sock")', False),
                          ('socket.getaddrinfo', '("localhost", 80, 0, 0, 0)', False)])
def test_only_loopback_can_be_reached(event, args, refused):
    "The audit events are raised by hand: nothing is sent even if the hook should fail."
    env = {**os.environ, 'PYTHONPATH': str(ROOT/'tools'/'offline')}
    done = subprocess.run([sys.executable, '-c', f'import sys; sys.audit({event!r}, *{args})'],
                          env=env, capture_output=True, text=True)
    assert ('must not reach for the network' in done.stderr) == refused
    assert bool(done.returncode) == refused
