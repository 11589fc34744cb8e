#!/usr/bin/env bash
# scipy 1.17.1, milp and linprog (HiGHS): an assignment of 50 samples to 3 agents under a budget, whose costs are scaled by
# 1, 1e-6 and 1e-8, as dollars of a call are. The same answer is expected at each scale. At 1e-8 milp says that its answer
# is optimal with a gap of 0, and states a lower bound equal to it, although an assignment at 54 % of that cost exists;
# linprog's optimum of the relaxation lies above a feasible point. (Tolerances are absolute: reduced costs below 1e-7 are
# zero to it.)
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "scipy==1.17.1" "numpy==2.4.6"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

samples, agents = 50, 3
costs = np.random.default_rng(5).random((samples, agents))
each = np.kron(np.eye(samples), np.ones(agents))  # one agent a sample
queries = np.tile([0.0, 1.0, 2.0], samples)
rules = [LinearConstraint(each, 1, 1), LinearConstraint(queries[None], -np.inf, 40)]


def solved(scale):
    return milp(scale * costs.ravel(), constraints=rules, integrality=np.ones(costs.size), bounds=Bounds(0, 1))


true = solved(1.0)
assert true.status == 0
cost_of = lambda answer: float(costs.ravel() @ np.round(answer.x))
seen = {}
for scale in (1.0, 1e-6, 1e-8):
    found = solved(scale)
    assert found.status == 0, found
    relaxed = linprog(scale * costs.ravel(), A_eq=each, b_eq=np.ones(samples), A_ub=queries[None], b_ub=[40])
    seen[scale] = (cost_of(found) / cost_of(true), found.mip_dual_bound / scale / true.fun, relaxed.fun / scale / true.fun)
    print(f"scale {scale:g}: gap {found.mip_gap:.2g}, cost {seen[scale][0]:.3f}, stated lower bound {seen[scale][1]:.3f}, linprog {seen[scale][2]:.3f} times the optimum")
assert abs(seen[1.0][0] - 1) < 1e-9
assert seen[1e-8][0] > 1.2 and seen[1e-8][1] > 1.2 and found.mip_gap == 0, seen[1e-8]
assert seen[1e-8][2] > 1.2, seen[1e-8]
PYTHON
