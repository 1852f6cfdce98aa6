"""Run the course's notebooks: `python tools/notebooks.py run|store|compare|sweep [--seeds N] [NOTEBOOK …]`.

run      execute each in a fresh kernel; end with a summary and the sources' figures; copies in _build/run
store    execute, and keep the outputs in the notebook itself
compare  execute, and compare with the outputs stored (on the reference platform only)
sweep    execute for INITNOTES_SEED = 0 … N−1

All of them run without network, exit 1 when a cell fails, and name notebook, cell and error."""
import argparse, ast, base64, io, json, os, platform, re, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError, CellTimeoutError
from nbdev.clean import clean_nb
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
LEDGER = 'application/vnd.initnotes.ledger+json'
RTOL, FLOOR = 1e-4, 1e-7      # of a number in a stored output, beside one unit of its last printed digit
VISIBLE, PIXELS = 40/255, 4   # a pixel differs visibly beyond the first; so many may
SHARE = 2e-5                  # or so large a share of them

def text(x): return ''.join(x) if isinstance(x, list) else x

# ---- executing -------------------------------------------------------------------------------

class CellFailed(Exception): pass

def execute(path, seed=None, on_cell=lambda i, n: None):
    "Execute the notebook at `path` in a fresh kernel without network; return it, cleaned as nbdev cleans."
    nb = nbformat.read(path, as_version=4)
    for c in nb.cells:
        if c.cell_type == 'code': c.outputs, c.execution_count = [], None
    env = {k: v for k, v in os.environ.items() if k != 'INITNOTES_SEED'}
    if seed is not None: env['INITNOTES_SEED'] = str(seed)
    env['OMP_NUM_THREADS'] = '1'    # sums must not depend on how many cores there are, nor two kernels fight for them
    env['TQDM_DISABLE'] = '1'       # no progress bar in a stored output
    env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT/'tools'/'offline'), env.get('PYTHONPATH')]))
    failed = []
    with tempfile.TemporaryDirectory() as tmp:
        # Unix sockets need no network at all. Their names must be short, so they do not lie below _build.
        local = dict(transport='ipc', connection_file=f'{tmp}/kernel.json') if os.name == 'posix' else {}
        client = NotebookClient(nb, kernel_name='python3', config=Config(KernelManager=local), timeout=600,
                                record_timing=False, coalesce_streams=True, resources={'metadata': {'path': str(path.parent)}},
                                on_cell_start=lambda cell, cell_index: on_cell(cell_index + 1, len(nb.cells)),
                                on_cell_error=lambda cell, cell_index, execute_reply: failed.append(cell_index))
        try: client.execute(env=env)
        except (CellExecutionError, DeadKernelError, CellTimeoutError) as e:
            where = f'cell {failed[0]} ({nb.cells[failed[0]].id})' if failed else 'its kernel'
            line = re.search(r'^-+> *\d+ (.*)$', re.sub(r'\x1b\[[\d;]*m', '', str(e)), re.M)  # a bare assert has no message of its own
            raise CellFailed(f"{path.name}, {where}: {getattr(e, 'ename', type(e).__name__)}: {getattr(e, 'evalue', e)}"
                             + (f' (at: {line[1].strip()})' if line else '')) from None
    for i, c in enumerate(nb.cells):  # a warning in a lesson is a mistake, and names paths of one machine
        for o in c.get('outputs', []):
            if o.get('name') == 'stderr': raise CellFailed(f"{path.name}, cell {i} ({c.id}): prints to stderr: {text(o['text']).strip()}")
    nb = json.loads(nbformat.writes(nb))
    clean_nb(nb)
    return nb

def dumps(nb): return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n'

# ---- what a notebook says of itself ----------------------------------------------------------

def outputs(nb):
    "Every (cell index, output) of the notebook."
    for i, c in enumerate(nb['cells']):
        for o in c.get('outputs', []): yield i, o

def ledgers(nb): return [o['data'][LEDGER] for _, o in outputs(nb) if LEDGER in o.get('data', {})]

def assertions(nb):
    "How many assertions the code cells contain."
    n = 0
    for c in nb['cells']:
        if c['cell_type'] != 'code': continue
        src = '\n'.join(l for l in text(c['source']).splitlines() if not l.lstrip().startswith(('%', '!')))
        for node in ast.walk(ast.parse(src)):
            name = getattr(getattr(node, 'func', None), 'id', '')
            n += isinstance(node, ast.Assert) or name.startswith('test_') or name == 'expect_fail'
    return n

def show(x):
    "A ledger's figure as the ledger itself shows it."
    return x if isinstance(x, str) else f'{x:,.0f}' if x == round(x) and abs(x) < 1e7 else f'{x:.4g}'

def checks(nb): return assertions(nb) + sum(len(l['rows']) for l in ledgers(nb))

# ---- comparing outputs -----------------------------------------------------------------------

NUMBER = re.compile(r'(?<![\w.])[-+−]?(?:\d[\d,]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?')

def number(s):
    "Value of a printed number, and one unit of its last digit (0 for a whole number)."
    s = s.replace('−', '-').replace(',', '')
    mantissa, _, exponent = s.lower().partition('e')
    if '.' not in mantissa and not exponent: return float(s), 0.
    return float(s), 10.**(int(exponent or 0) - len(mantissa.partition('.')[2]))

def same_text(old, new, tol=None):
    "None, or how two texts differ: numbers within tolerance, all else exactly."
    if NUMBER.split(old) != NUMBER.split(new): return f'stored {old.strip()[:200]!r}, now {new.strip()[:200]!r}'
    for a, b in zip(NUMBER.findall(old), NUMBER.findall(new)):
        (x, unit), (y, _) = number(a), number(b)
        allowed = abs(x)*tol if tol else unit and unit + RTOL*abs(x) + FLOOR
        if abs(x - y) > allowed*(1 + 1e-9): return f'stored {a}, now {b}, allowed ±{allowed:.2g}'

def same_picture(old, new):
    "None, or how two PNG files differ."
    from matplotlib.image import imread
    a, b = (imread(io.BytesIO(base64.b64decode(text(x)))) for x in (old, new))
    if a.shape != b.shape: return f'stored picture has {a.shape}, new one {b.shape}'
    differ = (abs(a - b).max(-1) > VISIBLE)
    if differ.sum() > max(PIXELS, SHARE*differ.size): return f'{differ.sum()} of {differ.size} pixels of the picture differ visibly'

def same_output(old, new, tol):
    if old['output_type'] != new['output_type']: return f"stored a {old['output_type']}, now a {new['output_type']}"
    if old['output_type'] == 'stream':
        return f"stored on {old['name']}, now on {new['name']}" if old['name'] != new['name'] else same_text(text(old['text']), text(new['text']), tol)
    if old['output_type'] == 'error': return 'an error was stored'
    a, b = old['data'], new['data']
    if set(a) != set(b): return f'stored as {sorted(a)}, now {sorted(b)}'
    for mime in a:
        if mime == 'image/png':
            # What differs in a cell with a tolerance of its own moves lines and labels: there its asserts decide.
            problem = None if tol else same_picture(a[mime], b[mime])
        else: problem = same_text(*(x if isinstance(x, str) else json.dumps(x, sort_keys=True, ensure_ascii=False)
                                    for x in (text(a[mime]), text(b[mime]))), tol)
        if problem: return problem

def own_tolerance(cell):
    "The relative tolerance that a cell states for its outputs with `#| output_tol: 0.1`, or None."
    found = re.search(r'^#\|\s*output_tol:\s*(\S+)\s*$', text(cell['source']), re.M)
    return float(found[1]) if found else None

def differences(old, new):
    "All differences between the outputs of two runs of a notebook, as texts."
    found = []
    for i, (a, b) in enumerate(zip(old['cells'], new['cells'])):
        x, y = a.get('outputs', []), b.get('outputs', [])
        where = f"cell {i} ({a['id']})"
        if len(x) != len(y): found.append(f'{where}: {len(x)} outputs stored, now {len(y)}'); continue
        found += [f'{where}: {p}' for p in (same_output(o, n, own_tolerance(a)) for o, n in zip(x, y)) if p]
    return found

def off_reference():
    "Why this is not the platform on which the stored outputs were made; '' where it is."
    if (platform.system(), platform.machine()) != ('Linux', 'x86_64'): return f'{platform.system()} {platform.machine()}'
    pins = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().split() if '==' in l)
    for name in ('torch', 'numpy', 'matplotlib'):
        if (have := version(name).partition('+')[0]) != pins[name]: return f'{name} {have}, pinned {pins[name]}'
    return ''

# ---- the commands ----------------------------------------------------------------------------

def progress(line):
    "Show a passing line on a terminal; nothing where output is kept."
    if sys.stderr.isatty(): print(f'\r\033[K{line}', end='', file=sys.stderr, flush=True)

def run(paths, keep=None):
    "Execute in order; `keep(path, nb)` for each; print summary and source figures; return the failures."
    done, failed = [], []
    for path in paths:
        start = time.perf_counter()
        try: nb = execute(path, os.environ.get('INITNOTES_SEED'), on_cell=lambda i, n: progress(f'{path.stem}: cell {i} of {n}'))
        except CellFailed as e: progress(''); print(f'FAILED {e}', flush=True); failed.append(path); continue
        done.append((path.stem, time.perf_counter() - start, nb))
        progress(''); print(f'{path.stem:<20} {done[-1][1]:6.1f} s   {checks(nb):4} checks passed', flush=True)
        keep(path, nb)
    rows = [r for _, _, nb in done for l in ledgers(nb) for r in l['rows'] if r['source']]
    if rows:
        table = [('figure', 'printed', 'predicted', 'measured', 'inside?')] + [
            (r['what'], r['source'], show(r['predicted']), show(r['measured']), 'yes' if r['reproduced'] else f"no: {r['why']}") for r in rows]
        widths = [max(len(r[k]) for r in table) for k in range(4)]
        print('\nThe figures printed in the sources')
        for r in table: print('  ' + '  '.join(f'{r[k]:<{widths[k]}}' for k in range(4)) + '  ' + r[4])
    print(f"\n{len(done)} notebooks, {sum(t for _, t, _ in done):.0f} s, {sum(checks(nb) for *_, nb in done)} checks passed, "
          f"{sum(r['reproduced'] for r in rows)} of {len(rows)} source figures inside" + (f'; {len(failed)} notebooks FAILED' if failed else ''))
    return failed

def keep_copy(path, nb):
    out = ROOT/'_build'/'run'/path.name
    out.parent.mkdir(parents=True, exist_ok=True); out.write_text(dumps(nb), encoding='utf-8')

def store(path, nb): path.write_text(dumps(nb), encoding='utf-8')

def compare_one(path):
    try: return differences(json.loads(path.read_text(encoding='utf-8')), execute(path))
    except CellFailed as e: return [str(e)]

def compare(paths):
    "Compare stored outputs with those of a new run; return the notebooks that differ."
    if why := off_reference():
        print(f'stored outputs not compared: {why} is not the reference platform; the assertions alone decide'); return []
    with ThreadPoolExecutor(2) as pool: found = dict(zip(paths, pool.map(compare_one, paths)))
    for path, problems in found.items():
        print(f"{path.stem:<20} {'outputs reproduce' if not problems else 'outputs DIFFER'}")
        for p in problems: print(f'  {p}')
    return [p for p in paths if found[p]]

def sweep_one(job):
    path, seed = job
    try: execute(path, seed)
    except CellFailed as e: return str(e)

def sweep(paths, seeds):
    "Execute every notebook under every seed; return the failures."
    jobs, failed = [(p, k) for k in range(seeds) for p in paths], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (path, seed), error in zip(jobs, pool.map(sweep_one, jobs)):
            print(f"INITNOTES_SEED={seed:<4} {path.stem:<20} {'pass' if not error else 'FAIL ' + error}", flush=True)
            if error: failed.append((path, seed))
    print(f'{len(jobs) - len(failed)} passed, {len(failed)} failed')
    return failed

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('command', choices=('run', 'store', 'compare', 'sweep'))
    p.add_argument('notebooks', nargs='*', type=Path, help='default: all in nbs/')
    p.add_argument('--seeds', type=int, default=20)
    a = p.parse_intermixed_args()
    paths = [x.resolve() for x in a.notebooks] or sorted((ROOT/'nbs').glob('*.ipynb'))
    if missing := [x for x in paths if not x.is_file()]: p.error(f'no such notebook: {missing[0]}')
    if a.command == 'store': os.environ.pop('INITNOTES_SEED', None)   # stored outputs are those of the default seed
    failed = {'run': lambda: run(paths, keep_copy), 'store': lambda: run(paths, store),
              'compare': lambda: compare(paths), 'sweep': lambda: sweep(paths, a.seeds)}[a.command]()
    return 1 if failed else 0

if __name__ == '__main__': sys.exit(main())
