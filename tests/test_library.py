"The library's pages: each example runs as it stands, and each entry says what the code says."
import ast, dataclasses, inspect, io, re, sys
from contextlib import redirect_stdout

import pytest, torch
from bs4 import BeautifulSoup
from IPython.lib.pretty import pretty

import initnotes as ini
import apidoc, notebooks, readme, website
from conftest import ROOT
from instep import code, module_of, read, source

pytestmark = [pytest.mark.filterwarnings('ignore::PendingDeprecationWarning')]
SEED = 0
LIBRARY, LESSONS = read(ROOT/'nbs'/'library.ipynb'), readme.read_notebooks()
TASKS = apidoc.tasks(LIBRARY)
ENTRIES = {names[0]: (task, names, text, example) for task, cells in TASKS.items()
           for names, text, example in apidoc.entries(cells)}

# ---- the notebook ----------------------------------------------------------------------------

def run(cell):
    "What an example shows, when nothing has run before it: printed text, then its last value."
    *before, last = ast.parse(code(cell)).body
    space, printed, value = {'__name__': '__main__'}, io.StringIO(), None
    with redirect_stdout(printed):
        exec(compile(ast.Module(before, []), '<example>', 'exec'), space)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), '<example>', 'eval'), space)
        else: exec(compile(ast.Module([last], []), '<example>', 'exec'), space)
    as_shown = getattr(value, '_repr_markdown_', lambda: pretty(value))
    return printed.getvalue() + ('' if value is None else as_shown())

def stored(cell):
    "The same, as it stands in the notebook."
    return ''.join(notebooks.text(o.get('text') or o['data'].get('text/markdown')
                                  or o['data']['text/plain']) for o in cell['outputs'])

@pytest.mark.parametrize('name', list(ENTRIES)[::-1])     # each without those above it
def test_example_runs_as_pasted_and_shows_what_is_stored(name):
    cell = ENTRIES[name][3]
    was, now = stored(cell).strip(), run(cell).strip()
    assert was and now
    if not notebooks.off_reference():
        assert not notebooks.same_text(was, now, notebooks.own_tolerance(cell))

def faults(name, text, example):
    "What is wrong with an entry of the notebook."
    lines = code(example).strip().splitlines()
    if not 3 <= len(lines) <= 8: yield f'{name}: {len(lines)} lines'
    if max(map(len, lines)) > 100: yield f'{name}: a line is longer than 100'
    if not re.search(rf'\bini\.{name}\b', code(example)): yield f'{name}: not in its own example'
    if not re.search(r'^\*\*[A-Z].*?\.\*\*', source(text), re.M): yield f'{name}: no question'
    if not re.match(r'import (\w+, )?initnotes as ini\b', lines[0]): yield f'{name}: no import'

@pytest.mark.parametrize('name', ENTRIES)
def test_example_is_short_and_of_its_own_name(name):
    assert not list(faults(name, *ENTRIES[name][2:]))

@pytest.mark.parametrize('was, now, said', [
    ('ini.gain(', 'gain(', 'own example'), ('import torch, initnotes as ini', 'import x', 'import'),
    ('gelu', 'g'*100, 'longer'), ('\n', '\n\n\n', 'lines'), ('**Get', '*Get', 'question')])
def test_planted_faults_of_an_entry_are_found(was, now, said):
    text, example = ({**c, 'source': source(c).replace(was, now)} for c in ENTRIES['gain'][2:])
    assert any(said in f for f in faults('gain', text, example))

def comes_with(name, maker):
    "Is this an error, or what `maker` is or gives, that nobody makes by hand?"
    c, made = getattr(ini, name), getattr(ini, maker)
    return isinstance(c, type) and (
        issubclass(c, (BaseException, ini.Report)) or dataclasses.is_dataclass(c)
        or hasattr(c, '_fields') or isinstance(made, type) and issubclass(made, c))

def test_every_public_name_has_an_example_or_comes_with_one():
    names = [n for _, names, *_ in ENTRIES.values() for n in names]
    assert sorted(names) == sorted(ini.__all__)
    for maker, (_, (_, *others), *_) in ENTRIES.items():
        assert all(comes_with(n, maker) for n in others), others
    assert not comes_with('init_', 'gain') and not comes_with('TensorLoader', 'Learner')

def test_what_is_wanted_most_comes_first():
    first = [apidoc.entries(cells)[0][0][0] for cells in TASKS.values()]
    assert first[:5] == ['init_', 'lsuv_', 'ActivationStats', 'audit', 'Learner']

# ---- the pages -------------------------------------------------------------------------------

def soup(path): return BeautifulSoup(path.read_text(encoding='utf-8'), 'html.parser')

def words(text): return ' '.join(text.split()).replace('–', '-').replace('’', "'")

@pytest.fixture(scope='module')
def pages(site): return {task: soup(site/'api'/f'{task}.html').find('article') for task in TASKS}

def plainly(x):
    "A default value, as far as it can be written down."
    return x if isinstance(x, (int, float, str, bool, tuple)) else None

def written(f):
    "Kind, name and default value of each argument, by what Python knows of them."
    return [(p.kind.name, p.name, plainly(p.default))
            for p in inspect.signature(f).parameters.values() if p.name != 'self']

def shown(signature):
    "The same, by a signature on a page: names that stand there for values are None."
    names = {n.id: None for n in ast.walk(ast.parse(f'lambda {signature[1:-1]}: 0'))
             if isinstance(n, ast.Name)}
    names |= {'torch': torch}
    return written(eval(f'lambda {signature[1:-1]}: 0', names))

def wrong_signatures(page, names):
    "Names of functions, classes and methods whose arguments on a page are not those of the code."
    for dt in page.find_all('dt', id=re.compile(r'^initnotes\.')):
        name, *method = dt['id'].split('.')[1:]
        said = re.search(r'\(.*\)', words(dt.get_text().partition('→')[0]))
        if not said or name not in names: continue
        x = getattr(ini, name)
        if shown(said[0]) != written(getattr(x, method[0]) if method else x): yield dt['id']

@pytest.mark.site
@pytest.mark.parametrize('task', TASKS)
def test_entries_say_what_the_code_says(pages, task):
    names = [n for at, names, *_ in ENTRIES.values() for n in names if at == task]
    assert names and not list(wrong_signatures(pages[task], names))
    for name in names:
        x, entry = getattr(ini, name), pages[task].find('dt', id=f'initnotes.{name}')
        assert entry, name
        said = words(entry.find_parent('dl').get_text())
        if apidoc.home(name).__name__.startswith('torch'): continue
        if inspect.isfunction(x) or isinstance(x, type):
            assert words(x.__doc__.split('\n\n')[0].replace('`', ''))[:60] in said, name
        if not inspect.isfunction(x): continue
        arguments = inspect.getsource(x).split('"', 1)[0]
        for docment in re.findall(r'^    (?:\*?\w+)[^#\n]*?# (.*)$', arguments, re.M):
            assert words(docment.replace('`', ''))[:40] in said, (name, docment)

@pytest.mark.site
@pytest.mark.parametrize('was, now', [('backward=False', 'backward=True'), ('param=None, ', ''),
                                      ('*, ', ''), ('f', 'g')])
def test_a_wrong_signature_is_found(pages, was, now):
    dt = BeautifulSoup(str(pages['initialize'].find('dt', id='initnotes.gain')), 'html.parser').dt
    text = words(dt.get_text())
    assert not list(wrong_signatures(BeautifulSoup(str(dt), 'html.parser'), ['gain']))
    head, arguments = text.split('(', 1)
    dt.string = head + '(' + arguments.replace(was, now, 1)
    assert list(wrong_signatures(BeautifulSoup(str(dt), 'html.parser'), ['gain']))

PRIVATE = re.compile(r'(?<!\w)_[a-z]\w*')

@pytest.mark.site
def test_private_names_are_nowhere(site, pages):
    for page in (*pages.values(), soup(site/'library.html').find('article')):
        assert not PRIVATE.findall(page.get_text()), page.h1
    assert PRIVATE.findall('where=_all, ini._x, (_y)') and not PRIVATE.findall('init_, x_…, a_b')

@pytest.mark.site
def test_an_entry_has_its_example_its_output_and_its_lesson(pages):
    for name, (task, _, text, example) in ENTRIES.items():
        section = pages[task].find(id=f'ini-{name}'.replace('_', '-').lower().rstrip('-'))
        section = section if section and section.name == 'section' else (
            pages[task].find('dt', id=f'initnotes.{name}').find_parent('section'))
        assert section.find(['h2']).get_text().rstrip('#¶') == name
        cells = section.find_all('div', class_='cell')
        assert [words(c.find('pre').get_text()) for c in cells] == [words(code(example))]
        assert section.find('div', class_='cell_output')
        links = [a['href'] for a in section.find_all('a') if re.match(r'\.\./\d\d', a['href'])]
        assert links or apidoc.home(name).__name__.startswith('torch'), name

@pytest.mark.site
def test_first_page_has_a_line_for_every_entry_and_leads_to_it(site, pages):
    page = soup(site/'library.html').find('article')
    rows = [tr.find_all('td') for tr in page.find_all('tr')[1:]]
    led = [row[1].a['href'] for row in rows if row]
    assert len(set(led)) == len(ENTRIES) and len(led) == len(ENTRIES) + len(TASKS)
    for task, names, _, example in ENTRIES.values():
        call = words(apidoc.call(names[0], example))
        assert any(words(a.get_text()) == call for a in page.find_all('a')), call
    for href in led:
        file, _, anchor = href.partition('#')
        assert pages[file[4:-5]].find(id=anchor)

@pytest.mark.site
def test_inherited_methods_stand_with_the_first_public_class(pages):
    record = words(pages['watch'].find('dt', id='initnotes.Record').find_parent('dl').get_text())
    assert 'plot_dead(' in record and 'Share of units silent' in record
    assert pages['watch'].find('dt', id='initnotes.Hook.remove')
    assert not pages['initialize'].find('dt', id='initnotes.InitReport.to_markdown')

@pytest.mark.site
def test_lessons_lead_to_their_calls(site):
    for stem, task in (('05a_init', 'initialize'), ('09b_calibrate', 'calibrate')):
        links = soup(site/f'{stem}.html').find(class_='lesson-links')
        assert links.find('a', string='the library')['href'] == f'api/{task}.html'
    assert apidoc.page_of('residual', LIBRARY) is None is apidoc.page_of(None, LIBRARY)
    for nb in readme.exporting(LESSONS).values():
        assert (site/'api'/f'{module_of(nb)}.html').is_file(), 'an address of before'

# ---- what the entries are made of ------------------------------------------------------------

def test_errors_through_helpers():
    from initnotes import core, report
    assert apidoc.errors(core.se_std) == [report.InputError] == apidoc.errors(core.rms_interval)
    assert apidoc.errors(core.Stats.var.fget) == []
    assert set(apidoc.errors(report.Ledger.check)) == {report.InputError, report.LedgerError}

MODULE = '''
from contextlib import contextmanager
from dataclasses import dataclass, field
import torch
from torch import nn
from fastcore.basics import patch
from initnotes.report import InputError
class _Base(nn.Module):
    def inherited(self): "From a private base."
    def silent(self): pass
class Twice(_Base):
    "Doubles `stats`.\\n\\nAnd `more`."
    hooks: list = []
    def __init__(self,
        n: 'int' = 2,  # how often, at * most
        **kwargs     # for `nn.Module`
    ): super().__init__()
    @classmethod
    def make(cls): "Make one."; return cls()
    @torch.no_grad()
    def grow_(self, by=2.): "Grow in place."; return self
    def forward(self, x): "Overridden."
@patch
def shrink(self: Twice,
    by: float # to what share
) -> None: "Shrink."; raise InputError('no')
@dataclass
class Report:
    "What was done."
    name: str      # of the layer
    std: float = 1.
    step: int = field(default=0, init=False)   # of the fit
@contextmanager
def own_time(seconds: float # at most
) -> list[Twice]: "Waits."; yield
LIMIT = 3.4e38  # of float32
'''

def test_entries_of_any_code(tmp_path, monkeypatch):
    (tmp_path/'oddities.py').write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import oddities as m
    monkeypatch.setitem(sys.modules, 'initnotes.oddities', m)
    for c in (m._Base, m.Twice): c.__module__ = 'initnotes.oddities'
    said = (apidoc.klass(m.Twice, 'Twice') + apidoc.klass(m.Report, 'Report')
            + apidoc.function(m.own_time, 'own_time') + apidoc.constant('LIMIT', m))
    for line in (
        '{py:class} Twice(n=2, **kwargs)', 'Kind of `Module`.', 'Doubles {py:obj}`.stats`.',
        'And `more`.', r':param n: how often, at \* most', ':type n: `int`', '{py:method} make()',
        '{py:method} grow_(by=2.0)', '{py:method} shrink(by) -> None', ':param by: to what share',
        ':raises InputError: Bad input', '{py:method} inherited()',
        '{py:class} Report(name, std=1.0)\n', ':param name: of the layer', ':ivar step: of the fit',
        '{py:function} own_time(seconds) -> list[Twice]', '{py:data} LIMIT\n\nof float32'):
        assert line in said, (line, said)
    assert not re.search('param hooks|_Base|silent|forward|3.4e38|init=False', said)
    assert apidoc.record(m.own_time) is m.Twice and not apidoc.record(m.Twice.shrink)

def test_what_the_first_page_shows_of_an_example():
    for text, call in (('x = ini.f(1,\n  2)', 'ini.f(1, 2)'), ('ini.f[A] = 3', 'ini.f[A] = 3'),
                       ('y = 1\nclass A(ini.f): ...', 'class A(ini.f): ...'),
                       ('#| hide\nini.g(ini.f(2))\nini.f(3)', 'ini.f(2)')):
        assert apidoc.call('f', dict(cell_type='code', source=text)) == call
