"""Compilers run in a process of their own: one cannot be unloaded, nor told anything later."""

from __future__ import annotations

import os
import subprocess
import sys


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with everything that can be imported here."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def aot(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return python("-m", "jspec.aot", *arguments)
