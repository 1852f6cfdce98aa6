"What every lesson keeps to: its length, its cells, its guesses; and that guesses do what they say."
import re

import pytest

import instep, readme
from instep import directives, source
from notebooks import GUESS, a_guess, execute
from conftest import write_notebook

LESSONS = {s: nb for s, nb in readme.read_notebooks().items() if readme.is_lesson(s)}

def code_cells(nb): return [c for c in nb['cells'] if c['cell_type'] == 'code']

@pytest.mark.parametrize('stem', LESSONS)
def test_a_lesson_is_short(stem):
    nb = LESSONS[stem]
    shown = [c for c in nb['cells'] if not {'hide', 'default_exp'} & directives(c).keys()]
    assert 30 <= len(shown) <= 60 and readme.minutes(nb) <= 45
    for c in code_cells(nb):
        most = 25 if 'export' in directives(c) else 12
        lines = instep.code(c).strip().splitlines()
        if re.match('import |from ', lines[0] if lines else ''): most = 20   # a list
        assert len(lines) <= most, f"cell {c['id']} has {len(lines)} lines"
        assert 'hide' in directives(c) or max(map(len, lines), default=0) <= 100, c['id']

@pytest.mark.parametrize('stem', LESSONS)
def test_never_four_code_cells_without_prose(stem):
    kinds = ''.join(c['cell_type'][0] for c in LESSONS[stem]['cells']
                    if not {'hide', 'default_exp'} & directives(c).keys())
    assert 'cccc' not in kinds

@pytest.mark.parametrize('stem', LESSONS)
def test_each_guess_is_asked_measured_and_counted(stem):
    nb = LESSONS[stem]
    code = code_cells(nb)
    asked = [k for k, c in enumerate(code) if instep.guess_of(c)]
    assert 2 <= len(asked) <= 6
    for k in asked:
        kind, n, choices = instep.guess_of(code[k])
        last = source(code[k + 1]).strip().splitlines()
        assert any(re.match(r'\w+\.guess\(', line) for line in last), code[k + 1]['id']
        measured, = (o['data'][GUESS]['measured'] for o in code[k + 1]['outputs']
                     if GUESS in o.get('data', {}))
        right = dict(number=float, choice=str, sketch=list)[kind]
        assert isinstance(measured, (right, int) if kind == 'number' else right), code[k]['id']
        assert kind != 'choice' or measured in choices
        assert kind != 'sketch' or len(measured) == n
    said = [''.join(o.get('data', {}).get('text/markdown', '')) for c in code for o in c['outputs']]
    assert any(f'Guesses made: 0 of {len(asked)}.' in text for text in said)

@pytest.mark.parametrize('line, asked', [
    ('guess = ...  # a number: the std', ('number', 1, [])),
    ('guess = ...  # three numbers: at 1, 2, 3', ('sketch', 3, [])),
    ("guess = ...  # 'grows', 'shrinks' or 'stays'", ('choice', 0, ['grows', 'shrinks', 'stays'])),
    ('guess = .5', None), ('x = 1', None)])
def test_what_a_cell_asks_for(line, asked):
    assert instep.guess_of(dict(cell_type='code', source=line)) == asked

@pytest.mark.parametrize('line', ['guess = ...', 'guess = ...  # the std',
                                  'guess = ... # a number'])
def test_a_cell_that_does_not_say_what_it_asks_for(line):
    with pytest.raises(ValueError, match='expected one line'):
        instep.guess_of(dict(cell_type='code', source=line))

@pytest.mark.parametrize('line', ['a number', 'three numbers', "'a' or 'b'"])
def test_a_guess_of_the_right_kind_is_typed(tmp_path, line):
    path = write_notebook(tmp_path/'a.ipynb', f'guess = ...  # {line}', 'print(guess)')
    asked = instep.guess_of(dict(cell_type='code', source=f'guess = ...  # {line}'))
    for guesses, said in ((True, str(a_guess(*asked))), (False, 'Ellipsis')):
        nb = execute(path, guesses=guesses)
        assert source(dict(source=nb['cells'][1]['outputs'][0]['text'])).strip() == said
