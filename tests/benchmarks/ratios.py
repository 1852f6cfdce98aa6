"How the benchmarks measure: two pieces of work in turns, in one process, and the median ratio with its spread."
import statistics, time

def seconds(f, clock=time.perf_counter):
    start = clock(); f()
    return clock() - start

def report(what, ours, theirs, limit, repeat=15, faster=False, clock=time.perf_counter):
    """Print the median of `ours`/`theirs` over `repeat` turns (of `theirs`/`ours` when it is to be `faster`), its quartiles, and whether it
    reaches `limit`; give back the three ratios. With `clock=time.process_time`, work on one thread is measured apart from its neighbours'."""
    ours(); theirs()   # once to warm up
    pairs = [(seconds(ours, clock), seconds(theirs, clock)) for _ in range(repeat)]
    low, mid, high = statistics.quantiles([b/a if faster else a/b for a, b in pairs], n=4)
    print(f"{what}: {mid:.2f}× ({low:.2f} to {high:.2f}; {statistics.median(a for a, _ in pairs)*1e3:,.0f} ms against "
          f"{statistics.median(b for _, b in pairs)*1e3:,.0f} ms), to reach: {'at least ' if faster else ''}{limit}×  {'reached' if (mid >= limit if faster else mid <= limit) else 'NOT REACHED'}")
    return low, mid, high
