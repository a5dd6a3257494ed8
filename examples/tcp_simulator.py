"""A TCP service on localhost runs simulations, several at once; some answers never come."""

from __future__ import annotations

import argparse
import json
import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dopaminergic import AskTell, VectorDopamine
from dopaminergic.trials import Trial

TIMES = np.linspace(0, 4, 40)
MEASURED = 2.0 * np.exp(-0.7 * TIMES) * np.cos(3.0 * TIMES + 0.5)  # by 4 numbers that we look for


class Service(socketserver.StreamRequestHandler):
    """Reads weights, and writes the squared misses of a damped oscillation."""

    runs = 0

    def handle(self) -> None:
        """Answer one question, though 1 of 50 answers is cut and another one late."""
        Service.runs += 1
        time.sleep(0.5 if Service.runs % 50 == 30 else 0)  # longer than the client waits
        size, decay, speed, phase = json.loads(self.rfile.readline())
        misses = size * np.exp(-decay * TIMES) * np.cos(speed * TIMES + phase) - MEASURED
        text = json.dumps((misses**2).tolist())[: 9 if Service.runs % 50 == 10 else None]
        self.wfile.write(text.encode() + b"\n")


def simulate(trial: Trial) -> tuple[int, list[float] | None]:
    try:
        with socket.create_connection(("localhost", server.server_address[1]), 0.25) as line:
            line.sendall(json.dumps(trial.weights.tolist()).encode() + b"\n")
            return trial.number, json.loads(line.makefile().readline())
    except (OSError, ValueError):
        return trial.number, None  # lost


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="of 6 simulations each (40)")
    steps = parser.parse_args().steps
    asker = AskTell(np.array([1.0, 0.5, 2.5, 0.0]), VectorDopamine, sigma=0.001, directions=4)
    server = socketserver.ThreadingTCPServer(("localhost", 0), Service)
    with server, ThreadPoolExecutor(4) as pool:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        while asker.optimizer.progress.step < steps:
            for number, losses in pool.map(simulate, asker.ask(4)):
                asker.forget(number) if losses is None else asker.tell(number, losses)
        server.shutdown()
    answers = f"{asker.optimizer.forward_passes} answers to {Service.runs} questions"
    print(f"after {answers}: {asker.weights.round(3)}, squared miss {asker.best.loss:.1e}")
