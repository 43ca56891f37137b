"""What the benchmarks share: medians, the kernels' own table, a process under observation."""

import os
import resource
import subprocess
import threading
import time
from pathlib import Path


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def kernel_rates(text):
    """(kernel, instruction set) to million weights per second, from the table that the kernels' benchmark prints."""
    rates = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith(("quantize ", "dequantize ", "cosine_", "pair_")):
            rates[cells[0], cells[1]] = float(cells[2])
    return rates


def fastest_set(rates):
    """The fastest instruction set of this CPU: the benchmark names it first."""
    return next(iter(rates))[1]


def print_table(header, rows):
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def read_once(directory):
    """Brings a model's files into the page cache."""
    buffer = bytearray(1 << 24)
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file():
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


class Run:
    """A process from start to end: wall and CPU seconds, and the most memory it held, sampled every 20 ms."""

    def __init__(self, command):
        self.anonymous = self.resident = 0
        start = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watcher = threading.Thread(target=self._watch, args=(process.pid,))
        watcher.start()
        # The process prints a few lines at most, which the pipes hold.
        _, status, usage = os.wait4(process.pid, 0)
        self.wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
        self.output, errors = process.stdout.read(), process.stderr.read()
        process.stdout.close()
        process.stderr.close()
        self.cpu = usage.ru_utime + usage.ru_stime
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))}: status {process.returncode}\n{errors}")

    def _watch(self, pid):
        """Anonymous and shared memory is what a process holds beyond the files it maps; VmHWM counts those too."""
        while True:
            try:
                text = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                return
            kilobytes = {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line.endswith("kB")}
            if "VmHWM" not in kilobytes:
                return
            anonymous = int(kilobytes["RssAnon"]) + int(kilobytes["RssShmem"])
            self.anonymous = max(self.anonymous, 1024 * anonymous)
            self.resident = max(self.resident, 1024 * int(kilobytes["VmHWM"]))
            time.sleep(0.02)


def cpu_seconds():
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
