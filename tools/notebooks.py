"""Run the course's notebooks: `python tools/notebooks.py COMMAND [NOTEBOOK …]`.

run         execute each as this machine is; end with a summary; copies in _build/run
store       execute under the reference settings, and keep the outputs in the notebook itself
compare     execute under the reference settings, and compare with the outputs stored
processors  compare under several instruction sets and numbers of threads
sweep       execute for INITNOTES_SEED = 0 … N−1

All of them run without network, exit 1 when a cell fails, and name notebook, cell and error. The
reference settings (PINS) never override a variable that is set; one that is set but empty leaves
the machine as it is."""
import argparse, ast, base64, io, json, math, os, platform, re, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError, CellTimeoutError
from nbdev.clean import clean_nb
from tqdm import tqdm
from traitlets.config import Config

from instep import FOLDS, fold, guess_of, nodes, notebooks_in, read

ROOT = Path(__file__).resolve().parent.parent
OWN = 'application/vnd.initnotes.'       # what tools and tests read, and no reader sees
LEDGER = f'{OWN}ledger+json'
GUESS = f'{OWN}guess+json'
SVG = 'image/svg+xml'

# The instruction sets of the three libraries that compute; an empty value is what the machine has.
CPU = ('ATEN_CPU_CAPABILITY', 'ONEDNN_MAX_CPU_ISA', 'MKL_CBWR')
SETS = dict(portable=('default', 'SSE41', 'COMPATIBLE'), avx2=('avx2', 'AVX2', 'AVX2'),
            native=('', '', ''))
SETTINGS = {f'{name}-{n}': dict(zip(CPU, values), OMP_NUM_THREADS=str(n))
            for name, values in SETS.items() for n in (1, 2)}
PINS = SETTINGS['avx2-1']     # of a reference run
RTOL, FLOOR = 1e-4, 1e-7      # of a stored number, beside one unit of its last printed digit
VISIBLE, PIXELS = 40/255, 4   # a pixel differs visibly beyond the first; so many may
SHARE = 2e-5                  # or so large a share of them
MOVED = .6                    # what a part of an SVG picture may move, in points

def text(x): return ''.join(x) if isinstance(x, list) else x

# ---- executing -------------------------------------------------------------------------------

class CellFailed(Exception): pass

def reference():
    return PINS | {k: os.environ[k] for k in PINS if k in os.environ}

def environment(settings, seed):
    "What a kernel finds in its environment: no network, no progress bars, these settings."
    env = {k: v for k, v in {**os.environ, **settings}.items() if k != 'INITNOTES_SEED'}
    env = {k: v for k, v in env.items() if v or k not in PINS}
    if seed is not None: env['INITNOTES_SEED'] = str(seed)
    path = [str(ROOT/'tools'/'offline'), env.get('PYTHONPATH')]
    env.setdefault('OMP_WAIT_POLICY', 'passive')   # a waiting thread burns no core others need
    return env | dict(TQDM_DISABLE='1', PYTHONPATH=os.pathsep.join(filter(None, path)))

def execute(path, seed=None, settings={}, on_cell=lambda **_: None, guesses=False):
    """Execute the notebook at `path` in a fresh kernel; return it, cleaned as nbdev cleans.

    With `guesses`, one of the right kind is typed into every cell that asks for one."""
    nb = nbformat.read(path, as_version=4)
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs, c.execution_count = [], None
        if guesses and (asked := guess_of(c)): c.source = f'guess = {a_guess(*asked)!r}'
    env = environment(settings, seed)
    failed = []
    with tempfile.TemporaryDirectory() as tmp:
        # Unix sockets need no network at all. Their names must be short: not below _build.
        local = dict(transport='ipc', connection_file=f'{tmp}/kernel.json')
        if os.name != 'posix': local = {}
        client = NotebookClient(
            nb, kernel_name='python3', config=Config(KernelManager=local), timeout=1200,
            record_timing=False, coalesce_streams=True, on_cell_start=on_cell,
            resources={'metadata': {'path': str(path.parent)}},
            on_cell_error=lambda cell, cell_index, execute_reply: failed.append(cell_index))
        try: client.execute(env=env)
        except (CellExecutionError, DeadKernelError, CellTimeoutError) as e:
            where = f'cell {failed[0]} ({nb.cells[failed[0]].id})' if failed else 'its kernel'
            said = re.sub(r'\x1b\[[\d;]*m', '', str(e))   # a bare assert has no message of its own
            line = re.search(r'^-+> *\d+ (.*)$', said, re.M)
            name, value = getattr(e, 'ename', type(e).__name__), getattr(e, 'evalue', e)
            at = f' (at: {line[1].strip()})' if line else ''
            raise CellFailed(f'{path.name}, {where}: {name}: {value}{at}') from None
    for i, c in enumerate(nb.cells):  # a warning in a lesson is a mistake, and names paths
        for o in c.get('outputs', []):
            if o.get('name') != 'stderr': continue
            said = text(o['text']).strip()
            raise CellFailed(f'{path.name}, cell {i} ({c.id}): prints to stderr: {said}')
    nb = json.loads(nbformat.writes(nb))
    fold(nb)
    for c in nb['cells']:
        for o in c.get('outputs', []):
            if SVG in o.get('data', {}): o['data'][SVG] = tidy_svg(text(o['data'][SVG]), c['id'])
    clean_nb(nb, allowed_cell_metadata_keys=[*FOLDS])
    return nb

def tidy_svg(svg, name):
    "A picture without its date, its parts named after the cell and not at random."
    svg = re.sub(r'<metadata>.*?</metadata>\s*', '', svg, flags=re.S)
    names = dict.fromkeys(re.findall(r'id="((?:[mp]|image)[0-9a-f]{10})"', svg))
    for k, old in enumerate(names): svg = svg.replace(old, f'{name}-{k}')
    return svg.splitlines(keepends=True)

def a_guess(kind, n, choices):
    "Something that a reader may type."
    if kind == 'choice': return choices[0]
    return .5 if kind == 'number' else [.5]*n

def dumps(nb):
    return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n'

# ---- what a notebook says of itself ----------------------------------------------------------

def outputs(nb):
    "Every (cell index, output) of the notebook."
    for i, c in enumerate(nb['cells']):
        for o in c.get('outputs', []): yield i, o

def ledgers(nb):
    return [o['data'][LEDGER] for _, o in outputs(nb) if LEDGER in o.get('data', {})]

def assertions(nb):
    "How many assertions the code cells contain."
    n = 0
    for node in (x for c in nb['cells'] for x in nodes(c)):
        name = getattr(getattr(node, 'func', None), 'id', '')
        n += isinstance(node, ast.Assert) or name.startswith('test_') or name == 'expect_fail'
    return n

def checks(nb): return assertions(nb) + sum(len(l['rows']) for l in ledgers(nb))

# ---- comparing outputs -----------------------------------------------------------------------

NUMBER = re.compile(r'(?<![\w.])[-+−]?(?:(?:nan|inf)\b'
                    r'|(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)')

def number(s):
    "Value of a printed number, and one unit of its last digit (0 for a whole number)."
    s = s.replace('−', '-').replace(',', '')
    mantissa, _, exponent = s.lower().partition('e')
    if '.' not in mantissa and not exponent: return float(s), 0.
    return float(s), 10.**(int(exponent or 0) - len(mantissa.partition('.')[2]))

def allowed(x, y, unit, tol):
    "How far two printed numbers may differ: a share of the larger, and a unit of the last digit."
    if not (math.isfinite(x) and math.isfinite(y)): return 0.
    size = max(abs(x), abs(y))
    if not unit: return tol and tol*size + 1   # a count is exact but with a tol
    return (tol or RTOL)*size + unit + FLOOR

def same_text(old, new, tol=0.):
    "None, or how two texts differ: numbers by more than is allowed, or anything but blanks."
    words = [[re.sub(r'[ \t]+', ' ', w) for w in NUMBER.split(s)] for s in (old, new)]
    if words[0] != words[1]:
        return f'stored {old.strip()[:200]!r}, now {new.strip()[:200]!r}'
    if tol == math.inf: return
    for a, b in zip(NUMBER.findall(old), NUMBER.findall(new)):
        (x, unit), (y, _) = number(a), number(b)
        if x == y or math.isnan(x) and math.isnan(y): continue
        room = allowed(x, y, unit, tol)
        if not abs(x - y) <= room*(1 + 1e-9):
            return f'stored {a}, now {b}, allowed ±{room:.2g}'

def same_picture(old, new):
    "None, or how two PNG files differ."
    from matplotlib.image import imread
    a, b = (imread(io.BytesIO(base64.b64decode(text(x)))) for x in (old, new))
    if a.shape != b.shape:
        return f'stored picture has {a.shape}, new one {b.shape}'
    differ = (abs(a - b).max(-1) > VISIBLE)
    if differ.sum() > max(PIXELS, SHARE*differ.size):
        return f'{differ.sum()} of {differ.size} pixels of the picture differ visibly'

def same_svg(old, new):
    "None, or how two SVG pictures differ: but for moves that nobody sees."
    figure = r'-?\d+(?:\.\d+)?'
    if re.split(figure, old) != re.split(figure, new): return 'the pictures have other parts'
    pairs = zip(re.findall(figure, old), re.findall(figure, new))
    far = max((abs(float(a) - float(b)) for a, b in pairs), default=0)
    if far > MOVED: return f'something in the picture moved by {far:.2g} points'

def same_output(old, new, tol):
    "None, or how two outputs of a cell differ."
    kinds = [o.get('name') or o['output_type'] for o in (old, new)]
    if kinds[0] != kinds[1]: return f'stored a {kinds[0]}, now a {kinds[1]}'
    if old['output_type'] == 'error': return 'an error was stored'
    if old['output_type'] == 'stream':
        return same_text(text(old['text']), text(new['text']), tol)
    a, b = old['data'], new['data']
    if set(a) != set(b): return f'stored as {sorted(a)}, now {sorted(b)}'
    for mime in a:
        if mime == 'image/png':
            # Where a cell has a tolerance, lines and labels may move: its asserts decide.
            problem = None if tol else same_picture(a[mime], b[mime])
        elif mime == SVG: problem = None if tol else same_svg(text(a[SVG]), text(b[SVG]))
        else: problem = same_text(shown(a[mime]), shown(b[mime]), tol)
        if problem: return problem

def shown(data):
    "The text of an output, whatever its format."
    data = text(data)
    return data if isinstance(data, str) else json.dumps(data, sort_keys=True, ensure_ascii=False)

def own_tolerance(cell):
    "What a cell says of its outputs: `#| output_tol: 0.1`, a share; `any`: words alone count."
    found = re.search(r'^#\|\s*output_tol:\s*(\S+)\s*$', text(cell['source']), re.M)
    if not found: return 0.
    if found[1] == 'any': return math.inf
    if re.fullmatch(r'\d*\.?\d+', found[1]): return float(found[1])
    raise ValueError(f"cell {cell.get('id')}: output_tol is {found[1]!r}, "
                     "expected a share such as 0.1, or any")

def differences(old, new):
    "All differences between the outputs of two runs of a notebook, as texts."
    found = []
    for i, (a, b) in enumerate(zip(old['cells'], new['cells'])):
        x, y = a.get('outputs', []), b.get('outputs', [])
        where = f"cell {i} ({a['id']})"
        problems = ([f'{len(x)} outputs stored, now {len(y)}'] if len(x) != len(y)
                    else [same_output(o, n, own_tolerance(a)) for o, n in zip(x, y)])
        found += [f'{where}: {p}' for p in problems if p]
    return found

def off_reference():
    "Why this is not the platform on which the stored outputs were made; '' where it is."
    here = f'{platform.system()} {platform.machine()}'
    if here != 'Linux x86_64': return here
    pins = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().split() if '==' in l)
    for name in ('torch', 'numpy', 'matplotlib'):
        if (have := version(name).partition('+')[0]) != pins[name]:
            return f'{name} {have}, pinned {pins[name]}'
    return ''

# ---- the commands ----------------------------------------------------------------------------

def run(paths, keep=None, settings={}):
    "Execute in order; `keep(path, nb)` each; end with a summary; return the failures."
    done, failed, start = [], [], time.perf_counter()
    for path in paths:
        began = time.perf_counter()
        seed = os.environ.get('INITNOTES_SEED')
        try:
            with tqdm(desc=path.stem, leave=False, disable=None, unit=' cells') as bar:
                nb = execute(path, seed, settings, lambda **_: bar.update())
        except CellFailed as e:
            failed.append(path)
            print(f'FAILED {e}', flush=True)
            continue
        done.append(nb)
        took = time.perf_counter() - began
        print(f'{path.stem:<20} {took:6.1f} s   {checks(nb):4} checks passed', flush=True)
        if keep: keep(path, nb)
    took = time.perf_counter() - start
    print(f'\n{len(done)} notebooks, {took:.0f} s, {sum(map(checks, done))} checks passed'
          + (f'; {len(failed)} notebooks FAILED' if failed else ''))
    return failed

def keep_copy(path, nb):
    out = ROOT/'_build'/'run'/path.name
    out.parent.mkdir(parents=True, exist_ok=True)
    store(out, nb)

def store(path, nb): path.write_text(dumps(nb), encoding='utf-8')

def compare_one(path, settings=None):
    "What differs from the stored outputs in a new run; off the reference platform, what fails."
    settings = reference() if settings is None else settings
    try: new = execute(path, settings=settings)
    except CellFailed as e: return [str(e)]
    return [] if off_reference() else differences(read(path), new)

def in_parallel(f, jobs, threads=1):
    "Results of the jobs in order, as many at once as there are cores for."
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1)//threads)) as pool:
        yield from pool.map(f, jobs)

def say_if_off():
    if why := off_reference():
        print(f'stored outputs not compared: {why} is not the reference platform; '
              'the assertions alone decide')

def compare(paths, settings=None, label=''):
    "Compare stored outputs with those of a new run; return the notebooks that differ."
    if not label: say_if_off()
    threads = int((settings or reference())['OMP_NUM_THREADS'] or 1)
    differ = []
    jobs = in_parallel(lambda p: compare_one(p, settings), paths, threads)
    for path, problems in zip(paths, jobs):
        print(f"{label}{path.stem:<20} {'DIFFERS' if problems else 'reproduces'}", flush=True)
        for p in problems: print(f'  {p}', flush=True)
        if problems: differ.append(path)
    return differ

def processors(paths, names):
    "Compare under each of these settings; end with a table; return what differs."
    say_if_off()
    differ = {name: compare(paths, SETTINGS[name], f'{name:<13}') for name in names}
    print('\n' + f"{'':<20}" + ''.join(f'{n:>12}' for n in names))
    for path in paths:
        row = ['DIFFERS' if path in differ[n] else 'reproduces' for n in names]
        print(f'{path.stem:<20}' + ''.join(f'{x:>12}' for x in row))
    return [(path, name) for name in names for path in differ[name]]

def sweep_one(job):
    path, seed = job
    try: execute(path, seed, guesses=seed % 2 == 1)
    except CellFailed as e: return str(e)

def sweep(paths, seeds):
    "Execute every notebook under every seed, odd ones with guesses made; return the failures."
    jobs, failed = [(p, k) for k in seeds for p in paths], []
    for (path, seed), error in zip(jobs, in_parallel(sweep_one, jobs)):
        said = 'pass' if not error else 'FAIL ' + error
        print(f'INITNOTES_SEED={seed:<4} {path.stem:<20} {said}', flush=True)
        if error: failed.append((path, seed))
    print(f'{len(jobs) - len(failed)} passed, {len(failed)} failed')
    return failed

def seeds_of(text):
    "`20` is 0 … 19, `5-8` is 5 … 8."
    if not (m := re.fullmatch(r'(\d+)(?:-(\d+))?', text)):
        raise argparse.ArgumentTypeError(f'{text!r}, expected a number such as 20, or a range: 5-8')
    return range(int(m[1]), int(m[2]) + 1) if m[2] else range(int(m[1]))

def arguments():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('command', choices=('run', 'store', 'compare', 'processors', 'sweep'))
    p.add_argument('notebooks', nargs='*', type=Path, help='default: all in nbs/')
    p.add_argument('--seeds', type=seeds_of, default=range(20),
                   help='of sweep: how many, or a range such as 5-8')
    p.add_argument('--settings', nargs='+', choices=SETTINGS, default=list(SETTINGS),
                   metavar='SETTING', help='of processors: ' + ', '.join(SETTINGS))
    a = p.parse_intermixed_args()
    for name in ('INITNOTES_SEED', 'OMP_NUM_THREADS'):
        value = os.environ.get(name) or '1'
        if not value.isdecimal() or (name == 'OMP_NUM_THREADS' and int(value) < 1):
            p.error(f'{name} is {value!r}, expected a whole number: '
                    f'`export {name}=1`, or `unset {name}`')
    a.paths = [x.resolve() for x in a.notebooks] or notebooks_in(ROOT/'nbs')
    if missing := [x for x in a.paths if not x.is_file()]:
        p.error(f'no such notebook: {missing[0]}')
    return a

def main():
    a = arguments()
    if a.command == 'store':   # the default seed's
        os.environ.pop('INITNOTES_SEED', None)
    failed = dict(run=lambda: run(a.paths, keep_copy),
                  store=lambda: run(a.paths, store, reference()), compare=lambda: compare(a.paths),
                  processors=lambda: processors(a.paths, a.settings),
                  sweep=lambda: sweep(a.paths, a.seeds))[a.command]()
    return 1 if failed else 0

if __name__ == '__main__': sys.exit(main())
