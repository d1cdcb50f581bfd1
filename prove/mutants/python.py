"""The ways to break the Python code, one rule at a time."""

from __future__ import annotations

from prove.mutants.kinds import PythonMutant

PYTHON_MUTANTS = [
    PythonMutant(
        "postgres: another server on the same port counts as ours",
        "dev/postgres",
        "                if answering == (str(self._cluster),):\n",
        "                if answering:\n",
        "embedded",
    ),
    PythonMutant(
        "ports: one that was given is given again",
        "processes",
        "            _given_ports.append(name)\n",
        "            name.close()\n",
        "processes",
    ),
]
