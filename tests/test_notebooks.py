"Every notebook, executed once: its assertions hold, and its stored outputs reproduce."
import pytest

import notebooks as nbs
from conftest import ROOT
from instep import notebooks_in

# Those that take longest first, so that two cores end together.
PATHS = sorted(notebooks_in(ROOT/'nbs'), key=lambda p: p.stat().st_size, reverse=True)

@pytest.mark.notebooks
@pytest.mark.parametrize('path', PATHS, ids=lambda p: p.stem)
def test_assertions_hold_and_outputs_reproduce(path):
    problems = nbs.compare_one(path)
    assert not problems, '\n'.join(problems)
