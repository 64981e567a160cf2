"""A backend for mido that keeps what is sent to its ports: what MIDO_BACKEND or `mido.set_backend` may name."""

import os
import time

from mido.ports import BaseOutput

NAMES = ["Grand Piano", "Upright Piano", "Organ"]
SENT = []  # (second, name of the port, message)


class Output(BaseOutput):
    def _open(self, virtual=False, **_):
        if not virtual and self.name not in NAMES:
            raise OSError(f"unknown port {self.name!r}")
        self.is_virtual = virtual

    def _send(self, message):
        if os.environ.get("UNPLUGGED_AFTER") == str(len(SENT)):
            raise OSError("no such device")
        SENT.append((time.monotonic(), self.name, message))
        if "RECORDING" in os.environ:
            with open(os.environ["RECORDING"], "a") as file:
                file.write(f"{message}\n")


def get_devices(**_):
    return [{"name": name, "is_input": False, "is_output": True} for name in NAMES]
