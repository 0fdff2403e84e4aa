"""Duration of the first pass over the whole network, given the rate limits of the PDSes: a calculation, not a measurement.

    .venv/bin/python -m bench.whole_network [--accounts 45000000] [--addresses 1 2 4 8] [--requests 3000] [--window 300]

Every PDS answers `--requests` in `--window` seconds to one address, and a repo is one request. So a host with n accounts takes
n / (addresses x requests) windows. Hosts are fetched in parallel, so the largest one decides. The pipeline's throughput is a
second bound: `--repos-per-core` and `--records-per-core` as measured (docs/scale.md), times the cores given to backfill.

Assumptions, each an option: `--large` hosts of equal size hold `--large-share` of the accounts (the servers of Bluesky itself, to
which accounts are assigned evenly); the rest is spread over `--small` hosts with sizes of a Zipf distribution. `--failing` is
the share of requests that are spent on retries.
"""

import argparse
from dataclasses import dataclass

from bench.support.stack import report

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Network:
    """Accounts per PDS, the largest first."""

    hosts: list[int]

    @property
    def accounts(self) -> int:
        return sum(self.hosts)

    def days(self, addresses: int, requests: int, window: float, failing: float, share: float = 1.0) -> float:
        """Days until this share of the accounts is fetched at the full rate that every host allows."""
        rate = addresses * requests / window * (1.0 - failing)  # repos a second, of each host
        low, high = 0.0, max(self.hosts) / rate
        wanted = share * self.accounts
        while high - low > 1.0:
            middle = (low + high) / 2
            done = sum(min(size, rate * middle) for size in self.hosts)
            low, high = (middle, high) if done < wanted else (low, middle)
        return high / DAY


def spread(accounts: int, large: int, large_share: float, small: int) -> Network:
    """Equal large hosts, and a tail of small ones; the n-th has 1/n of the accounts of the first."""
    own = round(accounts * large_share)
    hosts = [own // large + (number < own % large) for number in range(large)]
    weights = [1.0 / rank for rank in range(1, small + 1)]
    unit = (accounts - own) / sum(weights)
    hosts += [max(1, round(unit * weight)) for weight in weights]
    return Network(sorted(hosts, reverse=True))


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=45_000_000)
    parser.add_argument("--records", type=int, default=20_000_000_000)
    parser.add_argument("--addresses", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--window", type=float, default=300.0)
    parser.add_argument("--large", type=int, default=90)
    parser.add_argument("--large-share", type=float, default=0.98)
    parser.add_argument("--small", type=int, default=2500)
    parser.add_argument("--failing", type=float, default=0.02)
    parser.add_argument("--records-per-core", type=float, default=20_000)
    parser.add_argument("--repos-per-core", type=float, default=500)
    parser.add_argument("--cores", type=int, default=8)
    options = parser.parse_args()
    network = spread(options.accounts, options.large, options.large_share, options.small)
    bound = max(
        network.accounts / (options.repos_per_core * options.cores),
        options.records / (options.records_per_core * options.cores),
    )
    rows = []
    for addresses in options.addresses:
        limits = (addresses, options.requests, options.window, options.failing)
        days = network.days(*limits)
        rows.append(
            {
                "addresses": addresses,
                "days_by_limits": round(days, 2),
                "days_for_99_percent": round(network.days(*limits, share=0.99), 2),
                "repos_per_second_at_first": round(
                    len(network.hosts) * addresses * options.requests / options.window * (1 - options.failing)
                ),
                "days_by_cores": round(bound / DAY, 2),
                "days": round(max(days, bound / DAY), 2),
            }
        )
    print("".join(f"{name:>28}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value:>28}" for value in row.values()))
    report("whole_network", hosts=len(network.hosts), largest=network.hosts[0], accounts=network.accounts, rows=rows)


if __name__ == "__main__":
    main()
