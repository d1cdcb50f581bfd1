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
    PythonMutant(
        "payments: a key that was used before a restore is a dead end",
        "worker/payments",
        "        if refused.code != KEY_REUSED:\n",
        "        if refused.code:\n",
        "worker",
    ),
    PythonMutant(
        "payments: the longer key is the same for every deadline",
        "worker/payments",
        'await _once(open_session, f"payment-{name}-open", deadline)',
        'await _once(open_session, f"payment-{name}-open", "again")',
        "worker",
    ),
]
