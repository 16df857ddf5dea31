"""``python -m tests.conformance [CASES...]``: all cases, ours beside the library's; exit code 1 where one is worse."""

import asyncio
import sys
from collections import Counter

from tests.conformance.autobahn import EVERY_SET, Unavailable, find_worse, install, judge_both


def main() -> int:
    try:
        program = install()
    except Unavailable as exc:
        print(exc)
        return 1
    ours, theirs = asyncio.run(judge_both(program, sys.argv[1:] or EVERY_SET))
    for name, verdicts in (("wscluster", ours), ("websockets", theirs)):
        told = Counter(verdict.behavior for verdict in verdicts.values())
        figures = ", ".join(f"{count} {behavior}" for behavior, count in sorted(told.items()))
        failed = [case for case, verdict in verdicts.items() if not verdict.passed]
        print(f"{name}: {len(verdicts)} cases: {figures}; not passed: {', '.join(failed) or 'none'}")
    worse = find_worse(ours, theirs)
    for case, (our, their) in worse.items():
        print(f"worse than the library: {case}: {our}, and not {their}")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
