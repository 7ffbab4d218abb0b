#!/usr/bin/env python3
"""What the guest of the ingest benchmark does, with the Python of its own root image. make_images.py starts it there.

    guest_day.py change NUMBER     a few days: logs, a database; then it ends
    guest_day.py live              says "guest: warm" when memory is in use, and goes on until the machine ends
"""

import gzip
import os
import random
import shutil
import sqlite3
import sys
import time

LOG = "/var/log/syslog"
DATABASE = "/var/lib/app/data.db"
UPDATED = 0.1  # Of the rows, in a change.
CACHED_BYTES = 1200 << 20  # More than there is memory: what is left of it is full of them.
HEAP_BYTES = 100 << 20


def log_lines(source, size):
    """Log-like text, about `size` bytes."""
    words = ["session", "opened", "closed", "unit", "started", "failed", "error", "device", "eth0", "root", "kernel:"]
    lines = []
    while size > 0:
        lines.append(f"Nov 21 {source.randrange(24):02}:{source.randrange(60):02} host " + " ".join(source.choices(words, k=9)) + "\n")
        size -= len(lines[-1])
    return "".join(lines).encode()


def update_database(source, count):
    database = sqlite3.connect(DATABASE)
    (rows,) = database.execute("SELECT max(id) FROM record").fetchone()
    for number in source.sample(range(1, rows + 1), min(count, rows)):
        database.execute("UPDATE record SET content = ? WHERE id = ?", (source.randbytes(500) + b"updated " * 170, number))
    database.commit()
    database.close()


def change(number):
    source = random.Random(number)
    size = os.path.getsize(DATABASE)
    with open(LOG, "ab") as log:
        log.write(log_lines(source, size // 4))
    if number == 2:  # logrotate.
        with open(LOG, "rb") as log, gzip.open(LOG + ".1.gz", "wb") as rotated:
            shutil.copyfileobj(log, rotated)
        open(LOG, "wb").close()
    update_database(source, int(size / 2048 * UPDATED))


def files():
    return [os.path.join(directory, name) for top in ("/usr", "/lib", "/bin") for directory, _, names in os.walk(top)
            for name in names]


def read_files(source, paths, size):
    """Into the page cache."""
    while size > 0:
        path = source.choice(paths)
        if not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                size -= len(chunk)


def grow_heap(source, paths, size):
    """What a program makes of its input: many small objects."""
    heap = []
    while size > 0:
        path = source.choice(paths)
        if not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            words = file.read(1 << 20).split()
        heap.append({word: index for index, word in enumerate(words)})
        size -= sum(len(word) + 33 + 100 for word in heap[-1])
    return heap


def live():
    source = random.Random(1)
    paths = sorted(files())
    read_files(source, paths, CACHED_BYTES)
    heap = grow_heap(source, paths, HEAP_BYTES)
    print("guest: warm", flush=True)
    while True:
        heap[source.randrange(len(heap))] = grow_heap(source, paths, 1 << 18)[0]
        read_files(source, paths, 1 << 20)
        update_database(source, 20)
        with open(LOG, "ab") as log:
            log.write(log_lines(source, 4096))
        time.sleep(1)


if __name__ == "__main__":
    if sys.argv[1] == "live":
        live()
    else:
        change(int(sys.argv[2]))
