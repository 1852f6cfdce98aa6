"The notebooks are the only source: each way of falling out of step is planted, and found."
import instep, pytest
from conftest import ROOT, edit

def code_cells(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code']

@pytest.mark.slow
def test_in_step(): assert list(instep.problems(ROOT)) == []

def found(copy, *words):
    problems = list(instep.problems(copy))
    assert any(all(w in p for w in words) for p in problems), problems

@pytest.mark.slow
def test_stale_module(copy):
    core = copy/'initnotes'/'core.py'
    before = core.read_text()
    core.write_text(before.replace('(kurtosis - 1)', '(kurtosis - 2)'))
    assert core.read_text() != before
    found(copy, 'core.py', 'not what the notebooks export')

@pytest.mark.slow
def test_module_of_a_removed_notebook(copy):
    old = copy/'initnotes'/'old.py'
    old.write_text((copy/'initnotes'/'core.py').read_text())
    found(copy, 'old.py', 'no notebook exports it')

@pytest.mark.slow
def test_missing_module(copy):
    (copy/'initnotes'/'data.py').unlink()
    found(copy, 'data.py', 'missing')

@pytest.mark.slow
def test_version_only_in_settings(copy):
    init = copy/'initnotes'/'__init__.py'
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "9'))
    found(copy, '__init__.py')

@pytest.mark.slow
def test_unclean_notebook(copy):
    edit(copy/'nbs'/'01_core.ipynb', lambda nb: code_cells(nb)[1].update(execution_count=3))
    found(copy, '01_core.ipynb', 'nbdev_clean')

@pytest.mark.parametrize('line', ['#export', '# export', '#hide', '#default_exp core', '#exporti'])
@pytest.mark.slow
def test_directive_without_pipe(copy, line):
    edit(copy/'nbs'/'01_core.ipynb',
         lambda nb: code_cells(nb)[3].update(source=[line + '\n', 'x = 1']))
    found(copy, '01_core.ipynb', 'no pipe')

def test_directive_below_code(copy):
    edit(copy/'nbs'/'01_core.ipynb',
         lambda nb: code_cells(nb)[3].update(source=['x = 1\n', '#| export\n', 'y = 2']))
    found(copy, '01_core.ipynb', 'below code')

def test_misspelt_directive(copy):
    edit(copy/'nbs'/'01_core.ipynb',
         lambda nb: code_cells(nb)[3].update(source=['#| exprot\n', 'x = 1']))
    found(copy, '01_core.ipynb', 'exprot')

@pytest.mark.slow
def test_a_comment_is_no_directive(copy):
    edit(copy/'nbs'/'01_core.ipynb',
         lambda nb: code_cells(nb)[1]['source'].append('\n# export it later, or hide it'))
    assert not any('pipe' in p for p in instep.problems(copy))

@pytest.mark.parametrize('line',
                         ['from initnotes.why_sqrt5 import leaky_gain', 'import initnotes.data',
                          'from initnotes import data', 'from initnotes.all import *'])
@pytest.mark.slow
def test_uphill_import(copy, line):
    edit(copy/'nbs'/'01_core.ipynb', lambda nb: code_cells(nb)[1].update(source=[line]))
    found(copy, '01_core.ipynb', 'earlier lesson')

@pytest.mark.slow
def test_downhill_import(copy):
    edit(copy/'nbs'/'04_why_sqrt5.ipynb',
         lambda nb: code_cells(nb)[2]['source'].append('\nfrom initnotes.data import read_idx'))
    assert not any('earlier lesson' in p for p in instep.problems(copy))

@pytest.mark.parametrize('line, exports, wrong', [
    ('from initnotes.report import Ledger', False, 0),
    ('from initnotes.data import mnist', False, 0),
    ('from initnotes.data import mnist', True, 1),
    ('from initnotes.core import stats', False, 1)])
def test_ledger_and_digits_may_be_used_before_they_are_taught(line, exports, wrong):
    "Only by a notebook that exports nothing, so that modules never import in a circle."
    def notebook(*sources):
        return dict(cells=[dict(cell_type='code', source=s) for s in sources])
    early = notebook(*['#| default_exp early']*exports, line)
    later = [(ROOT/f'{k}.ipynb', notebook(f'#| default_exp {m}'))
             for k, m in enumerate(('report', 'core', 'data'), 1)]
    assert len(list(instep.uphill_imports([(ROOT/'0.ipynb', early), *later]))) == wrong

def test_all_has_every_module():
    modules = {instep.module_of(instep.read(p)) for p in (ROOT/'nbs').glob('[0-9]*.ipynb')}
    text = (ROOT/'initnotes'/'all.py').read_text()
    own = {None, 'experiments', 'trained'}   # their names (run, best, …) speak only beside one
    assert all(f'from .{m} import *' in text for m in modules - own)

def test_only_numbered_notebooks_export_and_only_those_that_name_a_module():
    for p in instep.notebooks_in(ROOT/'nbs'):
        cells = instep.read(p)['cells']
        said = {d for c in cells for d in instep.directives(c)}
        module = 'default_exp' in said
        assert module == ('export' in said) and module <= p.name[0].isdigit(), p.name

@pytest.mark.slow
def test_alternative_text_is_a_directive(copy):
    said = ['#| fig-alt: A line that rises, and why: not at all\n', 'x = 1']
    edit(copy/'nbs'/'01_core.ipynb', lambda nb: code_cells(nb)[3].update(source=said))
    assert not any('directive' in p or 'pipe' in p for p in instep.problems(copy))
    edit(copy/'nbs'/'01_core.ipynb',
         lambda nb: code_cells(nb)[3].update(source=['#| fig-atl: A line\n', 'x = 1']))
    found(copy, '01_core.ipynb', 'fig-atl')
