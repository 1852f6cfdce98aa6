"How the benchmarks measure: two pieces of work in turns, and the median ratio with its spread."
import re, statistics, time
from pathlib import Path

def seconds(f, clock=time.perf_counter):
    start = clock(); f()
    return clock() - start

def report(what, ours, theirs, limit, repeat=15, faster=False, clock=time.perf_counter):
    """Print the median of `ours`/`theirs` over `repeat` turns, and whether it reaches `limit`.

    Of `theirs`/`ours` when it is to be `faster`; give it back between its quartiles. With
    `clock=time.process_time`, work on one thread is measured apart from its neighbors'."""
    ours(); theirs()   # once to warm up
    pairs = [(seconds(ours, clock), seconds(theirs, clock)) for _ in range(repeat)]
    low, mid, high = statistics.quantiles([b/a if faster else a/b for a, b in pairs], n=4)
    a, b = (statistics.median(times)*1e3 for times in zip(*pairs))
    reached = mid >= limit if faster else mid <= limit
    print(f"{what}: {mid:.2f}× ({low:.2f} to {high:.2f}; {a:,.0f} ms against {b:,.0f} ms), "
          f"to reach: {'at least ' if faster else ''}{limit}×  "
          f"{'reached' if reached else 'NOT REACHED'}")
    return low, mid, high

PAGE = Path(__file__).resolve().parents[2]/'nbs'/'measured.md'

def into_page(block, text, page=PAGE):
    "Write a text into the block of this name of nbs/measured.md; `make store` renews the README."
    ends = f'{block} -->'
    new, n = re.subn(rf'(<!-- begin {ends}\n).*?(<!-- end {ends})',
                     lambda m: f'{m[1]}\n{text}\n\n{m[2]}', page.read_text(encoding='utf-8'),
                     flags=re.S)
    if n != 1:
        raise SystemExit(f'{page.name}: expected one block <!-- begin {ends} … <!-- end {ends}')
    page.write_text(new, encoding='utf-8')
