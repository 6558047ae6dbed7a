#!/usr/bin/env python3
"""Writes a seeded web-access log or syslog: genlog.py access|sys SEED START_EPOCH BYTES."""

import bisect
import hashlib
import random
import sys
import time

WORDS = (
    "user cart item order search api v1 v2 login assets img js css static blog post tag feed admin report "
    "invoice product review media thumb large session token health metrics checkout price stock vendor"
).split()
SUFFIXES = ["", "", ".html", ".js", ".css", ".png", ".jpg", "/"]


def zipf(count, rng):
    """Picks indices as people pick pages: a few often, most rarely."""
    sums, total = [], 0.0
    for rank in range(count):
        total += 1.0 / (rank + 1) ** 0.9
        sums.append(total)
    return lambda: bisect.bisect(sums, rng.random() * total)


class Site:
    """The paths, browsers and addresses that a log is about."""

    def __init__(self, rng):
        def path():
            parts = (rng.choice(WORDS) for _ in range(rng.randint(1, 4)))
            return "/" + "/".join(parts) + rng.choice(SUFFIXES)

        self.rng = rng
        self.paths = [path() for _ in range(4000)]
        self.agents = [
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
            f"Chrome/{rng.randint(90, 131)}.0.{rng.randint(1000, 6999)}.{rng.randint(1, 250)} Safari/537.36"
            for _ in range(120)
        ]
        self.agents += [
            f"Mozilla/5.0 (iPhone; CPU iPhone OS {rng.randint(13, 18)}_{rng.randint(0, 7)} like Mac OS X) "
            f"AppleWebKit/605.1.15 (KHTML, like Gecko) Version/{rng.randint(13, 18)}.0 Mobile/15E148 Safari/604.1"
            for _ in range(60)
        ]
        self.agents += ["curl/7.88.1", "python-requests/2.31.0", "kube-probe/1.29"]
        self.addresses = [".".join(str(rng.randint(1, 254)) for _ in range(4)) for _ in range(9000)]
        self.pick_path = zipf(len(self.paths), rng)
        self.pick_agent = zipf(len(self.agents), rng)
        self.pick_address = zipf(len(self.addresses), rng)

    def access(self, moment):
        rng = self.rng
        path = self.paths[self.pick_path()]
        address = self.addresses[self.pick_address()]
        if rng.random() < 0.35:
            digest = hashlib.md5(str(rng.random()).encode()).hexdigest()
            path += f"?id={rng.randint(1, 3_000_000)}&s={digest[: rng.choice([8, 16, 32])]}"
        status = rng.choices([200, 304, 301, 404, 500, 206], [80, 9, 4, 5, 1, 1])[0]
        method = rng.choices(["GET", "POST", "HEAD"], [88, 10, 2])[0]
        stamp = time.strftime("%d/%b/%Y:%H:%M:%S", time.gmtime(moment))
        length = 0 if status == 304 else int(rng.lognormvariate(8.5, 1.4))
        referrer = rng.choice(["-", "https://shop.example.com" + self.paths[self.pick_path()]])
        agent = self.agents[self.pick_agent()]
        took = rng.lognormvariate(-3, 1)
        return (
            f'{address} - - [{stamp} +0000] "{method} {path} HTTP/1.1" {status} {length} '
            f'"{referrer}" "{agent}" {took:.3f}\n'
        )

    def system(self, moment):
        rng = self.rng
        pid = rng.randint(300, 40_000)
        lines = [
            f"sshd[{pid}]: Failed password for invalid user {rng.choice(WORDS)} "
            f"from {self.addresses[self.pick_address()]} port {rng.randint(1024, 65535)} ssh2",
            f"CRON[{pid}]: (root) CMD (   cd / && run-parts --report /etc/cron.hourly)",
            f"systemd[1]: Started Session {rng.randint(1, 99_999)} of user deploy.",
            f'app[{pid}]: level=info msg="request done" trace={rng.getrandbits(128):032x} '
            f"dur={rng.lognormvariate(2, 1):.2f}ms rows={rng.randint(0, 500)}",
            f"kernel: [{moment % 1e6:12.6f}] TCP: Possible SYN flooding on port 443. Sending cookies.",
        ]
        return time.strftime("%b %d %H:%M:%S ", time.gmtime(moment)) + "web01 " + rng.choice(lines) + "\n"


def main():
    kind, seed, moment, wanted = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    rng = random.Random(seed)
    site = Site(rng)
    written = 0
    while written < wanted:
        moment += rng.expovariate(6.0 if kind == "access" else 1.5)
        line = site.access(moment) if kind == "access" else site.system(moment)
        written += len(line)
        sys.stdout.write(line)


main()
