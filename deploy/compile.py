"""Compiles the planner and the batch former, so that no test and no first plan waits for it: ``make unit`` does it.

numba keeps the result beside the sources; when they have not changed this takes a second.
"""

from admission.policies import POLICIES, make_policy
from common.batching import warm_up


def main() -> None:
    """Compile all that is compiled at run time."""
    for name in POLICIES:
        make_policy(name).warm_up()
    warm_up()


if __name__ == "__main__":
    main()
