"How the benchmarks measure: two pieces of work in turns, in one process, and the median ratio with its spread."
import statistics, time

def seconds(f):
    start = time.perf_counter(); f()
    return time.perf_counter() - start

def report(what, ours, theirs, limit, repeat=15):
    "Print the median of `ours`/`theirs` over `repeat` turns, its quartiles, and whether it reaches `limit`."
    ours(); theirs()   # once to warm up
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeat)]
    low, mid, high = statistics.quantiles([a/b for a, b in pairs], n=4)
    print(f"{what}: {mid:.2f}× ({low:.2f} to {high:.2f}; {statistics.median(a for a, _ in pairs)*1e3:,.0f} ms against "
          f"{statistics.median(b for _, b in pairs)*1e3:,.0f} ms), to reach: {limit}×  {'reached' if mid <= limit else 'NOT REACHED'}")
